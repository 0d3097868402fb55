"""Training on annotated pictures: what is read, what is known, slide statistics, and the command."""

import csv
import json

import cv2
import numpy as np
import pytest
import torch
from making import write_png
from training_parts import TINY, run

from wsiscore.errors import TruthError
from wsiscore.evaluation.detection.truth import Kind
from wsiscore.generators.ihcscoregan import Config
from wsiscore.generators.ihcscoregan.network import Decoder, Encoder, UNet
from wsiscore.models.card import read_card
from wsiscore.models.store import load_model
from wsiscore.networks.known_maps import fitted, known_losses
from wsiscore.networks.slide_norm import PooledNorms, frozen, measure
from wsiscore.training.known import Points, point_targets
from wsiscore.training.truth_data import TruthSampler, read_truth
from wsiscore.training.truth_files import TruthOptions, read_folder

pytestmark = pytest.mark.usefixtures("one_thread")


def tissue(n: int = 30, side: int = 160, seed: int = 0):
    """Return a picture of brown and blue discs of 12 px, their label map, centres, and which are brown."""
    rng = np.random.default_rng(seed)
    rgb, labels = np.full((side, side, 3), 240, np.uint8), np.zeros((side, side), np.int32)
    places = [(x, y) for y in range(12, side - 8, 20) for x in range(12, side - 8, 20)][:n]
    brown = rng.random(len(places)) < 0.5
    for number, ((x, y), positive) in enumerate(zip(places, brown, strict=True), start=1):
        cv2.circle(rgb, (x, y), 6, (120, 80, 40) if positive else (110, 120, 190), -1)
        cv2.circle(labels, (x, y), 6, number, -1)
    return rgb, labels, np.array(places, float) + 0.5, brown


def write_points(path, xy, classes, kinds=None):
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["x", "y", "class", *(["kind"] if kinds else [])])
        for i, (x, y) in enumerate(xy):
            table.writerow([x, y, classes[i], *([kinds[i]] if kinds else [])])


@pytest.fixture
def annotated(tmp_path):
    """Return a folder with points and a folder with label maps of another stain."""
    points, outlines = tmp_path / "points", tmp_path / "outlines"
    (outlines / "truth").mkdir(parents=True)
    points.mkdir()
    for seed, name in enumerate(("a", "b")):
        rgb, labels, xy, brown = tissue(seed=seed)
        write_png(points / f"{name}.png", rgb)
        write_points(points / f"{name}.csv", xy, ["positive" if own else "negative" for own in brown])
        write_png(outlines / f"{name}.png", rgb[..., ::-1].copy())
        cv2.imwrite(str(outlines / "truth" / f"{name}.png"), labels.astype(np.uint16))
    (outlines / "index.csv").write_text("name,recolour,weight\na,1,2\nb,1,1\n")
    return points, outlines


def test_points_and_outlines_are_read(annotated):
    points, outlines = annotated
    _, labels, xy, brown = tissue()
    one = read_folder(points, TruthOptions(mpp=0.5))[0]
    assert one.labels is None
    np.testing.assert_allclose(one.xy_px, xy)
    assert ((one.kind == Kind.POSITIVE) == brown).all()
    assert (one.other == 0).all()
    other = read_folder(outlines, TruthOptions())[0]
    assert other.recolour
    assert other.weight == 2
    assert not other.sized
    assert (other.labels > 0).sum() == (labels > 0).sum()
    assert (other.kind == Kind.UNKNOWN).all()
    assert (other.other == -1).all()


def test_outlines_in_json_become_labels_at_the_kept_resolution(tmp_path):
    write_png(tmp_path / "a.png", np.full((200, 200, 3), 200, np.uint8))
    square = [[20, 20], [60, 20], [60, 60], [20, 60]]
    ring = {"type": "Polygon", "coordinates": [[*square, square[0]]]}
    feature = {"type": "Feature", "geometry": ring, "properties": {"classification": {"name": "Positive"}}}
    (tmp_path / "a.json").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    found = read_folder(tmp_path, TruthOptions(mpp=0.175))[0]
    assert found.rgb.shape == (100, 100, 3)
    assert found.mpp == 0.35
    np.testing.assert_allclose(found.xy_px, [[20, 20]], atol=0.01)
    assert abs((found.labels == 1).sum() - 400) < 50


def test_kinds_of_tissue_are_kept_apart(tmp_path):
    rgb, _, xy, _ = tissue(n=3)
    write_png(tmp_path / "a.png", rgb)
    write_points(tmp_path / "a.csv", xy, ["", "", ""], ["tumour", "stroma", "unknown"])
    found = read_folder(tmp_path, TruthOptions(mpp=0.5))[0]
    assert found.other.tolist() == [0, 1, -1]
    assert found.kind.tolist() == [Kind.UNKNOWN, Kind.EXCLUDED, Kind.UNKNOWN]


def test_what_cannot_be_used_is_refused(annotated, tmp_path):
    points, _ = annotated
    with pytest.raises(TruthError, match="give --mpp"):
        read_folder(points, TruthOptions())
    with pytest.raises(TruthError, match="is no folder"):
        read_folder(tmp_path / "nowhere", TruthOptions())
    (points / "index.csv").write_text("name,unmarked\na,nothing\n")
    with pytest.raises(TruthError, match="ground or unknown"):
        read_folder(points, TruthOptions(mpp=0.5))


