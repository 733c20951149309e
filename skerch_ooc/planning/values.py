"""Validation of single values, of a spec that a user gave or of a plan on disk.

A check takes the key, for the message, and the value. It returns the value to keep, or raises
UsageError.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

from skerch_ooc.base.errors import UsageError, did_you_mean, shown
from skerch_ooc.base.files import canonical_json
from skerch_ooc.base.html import never_raising, table

MAX_SIZE = 2**48
"""Largest dimension or number of measurements, so that offsets stay within 64 bits."""

_HEX = re.compile(r"[0-9a-f]{64}")

_ESSENCE = ("kind", "measurements", "method")
"""What a notebook shows of a spec even if it is as by default."""

Check = Callable[[str, Any], Any]


def integer(low: int, high: int = MAX_SIZE, word: str | None = None) -> Check:
    """Makes a check for an integer from ``low`` to ``high``, or for a word in its place."""
    allowed = f"an integer from {low} to {high}"
    if word is not None:
        allowed = f'"{word}" or {allowed}'

    def check(key: str, value: Any) -> int | str:
        if word is not None and value == word:
            return word
        # bool is a subclass of int in Python: true would be taken for 1.
        if (
            isinstance(value, bool)
            or not isinstance(value, Integral)
            or not low <= int(value) <= high
        ):
            raise UsageError(f"{key} = {shown(value)}: must be {allowed}")
        return int(value)

    return check


def one_of(*words: str) -> Check:
    """Makes a check for one of these words."""

    def check(key: str, value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise UsageError(f"{key} = {shown(value)}: must be one of {', '.join(words)}")
        return value

    return check


def number(is_allowed: Callable[[float], bool], allowed: str) -> Check:
    """Makes a check for a real number (and no bool) for which a predicate is true."""

    def check(key: str, value: Any) -> float:
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not real or not is_allowed(value):
            raise UsageError(f"{key} = {shown(value)}: must be {allowed}")
        return float(value)

    return check


positive_seconds = number(lambda value: 0 < value <= MAX_SIZE, "a positive number of seconds")
tolerance = number(lambda value: 0 < value < 1, "a relative error between 0 and 1")
factor = number(lambda value: 0 < abs(value) <= sys.float_info.max, "a finite number, and not 0")
"""Checks the scale of a summand."""


def optional(check: Check) -> Check:
    """Makes a check that allows ``None``, and else does another check."""

    def check_if_given(key: str, value: Any) -> Any:
        return None if value is None else check(key, value)

    return check_if_given


def table_of(key_check: Check, value_check: Check) -> Check:
    """Makes a check for a table whose keys and values are checked."""

    def check(key: str, value: Any) -> dict[Any, Any]:
        return {key_check(key, name): value_check(key, inner) for name, inner in value.items()}

    return check


def text(key: str, value: Any) -> str:
    """Checks a text that may name a file."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise UsageError(f"{key} = {shown(value)}: must be a non-empty string")
    return value


def truth(key: str, value: Any) -> bool:
    """Checks a truth value."""
    if not isinstance(value, bool):
        raise UsageError(f"{key} = {shown(value)}: must be true or false")
    return value


def factory(key: str, value: Any) -> str | None:
    """Checks the name of a function that makes an operator; ``None`` is allowed."""
    if value is None:
        return None
    module, colon, name = text(key, value).rpartition(":")
    registered = not colon and all(part.isidentifier() for part in name.split("-"))
    if not registered and not (colon and module and name.isidentifier()):
        raise UsageError(
            f"{key} = {shown(value)}: must be 'package.module:function', 'file.py:function' or a "
            "name that a package has registered"
        )
    return str(value)


def sha256(key: str, value: Any) -> str | None:
    """Checks a SHA-256 in hexadecimal digits; ``None`` is allowed."""
    if value is not None and not (isinstance(value, str) and _HEX.fullmatch(value)):
        raise UsageError(f"{key} = {shown(value)}: must be a SHA-256, or nothing")
    return value


