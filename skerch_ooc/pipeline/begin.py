"""Begin: a commented spec, and a factory where one is needed, written for a new user to change."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerch_ooc.base.errors import UsageError, quoted
from skerch_ooc.base.files import write_new
from skerch_ooc.base.noise_kinds import FEW_COLUMNS
from skerch_ooc.operators.adapters import shape_of
from skerch_ooc.operators.loading import build
from skerch_ooc.planning.methods import DEFAULTS

HESSIAN, MATRIX, OPERATOR = "hessian", "matrix", "operator"
"""What a spec may be begun for."""

_TEMPLATES = Path(__file__).parent / "templates"
_MEASUREMENTS = 100
_COMMENT_COLUMN = 29


@dataclass(frozen=True)
class Begun:
    """What was written to begin with.

    Attributes:
        spec: The spec file.
        factory: The file of the factory, if one was written.
        command: The command that runs the spec.
    """

    spec: Path
    factory: Path | None
    command: str


def begin(
    what: str, folder: Path, matrix: str | None = None, args: Mapping[str, Any] | None = None
) -> Begun:
    """Writes a spec, and a factory where one is needed, which run as they are.

    Args:
        what: ``"hessian"``, ``"matrix"`` or ``"operator"``.
        folder: The folder of the files; it is made if it is not there.
        matrix: The file of a matrix, relative to the current folder, or a URL.
        args: More arguments of the factory.

    Raises:
        OperatorError: If the file holds no matrix that can be read, or not with these arguments.
        UsageError: If one of the files is there already, or cannot be written.
    """
    spec, run = folder / f"{what}.toml", folder / "runs" / what
    code = {HESSIAN: "hessian.py", OPERATOR: "my_operator.py"}.get(what)
    command = f"skerch-ooc run {quoted(spec)} --run {quoted(run)}"
    for path in (spec, folder / (code or spec.name)):
        if os.path.lexists(path):
            raise UsageError(f"{path} is there already; move it, or give another folder")
    if code is None:
        assert matrix is not None
        values = _values_of_matrix(matrix, folder, args or {})
    else:
        values = _values_of_code(what, code, args or {})
    text = (_TEMPLATES / "spec.toml.txt").read_text().format(command=command, **values)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if code is not None:
            write_new(folder / code, (_TEMPLATES / f"{what}.py.txt").read_bytes())
        write_new(spec, text.encode())
    except UnicodeEncodeError as error:
        raise UsageError(f"{matrix!r} is no text that a spec can hold: rename the file") from error
    except OSError as error:
        raise UsageError(
            f"cannot write {spec}: {error.strerror}; give a folder that may be written"
        ) from error
    return Begun(spec, None if code is None else folder / code, command)


def _values_of_code(what: str, code: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the template of a spec is filled with for a factory that is written with it."""
    example = {"hidden": 16} if what == HESSIAN else {"size": 500}
    return _values("eigh", f"{code}:make", _MEASUREMENTS, {**example, **args}) | {
        "factory_said": _comment("factory", f"{code}:make", "file.py:function"),
    }


def _values_of_matrix(path: str, folder: Path, args: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the template of a spec is filled with for a matrix, which is looked at."""
    # The folder need not be there yet, from which the path of the spec leads.
    shape = shape_of(build("stored", {"path": path, **args}, "cpu", Path()))
    found = {"path": _relative(path, folder), **args}
    lines = _lines(found)
    if "subtract" not in args:
        lines += '\n# subtract = "column-mean"   # rows are samples: their principal components'
    noise = 'noise = "gaussian"           # signs drawn for so few columns may be dependent\n'
    return _values("svd", "stored", min(_MEASUREMENTS, *shape), found) | {
        "args": lines,
        "noise": noise if min(shape) <= FEW_COLUMNS else "",
        "measurements_said": f"{' ' * 11}# random vectors; the matrix is {shape[0]} x {shape[1]}",
    }


def _values(kind: str, factory: str, measurements: int, args: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the template of a spec is filled with; empty comments are for others to fill."""
    said = {"eigh": 'Hermitian operators; "svd" takes any', "svd": 'or "eigh", if it is Hermitian'}
    method = DEFAULTS[kind]
    return {
        "kind": kind, "kind_said": _comment("kind", kind, said[kind]),
        "measurements": measurements,
        "measurements_said": f"{' ' * 11}# random vectors that the operator is applied to",
        "factory": factory, "factory_said": "", "args": _lines(args), "noise": "",
        "method": method, "method_said": _comment("# method", method, "or krylov: leading pairs"),
    }  # fmt: skip


def _comment(key: str, value: str, text: str) -> str:
    """Returns a comment that stands below the others, after a key and its text value."""
    return f"{' ' * max(1, _COMMENT_COLUMN - len(key) - len(value) - 5)}# {text}"


def _relative(matrix: str, folder: Path) -> str:
    """Returns a path relative to the folder of the spec; an absolute one, or a URL, as it is."""
    if "://" in matrix or Path(matrix).is_absolute():
        return matrix
    return os.path.relpath(matrix, folder)


def _lines(args: Mapping[str, Any]) -> str:
    return "\n".join(f"{key} = {_toml(value)}" for key, value in args.items())


def _toml(value: Any) -> str:
    """Writes a value as TOML."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_toml(key)} = {_toml(inner)}" for key, inner in value.items())
        return f"{{ {inside} }}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
