"""Files of outlined nuclei: of the size of their picture and at the resolution asked for, or one clear error."""

import json
import pickle

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from training_parts import TINY, run

from wsiscore.errors import RoiError
from wsiscore.training.mask_files import MaskFiles, find_masks, read_outlines

LABELS = np.zeros((40, 50), np.int32)
LABELS[5:12, 6:14] = 1
LABELS[20:33, 25:31] = 2
CORNERS = [[[6, 5], [13, 5], [13, 11], [6, 11]], [[25, 20], [30, 20], [30, 32], [25, 32]]]


def hover_json(path, mag=None, scale=1):
    nuclei = {
        str(i): {"contour": (scale * np.array(ring)).tolist(), "centroid": np.mean(ring, 0).tolist()}
        for i, ring in enumerate(CORNERS)
    }
    path.write_text(json.dumps({"mag": mag, "nuc": nuclei}))


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


OUTLINES = ("nuclei.json", "outlines.geojson", "outlines.xml")
SIZE = (50, 40)


def picture(path, width=50, height=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((height, width, 3), 200, np.uint8))


@pytest.mark.parametrize("name", WRITERS)
def test_nuclei_are_read_from_every_format(name, tmp_path):
    WRITERS[name](tmp_path / name)
    labels, mpp = read_outlines(tmp_path / name, SIZE)
    assert mpp is None
    assert labels.shape == LABELS.shape
    assert set(np.unique(labels)) == {0, 1, 2}
    for number in (1, 2):
        read, true = labels == number, np.equal(LABELS, number)
        assert (read & true).sum() >= 0.95 * (read | true).sum()


@pytest.mark.parametrize("name", OUTLINES)
@pytest.mark.parametrize("place", ["beside", "in a folder beside"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_outlines_have_the_size_of_the_picture_of_their_stem(name, place, suffix, tmp_path):
    path = tmp_path / "masks" / "json" / name
    path.parent.mkdir(parents=True)
    WRITERS[name](path)
    folder = path.parent if place == "beside" else tmp_path / "masks" / "images"
    picture((folder / name).with_suffix(suffix), 64, 256)
    assert read_outlines(path)[0].shape == (256, 64)
    assert find_masks(tmp_path / "masks", 0.5, 32).files == (path,)  # the picture is no mask


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_of_unknown_size_are_refused(name, tmp_path):
    WRITERS[name](tmp_path / name)
    with pytest.raises(RoiError, match=rf"{name} does not say how large.*--mask-size"):
        find_masks(tmp_path, 0.5, 32)


def test_outlines_beyond_their_picture_are_refused(tmp_path):
    folder = tmp_path / "outlines"  # pictures are sought in the folders beside it too
    folder.mkdir()
    hover_json(folder / "a.json")
    with pytest.raises(RoiError, match=r"up to \(30, 32\) px, beyond its picture of 20 × 20 px"):
        read_outlines(folder / "a.json", (20, 20))


@given(mag=st.sampled_from([10, 20, 40, 40.0]), mpp=st.sampled_from([0.25, 0.5, 1.0]))
def test_magnification_sets_the_scale(mag, mpp, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mag")
    hover_json(folder / "a.json", mag, scale=8)
    picture(folder / "a.png", 8 * 50, 8 * 40)
    labels = find_masks(folder, mpp, 8, file_mpp=3.0).read(0)
    scale = 8 * 10 / mag / mpp  # the file's own magnification comes before --mask-mpp
    assert labels.shape == (round(40 * scale), round(50 * scale))
    for number in (1, 2):
        y, x = np.nonzero(labels == number)
        row, column = np.nonzero(np.equal(LABELS, number))
        assert abs(y.mean() - scale * row.mean()) <= scale
        assert abs(x.mean() - scale * column.mean()) <= scale


def test_the_resolution_of_files_that_do_not_say_it_is_an_option(tmp_path):
    np.save(tmp_path / "a.npy", np.kron(LABELS, np.ones((2, 2), int)))
    np.testing.assert_array_equal(find_masks(tmp_path, 0.5, 32, file_mpp=0.25).read(0), LABELS)
    assert MaskFiles((tmp_path / "a.npy",), 0.5).read(0).shape == (80, 100)


@pytest.mark.parametrize("mag", ["40x", 0, -20, [40]])
def test_a_wrong_magnification_is_refused(mag, tmp_path):
    hover_json(tmp_path / "a.json", mag)
    with pytest.raises(RoiError, match=r"a\.json has mag"):
        find_masks(tmp_path, 0.5, 32, size_px=SIZE)


def test_files_without_a_nucleus_are_left_out_with_a_warning(tmp_path, caplog):
    hover_json(tmp_path / "b.json")
    (tmp_path / "a.json").write_text('{"mag": null, "nuc": {}}')
    np.save(tmp_path / "c.npy", np.zeros((40, 50), int))
    found = find_masks(tmp_path, 0.5, 32, size_px=SIZE)
    assert found.files == (tmp_path / "b.json",)
    assert "a.json has no nucleus; 2 such files are left out" in caplog.text
    (tmp_path / "b.json").unlink()
    with pytest.raises(RoiError, match=r"no nucleus is outlined in any of 2 files, such as a\.json"):
        find_masks(tmp_path, 0.5, 32, size_px=SIZE)


def test_masks_smaller_than_a_crop_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", LABELS)
    with pytest.raises(RoiError, match=r"a\.npy is 50 × 40 px at 0\.5 µm/px; wanted at least 41 px"):
        find_masks(tmp_path, 0.5, 41)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RoiError, match="no file of outlined nuclei"):
        find_masks(tmp_path / "empty", 0.5, 41)


def test_the_command_refuses_a_broken_mask_before_it_trains(tmp_path):
    (tmp_path / "masks").mkdir()
    hover_json(tmp_path / "masks" / "a.json")
    (tmp_path / "masks" / "b.json").write_text("{")
    small = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    words = ["--masks", tmp_path / "masks", "--mask-size", 50, 40, "--steps", 1, "--crop", 32, "--fields", 1, *small]
    done = run("train", "ihcscoregan", "-o", tmp_path / "t", *words)
    assert done.exit_code == 1
    assert "b.json" in done.output
    assert not (tmp_path / "t" / "cache").exists()


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("code in a file was run",))


def test_code_in_a_file_is_not_run(tmp_path):
    np.save(tmp_path / "trap.npy", np.array({"inst_map": Trap()}, dtype=object), allow_pickle=True)
    with pytest.raises(RoiError, match="code"):
        read_outlines(tmp_path / "trap.npy")
    assert pickle.dumps(Trap())  # the trap would have been sprung by a plain load


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.json", b"{"),
        ("c.npy", b"\x93NUMPY"),
        ("d.png", b"no picture"),
        ("e.tif", b"no picture"),
    ],
)
def test_files_of_something_else_are_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RoiError, match=name):
        read_outlines(tmp_path / name)


@pytest.mark.shared
def test_the_annotated_breast_tiles_hold_their_640_nuclei(shared):
    files = sorted((shared / "data" / "he-nucls" / "labels").glob("*.npy"))
    assert sum(len(np.unique(read_outlines(file)[0])) - 1 for file in files) == 640
