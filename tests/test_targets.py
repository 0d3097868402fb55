"""The target domain: each nucleus one peak, one class and one colour, from whatever file it was outlined in."""

import json
import pickle

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

from wsiscore.errors import RoiError
from wsiscore.models.contract import TargetRules
from wsiscore.training.targets import (
    OTHERS,
    center_map,
    class_masks,
    colour_mask,
    k_maps,
    random_classes,
    read_nuclei,
)


def ellipses(*shapes):
    """Return cells, (96, 96), of ellipses given as (x, y, half length, half width, degrees, sign)."""
    cells = np.zeros((96, 96), np.int32)
    for number, (x, y, length, width, angle, sign) in enumerate(shapes, start=1):
        mask = np.zeros(cells.shape, np.uint8)
        cv2.ellipse(mask, (x, y), (length, width), angle, 0, 360, 1, -1)
        cells[mask > 0] = sign * number
    return cells


@given(
    length=st.integers(2, 22),
    ratio=st.floats(0.35, 1),
    angle=st.integers(0, 180),
    sign=st.sampled_from([-1, 1]),
)
@settings(deadline=None, max_examples=60)
def test_a_nucleus_of_any_size_and_shape_has_one_peak_at_its_middle(length, ratio, angle, sign):
    cells = ellipses((48, 47, length, max(2, round(length * ratio)), angle, sign))
    center = center_map(cells)
    assert center.max() > 200
    assert (center[cells == 0] == 0).all()
    y, x = np.nonzero(center == center.max())
    assert abs(y.mean() - 47) <= 1
    assert abs(x.mean() - 48) <= 1
    # No second hill: whatever is above a height hangs together.
    for height in (40, 90, 140, 190):
        assert ndi.label(center > height, np.ones((3, 3)))[1] == 1


def test_touching_nuclei_keep_a_valley_between_them():
    center = center_map(ellipses((30, 48, 12, 8, 90, 1), (46, 48, 12, 8, 90, -1)))[48].astype(int)
    assert center[30] > 230
    assert center[46] > 230
    assert center[37:40].min() < 80


def test_the_papers_map_is_its_formula():
    cells = ellipses((40, 50, 6, 6, 0, 1))
    y, x = np.nonzero(cells)
    expected = 1 - np.hypot(x - x.mean(), y - y.mean()) / 28.28
    np.testing.assert_allclose(center_map(cells, "distance")[y, x] / 255, expected, atol=0.003)


def test_nuclei_that_are_not_the_tumours_rise_only_as_high_as_asked():
    cells = ellipses((30, 30, 8, 8, 0, 1), (70, 70, 8, 8, 0, -1))
    cells[cells < 0] = -(OTHERS + 2)
    for others in (0.0, 0.5, 1.0):
        maps = k_maps(cells, TargetRules(others=others))
        assert maps[0, 30, 30] == 255
        assert abs(int(maps[0, 70, 70]) - 255 * others) <= 1
        np.testing.assert_array_equal(maps[1:], class_masks(cells))


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_every_nucleus_takes_one_class_and_one_brightness(seed):
    labels = np.abs(ellipses(*((12 + 18 * i, 12 + 18 * j, 6, 5, 0, 1) for i in range(5) for j in range(5))))
    rng = np.random.default_rng(seed)
    cells = random_classes(labels, rng)
    np.testing.assert_array_equal(np.abs(cells), labels)
    red, green, blue = colour_mask(cells, rng)
    assert not blue.any()
    assert not red[cells <= 0].any()
    assert not green[cells >= 0].any()
    for number in range(1, 26):
        assert len({int(value) for value in cells[labels == number]}) == 1
        assert len({int(value) for value in np.maximum(red, green)[labels == number]}) == 1
    plain = colour_mask(cells, rng, variation=False)
    np.testing.assert_array_equal(plain[:2], class_masks(cells))


def test_the_share_of_positives_is_drawn_anew_for_each_tile():
    labels = np.arange(1, 401).reshape(20, 20)
    shares = [(random_classes(labels, np.random.default_rng(seed)) > 0).mean() for seed in range(200)]
    assert min(shares) < 0.05
    assert max(shares) > 0.95
    assert 0.4 < np.mean(shares) < 0.6


LABELS = np.zeros((40, 50), np.int32)
LABELS[5:12, 6:14] = 1
LABELS[20:33, 25:31] = 2
CORNERS = [[[6, 5], [13, 5], [13, 11], [6, 11]], [[25, 20], [30, 20], [30, 32], [25, 32]]]


def hover_json(path):
    nuclei = {str(i): {"contour": ring, "centroid": np.mean(ring, 0).tolist()} for i, ring in enumerate(CORNERS)}
    path.write_text(json.dumps({"mag": None, "nuc": nuclei}))


def geojson(path):
    rings = [[*ring, ring[0]] for ring in CORNERS]
    features = [
        {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}} for ring in rings
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def image_scope(path):
    regions = "".join(
        f'<Region Id="{i}" Type="0"><Vertices>'
        + "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ring)
        + "</Vertices></Region>"
        for i, ring in enumerate(CORNERS, start=1)
    )
    path.write_text(f"<Annotations><Annotation Id='1'><Regions>{regions}</Regions></Annotation></Annotations>")


WRITERS = {
    "nuclei.json": hover_json,
    "outlines.geojson": geojson,
    "outlines.xml": image_scope,
    "labels.npy": lambda path: np.save(path, LABELS),
    "dict.npy": lambda path: np.save(path, {"inst_map": LABELS.astype(float), "type_map": LABELS}, allow_pickle=True),
    "labels.tif": lambda path: tifffile.imwrite(path, LABELS.astype(np.uint16)),
    "labels.png": lambda path: cv2.imwrite(str(path), LABELS.astype(np.uint16)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_nuclei_are_read_from_every_format(name, tmp_path):
    WRITERS[name](tmp_path / name)
    labels = read_nuclei(tmp_path / name, shape=LABELS.shape)
    assert labels.shape == LABELS.shape
    assert set(np.unique(labels)) == {0, 1, 2}
    for number in (1, 2):
        read, true = labels == number, np.equal(LABELS, number)
        assert (read & true).sum() >= 0.95 * (read | true).sum()


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("code in a file was run",))


def test_code_in_a_file_is_not_run(tmp_path):
    np.save(tmp_path / "trap.npy", np.array({"inst_map": Trap()}, dtype=object), allow_pickle=True)
    with pytest.raises(RoiError, match="code"):
        read_nuclei(tmp_path / "trap.npy")
    assert pickle.dumps(Trap())  # the trap would have been sprung by a plain load


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b'{"nuc": {}}'),
        ("b.json", b"{"),
        ("c.npy", b"\x93NUMPY"),
        ("d.png", b"no picture"),
        ("e.tif", b"no picture"),
    ],
)
def test_what_holds_no_nuclei_is_said_so(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RoiError, match=name):
        read_nuclei(tmp_path / name)


@pytest.mark.shared
def test_the_annotated_breast_tiles_hold_their_640_nuclei(shared):
    files = sorted((shared / "data" / "he-nucls" / "labels").glob("*.npy"))
    assert sum(len(np.unique(read_nuclei(file))) - 1 for file in files) == 640