def arguments(key: str, value: Any) -> dict[str, Any]:
    """Checks the keyword arguments of a factory; returns a copy, as JSON gives them back."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{key} must be a table of keyword arguments, not {shown(value)}")
    try:
        _require_text_keys(key, value)
        # The round trip also makes a private, plain copy of what the caller may still change.
        copied: dict[str, Any] = json.loads(canonical_json(dict(value)))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{key}: arguments of a factory must be JSON values (text, finite numbers, booleans, "
            f"lists, tables), because they are stored in the plan: {error}"
        ) from error
    return copied


def _require_text_keys(key: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise UsageError(
                    f"{key}: {shown(name)}: the keys of a factory's arguments must be text"
                )
            _require_text_keys(key, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _require_text_keys(key, inner)


def shape(key: str, value: Any) -> tuple[int, int] | None:
    """Checks height and width; ``None`` is allowed."""
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise UsageError(f"{key} = {shown(value)}: must be [height, width]")
    check = integer(1)
    return check(key, value[0]), check(key, value[1])


class Checked:
    """Base of frozen dataclasses whose fields are checked, and named in errors, on creation."""

    section = ""

    @never_raising
    def _repr_html_(self) -> str:
        rows = [*_figures_of(self, ""), ("all else", "as by default")]
        return table(type(self).__name__, rows)

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            check = item.metadata.get("check")
            # A check may replace the value; of a frozen dataclass only object's setter can set it.
            if check is not None:
                name = f"{self.section}.{item.name}" if self.section else item.name
                object.__setattr__(self, item.name, check(name, getattr(self, item.name)))


def _figures_of(settings: Checked, prefix: str) -> Iterator[tuple[str, str]]:
    """Lists what was asked for: the essence, and what is not as by default."""
    for item in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, item.name)
        if isinstance(value, Checked):
            yield from _figures_of(value, f"{prefix}{item.name}.")
        elif item.compare and value is not None:
            made = item.default_factory
            default = item.default if made is dataclasses.MISSING else made()
            if value != default or item.name in _ESSENCE:
                yield f"{prefix}{item.name}", shown(value)


def checked(check: Check, default: Any = dataclasses.MISSING, **options: Any) -> Any:
    """Makes a field of a :class:`Checked` class; options are those of ``dataclasses.field``."""
    return dataclasses.field(default=default, metadata={"check": check}, **options)


Elsewhere = Callable[[str, str], str]
"""Says of the key of a table, and of an unknown key in it, where such a key stands; or nothing."""


def from_table(
    kind: type, table: Mapping[str, Any], prefix: str, elsewhere: Elsewhere | None = None
) -> Any:
    """Makes a checked dataclass from a table of its keys.

    Args:
        kind: The class.
        table: Keys and values.
        prefix: The key of the table, for messages; empty for a whole spec.
        elsewhere: Says where an unknown key may stand.

    Raises:
        UsageError: If a key is unknown, or a value is not allowed; names it.
    """
    allowed = keys_of(kind)
    for name in table:
        if name not in allowed:
            unknown = shown(f"{prefix}.{name}" if prefix else str(name)).strip("'\"")
            hint = (elsewhere and elsewhere(prefix, str(name))) or did_you_mean(name, allowed)
            raise UsageError(f"unknown key {unknown}; allowed here: {', '.join(allowed)}{hint}")
    return kind(**table)


def keys_of(kind: type) -> list[str]:
    """Lists the keys that a table of a checked dataclass may have."""
    return [item.name for item in dataclasses.fields(kind) if item.metadata.get("check")]


def section(kind: type, elsewhere: Elsewhere | None = None) -> Check:
    """Makes a check for a checked dataclass, or for a table from which one is made."""

    def check(key: str, value: Any) -> Any:
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            raise UsageError(f"{key} must be a table, not {shown(value)}")
        return from_table(kind, value, key, elsewhere)

    return check
