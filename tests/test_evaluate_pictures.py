"""Predicted against true pictures: pixels, structure, features of a network, and stains."""

import csv
import itertools
import math
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from making import Darkness, as_model, whole, write_png
from skimage.color import hed2rgb

from wsiscore.cli import evaluate as cli_evaluate
from wsiscore.cli import main
from wsiscore.errors import TruthError
from wsiscore.evaluation.images import pairs as pictures
from wsiscore.evaluation.images.evaluate import MEASURES, evaluate_images, evaluate_stain
from wsiscore.evaluation.images.pairs import find_picture_pairs
from wsiscore.evaluation.images.similarity import (
    compare_pictures,
    dists,
    frechet_distance,
    hash_values,
    kernel_distance,
)
from wsiscore.evaluation.images.staining import THRESHOLDS, dab_class, membrane_errors, saturation
from wsiscore.inference import infer
from wsiscore.slide.slide import Slide

PAGE = Path(__file__).resolve().parent.parent / "docs" / "evaluation.md"

seeds = st.integers(0, 2**31)


def noise(seed, height=16, width=12):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def explained(header):
    page = PAGE.read_text(encoding="utf-8")
    return all(f"`{name}`" in page for name in header)


# --- without a network -----------------------------------------------------------------------------------------


def test_mse_and_psnr_of_one_changed_level():
    # 8 × 8 × 3 = 192 levels, one of them 16 off: 256 / 192 = 4/3; 10 log10(65025 / (4/3)) = 46.88 dB
    true = grey(np.full((8, 8), 100))
    found = true.copy()
    found[3, 4, 1] = 116
    measures = compare_pictures(found, true)
    assert measures["mse"] == pytest.approx(4 / 3)
    assert measures["psnr"] == pytest.approx(46.88, abs=0.005)


def test_flat_pictures_differ_in_luminance_alone():
    # no variance: contrast and structure (0 + C2) / (0 + C2) = 1;
    # luminance (2·100·120 + C1) / (100² + 120² + C1) with C1 = (0.01·255)² = 6.5025
    measures = compare_pictures(grey(np.full((9, 9), 120)), grey(np.full((9, 9), 100)))
    assert measures["css"] == pytest.approx(1)
    assert measures["ssim"] == pytest.approx(24006.5025 / 24406.5025)


def test_contrast_and_structure_of_one_window():
    # One window of 49 px, 24 darker, 24 lighter, one between. Means are equal, so the luminance is 1.
    # x: ±10 of 100: sample variance 4800 / 48 = 100; y: ±20: 400; covariance 200; C2 = (0.03·255)² = 58.5225
    signs = np.array([-1] * 24 + [0] + [1] * 24).reshape(7, 7)
    measures = compare_pictures(grey(100 + 20 * signs), grey(100 + 10 * signs))
    assert measures["css"] == pytest.approx(458.5225 / 558.5225)
    assert measures["ssim"] == pytest.approx(458.5225 / 558.5225)


@given(seeds)
def test_a_picture_is_like_itself(seed):
    measures = compare_pictures(noise(seed), noise(seed))
    assert measures["mse"] == 0
    assert measures["psnr"] == math.inf
    assert measures["ssim"] == pytest.approx(1)
    assert measures["css"] == pytest.approx(1)


@given(seeds, seeds)
def test_measures_of_pixels_are_symmetric(one, other):
    there, back = compare_pictures(noise(one), noise(other)), compare_pictures(noise(other), noise(one))
    assert there == pytest.approx(back)
    assert there["ssim"] <= 1


# --- with a network --------------------------------------------------------------------------------------------


def test_the_hash_counts_channels_whose_means_moved():
    # means 0 and 0.5 against 0.005 and 0.52: by 0.005 and by 0.02; one of two moved by more than 0.01
    true = np.array([[[0.0, 0.0]], [[0.4, 0.6]]])
    found = np.array([[[0.005, 0.005]], [[0.52, 0.52]]])
    assert hash_values([found, true], [true, true]) == [0.5, 0]


def test_dists_of_a_turned_pattern():
    # (0, 1) against (1, 0): means 0.5 each: texture 1; covariance −0.25, variances 0.25: structure −1 but for c
    x, y = np.array([[[0.0, 1.0]]]), np.array([[[1.0, 0.0]]])
    assert dists([x], [y]) == pytest.approx(1 - (1 - 1) / 2, abs=1e-5)
    assert dists([x], [y], (np.array([1.0]), np.array([0.0]))) == pytest.approx(0)
    assert dists([x], [y], (np.array([0.0]), np.array([3.0]))) == pytest.approx(2, abs=1e-5)
    assert dists([x], [x]) == pytest.approx(0)


