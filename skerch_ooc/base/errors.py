"""Exceptions of the package with their exit codes, and how messages show values and paths."""

import difflib
import shlex
from collections.abc import Iterable, Sequence

_LONGEST_VALUE = 200
_MOST_NAMES = 12


def shown(value: object) -> str:
    """Formats a value for a message: as Python writes it, cut to a few lines."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # Python refuses to write an integer of more than 4300 digits, or a deeply nested value.
        return f"(a value of type {type(value).__name__} that is too large to be shown)"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def shown_list(names: Sequence[str]) -> str:
    """Formats the names that were allowed for a message: the first few, and how many more."""
    listed = ", ".join(names[:_MOST_NAMES]) or "none"
    return listed + (f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else "")


def quoted(path: object) -> str:
    """Quotes a path for the shell, in commands that a user copies from a message."""
    return shlex.quote(str(path))


def counted(number: int, name: str) -> str:
    """Formats a number of things: ``"1 file"``, ``"2 files"``."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """Formats the allowed name that is most like an unknown one, as the end of a message.

    Returns:
        ``"; did you mean seed?"``, or nothing if no name is like it.
    """
    near = difflib.get_close_matches(str(name), list(allowed), n=1)
    return f"; did you mean {near[0]}?" if near else ""


class OocError(Exception):
    """A condition that the user can act on; its text states the cause, the values and what to do.

    Attributes:
        exit_code: The exit code of the command line.
    """

    exit_code = 1


class UsageError(OocError):
    """The user gave an unknown key, a bad value, a missing file or a bad operator. Exit code 2."""

    exit_code = 2


class OperatorError(UsageError):
    """The operator is unusable: not importable, wrong shape or dtype, NaN, not Hermitian.

    Its exit code is 2, as for every :class:`UsageError`.
    """


class QualityError(OocError):
    """The result is complete, but its error is above the limit that was asked for. Exit code 3."""

    exit_code = 3


class IncompleteError(OocError):
    """A file that the stage needs is missing, or there is no room to write one. Exit code 4."""

    exit_code = 4


class CorruptError(OocError):
    """A file is altered, torn, of another run, or a link in the place of data. Exit code 5."""

    exit_code = 5


class DriftError(CorruptError):
    """The operator differs from the one that made the fingerprint or other shards. Exit code 5."""
