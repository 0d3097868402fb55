"""Measures of the stain in pictures."""

import csv

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from making import write_png
from pictures import explained, noise, seeds
from skimage.color import hed2rgb

from wsiscore.cli import main
from wsiscore.errors import TruthError
from wsiscore.evaluation.images.evaluate import evaluate_stain
from wsiscore.evaluation.images.pairs import find_picture_pairs
from wsiscore.evaluation.images.staining import THRESHOLDS, dab_class, membrane_errors, saturation


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
