"""The few exceptions of the package, each with the exit code of the command line."""


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
