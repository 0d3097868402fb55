"""Training: the same steps from the same seed, killed or not, alone or in company; and a model at the end."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

from wsiscore.cli import main
from wsiscore.errors import ModelError, OutputError, SlideError
from wsiscore.generators.ihcscoregan import Config, DualUNet, Recipe
from wsiscore.models.card import read_card
from wsiscore.models.contract import TargetRules
from wsiscore.models.registry import family
from wsiscore.models.store import load_model
from wsiscore.training import finish
from wsiscore.training.augment import blank, counterstain, cut_and_turn, defocus, fade, forget_unseen, inner
from wsiscore.training.data import Draws, Sources
from wsiscore.training.finish import check_polarity, choose_rules, write_trained
from wsiscore.training.folds import Case, slide_of_tile, split_by_case
from wsiscore.training.loop import CHECKPOINT, LOSSES, TrainSettings, train
from wsiscore.training.prepare import PoolSettings, render_pool
from wsiscore.training.targets import OTHERS, center_map

POOL = PoolSettings(fields=16, side_px=96, mpp=0.5, seed=3)
TINY = {"width": 4, "blocks": 1, "discriminator_width": 4}


@pytest.fixture(autouse=True)
def one_thread():
    """Keep networks this small on one core: on a busy machine threads that wait for one another take minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pool(tmp_path_factory):
    return render_pool(tmp_path_factory.mktemp("pool"), POOL)


@pytest.fixture(scope="session")
def tiles(pool, tmp_path_factory):
    """Return PNG tiles of two slides, laid as `wsiscore tile --save png` lays them."""
    folder = tmp_path_factory.mktemp("out")
    for slide in ("a", "b"):
        (folder / slide / "tiles").mkdir(parents=True)
        for row in range(3):
            rgb, _ = pool.field(row + 3 * (slide == "b"))
            cv2.imwrite(str(folder / slide / "tiles" / f"{row:04d}_0000.png"), rgb[..., ::-1])
    return folder


def of(steps, crop_px=32, batch=2, **config):
    return TrainSettings("ihcscoregan", asdict(Config(**{**TINY, **config})), steps, batch, crop_px, seed=1)


def paths(tiles):
    return tuple(sorted(tiles.rglob("*.png")))


