"""Dates: numbers of days or hours since a day, as netCDF's conventions have them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array

SECONDS = {"units": "seconds since 1970-01-01 00:00:00", "calendar": "proleptic_gregorian"}
"""What seconds say of themselves."""

_STEPS = {
    "second": 1.0, "sec": 1.0, "s": 1.0, "minute": 60.0, "min": 60.0, "hour": 3600.0, "hr": 3600.0,
    "h": 3600.0, "day": 86400.0, "d": 86400.0,
}  # fmt: skip
_OUR_CALENDAR = ("standard", "gregorian", "proleptic_gregorian")
_SINCE = re.compile(
    r"\s*([a-zA-Z]+)\s+since\s+(\d{1,4})-(\d{1,2})-(\d{1,2})(?:[T ]+(\S+))?\s*Z?\s*"
)
_REFORM = np.datetime64("1582-10-15")
"""Before that day the standard calendar is not the one that numpy has."""


def dates_of(values: Array, attributes: Mapping[str, Any]) -> Array | None:
    """Dates, as ``datetime64[s]``; ``None`` where numbers are none, or of another calendar."""
    told = _SINCE.fullmatch(str(attributes.get("units", "")))
    calendar = str(attributes.get("calendar", "standard")).lower()
    if told is None or calendar not in _OUR_CALENDAR or values.dtype.kind not in "iuf":
        return None
    unit = told[1].lower()
    step = _STEPS.get(unit, _STEPS.get(unit.removesuffix("s")))
    try:
        day = np.datetime64(f"{int(told[2]):04}-{int(told[3]):02}-{int(told[4]):02}", "s")
        start: Any = day + _time_of_day(told[5] or "0:0")
    except ValueError:
        return None
    if step is None:
        return None
    seconds = np.round(np.asarray(values, np.float64) * step)
    there = np.isfinite(seconds)
    made = start + np.where(there, seconds, 0).astype("timedelta64[s]")
    if calendar != "proleptic_gregorian" and min(start, made.min(initial=start)) < _REFORM:
        return None
    made[~there] = np.datetime64("NaT")
    return np.asarray(made)


def _time_of_day(text: str) -> np.timedelta64:
    hour, *others = (float(one) for one in text.rstrip("Z").split(":"))
    minute, second, *_ = [*others, 0.0, 0.0]
    return np.timedelta64(round(3600 * hour + 60 * minute + second), "s")
