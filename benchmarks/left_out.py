"""Leave one laboratory out: rules chosen on all sets of annotated pictures but one, and reported on that one.

    python benchmarks/left_out.py sets.toml OUT --model NAME|FOLDER [--baseline NAME|FOLDER ...]

Every picture is scored with `wsiscore score` into OUT first; what is there already is not scored again. Rules of the
model are chosen from a grid of threshold, radius, smoothing and positivity limit. Baselines keep the rules of their
cards. With ``--card`` the model's card is written into OUT too, with the rules chosen on all sets and both kinds of
measurements. ``sets.toml`` has a table for each set, with paths relative to it:

    [[set]]
    name = "a"
    title = "a laboratory"  # for the card
    pictures = "a/*.jpg"
    mpp = 0.25            # or the column mpp by name in an index.csv beside the pictures
    truth = "a/truth"     # as `wsiscore evaluate cells` reads it
    regions = "a/regions" # if cells are compared in some regions only
    radius = 6.0          # µm, of matched cells
    incomplete = true     # the truth lacks nuclei: recall and index only; or a list of such pictures
    types = "1=positive"  # of type maps
    dark = true           # truth are masks, 0 on nuclei, called <picture>_mask
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wsiscore.cells.find import rules_of
from wsiscore.cells.rules import CenterRules
from wsiscore.cli.options import types_of
from wsiscore.evaluation.detection.calibrate import annotated_pictures
from wsiscore.evaluation.detection.choose import Counts, Picture, Summary, best_rules, count_cells, summarise
from wsiscore.evaluation.detection.truth import Kind, TrueCells
from wsiscore.models.card import INDEX_ERROR, Measurement, read_card
from wsiscore.models.store import find_model, write_card
from wsiscore.mosaic import Mosaic
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.pipeline.steps import score_slide
from wsiscore.score import MIN_CELLS

RADII_UM, SMOOTH_UM = (1.5, 2.0, 2.5), (0.75, 1.0, 1.25)
THRESHOLDS = (0.2, 0.25, 0.3, 0.35)
SURES = (0.7, 0.8, 0.9, 0.95, 1.0)
POSITIVE_ODS = (0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.15)
LEAST_UM2 = 3.0  # area of a nucleus in a mask
HEADER = ("set", "n", "f1", "precision", "recall", "index_error", "agreement", "loss")

Table = dict[CenterRules, list[Counts]]


def picture_files(about: Mapping[str, Any], base: Path) -> Iterator[tuple[Path, float]]:
    """Yield the pictures of a set with their resolution."""
    files = sorted(base.glob(about["pictures"]))
    if not files:
        raise SystemExit(f"{about['name']}: no picture is called {base / about['pictures']}")
    resolutions: dict[str, float] = {}
    if "mpp" not in about:
        with (files[0].parent / "index.csv").open(encoding="utf-8", newline="") as file:
            resolutions = {row["name"]: float(row["mpp"]) for row in csv.DictReader(file)}
        files = [file for file in files if file.stem in resolutions]
    for file in files:
        yield file, float(about.get("mpp", 0)) or resolutions[file.stem]


def score(about: Mapping[str, Any], base: Path, out: Path, model: str) -> Path:
    """Score the pictures of a set; return the folder of the results."""
    folder = out / model.replace("/", "_") / about["name"]
    for file, mpp in picture_files(about, base):
        if not (folder / file.stem / "cells.parquet").exists():
            score_slide(file, ScoreOptions(out=folder, mpp=mpp, model=model, count="all"))
    return folder


def pictures_of(about: Mapping[str, Any], base: Path, folder: Path) -> list[Picture]:
    """Return the scored pictures of a set with their truth."""
    files = list(picture_files(about, base))
    if about.get("dark"):
        found = [
            Picture(file.stem, Mosaic.open(folder / file.stem / "mosaic.ome.zarr"), dark_cells(file, mpp))
            for file, mpp in files
        ]
    else:
        regions = base / about["regions"] if "regions" in about else None
        types = types_of(about.get("types", ""))
        found = []
        for mpp in sorted({mpp for _, mpp in files}):
            scored = [folder / file.stem for file, own in files if own == mpp]
            found += annotated_pictures(scored, base / about["truth"], mpp=mpp, types=types, regions=regions)
    incomplete = about.get("incomplete", False)
    lacking = {file.stem for file, _ in files} if incomplete is True else set(incomplete or ())
    return [replace(picture, complete=picture.name not in lacking) for picture in found]


def dark_cells(file: Path, mpp: float) -> TrueCells:
    """Return the components of 0 in the mask of a picture, of unknown class."""
    path = next(file.parent.glob(f"{file.stem}_mask.*"))
    mask = np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    mask = mask if mask.ndim == 2 else mask[..., 0]
    _, _, stats, middle = cv2.connectedComponentsWithStats(np.equal(mask, 0).astype(np.uint8))
    large = stats[1:, cv2.CC_STAT_AREA] * mpp**2 > LEAST_UM2
    return TrueCells.of((middle[1:][large] + 0.5) * mpp, [Kind.UNKNOWN] * int(large.sum()))


def grid_counts(pictures: Sequence[Picture], own: CenterRules, radius_um: float) -> Table:
    """Return the counts of each picture under every rule of the grid."""
    table: Table = {}
    for picture, radius, smooth in product(pictures, RADII_UM, SMOOTH_UM):
        rules = replace(own, radius_um=radius, smooth_um=smooth)
        found = count_cells(
            picture, rules, thresholds=THRESHOLDS, positive_ods=POSITIVE_ODS, radius_um=radius_um, sures=SURES
        )
        for tried, counts in found.items():
            table.setdefault(tried, []).append(counts)
    return table


def own_counts(picture: Picture, radius_um: float) -> Counts:
    """Return the counts of a picture under the rules its mosaic was made with."""
    rules = rules_of(picture.mosaic)
    if not isinstance(rules, CenterRules):
        raise SystemExit(f"{picture.mosaic.path} holds no cell centres")
    found = count_cells(
        picture, rules, thresholds=[rules.threshold], positive_ods=[rules.positive_od], radius_um=radius_um
    )
    return next(iter(found.values()))


def show(title: str, rows: Mapping[str, Sequence[Counts]]) -> None:
    """Print a table: a line for each set, and the means over them."""
    write = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n").writerow
    sys.stdout.write(f"# {title}\n")
    write(HEADER)
    summaries: dict[str, Summary] = {name: summarise(counts) for name, counts in rows.items()}
    for name, each in summaries.items():
        write((name, len(rows[name]), *numbers(each)))
    columns = np.array([numbers(each) for each in summaries.values()], float)
    write(("mean", len(rows), *np.nanmean(columns, axis=0).round(4)))
    sys.stdout.flush()


def numbers(each: Summary) -> tuple[float, ...]:
    """Return the columns of a summary."""
    return (
        round(each.f1, 4),
        round(each.precision, 4),
        round(each.recall, 4),
        round(each.index_error, 2),
        round(each.agreement, 3),
        round(each.loss, 4),
    )


def measurements(
    sets: Sequence[Mapping[str, Any]], rows: Mapping[str, Sequence[Counts]], model: str, chosen_on: str
) -> tuple[Measurement, ...]:
    """Return the entries of a card: recall of each set, F1 where its truth is complete, and the index."""
    command = f"python benchmarks/left_out.py sets.toml OUT --model {model} --card; rules chosen on {chosen_on}"
    found = []
    for about in sets:
        counts = rows[about["name"]]
        each, name = summarise(counts), f"{about.get('title', about['name'])}, {len(counts)} pictures"
        if any(at.complete for at in counts):
            found.append(Measurement(name, "detection F1", round(each.f1, 3), command))
        found.append(Measurement(name, "recall of annotated cells", round(each.recall, 3), command))
        # Of images with so few cells no call is made, and where the truth lacks nuclei the error is not the model's.
        whole = [at for at in counts if at.complete and at.tp + at.fn >= MIN_CELLS]
        errors = tuple(round(at.index_error, 2) for at in whole if np.isfinite(at.index_error))
        if np.isfinite(each.index_error):
            found.append(Measurement(name, INDEX_ERROR, round(each.index_error, 2), command, errors))
    return tuple(found)


def main() -> None:
    """Score, choose, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--baseline", action="append", default=[])
    parser.add_argument("--card", action="store_true")
    given = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    base = given.sets.parent
    sets = tomllib.loads(given.sets.read_text(encoding="utf-8"))["set"]
    card = read_card(find_model(given.model))
    own = card.spec.rules
    if not isinstance(own, CenterRules):
        raise SystemExit(f"{given.model} does not find cell centres")
    tables: dict[str, Table] = {}
    for about in sets:
        pictures = pictures_of(about, base, score(about, base, given.out, given.model))
        tables[about["name"]] = grid_counts(pictures, own, about.get("radius", 6.0))
    left: dict[str, list[Counts]] = {}
    for name, table in tables.items():
        rules = best_rules([other for each, other in tables.items() if each != name], own)
        left[name] = table[rules]
        sys.stdout.write(f"# left out {name}: {rules}\n")
    show(f"{given.model}, rules chosen on the other sets", left)
    rules = best_rules(list(tables.values()), own)
    rows = {name: table[rules] for name, table in tables.items()}
    show(f"{given.model}, rules chosen on all sets: {rules}", rows)
    if given.card:
        write_card(
            given.out,
            replace(
                card,
                spec=replace(card.spec, rules=rules),
                chosen_on=measurements(sets, rows, given.model, "all of these sets"),
                tested_on=measurements(sets, left, given.model, "the other sets"),
            ),
        )
    for baseline in given.baseline:
        rows = {}
        for about in sets:
            pictures = pictures_of(about, base, score(about, base, given.out, baseline))
            rows[about["name"]] = [own_counts(picture, about.get("radius", 6.0)) for picture in pictures]
        show(f"{baseline}, rules of its card", rows)


if __name__ == "__main__":
    main()
