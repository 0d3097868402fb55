"""A cohort's scores against clinical values: tables worked out on paper, and laws."""

import csv
import math
import statistics
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from wsiscore.cli import main
from wsiscore.errors import TruthError
from wsiscore.evaluation import evaluate_cases
from wsiscore.evaluation.cohort.agreement import Confusion, auc, confusion, differences, icc, roc
from wsiscore.evaluation.cohort.cases import read_scored_cases
from wsiscore.report.statistics import HEADER, error_row
from wsiscore.report.tables import write_scores_csv

percents = st.integers(0, 400).map(lambda quarter: quarter / 4)
cohorts = st.lists(st.tuples(percents, percents), min_size=1, max_size=30).map(
    lambda pairs: (np.array([one for one, _ in pairs]), np.array([other for _, other in pairs]))
)

# Six cases: index found, clinical value, call and label at 20 %.
#   a 10 12 low low    b 19 21 low high   c 22 18 high low
#   d 35 30 high high  e 40 15 high low   f 18 25 low high
FOUND = np.array([10.0, 19, 22, 35, 40, 18])
CLINICAL = np.array([12.0, 21, 18, 30, 15, 25])


def test_the_relaxation_table_is_the_one_on_paper():
    # ±0: TP d; FP c e; FN b f; TN a. ±1 takes b (19 and 21): a true positive. ±2 takes c (22 and 18): a true
    # negative. ±5 takes f (18 and 25): a true positive. e stays wrong: 40 is beyond ±10.
    wanted = {
        0: Confusion(1, 2, 2, 1),  # 1/3, 1/3, 2/6, 2/6
        1: Confusion(2, 2, 1, 1),  # 2/4, 2/3, 3/6, 4/7
        2: Confusion(2, 1, 1, 2),  # 2/3, 2/3, 4/6, 4/6
        4: Confusion(2, 1, 1, 2),
        5: Confusion(3, 1, 0, 2),  # 3/4, 3/3, 5/6, 6/7
        10: Confusion(3, 1, 0, 2),
    }
    found = {within: confusion(FOUND, CLINICAL, 20, within) for within in wanted}
    assert found == wanted
    fractions = [(c.precision, c.recall, c.accuracy, c.f1) for c in (found[0], found[1], found[5])]
    assert fractions[0] == pytest.approx((1 / 3, 1 / 3, 1 / 3, 1 / 3))
    assert fractions[1] == pytest.approx((1 / 2, 2 / 3, 1 / 2, 4 / 7))
    assert fractions[2] == pytest.approx((3 / 4, 1, 5 / 6, 6 / 7))


def test_bias_and_limits_are_those_on_paper():
    # Differences −2 −2 4 5 25 −7: sum 23, mean 23/6; squares 4+4+16+25+625+49 = 723; variance (723 − 23²/6)/5 =
    # 126.9667; SD 11.2680; limits 3.8333 ∓ 22.0852.
    apart = differences(FOUND, CLINICAL)
    assert (apart.bias, apart.low, apart.high) == pytest.approx((3.8333, -18.2519, 25.9186), abs=1e-4)


def test_the_roc_curve_is_the_one_on_paper():
    # Highest index first: e 40 low, d 35 high, c 22 low, b 19 high, f 18 high, a 10 low.
    # Of 9 pairs high–low the high one has the higher index in: b over a; d over c, a; f over a: AUC 4/9.
    thresholds, fpr, tpr = roc(FOUND, CLINICAL >= 20)
    assert thresholds.tolist() == [math.inf, 40, 35, 22, 19, 18, 10]
    assert (fpr * 3).tolist() == pytest.approx([0, 1, 1, 2, 2, 2, 3])
    assert (tpr * 3).tolist() == pytest.approx([0, 0, 1, 1, 2, 3, 3])
    assert auc(fpr, tpr) == pytest.approx(4 / 9)


def test_the_intraclass_correlation_is_the_published_one():
    # Shrout and Fleiss (1979), table 2: six targets, four raters; their ICC(2,1) is .29.
    # MSB 11.24, MSJ 32.49, MSE 1.02: (11.24 − 1.02)/(11.24 + 3·1.02 + 4·(32.49 − 1.02)/6) = 10.22/35.28.
    ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    assert icc(np.array(ratings, np.float64)) == pytest.approx(0.2898, abs=5e-5)


