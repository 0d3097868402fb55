#!/bin/bash
# Score slides over the nodes of one allocation; few large slides are split over its workers:
#
#     sbatch --ntasks=8 slurm-dask.sh SLIDES RESULTS [OPTIONS OF wsiscore score]
#
# wsiscore[cluster] must be installed, and SLIDES and RESULTS be seen by all nodes.
#
#SBATCH --job-name=wsiscore
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=2G
#SBATCH --time=04:00:00
set -euo pipefail
slides=$1 results=$2
shift 2
threads=${SLURM_CPUS_PER_TASK:-1}
work=$(mktemp -d "$PWD/wsiscore-dask.XXXXXX")
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT
dask scheduler --port 0 --no-dashboard --scheduler-file "$work/scheduler.json" &
while [ ! -s "$work/scheduler.json" ]; do sleep 0.2; done
address=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["address"])' "$work/scheduler.json")
srun dask worker "$address" --nthreads 1 --no-dashboard --local-directory "$work" &
wsiscore score "$slides"/*.svs --out "$results" --cluster "$address" --threads "$threads" "$@"
