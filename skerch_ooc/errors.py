"""The few exceptions of the package, each with the exit code of the command line."""

_LONGEST_VALUE = 200


def shown(value: object) -> str:
    """A value as messages show it: as Python writes it, but never longer than a few lines."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # Python writes no integers of more than 4300 digits.
        return f"(a value of type {type(value).__name__} that is too large to be shown)"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


class OocError(Exception):
    """A condition that the user can act on; its text says cause, values and next step."""

    exit_code = 1


class UsageError(OocError):
    """Unknown key, bad value, missing file, unusable operator."""

    exit_code = 2


class OperatorError(UsageError):
    """The operator cannot be used: not importable, wrong shape or dtype, NaN, not Hermitian."""


class QualityError(OocError):
    """The result is there, but its error is above the one that was asked for."""

    exit_code = 3


class IncompleteError(OocError):
    """Something that this stage needs has not been made yet."""

    exit_code = 4


class CorruptError(OocError):
    """A file is altered, torn, foreign, or a link where data should be."""

    exit_code = 5


class DriftError(CorruptError):
    """The operator is not the one whose fingerprint, or whose other shards, were stored."""
