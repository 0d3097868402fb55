#!/bin/bash
# Score a folder of slides by an array of Slurm jobs, each a part of the slides:
#
#     sbatch --array=1-8 slurm-array.sh SLIDES RESULTS [OPTIONS OF wsiscore score]
#
# A job that failed or was killed is given again, and continues:
#
#     SHARDS=8 sbatch --array=3 slurm-array.sh SLIDES RESULTS
#
#SBATCH --job-name=wsiscore
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=04:00:00
set -euo pipefail
slides=$1 results=$2
shift 2
exec wsiscore score "$slides"/*.svs --out "$results" \
  --shard "$SLURM_ARRAY_TASK_ID/${SHARDS:-$SLURM_ARRAY_TASK_COUNT}" \
  --threads "${SLURM_CPUS_PER_TASK:-1}" "$@"
