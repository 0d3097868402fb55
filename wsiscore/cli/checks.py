"""What is wrong for every slide of a run, found before the first is read; click.BadParameter by each function."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import click

from wsiscore.engines.choice import Engine, Precision, choose
from wsiscore.errors import ModelError, RoiError
from wsiscore.files import one_line

__all__ = ["check_device", "check_engine", "check_out", "check_roi"]


def check_device(name: str) -> None:
    """Refuse a device that this computer does not have."""
    from wsiscore.networks.generator import pick_device

    try:
        pick_device(name)
    except ModelError as error:
        raise click.BadParameter(one_line(str(error)), param_hint="--device") from error


def check_engine(name: Engine, precision: Precision) -> None:
    """Refuse an engine that is not installed, or a precision that it does not have."""
    try:
        choose(name, precision, described=True)
    except ModelError as error:
        raise click.BadParameter(one_line(str(error)), param_hint="--engine") from error


def check_out(folder: Path | None) -> None:
    """Refuse a folder that cannot be made or written to; nothing is made."""
    from wsiscore.pipeline.plan import existing

    there = existing(folder or Path())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "cannot be written to" if there.is_dir() else "is not a folder"
        raise click.BadParameter(f"{there} {why}; choose another folder", param_hint="-o")


def check_roi(file: Path, classes: Sequence[str], exclude: Sequence[str]) -> None:
    """Refuse an annotation file that cannot be read."""
    from wsiscore.roi.annotations import read_rois

    log = logging.getLogger("wsiscore")
    log.disabled = True  # its warnings come with the slide
    try:
        read_rois(file, mpp=1.0, classes=classes, exclude=exclude)
    except RoiError as error:
        raise click.BadParameter(one_line(str(error)), param_hint="--roi") from error
    finally:
        log.disabled = False