def test_discs_are_known_and_doubtful_classes_and_dark_ground_are_not():
    xy = np.array([[20.0, 20.0], [44.0, 20.0]])
    which = np.array([True, False])
    points = Points(xy, np.array([5.0, 5.0]), which, np.zeros(2, bool), np.array([0, -1], np.int8))
    dye = np.zeros((64, 64), np.float32)
    dye[50:60, 50:60] = 0.5
    maps, weights = point_targets(points, dye, 0.5, 1.0, complete=False)
    assert maps[0, 20, 20] == maps[0].max() == 255
    assert maps[1, 20, 20] == 255
    assert (weights[1:3, 20, 44] == 0).all()  # neither positive nor negative
    assert weights[3, 20, 44] == 0
    assert (weights[:, 20, 20] == 255).all()
    assert (weights[:, 55, 55] == 0).all()  # dark, unmarked
    assert (weights[:, 40, 10] == 255).all()
    _, weights = point_targets(points, dye, 0.5, 1.0, complete=True)
    assert (weights[:, 55, 55] == 255).all()


def test_batches_are_of_one_size_and_a_function_of_seed_and_step(annotated, dataset):
    data = read_truth(annotated, TruthOptions(mpp=0.5), dataset, rendered_fraction=0.4)
    assert len(data) == 4
    sampler = TruthSampler(data, batch=3, crop_px=64, seed=2)
    for step in range(8):
        batch = sampler[step]
        n, _, side, _ = batch["rgb"].shape
        assert batch["maps"].shape == batch["known"].shape == (n, 4, side, side)
        assert set(batch["inside"].unique().tolist()) <= {0, 1}
        again = TruthSampler(data, 3, 64, 2)[step]
        assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert batch["known"].any()
    other = TruthSampler(data, 3, 64, 2, first=3)[7]
    assert other["rgb"].shape != batch["rgb"].shape or not torch.equal(other["rgb"], batch["rgb"])


def test_unknown_pixels_do_not_count():
    rng = torch.Generator().manual_seed(0)
    maps = torch.rand((2, 4, 64, 64), generator=rng) * 1.8 - 0.9
    target = (torch.rand((2, 4, 64, 64), generator=rng) * 255).byte()
    known = torch.where(torch.rand((2, 4, 64, 64), generator=rng) < 0.5, 0, 255).byte()
    losses = known_losses(maps, target, known)
    changed = known_losses(maps, torch.where(known == 0, 255 - target, target), known)
    assert list(losses) == ["center", "positive", "negative", "other"]
    assert all(torch.equal(losses[name], changed[name]) for name in losses)
    assert float(known_losses(maps, 255 - target, known)["center"]) != float(losses["center"])


def test_training_statistics_are_those_of_a_slide():
    config = Config(**{**TINY, "blocks": 0})
    torch.manual_seed(1)
    network = UNet(Encoder(config), Decoder(config))
    x = torch.rand(3, 3, 64, 64) * 2 - 1
    inside = torch.ones(3, 1, 64, 64)
    inside[1, :, :32] = 0
    for weights in (torch.ones(3, 1, 64, 64), inside):
        slide = frozen(network, measure(network, x, weights))(x)
        pooled = UNet(Encoder(config), Decoder(config))
        pooled.load_state_dict(network.state_dict())
        norms = PooledNorms(pooled)
        with norms.counting(weights):
            torch.testing.assert_close(pooled(x), slide, atol=1e-4, rtol=1e-3)


def test_weights_fit_a_network_without_blocks_and_with_a_fourth_map():
    old, new = Config(**TINY), Config(**{**TINY, "blocks": 0, "maps": 4})
    before = UNet(Encoder(old), Decoder(old)).state_dict()
    after = UNet(Encoder(new), Decoder(new, 4))
    after.load_state_dict(fitted({name: value.numpy() for name, value in before.items()}, 0, 4))
    last = after.state_dict()["decoder.up.3.1.weight"]
    assert torch.equal(last[:, :3], before["decoder.up.3.1.weight"])


def test_the_command_trains_on_annotated_pictures(annotated, tmp_path):
    points, outlines = annotated
    small = [word for key, value in {**TINY, "blocks": 0, "maps": 4}.items() for word in ("--set", f"{key}={value}")]
    words = ["train", "ihcscoregan", "--truth", points, "--truth", outlines, "--mpp", 0.5, "--appearances", "wide"]
    words += ["--set", "norm=slide", "--steps", 3, "--batch", 2, "--crop", 32, "--fields", 1, "--workers", 0]
    words += ["--device", "cpu", "-o", tmp_path / "t", *small]
    done = run(*words)
    assert done.exit_code == 0, done.output
    card = read_card(tmp_path / "t" / "model")
    assert card.spec.norm == "slide"
    assert set(card.spec.channels) == {"center", "positive", "negative", "other"}
    assert "4 annotated pictures" in card.trained_on
    assert load_model(tmp_path / "t" / "model", "cpu")(np.full((1, 3, 64, 64), 200, np.uint8)).shape == (1, 4, 64, 64)
    first = (tmp_path / "t" / "model" / "weights.safetensors").read_bytes()
    assert run(*words).exit_code == 0
    assert (tmp_path / "t" / "model" / "weights.safetensors").read_bytes() == first


def test_truth_and_tiles_do_not_mix(annotated, tiles, tmp_path):
    points, _ = annotated
    done = run("train", "ihcscoregan", tiles, "--truth", points, "--mpp", 0.5, "-o", tmp_path / "t")
    assert done.exit_code == 1
    assert "no other INPUT" in done.output
