"""The model of a finished training: channels named by their DAB, rules that find the rendered nuclei."""

from dataclasses import replace

import numpy as np
import pytest
from training_parts import TINY, settings_of

from wsiscore.generators.ihcscoregan import Config
from wsiscore.generators.ihcscoregan.recipe import Recipe
from wsiscore.models.registry import family
from wsiscore.training import finish
from wsiscore.training.data import TrainingData
from wsiscore.training.finish import check_polarity, choose_rules, write_trained
from wsiscore.training.targets import center_map


class Brown:
    """A generator that calls what is brown positive, or the other way round."""

    def __init__(self, turned):
        self.spec = family("ihcscoregan").spec
        self.turned = turned

    def __call__(self, tiles):
        red, blue = tiles[:, 0].astype(np.float32), tiles[:, 2].astype(np.float32)
        cell = (tiles.mean(1) < 190).astype(np.float32)
        brown = (red > blue).astype(np.float32)
        positive, negative = cell * brown, cell * (1 - brown)
        return np.stack([cell, negative, positive] if self.turned else [cell, positive, negative], axis=1)


@pytest.mark.parametrize("turned", [False, True])
def test_polarity_follows_dab(turned, dataset):
    pictures = np.stack([dataset.field(number)[0].transpose(2, 0, 1) for number in range(16)])
    polarity = check_polarity(Brown(turned), pictures)
    assert polarity.certain
    assert polarity.swapped == turned
    unstained = np.full((2, 3, 64, 64), 240, np.uint8)
    assert not check_polarity(Brown(turned), unstained).certain


@pytest.mark.parametrize("turned", [False, True])
def test_channels_of_a_model_trained_the_other_way_round_are_exchanged(turned, dataset, tmp_path, monkeypatch):
    own = family("ihcscoregan")
    recipe = Recipe(Config(**TINY), steps=1, seed=0, device="cpu", tiles=False, start=None)
    turning = replace(own, build=lambda *_: Brown(turned))
    monkeypatch.setattr(finish, "family", lambda _: turning)
    card = write_trained(
        tmp_path / "m", recipe, settings_of(1), TrainingData(dataset), own.spec, name="mine", note="By hand."
    )
    assert card.spec.channels == (("center", "negative", "positive") if turned else own.spec.channels)
    assert "OD of DAB" in card.polarity
    assert ("exchanged" in card.polarity) == turned


class Knowing:
    """A generator that finds the rendered nuclei by their picture, at heights and distances of its own."""

    def __init__(self, dataset):
        self.spec = family("ihcscoregan").spec
        self.fields = {dataset.field(n)[0].tobytes(): dataset.field(n)[1] for n in range(len(dataset))}

    def __call__(self, tiles):
        cells = self.fields[np.ascontiguousarray(tiles[0].transpose(1, 2, 0)).tobytes()]
        center = center_map(cells).astype(np.float32) / 255 * 0.6
        center[::7, ::7] = np.maximum(center[::7, ::7], 0.32)  # false peaks, all lower than 0.35
        return np.stack([center, cells > 0, cells < 0]).astype(np.float32)[None]


def test_rules_are_those_that_find_the_rendered_nuclei(dataset):
    rules = choose_rules(Knowing(dataset), TrainingData(dataset))
    assert rules.threshold < 0.6  # as high as the nuclei are
    assert rules.threshold > 0.3 or rules.smooth_um > 0  # either leaves the false peaks out
    assert rules.radius_um <= 4