def test_frechet_distance_of_two_lines():
    # {0, 2}: mean 1, variance 2; {0, 6}: mean 3, variance 18: 2² + 2 + 18 − 2·√36 = 12
    assert frechet_distance(np.array([[0.0], [2]]), np.array([[0.0], [6]])) == pytest.approx(12)


@pytest.mark.parametrize(("pictures", "others", "width"), [(30, 20, 4), (5, 7, 6), (4, 9, 20), (2, 2, 3)])
def test_frechet_distance_is_that_of_the_definition(pictures, others, width):
    rng = np.random.default_rng(pictures)
    x, y = rng.normal(size=(pictures, width)), rng.normal(1, 2, size=(others, width))
    s, t = np.cov(x.T), np.cov(y.T)
    root = np.sqrt(np.clip(np.linalg.eigvals(s @ t).real, 0, None)).sum()
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * root
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-4)
    assert frechet_distance(y, x) == pytest.approx(frechet_distance(x, y))
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-8)


def test_kernel_distance_of_two_lines():
    # k(x, y) = (xy + 1)³. Within {0, 1}: k(0, 1) = 1; within {1, 2}: k(1, 2) = 27; across: k(0, 1) = k(0, 2) = 1,
    # k(1, 1) = 8, k(1, 2) = 27, mean 9.25. 1 + 27 − 2·9.25 = 9.5
    assert kernel_distance(np.array([[0.0], [1]]), np.array([[1.0], [2]])) == pytest.approx(9.5)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=6, max_size=6))
def test_kernel_distance_is_unbiased(population):
    """Over all ways to part six pictures in two sets of three, the estimate is 0 on average."""
    features = np.array(population, np.float64)
    parts = [
        kernel_distance(features[list(half)], np.delete(features, half, axis=0))
        for half in itertools.combinations(range(6), 3)
    ]
    assert np.mean(parts) == pytest.approx(0, abs=1e-6 * max(1, np.abs(parts).max()))


def test_one_picture_has_no_distribution():
    assert math.isnan(frechet_distance(np.ones((1, 3)), np.ones((5, 3))))
    assert math.isnan(kernel_distance(np.ones((5, 3)), np.ones((1, 3))))


class Net(torch.nn.Module):
    """Four maps of differences and six means of them, or something else."""

    def __init__(self, gives: str = "both", weighted: int = 0) -> None:
        super().__init__()
        self.gives = gives
        self.conv = torch.nn.Conv2d(3, 4, 3, stride=2)
        torch.nn.init.constant_(self.conv.bias, 0.1)
        if weighted:
            self.register_buffer("alpha", torch.ones(1, weighted, 1, 1))
            self.register_buffer("beta", torch.ones(1, weighted, 1, 1))

    def forward(self, rgb: torch.Tensor) -> list[torch.Tensor]:
        layer = torch.relu(self.conv(rgb))
        if self.gives == "vector":
            return [layer.mean((2, 3))]
        if self.gives == "cube":
            return [layer[0]]
        if self.gives == "nan":
            return [layer / 0 - layer / 0]
        return [layer, layer.mean((2, 3))]


def save_net(path, **options):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Net(**options)), path)
    return path


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return save_net(tmp_path_factory.mktemp("net") / "net.pt")


@pytest.fixture
def folders(tmp_path):
    """Return a folder with three predicted and three true pictures."""
    for name, first in (("found", 10), ("true", 20)):
        (tmp_path / name).mkdir()
        for number in range(3):
            write_png(tmp_path / name / f"p{number}.png", noise(first + number))
    return tmp_path


def test_a_table_has_a_row_a_picture_and_the_means(folders, net):
    header, *rows = evaluate_images(folders / "found", folders / "true", features=net, out=folders / "out")
    assert list(header) == ["slide", "mse", "psnr", "ssim", "css", "phv", "phv_1", "dists", "fid", "kid"]
    assert explained(header)
    assert [row[0] for row in rows] == ["p0", "p1", "p2", "total"]
    values = np.array([[float(value) for value in row[1:]] for row in rows])
    assert values[:3, :7].mean(axis=0) == pytest.approx(values[3, :7], rel=1e-3)
    assert np.isnan(values[:3, 7:]).all()
    assert np.isfinite(values[3]).all()
    with (folders / "out" / "images.csv").open() as file:
        assert list(csv.reader(file)) == [list(header), *rows]
    assert "pictures,3\n" in (folders / "out" / "summary.csv").read_text()


