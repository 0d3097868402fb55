"""``wsiscore doctor``: is this computer ready, and what does a cohort take."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsiscore.cli import options
from wsiscore.cli.command import Command
from wsiscore.cli.table import json_lines, print_json

if TYPE_CHECKING:
    from wsiscore.pipeline.doctor import Check

__all__ = ["doctor"]


@click.command(cls=Command, epilog="Example: wsiscore doctor slides --model hdab")
@options.slides("[SLIDE...]")
@click.option("-o", "--out", metavar="OUT", type=click.Path(path_type=Path), help="Folder that results are to go to.")
@options.mpp
@click.option("--model", metavar="NAME|FOLDER", help="Model of the speed test; by default the default model.")
@options.device
@json_lines
def doctor(
    inputs: tuple[str, ...], out: Path | None, mpp: float | None, model: str | None, device: str, json_lines: bool
) -> None:
    """Check this computer: programs, models, processor, memory, disk and speed; with slides, the time they take.

    The last line is "ready", or what to do. Exit status 0: ready; 1: not ready. The speed test scores 1.1 mm² of
    rendered tissue in a temporary folder. Nothing else is written.
    """
    from wsiscore.pipeline.cost import Cost
    from wsiscore.pipeline.doctor import cohort_checks, machine_checks, speed_checks
    from wsiscore.pipeline.options import ScoreOptions

    given = ScoreOptions(model=options.model_of(model), device=device, out=out, mpp=mpp)
    wrong: list[Check] = []

    def show(check: Check) -> None:
        wrong.extend([check] if check.state == "wrong" else [])
        if json_lines:
            print_json(asdict(check))
            return
        click.echo(f"{check.state:<6} {check.name:<10} {check.found}")
        if check.advice:
            click.echo(f"{'':<17} > {check.advice}")

    for check in machine_checks(given):
        show(check)
    for measured in speed_checks(given) if not wrong else ():
        if not isinstance(measured, Cost):
            show(measured)
        elif inputs:
            for check in cohort_checks(options.paths_of(inputs), given, measured):
                show(check)
    last = "ready" if not wrong else f"not ready: {'; '.join(f'{check.name}: {check.advice}' for check in wrong)}"
    click.echo(last, err=json_lines)
    raise SystemExit(bool(wrong))
