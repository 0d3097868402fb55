"""The effect of the scanner: the index of pictures recorded by two simulated scanners.

    python benchmarks/scanners.py sets.toml OUT [--model NAME|FOLDER]

``sets.toml`` is that of ``left_out.py``; the truth is not read. Each picture is recorded twice: resampled to a pixel
size within 5 percent, with its own saturation, gamma, white balance, sharpness, noise and JPEG quality. Both are scored
by `wsiscore score` with their true pixel size. Prints for each set the mean and median difference of the index in
points, the fraction of pictures within 1 point, and the fraction on the same side of 20 percent.
"""

from __future__ import annotations

import argparse
import csv
import logging
import math
import sys
import tomllib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from left_out import picture_files

from wsiscore.evaluation.detection.choose import CUTOFF
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.pipeline.steps import score_slide

FINEST_MPP = 0.15  # finer pictures are reduced to COARSER_MPP first
COARSER_MPP = 0.25
Picture = npt.NDArray[np.uint8]


def recorded(rgb: Picture, mpp: float, rng: np.random.Generator) -> tuple[Picture, float]:
    """Return a picture (H, W, 3) as a simulated scanner records it, and its pixel size in µm."""
    zoom = float(rng.uniform(0.95, 1.05))
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    value = np.asarray(cv2.resize(rgb.astype(np.float32), None, fx=zoom, fy=zoom, interpolation=method))
    grey = value.mean(axis=2, keepdims=True)
    value = grey + math.exp(rng.normal(0, 0.08)) * (value - grey)
    value = 255 * (np.clip(value, 0, 255) / 255) ** math.exp(rng.normal(0, 0.08))
    value *= 1 + rng.normal(0, 0.015, 3)
    if (sigma := float(rng.uniform(0, 0.8))) > 0.3:
        value = np.asarray(cv2.GaussianBlur(value, (0, 0), sigma))
    if rng.random() < 0.5:
        value += float(rng.uniform(0.2, 0.7)) * (value - cv2.GaussianBlur(value, (0, 0), 1.0))
    value += rng.normal(0, rng.uniform(0.3, 2), value.shape)
    picture = np.clip(value + 0.5, 0, 255).astype(np.uint8)
    coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(70, 95))])[1]
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8), mpp * rgb.shape[1] / picture.shape[1]


def indices(file: Path, mpp: float, folder: Path, model: str, seed: int) -> list[float]:
    """Return the index in percent by each of two scanners; nan without cells."""
    bgr = np.asarray(cv2.imread(str(file)), np.uint8)
    if mpp < FINEST_MPP:
        factor, mpp = mpp / COARSER_MPP, COARSER_MPP
        bgr = np.asarray(cv2.resize(bgr, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8)
    found = []
    for number in range(2):
        picture, own_mpp = recorded(bgr, mpp, np.random.default_rng([seed, number]))
        path = folder / "pictures" / f"{file.stem}-{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture)
        score = score_slide(
            path, ScoreOptions(out=folder / "scored", mpp=own_mpp, model=model, count="all", force=True)
        )
        found.append(score.total.ki67_index)
    return found


def main() -> None:
    """Record, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="ihcscoregan")
    given = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    write = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n").writerow
    write(("set", "n", "mean", "median", "within_1_point", "same_side"))
    for about in tomllib.loads(given.sets.read_text(encoding="utf-8"))["set"]:
        files = enumerate(picture_files(about, given.sets.parent))
        folder = given.out / about["name"]
        both = np.array([indices(file, mpp, folder, given.model, seed) for seed, (file, mpp) in files])
        apart, high = np.abs(both[:, 0] - both[:, 1]), both >= CUTOFF
        same = (high[:, 0] == high[:, 1]).mean()
        within = (apart <= 1).mean()
        numbers = (f"{value:.2f}" for value in (np.nanmean(apart), np.nanmedian(apart), within, same))
        write((about["name"], len(both), *numbers))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
