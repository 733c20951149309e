"""Shipping: the file of a factory travels with the tasks of a run in an object store.

Workers that share nothing but a bucket do not have the file that lies beside the spec, and a run
directory is data, not code: the file is not written there. So each task has its content and hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from skerch_ooc.base.errors import CorruptError, OperatorError, UsageError
from skerch_ooc.base.places import is_object
from skerch_ooc.base.resources import format_bytes
from skerch_ooc.operators.loading import factory_file
from skerch_ooc.planning.plan import source_of
from skerch_ooc.stages.measure.whereabouts import find_folder
from skerch_ooc.store.rundir import Run

MOST_BYTES = 1 << 20
"""Most bytes of a file that travels with each task."""


@dataclass(frozen=True)
class Shipped:
    """The file of a factory, as plain data.

    Attributes:
        name: Its name, as the factory says it.
        sha256: Its hash.
        content: Its bytes.
    """

    name: str
    sha256: str
    content: bytes = field(repr=False)

    def checked(self) -> bytes:
        """Returns its bytes, if they are those that were sent.

        Raises:
            CorruptError: If they were altered on their way.
        """
        if hashlib.sha256(self.content).hexdigest() != self.sha256:
            raise CorruptError(
                f"{self.name} was altered on its way to this process; run the same command again"
            )
        return self.content


def shipped_from(factory: str, folder: Path) -> Shipped:
    """Reads the file of a factory.

    Raises:
        OperatorError: If it cannot be read.
        UsageError: If it is too large to travel with each task.
    """
    path = factory_file(factory, folder)
    assert path is not None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OperatorError(
            f"cannot read {path}: {error.strerror}; put the factory back"
        ) from error
    if len(content) > MOST_BYTES:
        raise UsageError(
            f"{path} has {format_bytes(len(content))}; it would travel with each task of a run in "
            f"an object store, and at most {format_bytes(MOST_BYTES)} do: install it on the "
            "workers as a package, and name it by package.module:function"
        )
    return Shipped(factory.rpartition(":")[0], hashlib.sha256(content).hexdigest(), content)


def shipped_with(run: Run, parts: Iterable[int]) -> dict[int, Shipped]:
    """Reads the files that travel with the tasks of some parts; none where folders are shared.

    Raises:
        OperatorError: If a file cannot be found.
        UsageError: If it is too large.
    """
    if not is_object(run.directory):
        return {}
    known: dict[tuple[str, str], Shipped] = {}
    found = {}
    for number in parts:
        source = source_of(run.plan, run.plan.parts[number])
        if source.factory is None or source.sha256 is None:
            # The workers have its package.
            continue
        key = (source.factory, source.folder)
        if key not in known:
            known[key] = shipped_from(source.factory, find_folder(run, source))
        found[number] = known[key]
    return found
