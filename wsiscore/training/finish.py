"""The model of a finished training: rules, channels named by their DAB, and a card that says how it was made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from wsiscore.cells.maxima import local_maxima, smooth_center
from wsiscore.cells.rules import CenterRules
from wsiscore.models.card import Card
from wsiscore.models.contract import Generator, GeneratorSpec, Recipe, SlideAdaptive
from wsiscore.models.registry import family
from wsiscore.models.store import write_model
from wsiscore.stain import Stain, dab_od_map
from wsiscore.training.inputs import AnyTrainingData
from wsiscore.training.settings import TrainSettings
from wsiscore.training.targets import OTHERS

__all__ = ["Polarity", "check_polarity", "choose_rules", "write_trained"]

_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(4, 17))
_RADII_UM = (2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
_SMOOTH_UM = (0.0, 0.6, 1.2)
_SAMPLED = 64  # tiles
_MIN_PX = 50  # of either class before their DAB is compared
_CERTAIN = 1.2  # least ratio of the DAB of the classes

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Polarity:
    """Mean DAB of the two class channels.

    Parameters
    ----------
    positive_od, negative_od
        Mean DAB optical density around the pixels of cells that the channels call positive and negative; nan without
        any.
    """

    positive_od: float
    negative_od: float

    @property
    def swapped(self) -> bool:
        """Whether the cells called negative are the brown ones."""
        return bool(self.negative_od > self.positive_od * _CERTAIN)

    @property
    def certain(self) -> bool:
        """Whether one class is clearly browner than the other."""
        return self.swapped or bool(self.positive_od > self.negative_od * _CERTAIN)


def check_polarity(generator: Generator, tiles: Picture) -> Polarity:
    """Compare the channels ``positive`` and ``negative`` with the DAB on tiles.

    Parameters
    ----------
    generator
        Of cell maps.
    tiles
        (N, 3, H, W) RGB in 0..255, at the generator's mpp.
    """
    spec, totals = generator.spec, np.zeros((2, 2))
    threshold = _center_rules(spec).threshold
    stain = Stain.estimate(tiles.transpose(0, 2, 3, 1))
    order = [spec.channels.index(name) for name in ("center", "positive", "negative")]
    for tile in tiles:
        center, positive, negative = _of_slide(generator, tile[None])(tile[None])[0][order]
        dab_od = dab_od_map(np.ascontiguousarray(tile.transpose(1, 2, 0)), stain, spec.mpp)
        cell = center > threshold
        for row, called in enumerate((cell & (positive > negative), cell & (positive < negative))):
            totals[row] += called.sum(), float(dab_od[called].sum())
    return Polarity(*(float(od / n) if n >= _MIN_PX else float("nan") for n, od in totals))


def choose_rules(generator: Generator, data: AnyTrainingData) -> CenterRules:
    """Return the rules with the highest F1 over the nuclei of rendered fields that the centre map is of.

    Parameters
    ----------
    generator
        Of cell maps.
    data
        With rendered fields; without any, or without a nucleus in them, the rules are those of the generator.
    """
    spec, rendered = generator.spec, data.rendered
    if rendered is None:
        return _center_rules(spec)
    fields = range(len(rendered))
    tried = [CenterRules(*each) for each in product(_THRESHOLDS, _RADII_UM, _SMOOTH_UM)]
    right, found = np.zeros(len(tried)), np.zeros(len(tried))
    true = 0
    for number in fields[:: -(-len(fields) // _SAMPLED)]:
        rgb, cells = rendered.field(number)
        side = min(length - length % spec.multiple_px for length in cells.shape)
        tile = np.ascontiguousarray(rgb[:side, :side].transpose(2, 0, 1)[None])
        center = _of_slide(generator, tile)(tile)[0][spec.channels.index("center")]
        of = np.abs(cells[:side, :side])
        of = of if "other" in spec.channels else np.where(of < OTHERS, of, 0)
        true += len(np.unique(of)) - 1
        hits = {
            (radius_um, smooth_um): _peaks(center, of, radius_um / spec.mpp, smooth_um / spec.mpp)
            for radius_um, smooth_um in product(_RADII_UM, _SMOOTH_UM)
        }
        for row, rules in enumerate(tried):
            height, hit = hits[rules.radius_um, rules.smooth_um]
            hit = hit[height > rules.threshold]
            found[row] += len(hit)
            right[row] += len(np.unique(hit[hit > 0]))
    if not true:
        return _center_rules(spec)
    return tried[int(np.argmax(right / (found + true)))]


def _of_slide(generator: Generator, tiles: Picture) -> Generator:
    """Return the generator for the slide that these tiles are of, where its normalisation depends on the slide."""
    return generator.for_slide(tiles) if isinstance(generator, SlideAdaptive) else generator


def _peaks(
    center: npt.NDArray[np.float32], of: npt.NDArray[np.integer[Any]], radius_px: float, sigma_px: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.integer[Any]]]:
    """Return the height of each peak, and the number of the nucleus under it, 0 for none."""
    center = smooth_center(center, sigma_px)
    count, labels = cv2.connectedComponents(
        local_maxima(center, round(radius_px), 0.0).astype(np.uint8), connectivity=8
    )
    first = np.unique(labels, return_index=True)[1][-(count - 1) :] if count > 1 else np.empty(0, np.int64)
    return center.ravel()[first], of.ravel()[first]


def _center_rules(spec: GeneratorSpec) -> CenterRules:
    if not isinstance(spec.rules, CenterRules):
        raise TypeError(f"{spec.family} gives {spec.output}, wanted maps of cell centres")
    return spec.rules


def write_trained(
    folder: Path,
    recipe: Recipe,
    settings: TrainSettings,
    data: AnyTrainingData,
    spec: GeneratorSpec,
    *,
    name: str,
    note: str,
) -> Card:
    """Write the trained model: its class channels are named by their DAB, its rules chosen on rendered fields.

    Parameters
    ----------
    folder
        Folder of the model.
    recipe
        The trained recipe.
    settings, data
        What it was trained with.
    spec
        What the generator reads and gives.
    name
        Name of the model.
    note
        Sentence for the card: the command and how long it took.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    own = family(settings.family)
    config, weights = own.config(**settings.config), recipe.weights()
    checked: str | None = None
    if isinstance(spec.rules, CenterRules):
        spec = replace(spec, rules=choose_rules(own.build(config, spec, weights, "cpu"), data))
        spec, checked = _named_by_dab(own.build(config, spec, weights, "cpu"), data)
    card = Card(
        name=name,
        family=settings.family,
        version="1",
        description=f"Trained by wsiscore train for {settings.steps} steps of {settings.batch}.",
        licence="That of the slides it was trained on.",
        trained_on=f"{data.summary()} {note}",
        spec=spec,
        config=dict(settings.config),
        polarity=checked,
    )
    return write_model(folder, card, weights)


