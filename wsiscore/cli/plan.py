"""``wsiscore score --dry-run``: the options in effect, the slides, and what they are going to cost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from wsiscore.cli.table import print_json

if TYPE_CHECKING:
    from wsiscore.pipeline.cost import Cost
    from wsiscore.pipeline.options import ScoreOptions
    from wsiscore.pipeline.plan import Plan

__all__ = ["COLUMNS", "print_plan"]

COLUMNS = (
    *("path", "format", "width_px", "height_px", "mpp", "regions", "area_mm2", "tiles", "tile_px"),
    *("seconds", "disk_mb", "error"),
)
"""Columns of the table of slides."""
_SOURCES = {ParameterSource.COMMANDLINE: "given", ParameterSource.DEFAULT_MAP: "configuration file"}


def print_plan(jobs: Iterable[tuple[Path, ScoreOptions]], given: ScoreOptions, *, as_json: bool) -> int:
    """Print what a run is going to do, and return the exit status: 1 if a slide cannot be scored.

    The options go to standard error, as the configuration file has them, the slides to standard output. Nothing is
    written but a temporary folder, in which the model scores two rendered slides if it is to run at all.
    """
    from wsiscore.pipeline.cost import measure_cost
    from wsiscore.pipeline.job import OUT
    from wsiscore.pipeline.plan import cost_text, existing, plan_slide

    _print_options()
    if not as_json:
        click.echo("\t".join(COLUMNS))
    plans, cost = [], None
    for path, options in jobs:
        plans.append(plan := plan_slide(path, options))
        if plan.tiles and cost is None:
            cost = measure_cost(given)
        _print_slide(plan, cost, as_json=as_json)
    out = given.out or OUT
    free = shutil.disk_usage(existing(out)).free / 1e9
    click.echo(f"wsiscore: {cost_text(plans, cost)}; {free:.3g} GB are free in {out}", err=True)
    return int(any(plan.error for plan in plans))


def _print_slide(plan: Plan, cost: Cost | None, *, as_json: bool) -> None:
    values: dict[str, Any] = {**plan.to_json(), "seconds": None, "disk_mb": None}
    if plan.tiles and cost:
        values["seconds"] = round(cost.seconds(plan.area_mm2), 1)
        values["disk_mb"] = round(cost.megabytes(plan.area_mm2), 2)
    if as_json:
        print_json({name: values[name] for name in COLUMNS})
    else:
        click.echo("\t".join("-" if (value := values[name]) is None else _text(value) for name in COLUMNS))


def _print_options() -> None:
    """Print the options of the command as its table of the configuration file, with where each value is from."""
    from wsiscore.models.store import default_model

    context = click.get_current_context()
    click.echo(f"[{context.info_name}]", err=True)
    for param in context.command.params:
        value = context.params.get(param.name or "")
        value = default_model() if param.name == "model" and value is None else value
        names = [opt for opt in param.opts if opt.startswith("--")]
        if isinstance(param, click.Option) and names and value not in (None, (), False, "") and param.name != "dry_run":
            source = context.get_parameter_source(param.name or "")
            text = json.dumps(value, default=str, ensure_ascii=False)
            click.echo(
                f"{names[0][2:]} = {text}  # {_SOURCES.get(source, 'default') if source else 'default'}", err=True
            )


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
