"""Calibration: the rules of a model chosen on a laboratory's own annotated pictures, with a cross-validated error."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import shapely

from wsiscore.cells.rules import CenterRules
from wsiscore.errors import ModelError, OutputError, TruthError
from wsiscore.evaluation.detection.choose import Counts, Picture, Summary, best_rules, count_cells, summarise
from wsiscore.evaluation.detection.files import read_true_cells
from wsiscore.evaluation.detection.rois import find_regions
from wsiscore.evaluation.detection.truth import Kind, required_mpp
from wsiscore.evaluation.images.pairs import is_mosaic
from wsiscore.evaluation.tables import Table, warn_about
from wsiscore.models.card import INDEX_ERROR, Card, Measurement, read_card
from wsiscore.models.store import find_model, write_card
from wsiscore.mosaic import Mosaic
from wsiscore.roi.annotations import read_rois

__all__ = ["Calibrated", "annotated_pictures", "calibrate"]

_MOSAIC = "mosaic.ome.zarr"
_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(2, 17))
_POSITIVE_ODS = (*(round(0.02 * step, 2) for step in range(2, 11)), 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)
_HEADER = ("picture", "rules", "f1", "precision", "recall", "true_index", "found_index", "index_error")


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a calibration found.

    Parameters
    ----------
    rules
        Chosen on all pictures; those of the model if the choice has no lower loss on pictures left out of it.
    kept
        Whether they are the model's own.
    before, after
        Measures of the model's own rules and of the chosen ones on all pictures.
    tested
        Of each picture under rules that it had no part in: those chosen on all others, or the model's own if these
        are kept. None for a single picture.
    table
        A line for each picture under the rules of the model, left out, and under the chosen ones.
    """

    rules: CenterRules
    kept: bool
    before: Summary
    after: Summary
    tested: tuple[Counts, ...] | None
    table: Table


def annotated_pictures(
    predicted: Iterable[Path],
    truth: Path,
    *,
    mpp: float | None = None,
    types: Mapping[int, Kind] | None = None,
    regions: Path | None = None,
) -> list[Picture]:
    """Find scored slides with their annotations; arguments as for `evaluate_cells`.

    Raises
    ------
    TruthError
        If there is no mosaic or no truth.
    """
    mosaics: dict[str, Path] = {}
    for path in predicted:
        found = (
            [path] if is_mosaic(path / _MOSAIC) else [at for at in sorted(path.glob("*/")) if is_mosaic(at / _MOSAIC)]
        )
        if not found:
            raise TruthError(f"{path} holds no {_MOSAIC}; give the output of `wsiscore score`")
        mosaics |= {at.absolute().name: at / _MOSAIC for at in found}
    outlines = find_regions(regions, list(mosaics)) if regions else {}
    opened = {name: Mosaic.open(path) for name, path in mosaics.items()}
    slides = [mosaic.tiles.slide for mosaic in opened.values()]
    known, _ = read_true_cells(
        truth, list(mosaics), mpp=mpp, types=types or {}, slides=slides, regions=list(outlines.values())
    )
    warn_about("left out, no truth", sorted(set(mosaics) - set(known)))
    return [
        Picture(name, opened[name], cells, _outlines(outlines.get(name), mpp))
        for name, cells in known.items()
        if not regions or name in outlines
    ]


def _outlines(path: Path | None, mpp: float | None) -> tuple[shapely.Geometry, ...]:
    return tuple(roi.outline_um for roi in read_rois(path, mpp=required_mpp(mpp, path))) if path else ()


def calibrate(
    pictures: Sequence[Picture], model: str | Path, out: Path, *, radius_um: float, command: str, name: str
) -> Calibrated:
    """Choose threshold and positivity limit on annotated pictures, and write the model with them.

    Parameters
    ----------
    pictures
        Scored with the model.
    model
        Name or folder.
    out
        Folder of the new model: the same weights, and a card with the chosen rules, the cross-validated error in
        `Card.tested_on` and that of the final choice in `Card.chosen_on`.
    radius_um
        Greatest distance of matched cells.
    command
        The command line, for the card.
    name
        Name of the set of pictures.

    Raises
    ------
    ModelError
        If the model does not give maps of cell centres, or the pictures were scored with other weights.
    TruthError
        If the truth of no picture has cells.
    OutputError
        If `out` is the model's own folder.
    """
    folder = find_model(model)
    card = read_card(folder)
    own = card.spec.rules
    if not isinstance(own, CenterRules):
        raise ModelError(f"{card.name} gives {card.spec.output}; wanted a model of cell centres")
    if out.resolve() == folder.resolve():
        raise OutputError(f"{out} is the folder of the model itself; give another one")
    _check_model(pictures, card)
    used = [picture for picture in pictures if picture.truth.counted.any()]
    if not used:
        raise TruthError("the truth of no picture has cells; nothing can be chosen")
    found = calibrated(used, own, radius_um)
    write_card(out, _card(card, found, out.absolute().name, name, len(used), command))
    if card.weights:
        shutil.copyfile(folder / card.weights.file, out / card.weights.file)
    return found


