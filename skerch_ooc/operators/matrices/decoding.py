"""Decoding: what stored numbers mean by a file's attributes: scale, offset, what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError, shown

FILLS = {
    "i1": -127, "u1": 255, "i2": -32767, "u2": 65535, "i4": -2147483647, "u4": 4294967295,
    "f4": 9.969209968386869e36, "f8": 9.969209968386869e36,
    "i8": -9223372036854775806, "u8": 18446744073709551614,
}  # fmt: skip
"""What netCDF fills with where nothing was written, by dtype."""


@dataclass(frozen=True)
class Decoding:
    """How stored numbers become those that are meant.

    Attributes:
        dtype: Of the numbers that are meant.
        view: The dtype that stored integers are, if it is not the one that they claim to be.
        codes: Stored values that stand for missing entries, and what calls them so.
        lowest: Smallest stored value that is none; ``None`` for any.
        highest: Largest one.
        scale: The stored number is multiplied by it.
        offset: This is added then.
    """

    dtype: np.dtype[Any]
    view: str | None = None
    codes: tuple[tuple[Any, str], ...] = ()
    lowest: Any = None
    highest: Any = None
    scale: float = 1.0
    offset: float = 0.0

    @classmethod
    def of(
        cls, attributes: Mapping[str, Any], stored: np.dtype[Any], codes: Sequence[float] = (),
        *, fills: bool = False,
    ) -> Decoding | None:  # fmt: skip
        """Reads the attributes of netCDF's conventions; ``None`` if numbers mean themselves.

        Args:
            attributes: Of the dataset.
            stored: Its dtype.
            codes: More values that stand for missing entries, as the user says.
            fills: Whether what nobody has written holds netCDF's fill values.

        Raises:
            OperatorError: If an attribute is no number, or holds several where one is meant.
        """
        view = _view(attributes, stored)
        real = stored if view is None else np.dtype(view)
        missing = [(code, "missing_codes") for code in codes]
        for key in ("_FillValue", "missing_value"):
            missing += [(code, key) for code in _numbers(attributes, key)]
        kind = real.str[1:]
        if fills and "_FillValue" not in attributes and kind in FILLS and kind[1] != "1":
            missing.append((FILLS[kind], "netCDF's fill value"))
        lowest, highest = _limits(attributes)
        scales = [_one(attributes, key) for key in ("scale_factor", "add_offset")]
        coded = tuple((_as_stored(code, real), key) for code, key in missing)
        known = tuple((code, key) for code, key in coded if code is not None)
        bounded = lowest is not None or highest is not None
        told = [one for one in scales if one is not None]
        if not (known or bounded or told or view):
            return None
        scale = 1.0 if scales[0] is None else float(scales[0])
        offset = 0.0 if scales[1] is None else float(scales[1])
        meant = _meant(real, told, may_miss=bool(known) or bounded)
        return cls(meant, view, known, lowest, highest, scale, offset)

    def decode(self, stored: Array, out: Array) -> Array:
        """Writes what is meant to an array of the dtype; NaN where an entry is missing."""
        stored = stored if self.view is None else stored.view(self.view)
        if self.scale == 1.0 and self.offset == 0.0:
            out[...] = stored
        else:
            wide = np.multiply(stored, self.scale, dtype=np.float64)
            np.add(wide, self.offset, out=out, casting="same_kind")
        missing = self._missing(stored)
        if missing is not None:
            out[missing] = np.nan
        return out

    def _missing(self, stored: Array) -> Array | None:
        found: Array | None = None
        tests = [stored == code for code, _ in self.codes]
        # Compared so that NaN is neither below nor above.
        if self.lowest is not None:
            tests.append(stored < self.lowest)
        if self.highest is not None:
            tests.append(stored > self.highest)
        for test in tests:
            found = test if found is None else np.logical_or(found, test, out=found)
        return found

    def reason(self, stored: Any) -> str:
        """Why a stored value counts as missing; empty if it does not, or is NaN."""
        value = np.asarray([stored])
        value = value if self.view is None else value.view(self.view)
        for code, key in self.codes:
            if value[0] == code:
                return f"{value[0]}, which stands for a missing entry ({key})"
        low, high = self.lowest, self.highest
        if (low is not None and value[0] < low) or (high is not None and value[0] > high):
            return f"{value[0]}, which is not in the valid range of the file"
        return ""

    def remark(self) -> str:
        """A sentence about what is done."""
        parts = []
        if self.scale != 1.0 or self.offset != 0.0:
            parts.append(f"scaled by {self.scale:g}, {self.offset:g} added")
        if self.codes:
            known = dict.fromkeys(str(code) for code, _ in self.codes)
            parts.append(f"missing: {', '.join(known)}")
        if self.lowest is not None or self.highest is not None:
            parts.append(f"valid from {self.lowest} to {self.highest}")
        return "as the file says: " + "; ".join(parts) if parts else ""


def _view(attributes: Mapping[str, Any], stored: np.dtype[Any]) -> str | None:
    """The unsigned dtype that signed integers are said to be, or the reverse."""
    told = attributes.get("_Unsigned")
    told = told.decode() if isinstance(told, bytes) else told
    kinds = {"true": ("i", "u"), "false": ("u", "i")}.get(str(told).lower())
    if kinds is None or stored.kind != kinds[0]:
        return None
    return stored.str.replace(kinds[0], kinds[1])


def _numbers(attributes: Mapping[str, Any], key: str) -> list[Any]:
    if key not in attributes:
        return []
    found = np.atleast_1d(np.asarray(attributes[key]))
    if found.dtype.kind not in "biufc":
        try:
            found = found.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise OperatorError(
                f"the attribute {key} of the dataset is {shown(attributes[key])}; it must be a "
                "number"
            ) from error
    return list(found.ravel())


def _one(attributes: Mapping[str, Any], key: str) -> Any:
    found = _numbers(attributes, key)
    if len(found) > 1 or not np.isfinite(found or [0]).all():
        raise OperatorError(
            f"the attribute {key} of the dataset is {shown(attributes[key])}; it must be one number"
        )
    return found[0] if found else None


def _limits(attributes: Mapping[str, Any]) -> tuple[Any, Any]:
    """The smallest and the largest valid number, as stored."""
    both = _numbers(attributes, "valid_range")
    if len(both) == 2:
        return both[0], both[1]
    return _one(attributes, "valid_min"), _one(attributes, "valid_max")


def _as_stored(code: Any, stored: np.dtype[Any]) -> Any:
    """A code in the stored dtype; ``None`` if no stored number can have it, or it is NaN."""
    if code != code:
        return None
    if stored.kind in "fc":
        with np.errstate(over="ignore"):
            return stored.type(code)
    if stored.kind == "b":
        return bool(code) if code in (0, 1) else None
    size = np.iinfo(stored)
    value = int(np.real(code))
    if value != code:
        return None
    if value < 0 and stored.kind == "u" and value >= -(1 << (stored.itemsize * 8 - 1)):
        # Stated as the signed integer that has the same bits.
        value += 1 << (stored.itemsize * 8)
    return stored.type(value) if size.min <= value <= size.max else None


def _meant(stored: np.dtype[Any], scales: list[Any], *, may_miss: bool) -> np.dtype[Any]:
    """The dtype of what is meant: that of scale and offset, or one that has a NaN."""
    if scales:
        told = np.result_type(*scales)
        return np.dtype(np.float32 if told.itemsize <= 4 and stored.itemsize <= 2 else np.float64)
    if stored.kind in "fc" or not may_miss:
        return stored
    return np.dtype(np.float32 if stored.itemsize <= 2 else np.float64)
