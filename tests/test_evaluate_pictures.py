"""The evaluation of pictures against pictures."""

import csv
import warnings

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from making import Darkness, as_model, whole, write_png
from pictures import explained, noise

from wsiscore.cli import evaluate as cli_evaluate
from wsiscore.cli import main
from wsiscore.evaluation.images import pairs as pictures
from wsiscore.evaluation.images.evaluate import MEASURES, evaluate_images
from wsiscore.evaluation.images.pairs import find_picture_pairs
from wsiscore.inference import infer
from wsiscore.slide.slide import Slide


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
