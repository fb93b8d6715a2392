"""Whether an evaluation gives what `evaluate.expected_results` says it should."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)


class CheckFailed(Exception):  # noqa: N818 - nothing went wrong but the result
    """The work was done, and its result is not what it has to be; the message is the one line that is shown."""


def require_expected(metrics: Mapping[str, float], expected: Sequence[Sequence[Any]]) -> None:
    """Compare metrics with rows of [metric, value, tolerance].

    Args:
        metrics: what `flat_metrics` gives: those of the first data set under their own names.
        expected: rows of a metric's name, its value and the largest difference, all in the metric's own unit.

    Raises:
        ValueError: there is no such metric.
        CheckFailed: one is further off than its tolerance, or NaN; the message lists all that are.
    """
    misses = []
    for name, value, tolerance in expected:
        if name not in metrics:
            lower = {metric.lower(): metric for metric in metrics}
            near = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=1)]
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"evaluate.expected_results: there is no metric {name!r}{hint}")
        if not abs(metrics[name] - value) <= tolerance:  # so that NaN is a miss
            misses.append(f"{name} is {metrics[name]:.4f}, not {value:g} within {tolerance:g}")
    if misses:
        raise CheckFailed(f"evaluate.expected_results: {'; '.join(misses)}")
    if expected:
        logger.info("all %d expected results are met", len(expected))
