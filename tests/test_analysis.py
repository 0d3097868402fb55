"""Intervals, the convention, the protocols and heterogeneity: what holds of them whatever the cells are."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from reports import cells_at
from scipy import stats

from wsiscore.analysis.analyse import analyse
from wsiscore.analysis.blocks import (
    BlockSize,
    between_fields,
    block_sizes,
    broad_effect,
    choose_blocks,
    correlation_um,
    design_effect,
    sampling,
)
from wsiscore.analysis.convention import LIMITS, convention
from wsiscore.analysis.flags import FLAGS, join_flags, split_flags
from wsiscore.analysis.heterogeneity import hexagon_entropy
from wsiscore.analysis.intervals import COUNTING, Sampling, conformal, p_at_or_above, score_interval
from wsiscore.analysis.protocols import HOT_SPOT_CELLS, protocols, zone
from wsiscore.cells.rules import CenterRules
from wsiscore.cells.table import Cells
from wsiscore.regions import Roi
from wsiscore.report.qupath import write_fields
from wsiscore.score import SlideScore, Tally, score_cells, with_flags

blocks = st.lists(st.tuples(st.integers(1, 500), st.floats(0, 1)), min_size=9, max_size=60).map(
    lambda pairs: (
        np.array([n for n, _ in pairs]),
        np.array([round(n * p) for n, p in pairs]),
    )
)
samplings = st.builds(Sampling, st.just(500.0), st.integers(9, 200), st.floats(1, 500))


def scattered(n: int, side_um: float, p: float | str = 0.2, seed: int = 1) -> Cells:
    """Return cells at random places of a square; with "halves" 5 % are positive on the left and 35 % on the right."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, side_um, (2, n))
    chance = np.where(x < side_um / 2, 0.05, 0.35) if p == "halves" else p
    positive = rng.random(n) < chance
    return cells_at(x, y, np.where(positive, 0.9, 0.1), np.where(positive, 0.4, 0.02) + rng.uniform(0, 0.05, n))


def mirrored(cells: Cells) -> Cells:
    return replace(cells, stained=~cells.positive)


# ---- blocks


@given(blocks)
def test_the_design_effect_is_at_least_one_and_the_same_for_either_class(counts) -> None:
    n, positive = counts
    effect = design_effect(n, positive)
    assert effect >= 1
    assert design_effect(n, n - positive) == pytest.approx(effect)


@given(st.integers(9, 40), st.integers(1, 50), st.integers(1, 50))
def test_blocks_of_one_index_have_no_design_effect_and_wilsons_interval(m, positive, negative) -> None:
    n, y = np.full(m, positive + negative), np.full(m, positive)
    assert design_effect(n, y) == 1
    many = Sampling(500, 10_000, 1.0)
    total = int(n.sum()), int(y.sum())
    assert score_interval(total[1], total[0], many) == pytest.approx(
        Tally(total[1], total[0] - total[1]).interval_95, abs=0.05
    )


@given(blocks)
def test_the_design_effect_does_not_depend_on_the_order_of_blocks(counts) -> None:
    n, positive = counts
    assert design_effect(n[::-1], positive[::-1]) == pytest.approx(design_effect(n, positive))


