"""The layout of a model's parameters in one long vector: names, shapes and offsets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, NamedTuple

from skerch_ooc.base.errors import CorruptError, OperatorError, shown
from skerch_ooc.base.html import never_raising, table

_LARGEST = 2**48
_MOST_DIMENSIONS = 64
_SHOWN = 20


class Parameter(NamedTuple):
    """Where one parameter is in the vector.

    Attributes:
        name: Its name, such as ``"fc1.weight"``.
        shape: Its shape; empty for a single number.
        offset: Position of its first entry in the vector.
    """

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """How many entries it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ParameterLayout:
    """Names, shapes and offsets of parameters that cover a vector without gaps, in order.

    Make it by :meth:`of`. Iteration yields name, shape, offset and size of each, as attributes.

    Attributes:
        names: The names of the parameters, each once.
        shapes: Their shapes.
        offsets: The positions of their first entries.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, parameters: Iterable[tuple[str, Sequence[int]]]) -> ParameterLayout:
        """Makes the layout of parameters that follow each other.

        Args:
            parameters: Name and shape of each; a ``torch.Size`` will do.

        Raises:
            OperatorError: If there are none, a name is no text or comes twice, or a shape is none.
        """
        pairs = list(parameters)
        wrong = _what_is_wrong(pairs)
        if wrong:
            raise OperatorError(f"{wrong}; give a name of its own and a shape for each")
        names = tuple(name for name, _ in pairs)
        shapes = tuple(tuple(int(length) for length in shape) for _, shape in pairs)
        return cls(names, shapes, tuple(accumulate(map(math.prod, shapes[:-1]), initial=0)))

    @property
    def size(self) -> int:
        """The length of the vector."""
        return sum(map(math.prod, self.shapes))

    def __len__(self) -> int:
        """How many parameters there are."""
        return len(self.names)

    def __iter__(self) -> Iterator[Parameter]:
        """Yields the parameters in the order of the vector."""
        return map(Parameter, self.names, self.shapes, self.offsets)

    @never_raising
    def _repr_html_(self) -> str:
        rows = [(one.name, one.shape, one.offset) for one in islice(self, _SHOWN)]
        title = f"ParameterLayout: {len(self)} parameters, {self.size} entries"
        title += f"; the first {_SHOWN}" * (len(self) > _SHOWN)
        return table(title, rows, heads=("name", "shape", "offset"))

    def split(self, vector: Any) -> dict[str, Any]:
        """Cuts a vector, or each of several columns, into the parameters.

        Args:
            vector: A numpy array or torch tensor of shape ``(p,)`` or ``(p, b)``, where ``p`` is
                the size of the layout.

        Returns:
            By name a view of each parameter's shape; of columns, with ``b`` as the last dimension.

        Raises:
            OperatorError: If the vector has another shape.
        """
        if vector.ndim not in (1, 2) or vector.shape[0] != self.size:
            raise OperatorError(
                f"a vector of shape {tuple(vector.shape)} is none of these {len(self)} parameters; "
                f"it must have the shape ({self.size},) or ({self.size}, columns)"
            )
        columns = tuple(vector.shape[1:])
        return {
            one.name: vector[one.offset : one.offset + one.size].reshape(one.shape + columns)
            for one in self
        }

    def as_json(self) -> list[dict[str, Any]]:
        """Returns name, shape and offset of each parameter as JSON values."""
        return [one._asdict() | {"shape": list(one.shape)} for one in self]

    @classmethod
    def from_json(cls, value: Any, source: str) -> ParameterLayout:
        """Reads what :meth:`as_json` made.

        Args:
            value: The JSON value; that of a stranger's file will do.
            source: The name of the file, for messages.

        Raises:
            CorruptError: If it is anything else; names the file.
        """
        try:
            found = cls.of([(one["name"], one["shape"]) for one in value])
        except (LookupError, TypeError, OperatorError) as error:
            raise CorruptError(
                f"{source} is no layout of parameters: {error}; restore it from a copy"
            ) from error
        # Entries that reading ignores, gaps and overlaps are found by this.
        if found.as_json() != value:
            raise CorruptError(
                f"{source} is no layout of parameters: it has unknown or altered entries; restore "
                "it from a copy"
            )
        return found


def _what_is_wrong(pairs: list[tuple[str, Sequence[int]]]) -> str | None:
    """Says what is wrong with the names and shapes of parameters; ``None`` if nothing is."""
    names = set()
    for name, shape in pairs:
        if not isinstance(name, str) or not name:
            return f"{shown(name)} is no name of a parameter"
        if name in names:
            return f"two parameters have the name {shown(name)}"
        names.add(name)
        if not _is_shape(shape):
            return f"{shown(shape)} is no shape of the parameter {shown(name)}"
    if not names:
        return "there are no parameters"
    return None


def _is_shape(shape: Any) -> bool:
    if not isinstance(shape, list | tuple) or len(shape) > _MOST_DIMENSIONS:
        return False
    # By type, as isinstance takes true and false for integers.
    plain = all(type(length) is int and 0 <= length <= _LARGEST for length in shape)
    return plain and math.prod(shape) <= _LARGEST
