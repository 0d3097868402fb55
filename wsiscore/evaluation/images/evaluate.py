"""Evaluation of pictures, masks and virtual stains: from folders to tables."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from wsiscore.errors import ModelError
from wsiscore.evaluation.detection.truth import Kind
from wsiscore.evaluation.images.features import FeatureNetwork
from wsiscore.evaluation.images.overlap import MASKS, compare_nuclei, read_nucleus_masks
from wsiscore.evaluation.images.pairs import Pixels, find_picture_pairs, read_pair, same_size
from wsiscore.evaluation.images.similarity import (
    compare_pictures,
    dists,
    frechet_distance,
    hash_values,
    kernel_distance,
)
from wsiscore.evaluation.images.staining import (
    CUTS_OD,
    INTENSITIES,
    THRESHOLDS,
    count_nuclei,
    dab_class,
    membrane_errors,
)
from wsiscore.evaluation.tables import (
    Table,
    csv_text,
    format_number,
    mean,
    means_of,
    rows_of,
    summary_rows,
    warn_about,
    write_text,
)
from wsiscore.models.store import default_model, load_model

__all__ = ["MEASURES", "evaluate_images", "evaluate_masks", "evaluate_stain"]

_log = logging.getLogger("wsiscore")

_OF_PIXELS = ("mse", "psnr", "ssim", "css")
_OF_LAYERS = ("phv", "dists")
_OF_SETS = ("fid", "kid")
MEASURES = (*_OF_PIXELS, *_OF_LAYERS, *_OF_SETS)
"""Names of the measures of pictures."""


def evaluate_images(
    predicted: Path,
    truth: Path,
    *,
    measures: Sequence[str] = (),
    features: Path | None = None,
    device: str = "auto",
    out: Path | None = None,
) -> Table:
    """Compare predicted pictures with the true ones.

    Parameters
    ----------
    predicted, truth
        See `pairs.find_picture_pairs`.
    measures
        Names from `MEASURES`; by default all that are possible with or without `features`.
    features
        Network for PHV, DISTS, FID and KID; see `features.FeatureNetwork`.
    device
        Device of the network.
    out
        Folder for ``images.csv`` and ``summary.csv``; None writes nothing.

    Returns
    -------
    list
        The header, a row for each picture, and the total: the means, and FID and KID of the two sets.

    Raises
    ------
    TruthError
        If the pictures have no stem in common, or a pair differs in size.
    SlideError
        If one cannot be read.
    ModelError
        If a measure needs a network and none is given, or the network cannot be used.
    OutputError
        If a file cannot be written.
    """
    wanted = [name for name in MEASURES if name in (measures or (MEASURES if features else _OF_PIXELS))]
    of_network = [name for name in wanted if name not in _OF_PIXELS]
    if of_network and not features:
        raise ModelError(f"{', '.join(of_network)} need a feature network; give a TorchScript file with --features")
    pairs = find_picture_pairs(predicted, truth)
    network = FeatureNetwork(features, device) if features and of_network else None
    images: list[tuple[str, dict[str, float]]] = []
    vectors: list[tuple[np.ndarray, np.ndarray]] = []
    for pair in tqdm(pairs, desc="compare", unit="picture", disable=None, leave=False):
        found, true = read_pair(pair)
        values = compare_pictures(found, true) if set(wanted) & set(_OF_PIXELS) else {}
        if network:
            of_layers, both = _to_network(network, found, true, needed=bool(set(measures) & set(_OF_LAYERS)))
            values |= of_layers
            vectors.append(both)
        images.append((pair.stem, {name: value for name, value in values.items() if name.split("_")[0] in wanted}))
    total = means_of(images) | _of_sets(vectors, [name for name in _OF_SETS if name in wanted])
    rows = rows_of(images, total)
    _save(out, {"images.csv": rows, "summary.csv": summary_rows({"pictures": len(images), **total})})
    return rows


def _to_network(
    network: FeatureNetwork, found: Pixels, true: Pixels, *, needed: bool
) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray]]:
    """Return PHV and DISTS of a pair, if the network has maps of layers, and the vectors of both pictures."""
    (of_found, vector_found), (of_true, vector_true) = network(found), network(true)
    if not of_true:
        if needed:
            raise ModelError(f"{network.path} returns a vector only; PHV and DISTS need maps of layers (1, C, h, w)")
        return {}, (vector_found, vector_true)
    hashes = hash_values(of_found, of_true)
    pictures = [np.moveaxis(pixels, -1, 0).astype(np.float32) / 255 for pixels in (found, true)]
    channels, weights = 3 + sum(len(layer) for layer in of_true), network.weights()
    if weights and {len(side) for side in weights} != {channels}:
        raise ModelError(
            f"{network.path} has {len(weights[0])} alpha and {len(weights[1])} beta for DISTS; wanted {channels} each, "
            "for red, green, blue and the channels of its layers"
        )
    values = {
        "phv": mean(hashes),
        **{f"phv_{number}": value for number, value in enumerate(hashes, start=1)},
        "dists": dists([pictures[0], *of_found], [pictures[1], *of_true], weights),
    }
    return values, (vector_found, vector_true)


def _of_sets(vectors: Sequence[tuple[np.ndarray, np.ndarray]], wanted: Sequence[str]) -> dict[str, float]:
    if not wanted:
        return {}
    found, true = (np.stack(side) for side in zip(*vectors, strict=True))
    if len(found) < 2:
        _log.warning("no %s of a single picture", " or ".join(wanted))
    elif len(found) <= found.shape[1] and "fid" in wanted:
        _log.warning("fid is too high: %d pictures for %d features", *found.shape)
    measure = {"fid": frechet_distance, "kid": kernel_distance}
    return {name: measure[name](found, true) for name in wanted}


def evaluate_masks(
    predicted: Path, truth: Path, *, types: Mapping[int, Kind] | None = None, out: Path | None = None
) -> Table:
    """Compare predicted masks of nuclei with the true ones.

    Parameters
    ----------
    predicted, truth
        See `pairs.find_picture_pairs`, and `overlap.read_nucleus_masks` for the formats.
    types
        Classes of the numbers of a type map.
    out
        Folder for ``masks.csv`` and ``summary.csv``; None writes nothing.

    Returns
    -------
    list
        The header, a row for each picture, and the total: the mean of the defined values of each measure.

    Raises
    ------
    TruthError
        If masks cannot be read, have no stem in common, or a pair differs in size.
    OutputError
        If a file cannot be written.
    """
    images, unclassed = [], []
    for pair in find_picture_pairs(predicted, truth, MASKS):
        found, true = read_nucleus_masks(pair.predicted, types or {}), read_nucleus_masks(pair.truth, types or {})
        same_size(pair, found.positive, true.positive)
        images.append((pair.stem, compare_nuclei(found, true)))
        unclassed += [] if found.classed and true.classed else [pair.stem]
    warn_about("all nuclei together, one side has no classes", unclassed)
    total = means_of(images)
    rows = rows_of(images, total)
    _save(out, {"masks.csv": rows, "summary.csv": summary_rows({"pictures": len(images), **total})})
    return rows


def evaluate_stain(
    predicted: Path,
    truth: Path,
    *,
    mpp: float | None = None,
    cuts_od: Sequence[float] = CUTS_OD,
    device: str = "auto",
    out: Path | None = None,
) -> Table:
    """Compare virtually stained pictures with really stained ones.

    Parameters
    ----------
    predicted, truth
        See `pairs.find_picture_pairs`.
    mpp
        Micrometres per pixel of files without a resolution.
    cuts_od
        As in `staining.dab_class`.
    device
        Device of the model that counts nuclei.
    out
        Folder for ``stain.csv``, ``thresholds.csv``, ``classes.csv`` and ``summary.csv``; None writes nothing.

    Returns
    -------
    list
        The header, a row for each picture, and the total: means of the measures, and the fraction of equal classes.

    Raises
    ------
    TruthError
        If the pictures have no stem in common, or a pair differs in size.
    SlideError
        If one cannot be read, or its resolution is unknown.
    OutputError
        If a file cannot be written.
    """
    pairs = find_picture_pairs(predicted, truth)
    finder = load_model(default_model(), device)
    images, errors, classes = [], [], []
    for pair in tqdm(pairs, desc="compare", unit="picture", disable=None, leave=False):
        found, true = read_pair(pair)
        errors.append(membrane_errors(found, true))
        classes.append((dab_class(true, cuts_od), dab_class(found, cuts_od)))
        (n_found, area_mm2), (n_true, _) = (count_nuclei(path, mpp, finder) for path in (pair.predicted, pair.truth))
        values = {
            "true_nuclei": n_true,
            "found_nuclei": n_found,
            "nuclei_error": abs(n_found - n_true),
            "density_error": abs(n_found - n_true) / area_mm2,
            "membrane_error": float(errors[-1][0].mean()),
            "membrane_area_error": float(np.abs(errors[-1][1]).mean()),
            "true_class": classes[-1][0],
            "found_class": classes[-1][1],
            "class_agreement": int(classes[-1][0] == classes[-1][1]),
        }
        images.append((pair.stem, values))
    total = means_of(images) | dict.fromkeys(("true_class", "found_class"), math.nan)
    rows = rows_of(images, total)
    tables = {
        "stain.csv": rows,
        "thresholds.csv": _thresholds(np.array(errors), np.array(classes)[:, 0]),
        "classes.csv": _classes(classes),
        "summary.csv": summary_rows({"pictures": len(images), **total}),
    }
    _save(out, tables)
    return rows


def _thresholds(errors: np.ndarray, classes: np.ndarray) -> Table:
    """Return the membrane errors, (pictures, 2, thresholds), by threshold, for all pictures and by true class."""
    rows: Table = [("true_class", "pictures", "threshold", "membrane_error", "area_difference")]
    groups = [("all", errors), *((INTENSITIES[number], errors[classes == number]) for number in np.unique(classes))]
    for name, own in groups:
        means = own.mean(axis=0)
        rows += [
            [name, f"{len(own)}", f"{threshold:g}", format_number(float(error)), format_number(float(more))]
            for threshold, error, more in zip(THRESHOLDS, *means, strict=True)
        ]
    return rows


def _classes(classes: Sequence[tuple[int, int]]) -> Table:
    """Return the confusion matrix of true and found classes."""
    counts = [
        [f"{classes.count((true, found))}" for found in range(len(INTENSITIES))] for true in range(len(INTENSITIES))
    ]
    return [
        ("true", *(f"found {name}" for name in INTENSITIES)),
        *([n, *row] for n, row in zip(INTENSITIES, counts, strict=True)),
    ]


def _save(out: Path | None, tables: Mapping[str, Table]) -> None:
    for name, rows in tables.items():
        if out is not None:
            write_text(out / name, csv_text(rows))
