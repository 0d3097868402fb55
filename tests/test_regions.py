"""Rectangles at a scale keep what they hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsiscore.regions import Region

scales = st.floats(0.05, 20)
regions = st.builds(
    Region,
    st.integers(-10_000, 10_000),
    st.integers(-10_000, 10_000),
    st.integers(1, 5000),
    st.integers(1, 5000),
    scales,
)


@given(regions, scales, scales)
def test_there_and_back_contains(region: Region, a: float, b: float) -> None:
    there = region.at(a).at(b)
    back = region.at(b)
    assert there.contains(back)


@given(regions)
def test_same_scale_changes_nothing(region: Region) -> None:
    assert region.at(region.mpp) == region


@given(regions, st.integers(-500, 500), st.integers(-500, 500))
def test_intersection_lies_in_both(region: Region, dx: int, dy: int) -> None:
    other = Region(region.x + dx, region.y + dy, region.width, region.height, region.mpp)
    both = region.intersection(other)
    if both is None:
        assert abs(dx) >= region.width or abs(dy) >= region.height
    else:
        assert region.contains(both)
        assert other.contains(both)


def test_scales_do_not_mix() -> None:
    with pytest.raises(ValueError, match="do not mix"):
        Region(0, 0, 1, 1, 0.5).contains(Region(0, 0, 1, 1, 0.25))


@pytest.mark.parametrize(("width", "mpp"), [(0, 0.5), (1, 0.0), (1, float("nan"))])
def test_no_empty_regions(width: int, mpp: float) -> None:
    with pytest.raises(ValueError, match=r"at least one pixel|positive number"):
        Region(0, 0, width, 1, mpp)
