"""``wsiscore calibrate``: rules chosen on annotated pictures, and the error on those left out."""

import numpy as np
import pytest
from making import mosaic_of
from training_parts import run

from wsiscore.cells.rules import CenterRules
from wsiscore.errors import ModelError, OutputError, TruthError
from wsiscore.evaluation.detection.calibrate import calibrate, calibrated
from wsiscore.evaluation.detection.choose import Counts, Picture, best_rules, count_cells, summarise
from wsiscore.evaluation.detection.truth import Kind, TrueCells
from wsiscore.models.card import INDEX_ERROR, read_card
from wsiscore.synthetic.slides import render_slide

OWN = CenterRules(threshold=0.5, radius_um=1.5, positive_od=0.3)
STEP_PX = 16


def picture(folder, name, heights, dab, truth_od=0.1, seed=0):
    """Return a picture with peaks of these heights, of which those over 0.2 are true cells."""
    folder.mkdir(exist_ok=True)
    side = STEP_PX * 8
    maps = np.zeros((4, side, side), np.float32)
    xy_um, kinds = [], []
    for number, (height, od) in enumerate(zip(heights, dab, strict=True)):
        y, x = (STEP_PX * at + STEP_PX // 2 for at in divmod(number, 8))
        maps[0, y, x], maps[1, y, x], maps[2, y, x] = height, 0.4, 0.6
        maps[3, y - 2 : y + 3, x - 2 : x + 3] = od
        if height > 0.2:
            xy_um.append(((x + 0.5) * 0.5, (y + 0.5) * 0.5))
            kinds.append(Kind.POSITIVE if od >= truth_od else Kind.NEGATIVE)
    return Picture(name, mosaic_of(folder / f"{name}.zarr", maps, 64), TrueCells.of(xy_um, kinds))


@pytest.fixture
def pictures(tmp_path):
    """Return three pictures: true cells are 0.33 high and are positive from 0.1 OD on, artefacts at 0.15."""
    found = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        heights = np.where(rng.random(60) < 0.7, 0.33, 0.15)
        found.append(picture(tmp_path / "mosaics", f"p{seed}", heights, rng.choice([0.02, 0.2], 60)))
    return found


def test_one_reading_gives_what_each_rule_finds(pictures):
    own = pictures[0]
    table = count_cells(
        own, OWN, thresholds=[0.1, 0.25, 0.5], positive_ods=[None, 0.1, 0.3], radius_um=3, sures=[0.55, 0.8, 1]
    )
    assert len(table) == 27
    assert table[CenterRules(0.5, 1.5, positive_od=0.1)].tp == 0
    exact = table[CenterRules(0.25, 1.5, positive_od=0.1)]
    assert (exact.fp, exact.fn, exact.index_error) == (0, 0, 0)
    assert table[CenterRules(0.1, 1.5, positive_od=0.1)].fp > 0
    for rules, counts in table.items():
        cells, _ = rules.find(own.mosaic)
        assert counts.tp + counts.fp == len(cells)
        if len(cells):
            assert counts.found_index == pytest.approx(100 * cells.positive.mean())


def test_the_rules_of_the_annotations_are_found_and_hold_on_those_left_out(pictures):
    found = calibrated(pictures, OWN, 3.0)
    assert 0.15 <= found.rules.threshold < 0.35
    assert 0.02 < found.rules.positive_od <= 0.2
    assert found.after.loss == pytest.approx(0)
    assert found.before.f1 == 0
    assert summarise(found.tested).index_error == pytest.approx(0)
    assert len(found.table) == 1 + 3 * 3 + 3


def test_good_rules_stay(pictures):
    own = CenterRules(threshold=0.2, radius_um=1.5, positive_od=0.1)
    assert calibrated(pictures, own, 3.0).rules == own


def test_rules_that_do_not_carry_over_are_not_taken(tmp_path):
    """Two annotators who disagree: what is chosen on one is worse on the other than the model's limit between them."""
    own = CenterRules(threshold=0.2, radius_um=1.5, positive_od=0.2)
    dab = np.repeat([0.02, 0.16, 0.3, 0.44], [20, 10, 10, 20])
    both = [picture(tmp_path / "m", f"p{limit}", np.full(60, 0.33), dab, truth_od=limit) for limit in (0.1, 0.4)]
    found = calibrated(both, own, 3.0)
    assert found.kept
    assert found.rules == own
    assert found.after == found.before == summarise(found.tested)
    assert not calibrated(both[:1], own, 3.0).kept


def test_incomplete_truth_counts_by_recall_and_index():
    own, more = CenterRules(0.5), CenterRules(0.2)
    strict, loose = Counts(5, 0, 5, 50, 50), Counts(10, 20, 0, 50, 50)
    assert best_rules([{own: [strict], more: [loose]}], own) == own
    lacking = [Counts(at.tp, at.fp, at.fn, 50, 50, complete=False) for at in (strict, loose)]
    assert best_rules([{own: lacking[:1], more: lacking[1:]}], own) == more


def test_the_new_model_says_what_was_chosen_and_tested(pictures, tmp_path):
    out = tmp_path / "lab"
    calibrate(pictures, "hdab", out, radius_um=3, command="the command", name="ours")
    card = read_card(out)
    assert card.name == "lab"
    assert 0.15 <= card.spec.rules.threshold < 0.35
    (error,) = [entry for entry in card.tested_on if entry.metric == INDEX_ERROR]
    assert len(error.errors) == 3
    assert card.chosen_on
    calibrate(pictures[:1], "hdab", tmp_path / "one", radius_um=3, command="c", name="ours")
    assert read_card(tmp_path / "one").tested_on == ()


def test_what_does_not_fit_is_refused(pictures, tmp_path):
    with pytest.raises(ModelError, match="other weights"):
        calibrate(pictures, "ihcscoregan", tmp_path / "x", radius_um=3, command="c", name="ours")
    empty = [Picture("p", pictures[0].mosaic, TrueCells.of([], []))]
    with pytest.raises(TruthError, match="nothing can be chosen"):
        calibrate(empty, "hdab", tmp_path / "x", radius_um=3, command="c", name="ours")
    calibrate(pictures, "hdab", tmp_path / "y", radius_um=3, command="c", name="ours")
    with pytest.raises(OutputError, match="itself"):
        calibrate(pictures, tmp_path / "y", tmp_path / "y", radius_um=3, command="c", name="ours")


def test_the_command_calibrates_rendered_fields(tmp_path):
    for seed, name in enumerate(("a", "b")):
        render_slide(tmp_path / "slides", name, index=30, width_px=700, height_px=700, seed=seed)
    slides = sorted((tmp_path / "slides").glob("*.svs"))
    assert run("score", *slides, "--model", "hdab", "-o", tmp_path / "out").exit_code == 0
    words = ["calibrate", tmp_path / "out", "--truth", tmp_path / "slides", "--model", "hdab", "-o", tmp_path / "lab"]
    done = run(*words)
    assert done.exit_code == 0, done.output
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[1] for row in rows if row[0] == "total"] == ["model", "left out", "chosen"]
    assert run("score", slides[0], "--model", tmp_path / "lab", "-o", tmp_path / "new").exit_code == 0