@given(cohorts)
def test_identical_values_agree_completely(cohort):
    _, clinical = cohort
    calls = confusion(clinical, clinical, 20)
    assert calls.fp == calls.fn == 0
    assert calls.accuracy == 1
    assert differences(clinical, clinical).bias == 0
    value = icc(np.column_stack([clinical, clinical]))
    assert value == pytest.approx(1) if len(set(clinical.tolist())) > 1 else math.isnan(value)


@given(cohorts, percents)
def test_a_wider_interval_never_has_more_mistakes(cohort, cutoff):
    found = [confusion(*cohort, cutoff, within) for within in range(11)]
    for narrow, wide in pairwise(found):
        assert wide.fp <= narrow.fp
        assert wide.fn <= narrow.fn
        assert wide.tp + wide.fn == narrow.tp + narrow.fn
    assert all(c.tp + c.fp + c.fn + c.tn == len(cohort[0]) for c in found)


@given(cohorts)
def test_auc_is_the_chance_of_the_right_order(cohort):
    index, clinical = cohort
    label = clinical >= 20
    thresholds, fpr, tpr = roc(index, label)
    if label.all() or not label.any():
        assert math.isnan(auc(fpr, tpr))
        return
    apart = index[label][:, None] - index[~label][None]
    assert auc(fpr, tpr) == pytest.approx((apart > 0).mean() + (apart == 0).mean() / 2)
    assert (np.diff(tpr) >= 0).all()
    assert (np.diff(thresholds) < 0).all()
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)


@given(cohorts)
def test_auc_is_that_of_the_mann_whitney_statistic(cohort):
    index, clinical = cohort
    label = clinical >= 20
    if label.any() and not label.all():
        _, fpr, tpr = roc(index, label)
        statistic = stats.mannwhitneyu(index[label], index[~label], method="asymptotic").statistic
        assert auc(fpr, tpr) == pytest.approx(statistic / (label.sum() * (~label).sum()))


@given(cohorts)
def test_limits_of_agreement_are_those_of_the_standard_library(cohort):
    index, clinical = cohort
    errors, limits = (index - clinical).tolist(), differences(index, clinical)
    assert limits.bias == pytest.approx(statistics.fmean(errors))
    if len(errors) > 1:
        half = 1.96 * statistics.stdev(errors)
        assert (limits.high - limits.bias, limits.bias - limits.low) == pytest.approx((half, half), abs=1e-9)


@given(cohorts)
def test_agreement_is_symmetric(cohort):
    one, other = cohort
    assert icc(np.column_stack([one, other])) == pytest.approx(icc(np.column_stack([other, one])), nan_ok=True)
    there, back = differences(one, other), differences(other, one)
    assert there.bias == pytest.approx(-back.bias)
    assert there.low == pytest.approx(-back.high, nan_ok=True)


def test_a_constant_difference_lowers_the_correlation_though_the_order_is_kept():
    # Ratings (10, 20), (20, 30), (30, 40): cases' means 15 25 35, MSB = 2·200/2 = 200; raters' means 20 and 30,
    # MSJ = 3·50/1 = 150; MSE 0. ICC(2,1) = 200/(200 + 2·150/3) = 2/3.
    assert icc(np.array([[10.0, 20], [20, 30], [30, 40]])) == pytest.approx(2 / 3)


# --- tables ----------------------------------------------------------------------------------------------------


def score_line(slide, positive, negative):
    index = 100 * positive / (positive + negative) if positive + negative else math.nan
    return [
        slide,
        "hdab",
        str(positive),
        str(negative),
        f"{index:.1f}",
        "0.0",
        "100.0",
        "1.000",
        "low",
        *[""] * (len(HEADER) - 9),
    ]


@pytest.fixture
def cohort(tmp_path):
    """Write the six cases on paper; a has two slides, and there are two more without a score."""
    lines = [
        score_line("a0", 12, 88),  # case a: 12 + 8 of 200 positive, 10 %
        score_line("a1", 8, 92),
        score_line("a2", 0, 0),
        *(score_line(slide, n, 100 - n) for slide, n in zip("bcdef", (19, 22, 35, 40, 18), strict=True)),
        error_row("g", "hdab", "it is broken"),
        score_line("h", 0, 0),
    ]
    write_scores_csv(tmp_path / "scores.csv", lines)
    clinical = "case,slide,ki67\na,a0,12\na,a1,12\na,a2,12\nb,b,21\nc,c,18\nd,d,30\ne,e,15\nf,f,25\ng,g,50\nh,h,3\n"
    (tmp_path / "clinical.csv").write_text(clinical)
    return tmp_path


