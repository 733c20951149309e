"""The command line: it runs a verb; designed exit codes, no tracebacks."""

from __future__ import annotations

import codecs
import contextlib
import errno
import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence

import click

from skerch_ooc.base.disk_errors import explained
from skerch_ooc.base.errors import OocError, UsageError
from skerch_ooc.cli import cluster_verbs, result_verbs, run_verbs, upkeep_verbs  # noqa: F401
from skerch_ooc.cli.group import cli
from skerch_ooc.cli.signals import Terminated
from skerch_ooc.executors.slurm.logs import ending

INTERRUPTED = 130
OTHER_FAILURE = 1

_ANY_NAME = "skerch_ooc-any-name"


class _Messages(logging.Handler):
    """Writes to what standard error is at the moment: a live bar stands in for it at times."""

    def emit(self, record: logging.LogRecord) -> None:
        """See :class:`logging.Handler`."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        print(f"{prefix}{record.getMessage()}", file=sys.stderr, flush=True)


def _show_messages() -> None:
    """Sends this package's own messages, not those of the libraries below, to standard error."""
    logger = logging.getLogger("skerch_ooc")
    logger.handlers[:] = [_Messages()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _speak_of_any_name() -> None:
    """Lets standard output take names that are no text: bytes as they are, else as escapes."""
    codecs.register_error(_ANY_NAME, _as_bytes_or_escapes)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None and sys.stdout.errors == "strict":
        reconfigure(errors=_ANY_NAME)


def _as_bytes_or_escapes(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    try:
        # A name in a folder may be any bytes.
        return wrong.encode("ascii", "surrogateescape"), error.end
    except UnicodeEncodeError:
        return codecs.backslashreplace_errors(error)


def run_command_line(arguments: Sequence[str]) -> int:
    """Runs a command.

    Args:
        arguments: Without the program's name.

    Returns:
        The exit code: see :mod:`skerch_ooc.base.errors`; 128 and the number of the signal after one
        (130 after Ctrl-C), 1 for other failures of the system. A bug of ours shows its traceback.
    """
    _show_messages()
    _speak_of_any_name()
    code = OTHER_FAILURE
    try:
        code = _exit_code(arguments)
    finally:
        if "SLURM_JOB_ID" in os.environ and arguments[:1] in (["task"], ["submit"]):
            # Who looks for the elements that failed reads but the end of their logs.
            _tell(ending(code))
    return code


_COMPLETION = "_SKERCH_OOC_COMPLETE"
"""What shells set that ask for completions."""


def _exit_code(arguments: Sequence[str]) -> int:
    try:
        code = cli.main(args=list(arguments), prog_name="skerch-ooc", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        _tell("interrupted; nothing published is lost, the same command goes on")
        # As shells name the end by a signal. (click makes an Abort of every interruption.)
        cause = error.__cause__ or error
        return 128 + cause.args[0] if isinstance(cause, Terminated) else INTERRUPTED
    except OocError as error:
        _tell(f"skerch-ooc: {error}")
        return error.exit_code
    except SystemExit as error:
        if _COMPLETION in os.environ:
            # What a shell asked for was said; click ends so.
            return error.code if isinstance(error.code, int) else 0
        if _frame_of(error).filename == click.core.__file__:
            # So click ends where a pipe is broken; whose it was it does not look at.
            if _nobody_reads():
                return 128 + signal.SIGPIPE
            _tell("skerch-ooc: what the operator writes to by a pipe has ended; look why it did")
            return OTHER_FAILURE
        # Whatever its code is: the work that was asked for is not done.
        _tell(f"skerch-ooc: {_who_left(error)}")
        return UsageError.exit_code
    except (OSError, MemoryError) as error:
        if isinstance(error, OSError) and (told := explained(error)) is not None:
            _tell(f"skerch-ooc: {told}")
            return told.exit_code
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            name = error.filename
            _tell(f"skerch-ooc: {name}: too long for this disk; give shorter names")
            return UsageError.exit_code
        _tell(f"skerch-ooc: {type(error).__name__}: {error}")
        return OTHER_FAILURE
    return code if isinstance(code, int) else 0


def _nobody_reads() -> bool:
    """Whether standard output or error is a pipe whose reader has ended, as ``head`` does."""
    streams = select.poll()
    for number in (1, 2):
        streams.register(number, 0)
    return any(event & select.POLLERR for _, event in streams.poll(0))


def _tell(text: str) -> None:
    """Says why the command ends; that nobody hears it does not change how it ends."""
    # Nobody reads, or standard error is a file on a disk that is full: that may be the very cause.
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def _frame_of(error: SystemExit) -> traceback.FrameSummary:
    return traceback.extract_tb(error.__traceback__)[-1]


def _who_left(error: SystemExit) -> str:
    frame = _frame_of(error)
    return (
        f"{frame.name} ({frame.filename}:{frame.lineno}) ended the process: {error!r}; let it "
        "raise another exception instead"
    )