def _named_by_dab(generator: Generator, data: AnyTrainingData) -> tuple[GeneratorSpec, str]:
    """Return the spec with the class channels named by their DAB, and a sentence on it."""
    spec, tiles = generator.spec, _sample(data, generator.spec)
    polarity = check_polarity(generator, tiles)
    if polarity.swapped:
        exchanged = {"positive": "negative", "negative": "positive"}
        spec = replace(spec, channels=tuple(exchanged.get(name, name) for name in spec.channels))
    return spec, _polarity_sentence(polarity, len(tiles), data.kind)


def _polarity_sentence(polarity: Polarity, n: int, kind: str) -> str:
    if not polarity.certain:
        return "unchecked"
    brown, other = sorted((polarity.positive_od, polarity.negative_od), reverse=True)
    found = f"on {n} {kind} tiles the cells called positive hold {brown:.2f} OD of DAB, the negative ones {other:.2f}"
    return f"{found}; trained the other way round, the channels were exchanged" if polarity.swapped else found


def _sample(data: AnyTrainingData, spec: GeneratorSpec) -> Picture:
    """Return (N, 3, H, W): evenly spread tiles, as many pixels of each as the generator can take."""
    tiles = []
    for tile in data.examples(_SAMPLED):
        side = min(spec.tile_px, *(length - length % spec.multiple_px for length in tile.shape[:2]))
        tiles.append(tile[:side, :side].transpose(2, 0, 1))
    return np.stack(tiles)