def test_the_formula_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(3)
    n = rng.poisson(300, 60) + 1
    positive = rng.binomial(n, rng.beta(4, 12, 60))
    drawn = stats.bootstrap(
        (positive, n),
        lambda y, m, axis=-1: y.sum(axis) / m.sum(axis),
        paired=True,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    low, high = score_interval(int(positive.sum()), int(n.sum()), Sampling(500, 60, design_effect(n, positive)))
    assert (low / 100, high / 100) == pytest.approx((drawn.low, drawn.high), abs=0.006)


def test_a_tumour_of_two_halves_is_a_lower_bound() -> None:
    varies = sampling(scattered(60_000, 6000, "halves"))
    assert varies is not None
    assert varies.lower_bound
    assert varies.block_um == 2000
    assert varies.design_effect > 50


@pytest.mark.parametrize("steep", [0.0, 0.1])
def test_what_varies_over_the_whole_width_widens_the_interval(steep) -> None:
    """Blocks of 250 µm see a slope less than waves do, and the side is chosen without it."""
    cells = scattered(40_000, 4000)
    positive = np.random.default_rng(4).random(len(cells)) < 0.2 + steep * (cells.x_um / 4000 - 0.5)
    sloped = replace(cells, stained=positive)
    smallest, varies = block_sizes(sloped)[0], sampling(sloped)
    assert varies is not None
    assert (varies.design_effect > 5 * smallest.design_effect) == bool(steep)


def test_the_waves_see_no_more_in_independent_cells_than_chance() -> None:
    """The mean of the squares of five standard normal numbers exceeds 2.2 once in twenty times."""
    cells, rng = scattered(4000, 2000), np.random.default_rng(5)
    found = [broad_effect(replace(cells, stained=rng.random(4000) < 0.3)) for _ in range(100)]
    assert min(found) == 1
    assert np.mean(np.array(found) > 2.2) < 0.1
    assert broad_effect(mirrored(cells)) == pytest.approx(broad_effect(cells))


@pytest.mark.parametrize(
    ("correlation", "side", "lower_bound"),
    [(0, 250, False), (41, 250, False), (42, 500, False), (160, 1000, False), (499, 1000, False), (501, 1000, True)],
)
def test_blocks_are_six_correlation_lengths_wide_where_there_are_nine(correlation, side, lower_bound) -> None:
    sizes = [BlockSize(size, blocks, 5.0) for size, blocks in ((250, 144), (500, 36), (1000, 9), (2000, 4))]
    varies = choose_blocks(sizes, correlation)
    assert varies is not None
    assert (varies.block_um, varies.lower_bound) == (side, lower_bound)


@pytest.mark.parametrize("length", [200, 400, 800])
def test_the_correlation_length_is_measured(length) -> None:
    """Of stripes as a sine of p along x and along y, whose covariance is a cosine, it is known."""
    cells = scattered(200_000, 10_000)
    wave = np.sin(cells.x_um / length) + np.sin(cells.y_um / length)
    positive = np.random.default_rng(4).random(len(cells)) < 0.3 + 0.14 * wave
    found = correlation_um(replace(cells, stained=positive))
    assert found == pytest.approx(1.7 * length, rel=0.25)
    assert correlation_um(mirrored(replace(cells, stained=positive))) == pytest.approx(found)


def test_a_few_cells_in_a_block_are_no_block() -> None:
    square = scattered(9_000, 1000)
    apart = replace(square, x_um=np.where(np.arange(9_000) < 40, square.x_um + 5000, square.x_um))
    assert sampling(apart) is not None
    assert sampling(apart).blocks == sampling(square).blocks


@pytest.mark.parametrize("n", [0, 1, 5000])
def test_too_small_an_area_has_no_interval_of_sampling(n) -> None:
    assert sampling(scattered(n, 400)) is None
    assert between_fields([10] * 8, [1] * 8) is None


def test_fields_of_a_case_are_blocks() -> None:
    n, positive = [100] * 20, [10, 30] * 10
    varies = between_fields([*n, 0], [*positive, 0])
    assert varies is not None
    assert (varies.blocks, varies.design_effect) == (20, pytest.approx(20 / 19 * 100 / 16))


# ---- intervals


@given(samplings, st.integers(0, 5000), st.integers(0, 5000), st.floats(1, 99))
def test_swapping_the_classes_mirrors_interval_and_probability(varies, positive, negative, cutoff) -> None:
    n = positive + negative
    if not n:
        assert all(math.isnan(end) for end in score_interval(0, 0, varies))
        assert math.isnan(p_at_or_above(cutoff, 0, 0, varies))
        return
    low, high = score_interval(positive, n, varies)
    assert 0 <= low <= 100 * positive / n <= high <= 100
    assert score_interval(negative, n, varies) == pytest.approx((100 - high, 100 - low), abs=1e-6)
    mirrored_p = p_at_or_above(100 - cutoff, negative, n, varies)
    assert p_at_or_above(cutoff, positive, n, varies) == pytest.approx(1 - mirrored_p, abs=1e-9)


@given(samplings, st.integers(0, 500), st.integers(1, 500))
def test_the_interval_of_sampling_holds_that_of_counting(varies, positive, negative) -> None:
    low, high = score_interval(positive, positive + negative)
    wide_low, wide_high = score_interval(positive, positive + negative, varies)
    assert wide_low <= low + 1e-9
    assert high - 1e-9 <= wide_high


@given(samplings, st.integers(0, 500), st.integers(1, 500), st.floats(0.5, 99), st.floats(0.01, 0.4))
def test_the_probability_falls_with_the_cutoff(varies, positive, negative, cutoff, more) -> None:
    n = positive + negative
    at, above = (p_at_or_above(value, positive, n, varies) for value in (cutoff, cutoff + more))
    assert 0 <= above <= at <= 1


def test_at_the_cutoff_it_is_an_even_chance() -> None:
    assert p_at_or_above(20, 200, 1000, COUNTING) == pytest.approx(0.5)


@pytest.mark.parametrize(("n", "level", "rank"), [(9, 0.90, 9), (18, 0.90, 18), (19, 0.95, 19), (39, 0.95, 38)])
def test_the_half_width_is_the_order_statistic(n, level, rank) -> None:
    errors = np.random.default_rng(1).permutation(np.arange(1.0, n + 1)) * np.resize([1, -1], n)
    found = conformal(errors.tolist())
    assert found is not None
    assert (found.level, found.images, abs(found.half_width)) == (level, n, rank)


def test_too_few_images_give_no_half_width() -> None:
    assert conformal([]) is None
    assert conformal([1.0] * 8) is None


# ---- the call


def test_the_error_of_the_model_is_not_hidden_by_many_cells() -> None:
    total = Tally(25_000, 75_000, 30.0)
    known = SlideScore("s", "m", total, model_error=conformal([1.0, 2, 3, 4, 5, 6, 7, 8, 6.0]))
    assert SlideScore("s", "m", total).call == "high"
    assert known.call == "indeterminate"
    assert "error of the model, up to 8.0 points" in known.decision.reason
    assert replace(known, total=Tally(40_000, 60_000, 30.0)).call == "high"


def test_sampling_decides_the_call_and_flags_it() -> None:
    total = Tally(2200, 7800, 3.0)
    assert SlideScore("s", "m", total).call == "high"
    wide = SlideScore("s", "m", total, sampling=Sampling(500, 12, 20.0))
    assert wide.call == "indeterminate"
    assert with_flags(wide, ["pen"]).flags == ("indeterminate", "pen")


def test_what_is_no_h_dab_has_no_call() -> None:
    score = SlideScore("s", "m", Tally(800, 200, 1.0), flags=("not_h_dab",))
    assert score.call == "unsuitable"
    assert score.decision.reason == FLAGS["not_h_dab"].rstrip(".")


@given(st.lists(st.sampled_from([*FLAGS, "of_a_later_version"])))
def test_flags_read_back_each_once_in_their_order(flags) -> None:
    read = split_flags(join_flags(flags))
    assert set(read) == set(flags)
    assert len(read) == len(set(flags))
    assert join_flags(read) == join_flags(flags)


def test_disjoint_regions_add_up_to_one_interval_of_sampling() -> None:
    cells = scattered(20_000, 2000, "halves")
    halves = [Roi("left", shapely.box(0, 0, 1000, 2000)), Roi("right", shapely.box(1000, 0, 2000, 2000))]
    whole = score_cells(cells, [Roi("all", shapely.box(0, 0, 2000, 2000))])
    parts = score_cells(cells, halves)
    assert whole.sampling is not None
    assert (parts.sampling, parts.total.n) == (whole.sampling, whole.total.n)


# ---- the convention


@given(st.lists(st.tuples(st.floats(0, 1.5), st.booleans()), min_size=1, max_size=80))
def test_the_index_falls_with_the_limit_and_the_used_limit_gives_the_index(pairs) -> None:
    od, positive = (np.array(column) for column in zip(*pairs, strict=True))
    curve = convention(cells_at(od, od, positive.astype(float), od))
    assert curve is not None
    assert all(a >= b for a, b in zip(curve.index, curve.index[1:], strict=False))
    assert curve.span[0] <= curve.span[1]
    ties = np.count_nonzero(od == curve.used)
    assert np.count_nonzero(od >= curve.used) - max(ties - 1, 0) <= positive.sum() <= np.count_nonzero(od >= curve.used)
    for limit, index in zip(LIMITS, curve.index, strict=True):
        assert index == pytest.approx(100 * np.mean(od >= limit))


def test_the_limit_decides_where_the_side_changes_within_the_span() -> None:
    od = np.repeat([0.05, 0.2, 0.4], [60, 25, 15])  # 40 % at any brown, 15 % at plainly brown
    curve = convention(cells_at(od, od, od > 0.3, od))
    assert curve is not None
    assert curve.span == pytest.approx((15, 40))
    assert [curve.decides(cutoff) for cutoff in (10, 15.5, 20, 39, 50)] == [False, True, True, True, False]
    assert convention(cells_at(od, od, od, od), CenterRules(positive_od=0.2)).used == 0.2


@given(
    st.lists(st.tuples(st.floats(0, 1.5), st.floats(0, 1)), min_size=1, max_size=80),
    st.sampled_from([0.5, 0.8, 0.9, 1.0]),
)
def test_the_curve_is_what_another_limit_gives_with_the_same_rules(pairs, sure) -> None:
    od, positivity = (np.array(column) for column in zip(*pairs, strict=True))
    rules = CenterRules(positive_od=0.07, sure=sure)
    curve = convention(cells_at(od, od, positivity, od), rules)
    assert curve is not None
    for limit, index in zip(LIMITS, curve.index, strict=True):
        assert index == pytest.approx(100 * np.mean(replace(rules, positive_od=limit).are_positive(positivity, od)))


def test_cells_of_unknown_density_have_no_curve() -> None:
    assert convention(cells_at([1], [1], [1], [math.nan])) is None


# ---- the protocols


def test_a_homogeneous_tumour_has_no_hot_spot() -> None:
    above = [protocols(scattered(6000, 1500, 0.2, seed)).hot_spot.above_chance for seed in range(8)]
    assert sum(above) <= 2


def test_a_hot_spot_is_found_where_it_is() -> None:
    cells = scattered(9000, 3000, 0.1)
    hot = np.hypot(cells.x_um - 2000, cells.y_um - 800) < 300
    found = protocols(replace(cells, stained=hot | cells.positive))
    spot = found.hot_spot
    assert spot is not None
    assert spot.above_chance
    assert spot.field.n == HOT_SPOT_CELLS
    assert math.dist((spot.field.x_um, spot.field.y_um), (2000, 800)) < 250
    assert found.differ(20)
    assert found.indices()["hot spot"] == spot.field.index


@pytest.mark.parametrize("seed", range(3))
def test_chance_is_at_least_the_index_and_the_fields_are_the_same_each_time(seed) -> None:
    cells = scattered(3000, 1000, "halves", seed)
    found = protocols(cells)
    assert found == protocols(cells)
    assert found.hot_spot is not None
    assert found.hot_spot.chance >= found.global_index - 0.5
    assert found.hot_spot.field.index >= max(found.unweighted - 10, 0)
    assert [field.n for field in found.fields] == [100] * 4
    assert sum(field.weight for field in found.fields) == pytest.approx(1)


def test_negligible_areas_have_their_own_field_and_weight() -> None:
    cells = scattered(12_000, 2000, 0.3)
    found = protocols(replace(cells, stained=(cells.x_um >= 1500) & cells.positive))
    assert [field.name for field in found.fields] == ["negligible", "low", "medium", "high"]
    assert found.fields[0].weight == pytest.approx(0.73, abs=0.06)
    assert abs(found.weighted - found.global_index) < abs(found.unweighted - found.global_index)


@pytest.mark.parametrize(("n", "fields", "hot"), [(0, 0, False), (399, 0, False), (400, 4, False), (500, 4, True)])
def test_few_cells_have_fewer_protocols(n, fields, hot) -> None:
    found = protocols(scattered(n, 500))
    assert len(found.fields) == fields
    assert (found.hot_spot is not None) == hot
    assert math.isnan(found.unweighted) == (not fields)


def test_the_zones() -> None:
    assert [zone(index) for index in (0, 5, 6, 30, math.nan)] == [
        "5 % or less", "5 % or less", "5–30 %", "30 % or more", "–",
    ]  # fmt: skip


def test_fields_for_qupath_hold_their_cells(tmp_path: Path) -> None:
    cells = scattered(3000, 1000)
    found = protocols(cells)
    write_fields(tmp_path / "fields.geojson", found, mpp=0.25)
    features = json.loads((tmp_path / "fields.geojson").read_text())["features"]
    assert len(features) == 5
    for feature, field in zip(features, (*found.fields, found.hot_spot.field), strict=True):
        circle = shapely.geometry.shape(feature["geometry"]).buffer(4)
        held = shapely.contains_xy(circle, cells.x_um / 0.25, cells.y_um / 0.25)
        assert np.count_nonzero(held) >= field.n
        assert feature["properties"]["measurements"]["Index %"] == field.index


# ---- heterogeneity


def test_entropy_is_none_of_one_class_and_grows_with_variation() -> None:
    same = cells_at(*np.random.default_rng(1).uniform(0, 3000, (2, 20_000)), np.zeros(20_000))
    assert hexagon_entropy(same) == 0
    assert 0 < hexagon_entropy(scattered(20_000, 3000, 0.25)) < hexagon_entropy(scattered(20_000, 3000, "halves")) + 1
    assert math.isnan(hexagon_entropy(scattered(300, 300)))
    assert hexagon_entropy(mirrored(same)) == 0


@pytest.mark.parametrize("n", [0, 1, 50])
def test_few_cells_invent_nothing(n) -> None:
    found = analyse(scattered(n, 100))
    values = found.to_json()
    json.dumps(values, allow_nan=False)
    assert values["protocols"]["hot_spot"] is None
    assert values["protocols"]["fields"] == []
    assert values["heterogeneity"]["hexagon_entropy_bits"] is None
    assert (values["convention"] is None) == (n == 0)
    if n == 0:
        assert found.flags(20) == ()
        assert values["protocols"]["global"] is None