def test_slides_of_a_case_add_up_and_unscored_ones_are_listed(cohort, caplog):
    cases = read_scored_cases(cohort / "scores.csv", cohort / "clinical.csv")
    assert [case.name for case in cases] == list("abcdefgh")
    assert (cases[0].tally.n_positive, cases[0].tally.n_negative, cases[0].slides) == (20, 180, ("a0", "a1", "a2"))
    assert cases[0].failed == ("a2: no cells",)
    assert cases[6].failed == ("g: error: it is broken",)
    evaluate_cases(cohort / "scores.csv", cohort / "clinical.csv")
    assert "no score (2): g, h" in caplog.text
    assert "some slides have no score (1): a" in caplog.text


def test_the_command_prints_the_tables_and_writes_the_files(cohort):
    args = ["evaluate", "cases", f"{cohort}/scores.csv", f"{cohort}/clinical.csv", "-o", f"{cohort}/e"]
    result = CliRunner().invoke(main, args, catch_exceptions=False)
    assert result.exit_code == 0
    first, second = result.stdout.split("\n\n")
    summary = dict(line.split("\t") for line in first.splitlines())
    wanted = {"cases": "8", "unscored": "2", "cutoff": "20", "tp": "1", "fp": "2", "fn": "2", "tn": "1", "f1": "0.3333"}
    wanted |= {"bias": "3.833", "limit_low": "-18.25", "limit_high": "25.92", "auc": "0.4444", "index_error": "7.5"}
    assert summary | wanted == summary
    header, *rows = [line.split("\t") for line in second.splitlines()]
    assert [row[1] for row in rows] == [str(within) for within in range(11)]
    assert rows[5] == ["20", "5", "3", "1", "0", "2", "0.750", "1.000", "0.833", "0.857"]
    assert list(csv.reader((cohort / "e" / "relaxation.csv").read_text().splitlines())) == [header, *rows]
    assert dict(csv.reader((cohort / "e" / "summary.csv").read_text().splitlines())) == summary
    by_case = {row["case"]: row for row in csv.DictReader((cohort / "e" / "cases.csv").read_text().splitlines())}
    assert by_case["a"] | {"slides": "3", "ki67_index": "10.0", "difference": "-2.0", "call": "low"} == by_case["a"]
    assert by_case["g"] | {"ki67_index": "nan", "call": "unscored", "label": "high"} == by_case["g"]
    assert by_case["g"]["note"] == "g: error: it is broken"
    curve = list(csv.DictReader((cohort / "e" / "roc.csv").read_text().splitlines()))
    assert curve[0] == {"threshold": "inf", "fpr": "0", "tpr": "0"}
    figure = ElementTree.fromstring((cohort / "e" / "cases.svg").read_text())
    assert len(list(figure.iter("{http://www.w3.org/2000/svg}circle"))) == 7  # six cases, and the cutoff on the curve


