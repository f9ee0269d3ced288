"""Budgets: how much a study may take."""

from __future__ import annotations

import re

from luthier.errors import LuthierError

_UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(budget: str | float) -> float:
    """A time in seconds.

    >>> seconds("5min"), seconds("1.5h"), seconds(90)
    (300.0, 5400.0, 90.0)

    Raises:
        LuthierError: not a time, or not above zero.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-z]*)\s*", str(budget).lower())
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise LuthierError(f"a budget is a time above zero such as 90s, 5min or 1h, got {budget!r}")
    return float(match[1]) * _UNITS[match[2]]
