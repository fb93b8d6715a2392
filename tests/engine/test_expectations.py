"""Expected results: met, missed, NaN, unknown."""

from __future__ import annotations

import math

import pytest

from m2f.engine.expectations import CheckFailed, require_expected

METRICS = {"panoptic/PQ": 52.1, "panoptic/PQ_th": math.nan, "other/panoptic/PQ": 10.0}


def test_what_is_within_its_tolerance_passes() -> None:
    require_expected(METRICS, [["panoptic/PQ", 52, 0.11], ["other/panoptic/PQ", 10, 0]])


def test_all_misses_are_listed() -> None:
    with pytest.raises(CheckFailed) as failure:
        require_expected(METRICS, [["panoptic/PQ", 52, 0.05], ["panoptic/PQ_th", 50, 100], ["other/panoptic/PQ", 9, 2]])
    misses = ("panoptic/PQ is 52.1000, not 52 within 0.05", "panoptic/PQ_th is nan, not 50 within 100")
    assert str(failure.value) == f"evaluate.expected_results: {'; '.join(misses)}"


def test_an_unknown_metric_is_the_users_mistake() -> None:
    with pytest.raises(ValueError, match="no metric 'panoptic/pq'; did you mean 'panoptic/PQ'"):
        require_expected(METRICS, [["panoptic/pq", 52, 1]])