def test_identical_sets_are_at_no_distance(folders, net, caplog):
    header, *_, total = evaluate_images(folders / "true", folders / "true", features=net)
    values = dict(zip(header[1:], map(float, total[1:]), strict=True))
    assert values["phv"] == 0
    assert values["dists"] == pytest.approx(0, abs=1e-6)
    assert values["fid"] == pytest.approx(0, abs=1e-6)
    assert values["ssim"] == 1
    assert "3 pictures for 4 features" in caplog.text


def test_one_pair_has_no_sets(folders, net, caplog):
    one = folders / "true" / "p0.png"
    *_, total = evaluate_images(one, one, measures=["kid"], features=net)
    assert total == ["total", "nan"]
    assert "no kid of a single picture" in caplog.text


def test_order_of_pictures_does_not_matter_to_sets(folders, net):
    one = evaluate_images(folders / "found", folders / "true", measures=["fid", "kid"], features=net)
    for old, new in (("p0", "p9"), ("p1", "p0"), ("p9", "p1")):  # in one folder only
        (folders / "found" / f"{old}.png").rename(folders / "found" / f"{new}.png")
    other = evaluate_images(folders / "found", folders / "true", measures=["fid", "kid"], features=net)
    assert list(map(float, one[-1][1:])) == pytest.approx(list(map(float, other[-1][1:])), rel=1e-3)


def test_weights_of_dists_come_with_the_network(folders, tmp_path):
    plain = evaluate_images(folders / "found", folders / "true", measures=["dists"], features=save_net(tmp_path / "a"))
    equal = save_net(tmp_path / "b", weighted=7)  # red, green, blue and four channels, all alike
    assert evaluate_images(folders / "found", folders / "true", measures=["dists"], features=equal) == plain


def test_a_vector_alone_gives_the_measures_of_sets(folders, tmp_path):
    network = save_net(tmp_path / "v.pt", gives="vector")
    header, *_ = evaluate_images(folders / "found", folders / "true", features=network)
    assert list(header) == ["slide", "mse", "psnr", "ssim", "css", "fid", "kid"]


# --- which pictures --------------------------------------------------------------------------------------------


def test_a_virtual_stain_is_compared_like_a_picture(tmp_path):
    rgb = noise(3, 80, 96)
    slide = Slide(write_png(tmp_path / "field.png", rgb), mpp=0.5)
    for name in ("field", "other"):
        infer(slide, whole(48, 40), as_model(Darkness(image=True)), tmp_path / "out" / name / "mosaic.ome.zarr")
    (tmp_path / "true").mkdir()
    write_png(tmp_path / "true" / "field.png", rgb)
    for predicted in (tmp_path / "out", tmp_path / "out" / "field", tmp_path / "out" / "field" / "mosaic.ome.zarr"):
        rows = evaluate_images(predicted, tmp_path / "true")
        assert [row[:3] for row in rows[1:]] == [["field", "0", "inf"], ["total", "0", "inf"]]