def calibrated(pictures: Sequence[Picture], own: CenterRules, radius_um: float) -> Calibrated:
    """Choose threshold and class of cells on annotated pictures; see `calibrate`."""
    thresholds = sorted({*_THRESHOLDS, own.threshold})
    limits = list(dict.fromkeys((own.positive_od, *_POSITIVE_ODS)))
    sures = sorted({own.sure, 1.0})
    counts = [
        count_cells(picture, own, thresholds=thresholds, positive_ods=limits, radius_um=radius_um, sures=sures)
        for picture in pictures
    ]
    rules, unchanged = best_rules([_table(counts)], own), tuple(at[own] for at in counts)
    tested = None
    parts: dict[str, Sequence[Counts]] = {"model": unchanged}
    if len(counts) > 1:
        left = [best_rules([_table([at for at in counts if at is not one])], own) for one in counts]
        tested = parts["left out"] = tuple(one[chosen] for one, chosen in zip(counts, left, strict=True))
        if summarise(tested).loss >= summarise(unchanged).loss:
            rules, tested = own, unchanged
    parts["chosen"] = [at[rules] for at in counts]
    rows = [
        _row(picture.name, what, summarise([count]), count)
        for what, each in parts.items()
        for picture, count in zip(pictures, each, strict=True)
    ]
    totals = [_row("total", what, summarise(each), None) for what, each in parts.items()]
    before, after = summarise(parts["model"]), summarise(parts["chosen"])
    return Calibrated(rules, rules == own, before, after, tested, [_HEADER, *rows, *totals])


def _table(counts: Sequence[Mapping[CenterRules, Counts]]) -> dict[CenterRules, list[Counts]]:
    return {rules: [at[rules] for at in counts] for rules in counts[0]}


def _row(name: str, what: str, measures: Summary, count: Counts | None) -> list[str]:
    indices = (count.true_index, count.found_index) if count else (np.nan, np.nan)
    return [
        name,
        what,
        *(f"{value:.3f}" for value in (measures.f1, measures.precision, measures.recall)),
        *(f"{value:.1f}" for value in (*indices, measures.index_error)),
    ]


def _check_model(pictures: Sequence[Picture], card: Card) -> None:
    wanted = card.provenance()["weights_sha256"]
    for picture in pictures:
        made_by = picture.mosaic.about["model"]
        if made_by.get("weights_sha256") != wanted:
            raise ModelError(
                f"{picture.mosaic.path} was made by {made_by.get('name')!r} with other weights than {card.name!r};"
                " score the slides with the model first"
            )


def _card(card: Card, found: Calibrated, name: str, set_name: str, n: int, command: str) -> Card:
    """Return the card of the calibrated model."""
    done = "compared with others and kept" if found.kept else "calibrated"
    tested: tuple[Measurement, ...] = ()
    what = f"{set_name}, {n} pictures"
    if found.tested:
        measures = summarise(found.tested)
        errors = tuple(round(at.index_error, 3) for at in found.tested if np.isfinite(at.index_error))
        apart = f"{what}, each under rules it had no part in"
        tested = (Measurement(apart, "detection F1", round(measures.f1, 4), command),)
        if errors:
            tested += (Measurement(apart, INDEX_ERROR, round(measures.index_error, 3), command, errors),)
    chosen: tuple[Measurement, ...] = (Measurement(what, "detection F1", round(found.after.f1, 4), command),)
    if np.isfinite(found.after.index_error):
        chosen += (Measurement(what, INDEX_ERROR, round(found.after.index_error, 3), command),)
    return replace(
        card,
        name=name,
        description=f"{card.description} Its rules were {done} on {n} pictures of {set_name}.",
        spec=replace(card.spec, rules=found.rules),
        chosen_on=chosen,
        tested_on=tested,
    )