def test_the_printed_table_of_scores_and_a_semicolon_do_as_well(tmp_path):
    lines = ["\t".join(HEADER), "\t".join(score_line("a", 30, 70)), "\t".join(score_line("b", 1, 99))]
    (tmp_path / "cohort.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "clinical.csv").write_text("\ufeffcase;ki67\nb;2\na;20\n")
    cases = read_scored_cases(tmp_path / "cohort.tsv", tmp_path / "clinical.csv")
    assert [(case.name, case.tally.ki67_index, case.clinical) for case in cases] == [("b", 1, 2), ("a", 30, 20)]


def test_the_cutoff_itself_is_high(tmp_path):
    write_scores_csv(tmp_path / "scores.csv", [score_line("a", 1, 4), score_line("b", 1, 5)])
    (tmp_path / "clinical.csv").write_text("slide,ki67\na,20\nb,19.9\n")
    summary = dict(evaluate_cases(tmp_path / "scores.csv", tmp_path / "clinical.csv")[0])
    assert (summary["tp"], summary["tn"], summary["f1"], summary["auc"]) == ("1", "1", "1", "1")


@pytest.mark.parametrize(
    ("clinical", "undefined"),
    [
        ("slide,ki67\na,30\nb,40\n", {"auc"}),  # all of one label
        ("slide,ki67\na,1\nb,2\n", {"auc", "precision", "recall", "f1"}),
    ],
)
def test_undefined_measures_are_nan(tmp_path, clinical, undefined):
    write_scores_csv(tmp_path / "scores.csv", [score_line("a", 1, 9), score_line("b", 1, 8)])
    (tmp_path / "clinical.csv").write_text(clinical)
    summary = dict(evaluate_cases(tmp_path / "scores.csv", tmp_path / "clinical.csv", out=tmp_path / "e")[0])
    assert {name for name, value in summary.items() if value == "nan"} - {"precision"} == undefined - {"precision"}
    assert "undefined: all cases have one label" in (tmp_path / "e" / "cases.svg").read_text()


def test_a_cohort_without_any_score_is_no_crash(tmp_path):
    write_scores_csv(tmp_path / "scores.csv", [error_row("a", "hdab", "broken")])
    (tmp_path / "clinical.csv").write_text("slide,ki67\na,30\n")
    summary = dict(evaluate_cases(tmp_path / "scores.csv", tmp_path / "clinical.csv", out=tmp_path / "e")[0])
    assert (summary["cases"], summary["unscored"], summary["bias"], summary["icc_2_1"]) == ("1", "1", "nan", "nan")
    assert ElementTree.fromstring((tmp_path / "e" / "cases.svg").read_text()) is not None


def test_fractions_for_percents_are_a_warning(tmp_path, caplog):
    write_scores_csv(tmp_path / "scores.csv", [score_line("a", 1, 4)])
    (tmp_path / "clinical.csv").write_text("slide,ki67\na,0.2\n")
    read_scored_cases(tmp_path / "scores.csv", tmp_path / "clinical.csv")
    assert "wanted percent" in caplog.text


@pytest.mark.parametrize(
    ("clinical", "says"),
    [
        (b"", "has no rows"),
        (b"slide,ki67\n", "has no rows"),
        (b"slide,index\na,3\n", "lacks ki67; it has the columns slide, index"),
        (b"name,ki67\na,3\n", "neither a column slide nor case"),
        (b"slide,ki67\na,<5\nb,3\n", "line 2: ki67 is '<5'"),
        (b"slide,ki67\na,\nb,3\n", "line 2: ki67 is ''"),
        (b"slide,ki67\na,101\nb,3\n", "line 2: ki67 is '101'"),
        (b"slide,ki67\na,nan\nb,3\n", "line 2: ki67 is 'nan'"),
        (b"slide,ki67\na,3\nb\n", "line 3 has not 2 fields"),
        (b"slide,ki67\na,3\nb,3,4\n", "line 3 has not 2 fields"),
        (b"slide,ki67\na,3\n", "scores.csv has slides that clinical.csv has not: b"),
        (b"slide,ki67\na,3\nb,3\nc,4\n", "clinical.csv has slides that scores.csv has not: c"),
        (b"slide,ki67\na,3\nb,3\na,3\n", "has these slides twice: a"),
        (b"case,slide,ki67\nx,a,3\nx,b,4\n", "line 3: case x has 4 here and 3 above"),
        (b'slide,ki67\n"a,3\n', "cannot be read"),
        (b"\xff\xfe\x00slide", "cannot be read"),
    ],
)
def test_bad_clinical_values_are_one_clear_line(tmp_path, monkeypatch, clinical, says):
    monkeypatch.chdir(tmp_path)
    write_scores_csv(tmp_path / "scores.csv", [score_line("a", 1, 4), score_line("b", 1, 4)])
    (tmp_path / "clinical.csv").write_bytes(clinical)
    result = CliRunner().invoke(main, ["evaluate", "cases", "scores.csv", "clinical.csv"])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert says in result.stderr


def test_bad_scores_are_clear_too(tmp_path):
    (tmp_path / "clinical.csv").write_text("slide,ki67\na,3\n")
    for rows, says in (
        ([score_line("a", 1, 4), score_line("a", 1, 4)], "line 3: slide a is there twice"),
        ([["a", "hdab", "many", "4", *[""] * (len(HEADER) - 4)]], "line 2: wanted counts"),
    ):
        write_scores_csv(tmp_path / "scores.csv", rows)
        with pytest.raises(TruthError, match=says):
            read_scored_cases(tmp_path / "scores.csv", tmp_path / "clinical.csv")
