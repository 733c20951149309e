"""What principal components are taken of: arrays, files, specs and runs, opened and told apart."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from skerch_ooc.base.errors import IncompleteError, OperatorError, UsageError, quoted, shown
from skerch_ooc.base.files import digest, is_folder, is_readable
from skerch_ooc.base.places import SCHEMES, is_object, place
from skerch_ooc.operators.loading import build, factory_file, factory_sha256
from skerch_ooc.operators.matrices.sources import MEMORY
from skerch_ooc.operators.prepared import prepared
from skerch_ooc.operators.samples import Samples, samples_of
from skerch_ooc.planning.parts import Part
from skerch_ooc.planning.plan import source_of
from skerch_ooc.planning.spec import OperatorSpec, Spec
from skerch_ooc.stages.measure.shipping import Shipped, shipped_from
from skerch_ooc.stages.measure.whereabouts import find_folder
from skerch_ooc.store.rundir import is_planned, open_run

STORED = "stored"
"""The factory of matrices in files."""


@dataclass(frozen=True)
class Reopened:
    """Samples that any process can open: a factory, its arguments, and where files lie.

    Attributes:
        factory: See :class:`OperatorSpec`.
        args: The same.
        device: The same.
        folder: What paths are relative to.
        shipped: The file of the factory, if it came with a task.
    """

    factory: str
    args: Mapping[str, Any]
    device: str
    folder: str
    shipped: Shipped | None = None

    @classmethod
    def of(cls, operator: OperatorSpec, folder: Path) -> Reopened:
        """Takes the table ``[operator]`` of a spec.

        Raises:
            UsageError: If it names no factory.
        """
        if operator.factory is None:
            raise UsageError("the key operator.factory is missing: give one that returns samples")
        return cls(operator.factory, dict(operator.args), operator.device, str(folder.resolve()))

    def samples(self, memory: int | None = None) -> Samples:
        """Opens the samples.

        Args:
            memory: Peak resident memory of the process, in bytes.

        Raises:
            OperatorError: If they cannot be opened, or are something else.
        """
        return samples_of(self.matrix(memory), memory or MEMORY)

    def matrix(self, memory: int | None = None) -> Any:
        """Makes what the samples are the rows of.

        Args:
            memory: Peak resident memory of the process, in bytes.

        Raises:
            OperatorError: If it cannot be made.
        """
        content = None if self.shipped is None else self.shipped.checked()
        return build(self.factory, self.args, self.device, Path(self.folder), memory, content)

    def identity(self) -> dict[str, Any]:
        """Says what the samples are: the factory, and the files that its arguments name.

        A file is known by its name, its size, and when it was changed.
        """
        folder = Path(self.folder)
        named = [name for key in ("path", "minus") for name in _listed(self.args.get(key))]
        for key in ("column_weights", "row_weights"):
            named += [name for name in _listed(self.args.get(key)) if is_readable(folder / name)]
        return {
            "factory": self.factory,
            "sha256": factory_sha256(self.factory, Path(self.folder)),
            "args": dict(self.args),
            "files": [_stated(folder, name) for name in named],
        }

    def as_json(self) -> dict[str, Any]:
        """Returns what other processes open them by, but for the file of the factory."""
        return {
            "factory": self.factory, "args": dict(self.args), "device": self.device,
            "folder": self.folder,
        }  # fmt: skip


def _listed(value: Any) -> list[str]:
    """The names in an argument that is one, or several."""
    found = value if isinstance(value, (list, tuple)) else [value]
    return [name for name in found if isinstance(name, str)]


def _stated(folder: Path, name: str) -> list[Any]:
    """The name, the size and the time of change of a file; a digest of those in a folder."""
    if "://" in name:
        return [name]
    path = folder / name
    if not is_folder(path):
        return [path.name, *_size_and_time(path)]
    inside = sorted(Path(top, one) for top, _, names in os.walk(path) for one in names)
    found = [[str(one.relative_to(path)), *_size_and_time(one)] for one in inside]
    return [path.name, len(found), digest(found)]


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise OperatorError(
            f"cannot read {file}: {error.strerror}; give a path that is absolute, or relative to "
            "the spec"
        ) from error
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class GivenSamples:
    """What was handed over for samples.

    Attributes:
        samples: They themselves.
        source: How another process opens them; ``None`` for objects in memory.
        weighted: Whether they were given weights by hand, which no other process sees.
    """

    samples: Samples
    source: Reopened | None = None
    weighted: bool = False

    def with_weights(self, weights: Any) -> GivenSamples:
        """The same with weights; ``None`` leaves them as they are.

        Raises:
            OperatorError: If they are no weights of these samples.
        """
        if weights is None:
            return self
        return GivenSamples(self.samples.weighted(weights), self.source, weighted=True)

    def identity(self) -> dict[str, Any]:
        """Says what the samples are; objects in memory are read for it."""
        if self.source is not None:
            return self.source.identity()
        samples = self.samples
        return {
            "shape": list(samples.shape), "dtype": str(samples.dtype), "sha256": samples.digest(),
        }  # fmt: skip

    def source_identity(self) -> dict[str, Any] | None:
        """Says what samples in files are; ``None`` for objects in memory."""
        return None if self.source is None else self.source.identity()


def shipped_to(directory: Path, source: Reopened) -> Shipped | None:
    """Reads the file of a factory that is sent to workers which share a bucket alone.

    Raises:
        OperatorError: If it cannot be read.
        UsageError: If it is too large.
    """
    if not is_object(directory) or factory_file(source.factory, Path(source.folder)) is None:
        return None
    return shipped_from(source.factory, Path(source.folder))


def is_named(data: Any) -> bool:
    """Whether samples are named, by a path or spec, and not handed over themselves."""
    return isinstance(data, (str, os.PathLike, Spec, OperatorSpec, Reopened))


def given(
    data: Any, memory: int | None = None, options: Mapping[str, Any] | None = None
) -> GivenSamples:
    """Opens samples.

    Args:
        data: See :func:`samples_of`; or the path of a file or folder with a matrix, of a spec
            (``.toml``) or of a run directory; or a spec itself.
        memory: Peak resident memory of the process, in bytes.
        options: What is made of the entries; those that a spec has itself come first.

    Raises:
        OperatorError: If they cannot be opened.
        UsageError: If a spec is not allowed, or takes no options.
    """
    if not is_named(data):
        made = prepared(data, options, memory, here=True) if options else data
        return GivenSamples(samples_of(made))
    source = data if isinstance(data, Reopened) else _source(data)
    if options:
        if source.factory != STORED:
            raise UsageError(
                f"{shown(dict(options))} are options of arrays and of matrices in files; let "
                f"{source.factory} do that"
            )
        source = replace(source, args={**options, **source.args})
    try:
        return GivenSamples(source.samples(memory), source)
    except OperatorError:
        _refuse_run(data)
        raise


def _refuse_run(data: Any) -> None:
    """Refuses a run in a bucket in the place of a matrix.

    Raises:
        OperatorError: If it is one.
    """
    if not isinstance(data, str) or not data.startswith(tuple(f"{one}://" for one in SCHEMES)):
        return
    is_run = False
    with contextlib.suppress(UsageError, IncompleteError):
        is_run = is_planned(place(data))
    if is_run:
        raise OperatorError(
            f"{data} is a run of skerch-ooc, and no matrix; give the matrix that it was made of; "
            f"its result is shown by: skerch-ooc assess {quoted(data)}"
        )


def _source(data: Any) -> Reopened:
    if isinstance(data, OperatorSpec):
        return Reopened.of(data, Path.cwd())
    if isinstance(data, Spec):
        return Reopened.of(data.operator, data.folder)
    if "://" in str(data):
        return Reopened.of(OperatorSpec(factory=STORED, args={"path": str(data)}), Path.cwd())
    path = Path(data)
    if path.suffix == ".toml":
        return _source(Spec.from_toml(path))
    if is_planned(path):
        run = open_run(path)
        source = source_of(run.plan, Part())
        if source.factory is None:
            raise OperatorError(
                f"the matrix of {path} was handed over as a Python object; give that object"
            )
        folder = find_folder(run, source)
        return Reopened(source.factory, dict(source.args), run.plan.device, str(folder))
    return Reopened.of(OperatorSpec(factory=STORED, args={"path": str(path)}), Path.cwd())


@lru_cache(maxsize=1)
def opened_here(source: str, shipped: Shipped | None) -> Samples:
    """The samples of this process, opened once; what :meth:`Reopened.as_json` says, as JSON."""
    return Reopened(**json.loads(source), shipped=shipped).samples()