def test_stems_make_pairs_whatever_the_ending(tmp_path, caplog):
    for name in ("a/x.ome.tif", "a/y.z.png", "a/only.jpg", "b/x.png", "b/y.z.TIF", "b/notes.txt", "b/lost.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [pair.stem for pair in find_picture_pairs(tmp_path / "a", tmp_path / "b")] == ["x", "y.z"]
    assert "only" in caplog.text
    assert "lost" in caplog.text
    one, other = tmp_path / "a" / "only.jpg", tmp_path / "b" / "lost.png"
    assert [pair[1:] for pair in find_picture_pairs(one, other)] == [(one, other)]


def spoil(folders, name, monkeypatch):
    """Make something wrong and return the arguments that meet it."""
    found, true = folders / "found", folders / "true"
    extra = []
    if name == "sizes":
        write_png(true / "p1.png", noise(1, 16, 13))
    elif name == "stems":
        for number in range(3):
            (true / f"p{number}.png").rename(true / f"q{number}.png")
    elif name == "empty":
        true = folders / "empty"
        true.mkdir()
    elif name == "missing":
        true = folders / "nowhere"
    elif name == "twice":
        write_png(true / "p1.tif", noise(1))
    elif name == "broken":
        (true / "p1.png").write_bytes((true / "p1.png").read_bytes()[:60])
    elif name == "small":
        for folder in (found, true):
            write_png(folder / "p1.png", noise(1, 6, 9))
    elif name == "large":
        monkeypatch.setattr(pictures, "_LARGEST_PX", 16 * 12 - 1)
    elif name == "no network":
        extra = ["--measure", "fid", "--measure", "ssim"]
    elif name == "no such file":
        extra = ["--features", folders / "nowhere.pt"]
    elif name == "not a network":
        (folders / "net.pt").write_text("weights")
        extra = ["--features", folders / "net.pt"]
    elif name == "plain weights":
        torch.save({"weight": torch.ones(3)}, folders / "net.pt")
        extra = ["--features", folders / "net.pt"]
    elif name == "no maps":
        extra = ["--features", save_net(folders / "net.pt", gives="vector"), "--measure", "phv"]
    elif name == "wrong weights":
        extra = ["--features", save_net(folders / "net.pt", weighted=5)]
    elif name == "too deep":
        for folder in (found, true):
            cv2.imwrite(str(folder / "p0.png"), np.zeros((2, 2, 3), np.uint8))
        extra = ["--features", save_net(folders / "net.pt"), "--measure", "kid"]
    else:
        extra = ["--features", save_net(folders / "net.pt", gives=name)]
    return [str(word) for word in (found, "--truth", true, *extra)]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sizes", "13 × 16 px; wanted the same area"),
        ("stems", "have no stem in common: found p0, p1, p2, and q0, q1, q2"),
        ("empty", "holds no picture"),
        ("missing", "does not exist"),
        ("twice", "are both of p1"),
        ("broken", "broken picture"),
        ("large", "p0.png is 12 × 16 px, too large to be measured whole"),
        ("small", "too small for SSIM"),
        ("no network", "fid need a feature network; give a TorchScript file with --features"),
        ("no such file", "does not exist"),
        ("not a network", "is no feature network"),
        ("plain weights", "is no feature network"),
        ("no maps", "PHV and DISTS need maps"),
        ("wrong weights", "has 5 alpha and 5 beta for DISTS; wanted 7 each"),
        ("too deep", "cannot run on a picture of 2 × 2 px"),
        ("cube", "wanted (1, C, h, w) or (1, D)"),
        ("nan", "not finite"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folders, name, says, monkeypatch):
    result = CliRunner().invoke(main, ["evaluate", "images", *spoil(folders, name, monkeypatch)])
    assert (result.exit_code, result.stdout) == (1, "")
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert says in errors[0]


def test_the_command_line_knows_the_measures():
    assert cli_evaluate._MEASURES == MEASURES


# --- stains ----------------------------------------------------------------------------------------------------


def brown(amount, height=20, width=20):
    """Return a picture of DAB alone, `amount` in scikit-image's units."""
    stains = np.zeros((height, width, 3))
    stains[..., 2] = amount
    return np.rint(hed2rgb(stains) * 255).astype(np.uint8)


def test_saturation_of_known_amounts_of_dab():
    # Channel c is 10^(−6 · amount · v_c), DAB's v = (0.27, 0.57, 0.78): 1 − min/max = 1 − 10^(−6 · amount · 0.51)
    assert saturation(np.full((300, 4, 3), 255, np.uint8)).max() == 0
    for amount in (0.02, 0.05, 0.1):
        assert saturation(brown(amount)) == pytest.approx(1 - 10 ** (-6 * amount * 0.51), abs=0.01)


def test_membranes_of_half_a_picture():
    # left half DAB of saturation 1 − 10^(−6·0.05·0.51) = 0.297, right half white; against all white
    true = np.full((20, 20, 3), 255, np.uint8)
    found = true.copy()
    found[:, :10] = brown(0.05, 20, 10)
    differ, more = membrane_errors(found, true)
    below = np.array(THRESHOLDS) < 0.29
    assert differ[below] == pytest.approx(0.5)
    assert more[below] == pytest.approx(0.5)
    assert not differ[np.array(THRESHOLDS) > 0.31].any()
    mirrored = membrane_errors(found[:, ::-1], found)
    assert mirrored[0][below] == pytest.approx(1)
    assert not mirrored[1].any()


@given(seeds, seeds)
def test_membrane_errors_turn_their_sign_with_the_sides(one, other):
    there, back = membrane_errors(noise(one), noise(other)), membrane_errors(noise(other), noise(one))
    assert there[0].tolist() == back[0].tolist()
    assert there[1] == pytest.approx(-back[1])
    assert (np.abs(there[1]) <= there[0] + 1e-12).all()


def test_classes_of_dab():
    # Published DAB vector, unit length 1 in OD; 11 of 100 stained pixels reach a class, 10 do not.
    vector = np.array([0.268, 0.570, 0.776]) / np.linalg.norm([0.268, 0.570, 0.776])
    blue = np.array([0.650, 0.704, 0.286])

    def field(n_brown, od):
        ods = np.concatenate([np.tile(vector * od, (n_brown, 1)), np.tile(blue * 0.5, (100 - n_brown, 1))])
        stained = np.rint(255 * 10**-ods).astype(np.uint8)
        return np.concatenate([stained, np.full((300, 3), 255, np.uint8)]).reshape(20, 20, 3)  # and glass around

    assert [dab_class(field(11, od)) for od in (0.15, 0.25, 0.45, 0.65)] == [0, 1, 2, 3]
    assert [dab_class(field(10, od)) for od in (0.25, 0.65)] == [0, 0]
    assert dab_class(field(11, 0.25), (0.1, 0.22, 0.4)) == 2
    assert dab_class(np.full((4, 4, 3), 255, np.uint8)) == 0


@pytest.fixture
def fields(tmp_path):
    """Return a folder with a field of six brown nuclei, true, and of four paler ones, predicted."""
    tmp_path = tmp_path / "fields"
    for name, nuclei, color in (("true", 6, (60, 90, 140)), ("found", 4, (120, 150, 190))):
        (tmp_path / name).mkdir(parents=True)
        field = np.full((160, 240, 3), 240, np.uint8)
        for number in range(nuclei):
            cv2.circle(field, (40 + 80 * (number % 3), 40 + 80 * (number // 3)), 9, color, -1, cv2.LINE_AA)
        write_png(tmp_path / name / "one.png", cv2.GaussianBlur(field, (0, 0), 1)[..., ::-1].copy())
    return tmp_path


def test_stains_are_compared(fields):
    header, row, total = evaluate_stain(fields / "found", fields / "true", mpp=0.5, out=fields / "out")
    assert explained(header)
    values = dict(zip(header, row, strict=True))
    assert (values["true_nuclei"], values["found_nuclei"], values["nuclei_error"]) == ("6", "4", "2")
    assert float(values["density_error"]) == pytest.approx(2 / (0.12 * 0.08), rel=1e-3)  # 120 × 80 µm
    assert float(values["membrane_error"]) > 0
    assert int(values["true_class"]) > int(values["found_class"])
    assert dict(zip(header, total, strict=True))["class_agreement"] == "0"
    with (fields / "out" / "classes.csv").open() as file:
        table = list(csv.reader(file))
    assert table[1 + int(values["true_class"])][1 + int(values["found_class"])] == "1"
    assert sum(int(count) for line in table[1:] for count in line[1:]) == 1
    with (fields / "out" / "thresholds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(THRESHOLDS)  # of all, and of the one class there is
    assert np.mean([float(line["membrane_error"]) for line in rows[:21]]) == pytest.approx(
        float(values["membrane_error"]), rel=1e-3
    )


def test_a_stain_is_like_itself(fields):
    header, row, _ = evaluate_stain(fields / "true", fields / "true", mpp=0.5)
    values = dict(zip(header, row, strict=True))
    assert {values[name] for name in header if name.endswith("_error")} == {"0"}
    assert values["class_agreement"] == "1"


def test_a_stain_without_a_resolution_says_so(fields):
    result = CliRunner().invoke(main, ["evaluate", "stain", f"{fields}/found", "--truth", f"{fields}/true"])
    assert result.exit_code == 1
    assert "--mpp" in result.stderr


@pytest.mark.parametrize("cuts", ["0.2,0.4", "0.4,0.2,0.6", "a,b,c", "0,0.1,0.2", "0.1,0.2,nan"])
def test_cuts_that_are_none_are_a_usage_error(cuts):
    result = CliRunner().invoke(main, ["evaluate", "stain", "a", "--truth", "b", "--cuts", cuts])
    assert result.exit_code == 2
    assert "0.2,0.4,0.6" in result.stderr


def test_no_pairs_is_an_error_of_ours(tmp_path):
    with pytest.raises(TruthError, match="does not exist"):
        find_picture_pairs(tmp_path / "a", tmp_path / "b")
