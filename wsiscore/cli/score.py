"""``wsiscore score``: slides in, a table out."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsiscore.cells.rules import rule_fields
from wsiscore.cli import options
from wsiscore.cli.command import Command, quiet
from wsiscore.cli.plan import print_plan
from wsiscore.cli.table import json_lines, print_json
from wsiscore.errors import ManifestError
from wsiscore.score import CUTOFF

if TYPE_CHECKING:
    from wsiscore.pipeline.options import ScoreOptions
    from wsiscore.report.result import Entry

    Jobs = Iterable[tuple[Path, ScoreOptions]]

__all__ = ["score"]


@click.command(
    cls=Command,
    epilog="\b\nExample: wsiscore score slides/*.svs --cutoff 20 -o results > cohort.tsv\n"
    "Example: wsiscore score results/*/mosaic.ome.zarr --threshold 0.6\n"
    "Example: wsiscore score wsiscore-out/low/mosaic.ome.zarr --cells wsiscore-out/low/cells.geojson --author 'A Name'",
)
@options.of_slides_or_manifest
@options.of_model
@click.option(
    "--cutoff",
    type=options.FiniteRange(0, 100, min_open=True, max_open=True),
    default=CUTOFF,
    show_default=True,
    help="Index at and above which a slide is called high, %.",
)
@options.of_rules
@click.option(
    "--count",
    type=click.Choice(["tumour", "all"]),
    help="Nuclei that count, where the model tells the tumour's from others; by default all in regions that somebody "
    "drew, and the tumour's in found tissue.",
)
@click.option(
    "--keep",
    type=click.Choice(["all", "cells"]),
    default="all",
    show_default=True,
    help="What stays on disk: all maps, or the cells alone; without maps a slide cannot be scored again by other rules "
    "without running the model.",
)
@click.option("--csv", is_flag=True, help="Write the cells as cells.csv instead of cells.parquet.")
@click.option(
    "--cells",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Score these cells of a single mosaic instead of the model's: cells.geojson as corrected in QuPath.",
)
@click.option("--author", metavar="NAME", default="", help="Issue the report under this name; needed with --cells.")
@click.option(
    "--force", is_flag=True, help="Replace a report that somebody issued, or take --cells of which most are new."
)
@click.option(
    "--cluster",
    metavar="ADDRESS|local:N",
    help="Score over the workers of this dask scheduler, or by N processes of this machine: a slide a worker, or where "
    "there are fewer slides than workers, a part of a slide.",
)
@click.option(
    "--shard",
    metavar="I/N",
    callback=options.shard,
    help="Score the I-th of N parts of the slides, I from 1 to N, as in an array of jobs. The order of the slides does "
    "not matter.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Write nothing: print the options in effect, what is read of each slide, and about how long that takes.",
)
@json_lines
def score(
    inputs: tuple[str, ...],
    manifest: Path | None,
    cluster: str | None,
    shard: tuple[int, int] | None,
    dry_run: bool,
    json_lines: bool,
    **chosen: Any,
) -> None:
    """Score slides, tile lists or mosaics; print a line a slide.

    In a file or pipe the lines are tab-separated and have all columns; a terminal shows the first of them.

    Each slide gets a folder OUT/<stem>/ with report.html, overlay.jpg, score.json, cells.parquet, cells.geojson for
    QuPath, mosaic.ome.zarr and run.json; the cohort scores.csv and index.html. A mosaic is scored again without
    running the model, also with corrected cells (--cells, --author); the report that replaces is kept. A slide that
    fails is a line with its reason, and the others go on.
    """
    from wsiscore.pipeline.options import ScoreOptions

    chosen["author"] = " ".join(chosen["author"].split())
    if chosen["cells"] and not chosen["author"]:
        raise click.UsageError("--cells needs --author, the name of who corrected them")
    if chosen["cells"] and (manifest or len(inputs) != 1 or "-" in inputs):
        raise click.UsageError("--cells is of a single mosaic")
    rules = {name: value for name in rule_fields() if (value := chosen.pop(name)) is not None}
    model, also = _models(chosen["model"])
    here = cluster is None or cluster.startswith("local")
    given = ScoreOptions(rules=rules, also=also, **options.checked({**chosen, "model": model}, here=here))
    jobs = _jobs(inputs, manifest, given)
    if shard is not None:
        from wsiscore.pipeline.cohort import part_of

        jobs = part_of(list(jobs), *shard)
    if dry_run:
        raise SystemExit(print_plan(jobs, given, as_json=json_lines))
    raise SystemExit(_print_scores(jobs, cluster, given.threads, as_json=json_lines))


def _models(text: str | None) -> tuple[str | None, tuple[str, ...]]:
    """Return the model that is reported and those that it is compared with, of names or folders joined by commas.

    Raises
    ------
    click.BadParameter
        As `options.model_of`; or if two of them have one name, or one of several generates a picture.
    """
    if text is None or "," not in text or Path(text).is_dir():
        return options.model_of(text), ()
    from wsiscore.models.card import read_card
    from wsiscore.models.store import find_model

    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise click.BadParameter(f"{text!r} has an empty name; wanted a,b", param_hint="--model")
    models = [model for part in parts if (model := options.model_of(part)) is not None]
    cards = [read_card(find_model(model)) for model in models]
    names = [card.name for card in cards]
    for card in cards:
        if names.count(card.name) > 1:
            raise click.BadParameter(f"{card.name} is named twice; name different models", param_hint="--model")
        if card.spec.rules is None:
            raise click.BadParameter(
                f"{card.name} generates a virtual stain and finds no cells; leave it out", param_hint="--model"
            )
    return models[0], tuple(models[1:])


def _jobs(inputs: tuple[str, ...], manifest: Path | None, given: ScoreOptions) -> Jobs:
    """Return the slides to score, each with its options; a usage error if they cannot be read."""
    from wsiscore.pipeline.cohort import named_apart
    from wsiscore.pipeline.manifest import read_manifest

    if bool(inputs) == (manifest is not None):
        raise click.UsageError("give either slides, tile lists or mosaics, or a table of them with --manifest")
    if manifest is None:
        paths = options.paths_of(inputs, given.roi, given.slide)
        if "-" in inputs:
            return ((path, given) for path in paths)
        return named_apart([(path, given) for path in paths])
    if given.slide is not None:
        raise click.UsageError("--slide is of a single tile list or mosaic; a manifest has the paths of slides")
    if given.roi is not None:
        raise click.UsageError("--roi is of a single slide; give those of a manifest in its column 'roi'")
    try:
        return named_apart(read_manifest(manifest, given))
    except ManifestError as error:
        raise click.BadParameter(str(error), param_hint="--manifest") from error


def _print_scores(jobs: Jobs, cluster: str | None, threads: int | None, *, as_json: bool) -> int:
    """Print the table as it grows, write the cohort at the end, however that comes, and return the exit status."""
    from wsiscore.pipeline.cohort import score_slides, write_cohort
    from wsiscore.pipeline.executors import open_executor
    from wsiscore.report.statistics import HEADER, entry_json, entry_row

    at_terminal = sys.stdout.isatty()
    if not as_json:
        click.echo(short_line("slide") if at_terminal else "\t".join(HEADER))
    cohorts: defaultdict[Path, list[Entry]] = defaultdict(list)
    times = _Times(len(jobs) if isinstance(jobs, Sized) else 0)
    try:
        with open_executor(cluster, threads) as executor:
            for out, entry in score_slides(jobs, executor, progress=not quiet()):
                cohorts[out].append(entry)
                if as_json:
                    print_json(entry_json(entry))
                else:
                    click.echo(short_line(entry.slide, entry) if at_terminal else "\t".join(entry_row(entry)))
                if entry.score is None and sys.stderr.isatty() and not at_terminal:
                    click.echo(f"wsiscore: {entry.slide}: {entry.error}", err=True)
                if not quiet():
                    times.add(out, entry)
    finally:
        for out, entries in cohorts.items():
            write_cohort(out, entries)
            if sys.stderr.isatty() and not quiet():
                click.echo(f"Reports: {out / 'index.html'}", err=True)
    times.end()
    return int(any(_failed(entry) for entries in cohorts.values() for entry in entries))


def short_line(slide: str, entry: Entry | None = None) -> str:
    """Return what a terminal shows of a slide, or, without an entry, the names of the columns."""
    from wsiscore.report.statistics import readable

    if entry is None:
        columns, last = ("positive", "negative", "Ki67 index", "95 %"), "call"
    elif entry.score is None:
        return f"{slide:<20}  error: {entry.error}"
    else:
        total, decision = entry.score.total, entry.score.decision
        index, interval = readable(total.ki67_index, decimals=1, unit="%"), readable(*total.interval_95, decimals=1)
        columns = (f"{total.n_positive:,}", f"{total.n_negative:,}", index, interval)
        last = decision.call if decision.call in ("low", "high") else f"{decision.call}: {decision.reason}"
    return f"{slide:<20}{''.join(f'{text:>12}' for text in columns)}  {last}"


class _Times:
    """Says on standard error how long the slides take: what is left while a terminal shows it, and a line at the end.

    Parameters
    ----------
    of
        Number of slides, 0 if it is not known.
    """

    def __init__(self, of: int) -> None:
        self.of, self.done = of, 0
        self.runs: list[Mapping[str, Any]] = []
        self.began = time.perf_counter()

    def add(self, out: Path, entry: Entry) -> None:
        """Note a slide that is done."""
        from wsiscore.pipeline.bottleneck import time_left
        from wsiscore.pipeline.provenance import time_of

        self.done += 1
        if entry.score is not None and entry.folder and (run := time_of(out / entry.folder)):
            self.runs.append(run)
        if self.done < self.of and sys.stderr.isatty():
            click.echo(time_left(self.done, self.of, time.perf_counter() - self.began), err=True)

    def end(self) -> None:
        """Say where the time went."""
        from wsiscore.pipeline.bottleneck import summary

        if self.runs:
            click.echo(summary(self.runs, time.perf_counter() - self.began), err=True)


def _failed(entry: Entry) -> bool:
    return entry.score is None or entry.score.call == "unsuitable"
