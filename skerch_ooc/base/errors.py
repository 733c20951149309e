"""The few exceptions of the package, each with the exit code of the command line."""

import shlex
from collections.abc import Sequence

_LONGEST_VALUE = 200
_MOST_NAMES = 12


def shown(value: object) -> str:
    """A value as messages show it: as Python writes it, but never longer than a few lines."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # Python writes no integers of more than 4300 digits.
        return f"(a value of type {type(value).__name__} that is too large to be shown)"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def shown_list(names: Sequence[str]) -> str:
    """Names as messages list what could have been given: not more than a few lines of them."""
    listed = ", ".join(names[:_MOST_NAMES]) or "none"
    return listed + (f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else "")


def quoted(path: object) -> str:
    """A path as a shell takes it: in messages, for commands that are going to be copied."""
    return shlex.quote(str(path))


class OocError(Exception):
    """A condition that the user can act on; its text says cause, values and next step.

    Attributes:
        exit_code: What the command line ends with.
    """

    exit_code = 1


class UsageError(OocError):
    """Unknown key, bad value, missing file, unusable operator. Exit code 2."""

    exit_code = 2


class OperatorError(UsageError):
    """The operator cannot be used: not importable, wrong shape or dtype, NaN, not Hermitian.

    Exit code 2, as of any other :class:`UsageError`.
    """


class QualityError(OocError):
    """The result is there, but its error is above the one that was asked for. Exit code 3."""

    exit_code = 3


class IncompleteError(OocError):
    """Something that this stage needs is not there, or there is no room for it. Exit code 4."""

    exit_code = 4


class CorruptError(OocError):
    """A file is altered, torn, foreign, or a link where data should be. Exit code 5."""

    exit_code = 5


class DriftError(CorruptError):
    """The operator is not the one whose fingerprint, or other shards, were stored. Exit code 5."""