def test_a_pool_is_the_same_again_and_is_completed(pool, tmp_path):
    again = render_pool(tmp_path, POOL)
    (tmp_path / "00000.cells.npy").unlink()
    render_pool(tmp_path, POOL)
    for number in (0, 7, 15):
        for one, other in zip(pool.field(number), again.field(number), strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(OutputError, match="other settings"):
        render_pool(tmp_path, replace(POOL, seed=4))


def test_positives_of_a_pool_are_browner_than_negatives(pool):
    red_minus_blue = {1: [], -1: []}
    for number in range(len(pool)):
        rgb, cells = pool.field(number)
        for sign, values in red_minus_blue.items():
            values.extend((rgb[..., 0].astype(int) - rgb[..., 2])[np.sign(cells) == sign].tolist())
    assert np.mean(red_minus_blue[1]) > np.mean(red_minus_blue[-1]) + 20


def test_a_batch_is_a_function_of_seed_and_step(pool, tiles):
    draws = Draws(Sources(pool, paths(tiles)), TargetRules(), batch=4, crop_px=64, seed=5)
    batch = draws[9]
    assert {name: tuple(at.shape) for name, at in batch.items()} == dict.fromkeys(
        ("rgb", "maps", "colour", "tiles", "mask_colour", "mask_maps"), (4, 3, 64, 64)
    )
    assert all(at.dtype == torch.uint8 for at in batch.values())
    for name, at in replace(draws)[9].items():
        assert torch.equal(at, batch[name])
    for other in (draws[10], replace(draws, seed=6)[9]):
        assert not torch.equal(other["rgb"], batch["rgb"])


def test_processes_draw_the_parts_of_one_batch(pool):
    whole = Draws(Sources(pool), TargetRules(), batch=4, crop_px=32, seed=5)
    parts = [replace(whole, batch=2, first=first)[3]["rgb"] for first in (0, 2)]
    assert torch.equal(torch.cat(parts), whole[3]["rgb"])


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_turned_nuclei_stay_whole_and_keep_their_class(seed):
    rng = np.random.default_rng(seed)
    cells = np.zeros((96, 96), np.int16)
    for number, (row, column) in enumerate(np.ndindex(6, 6), start=1):
        cells[16 * row + 3 : 16 * row + 13, 16 * column + 3 : 16 * column + 13] = number if row < 3 else -number
    rgb = np.where(cells[..., None] > 0, [120, 80, 50], np.where(cells[..., None] < 0, [90, 100, 150], 230))
    picture, turned = cut_and_turn(rng, rgb.astype(np.uint8), cells, 64)
    assert picture.shape == (64, 64, 3)
    for number in np.unique(turned[turned != 0]):
        assert ndi.label(turned == number, np.ones((3, 3)))[1] == 1
    red, blue = picture[..., 0].astype(int), picture[..., 2].astype(int)
    inside = inner(turned[None])[0]
    eroded = {sign: ndi.binary_erosion(np.sign(inside) == sign, iterations=2) for sign in (1, -1)}
    assert (red[eroded[1]] > blue[eroded[1]]).all()
    assert (red[eroded[-1]] < blue[eroded[-1]]).all()


def test_beyond_a_slides_edge_all_is_white_and_without_nuclei():
    blanked = 0
    for seed in range(60):
        rgb, cells = np.full((64, 64, 3), 200, np.uint8), np.ones((96, 96), np.int32)
        blank(np.random.default_rng(seed), rgb, cells)
        np.testing.assert_array_equal((rgb == 255).all(-1), inner(cells[None])[0] == 0)
        blanked += bool((rgb == 255).any())
    assert 2 < blanked < 30


def two_nuclei():
    """Return (64, 64, 3) of a positive and a negative nucleus on textured ground, and their cells with the rim."""
    cells = np.zeros((96, 96), np.int32)
    cells[30:42, 30:42], cells[54:66, 54:66] = 1, -2
    rgb = np.random.default_rng(0).normal(225, 2, (64, 64, 3))
    rgb[inner(cells[None])[0] > 0] = (120, 80, 50)
    rgb[inner(cells[None])[0] < 0] = (110, 120, 170)
    return rgb.astype(np.uint8), cells


def test_a_nucleus_that_cannot_be_seen_is_not_asked_for():
    rgb, cells = two_nuclei()
    forget_unseen(rgb, cells)
    assert set(np.unique(cells)) == {-2, 0, 1}
    hidden = np.where((inner(cells[None])[0] < 0)[..., None], np.uint8(225), rgb)
    forget_unseen(hidden, cells)
    assert set(np.unique(cells)) == {0, 1}


@pytest.mark.parametrize(("change", "sign", "darker"), [(fade, -1, False), (counterstain, 1, True)])
def test_dyes_change_on_nuclei_alone(change, sign, darker):
    rgb, cells = two_nuclei()
    inside = inner(cells[None])[0]
    ground = ~ndi.binary_dilation(inside != 0, iterations=4)
    mean = rgb[np.sign(inside) == sign].mean()
    changed = [change(np.random.default_rng(seed), rgb, inside) for seed in range(40)]
    means = np.array([picture[np.sign(inside) == sign].mean() for picture in changed])
    assert 0.1 < (abs(means - mean) > 1).mean() < 0.9
    assert ((means < mean + 1) if darker else (means > mean - 1)).all()
    for picture in changed:
        assert np.abs(picture[ground].astype(int) - rgb[ground]).max() <= 1


@pytest.mark.parametrize("stroma", [False, True])
def test_a_nucleus_out_of_focus_amid_stroma_alone_is_not_the_tumours(stroma):
    left_out = 0
    for seed in range(60):
        rgb, cells = two_nuclei()
        if stroma:
            cells[20:26, 60:66] = -OTHERS - 3
        before = cells.copy()
        blurred = defocus(np.random.default_rng(seed), rgb, cells)
        np.testing.assert_array_equal(np.sign(cells), np.sign(before))
        changed = inner((cells != before)[None])[0]
        assert (np.abs(cells[cells != before]) == np.abs(before[cells != before]) + OTHERS).all()
        for nucleus in (1, -2):
            mine = inner((before == nucleus)[None])[0]
            assert changed[mine].all() or not changed[mine].any()
            if changed[mine].any():
                assert (blurred[mine] != rgb[mine]).any()
                left_out += 1
    assert bool(left_out) == stroma


def test_masks_are_unrelated_to_the_tile_and_drawn_by_the_papers_rule(pool, tiles):
    draws = Draws(Sources(pool, paths(tiles)), TargetRules(), batch=8, crop_px=64, seed=0)
    batch = draws[0]
    assert not torch.equal(batch["maps"], batch["mask_maps"])
    red, green = batch["mask_colour"][:, 0], batch["mask_colour"][:, 1]
    assert not (red.bool() & (batch["mask_maps"][:, 1] == 0)).any()
    assert not (green.bool() & (batch["mask_maps"][:, 2] == 0)).any()


def test_masks_come_from_files_where_there_are_some(pool, tiles, tmp_path):
    labels = np.zeros((96, 96), np.int32)
    labels[40:56, 40:56] = 1
    np.save(tmp_path / "one.npy", labels)
    draws = Draws(Sources(pool, paths(tiles), (tmp_path / "one.npy",)), TargetRules(), batch=8, crop_px=64, seed=0)
    shares = (draws[0]["mask_maps"][:, 1:] > 0).float().sum(1).mean((1, 2))
    assert ((shares == 0) | (shares < 0.15)).all()
    assert shares.max() > 0.02


@given(
    counts=st.lists(st.integers(1, 4), min_size=5, max_size=12),
    folds=st.integers(2, 5),
    seed=st.integers(0, 99),
    per_case=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_no_case_is_on_both_sides_and_the_folds_are_everything(counts, folds, seed, per_case):
    tiles = [Path(f"s{slide:02d}/tiles/{i}.png") for slide, n in enumerate(counts) for i in range(n)]
    cases = {f"s{slide:02d}": Case(f"c{slide // per_case}") for slide in range(len(counts))}
    if len({case.name for case in cases.values()}) < folds:
        return
    kept = []
    for fold in range(folds):
        split = split_by_case(tiles, cases=cases, folds=folds, fold=fold, seed=seed)
        sides = [{cases[slide_of_tile(tile)].name for tile in side} for side in (split.train, split.test)]
        assert not sides[0] & sides[1]
        assert sorted(split.train + split.test) == sorted(tiles)
        kept += split.test
    assert sorted(kept) == sorted(tiles)


def test_a_chronological_split_keeps_the_latest_cases():
    tiles = [Path(f"s{slide}/tiles/0.png") for slide in range(10)]
    cases = {f"s{slide}": Case(f"s{slide}", f"20{(slide * 7) % 10 + 10}-01-01") for slide in range(10)}
    split = split_by_case(tiles, cases=cases, order="chronological", test_share=0.28)
    assert len(split.test) == 3
    dates = [[cases[slide_of_tile(tile)].date for tile in side] for side in (split.train, split.test)]
    assert max(dates[0]) < min(dates[1])
    with pytest.raises(SlideError, match="no date"):
        split_by_case(tiles, order="chronological", test_share=0.28)
    with pytest.raises(SlideError, match="no line for slide"):
        split_by_case(tiles, cases={}, test_share=0.28)


def test_unique_tiles_are_as_many_as_asked_and_the_same_for_a_seed():
    tiles = [Path(f"s{i // 10}/tiles/{i}.png") for i in range(40)]
    split = split_by_case(tiles, unique=7, seed=1)
    assert len(set(split.train)) == 7
    assert split == split_by_case(tiles, unique=7, seed=1)
    assert split != split_by_case(tiles, unique=7, seed=2)


PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path[:0] = [{tests!r}, {root!r}]
from test_training import POOL, of, paths
from wsiscore.training.data import Sources
from wsiscore.training.loop import train
from wsiscore.training.prepare import Pool
if __name__ == "__main__":
    train(Path(sys.argv[1]), of({steps}), Sources(Pool(POOL, Path({pool!r})), paths(Path({tiles!r}))), device="cpu",
          every=3, workers={workers})
"""


def program(pool, tiles, steps, workers=0):
    here = Path(__file__).resolve().parent
    return PROGRAM.format(
        tests=str(here), root=str(here.parent), pool=str(pool.folder), tiles=str(tiles), steps=steps, workers=workers
    )


def weights(folder):
    state = torch.load(folder / CHECKPOINT, weights_only=True)["recipe"]["networks"]
    return {name: value.numpy() for name, value in state.items()}


def test_a_killed_training_goes_on_to_the_same_weights(pool, tiles, tmp_path):
    code = program(pool, tiles, steps=9)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(whole, of(9), Sources(pool, paths(tiles)), device="cpu", every=3)
    dying = code.replace("if __name__", "import test_training; test_training.die_after(5)\nif __name__")
    done = subprocess.run([sys.executable, "-c", dying, str(killed)], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert torch.load(killed / CHECKPOINT, weights_only=True)["step"] == 3
    subprocess.run([sys.executable, "-c", code, str(killed)], check=True, timeout=120)
    one, other = weights(whole), weights(killed)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)
    assert (whole / LOSSES).read_text() == (killed / LOSSES).read_text()


def die_after(steps):
    """Make this process kill itself, as a power cut would, in the step after so many."""
    step = Recipe.step

    def fatal(self, batch, number):
        if number == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch, number)

    Recipe.step = fatal


def test_two_processes_take_the_steps_of_one(pool, tiles, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(program(pool, tiles, steps=4).replace("of(4)", "of(4, batch=1)"))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *words], check=True, timeout=240, env=environment, capture_output=True)
    train(tmp_path / "one", of(4, batch=2), Sources(pool, paths(tiles)), device="cpu")
    train(tmp_path / "half", of(4, batch=1), Sources(pool, paths(tiles)), device="cpu")
    one, two, half = (weights(tmp_path / name) for name in ("one", "two", "half"))

    def apart(some, other):
        return np.mean(np.concatenate([abs(some[name] - other[name]).ravel() for name in some]))

    assert apart(one, two) < apart(one, half) / 20  # sums in another order, and Adam's first steps turn on signs


def test_a_warm_start_learns_what_is_rendered(pool, tmp_path):
    train(tmp_path, of(40, batch=4, width=8, warm_rate=4e-3), Sources(pool), device="cpu", every=40)
    with (tmp_path / LOSSES).open() as file:
        losses = [float(row["rendered_k"]) for row in csv.DictReader(file)]
    assert len(losses) == 40
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    assert (tmp_path / "sheets" / "000040.png").exists()


@pytest.mark.parametrize("ablation", [{}, {"detach": "none", "color_variation": False, "supervised": 10.0}])
def test_the_adversarial_stage_moves_every_network(ablation, pool, tiles, tmp_path):
    before = Recipe(Config(**TINY, **ablation), steps=2, seed=1, device="cpu", tiles=True, start=None).state()
    train(tmp_path, of(2, warm_fraction=0.0, **ablation), Sources(pool, paths(tiles)), device="cpu")
    for name, value in weights(tmp_path).items():
        start = before["networks"][name].numpy()
        if name.endswith("bias") and np.array_equal(value, start):
            continue  # a bias before instance normalisation has no effect
        assert not np.array_equal(value, start), name
    with (tmp_path / LOSSES).open() as file:
        row = next(csv.DictReader(file))
    assert {"cycle", "adversarial", "identity", "discriminators"} <= set(row)
    assert ("supervised" in row) == ("supervised" in ablation)


@pytest.mark.parametrize(
    ("detach", "reaches"),
    [("all", set()), ("bottleneck", {"skips"}), ("none", {"skips", "bottleneck"})],
)
def test_what_the_k_branch_teaches_the_encoder(detach, reaches):
    g = DualUNet(Config(width=4, blocks=1), detach)
    g(torch.randn(1, 3, 32, 32))[1].sum().backward()
    tail = any(p.grad is not None and p.grad.abs().sum() > 0 for p in g.encoder.tail.parameters())
    down = any(p.grad is not None and p.grad.abs().sum() > 0 for p in g.encoder.down.parameters())
    assert {name for name, there in (("bottleneck", tail), ("skips", down)) if there} == reaches
    assert all(p.grad is None for p in g.colour.parameters())


def test_other_settings_are_not_mixed_into_a_training(pool, tmp_path):
    train(tmp_path, of(1), Sources(pool), device="cpu")
    with pytest.raises(OutputError, match="width 4, now 8"):
        train(tmp_path, of(1, width=8), Sources(pool), device="cpu")


def test_a_family_without_a_recipe_says_so(pool, tmp_path):
    with pytest.raises(ModelError, match="nothing to train"):
        train(tmp_path, TrainSettings("hdab", {}, 1, 1, 32, 0), Sources(pool), device="cpu")


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
def test_polarity_is_told_by_dab(turned, pool):
    pictures = np.stack([pool.field(number)[0].transpose(2, 0, 1) for number in range(16)])
    polarity = check_polarity(Brown(turned), pictures)
    assert polarity.certain
    assert polarity.swapped == turned
    unstained = np.full((2, 3, 64, 64), 240, np.uint8)
    assert not check_polarity(Brown(turned), unstained).certain


@pytest.mark.parametrize("turned", [False, True])
def test_a_model_learnt_the_other_way_round_is_named_right(turned, pool, tmp_path, monkeypatch):
    own = family("ihcscoregan")
    recipe = Recipe(Config(**TINY), steps=1, seed=0, device="cpu", tiles=False, start=None)
    turning = replace(own, build=lambda *_: Brown(turned))
    monkeypatch.setattr(finish, "family", lambda _: turning)
    card = write_trained(tmp_path / "m", recipe, of(1), Sources(pool), own.spec, name="mine", told="By hand.")
    assert card.spec.channels == (("center", "negative", "positive") if turned else own.spec.channels)
    assert "OD of DAB" in card.polarity
    assert ("exchanged" in card.polarity) == turned


class Knowing:
    """A generator that finds the rendered nuclei by their picture, at heights and distances of its own."""

    def __init__(self, pool):
        self.spec = family("ihcscoregan").spec
        self.fields = {pool.field(n)[0].tobytes(): pool.field(n)[1] for n in range(len(pool))}

    def __call__(self, tiles):
        cells = self.fields[np.ascontiguousarray(tiles[0].transpose(1, 2, 0)).tobytes()]
        center = center_map(cells).astype(np.float32) / 255 * 0.6
        center[::7, ::7] = np.maximum(center[::7, ::7], 0.32)  # false peaks, all lower than 0.35
        return np.stack([center, cells > 0, cells < 0]).astype(np.float32)[None]


def test_rules_are_those_that_find_the_rendered_nuclei(pool):
    rules = choose_rules(Knowing(pool), Sources(pool))
    assert rules.threshold < 0.6  # as high as the nuclei are
    assert rules.threshold > 0.3 or rules.smooth_um > 0  # either leaves the false peaks out
    assert rules.radius_um <= 4


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def test_the_command_trains_a_model_that_runs(tiles, tmp_path):
    words = ["train", "ihcscoregan", tiles, "-o", tmp_path / "t", "--steps", 2, "--batch", 1, "--crop", 32]
    words += ["--fields", 2, "--workers", 0, "--device", "cpu", "--test-share", 0.5, "--tiles", 2]
    words += [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    done = run(*words)
    assert done.exit_code == 0, done.output
    folder = Path(done.stdout.strip())
    card = read_card(folder)
    assert card.name == "t"
    assert card.config["width"] == 4
    assert "2 unlabelled tiles" in card.trained_on
    maps = load_model(folder, "cpu")(np.full((1, 3, 64, 64), 200, np.uint8))
    assert maps.shape == (1, 3, 64, 64)
    with (tmp_path / "t" / "split.csv").open() as file:
        parts = {(row["slide"], row["part"]) for row in csv.DictReader(file)}
    assert {part for _, part in parts} == {"train", "test"}
    assert len({slide for slide, _ in parts}) == len(parts)
    again = run(
        "train",
        "ihcscoregan",
        "--start",
        folder,
        "-o",
        tmp_path / "u",
        "--steps",
        1,
        "--batch",
        1,
        "--crop",
        32,
        "--fields",
        2,
        "--workers",
        0,
        "--device",
        "cpu",
    )
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "u" / "model" / "card.json").read_text())["config"]["width"] == 4


def test_help_lists_the_familys_own_options():
    text = run("train", "ihcscoregan", "--help").stdout
    for name in ("width=64", "detach='all'", "cycle=10.0", "color_variation=True"):
        assert name in text
    families = run("train", "--help").stdout
    assert "ihcscoregan" in families
    assert "hdab" not in families
    assert run("train", "hdab", "-o", "x").exit_code == 2


@pytest.mark.parametrize("setting", ["depth=3", "width=wide", "detach=some", "width", "warm_share=2"])
def test_a_wrong_option_is_a_usage_error(setting, tmp_path):
    done = run("train", "ihcscoregan", "-o", tmp_path, "--set", setting)
    assert done.exit_code == 2
    assert "--set" in done.output
