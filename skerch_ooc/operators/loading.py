"""Factories: how an operator is named, found, hashed and built in any process."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from skerch_ooc.base.errors import OperatorError, UsageError, did_you_mean, shown_list
from skerch_ooc.operators.adapters import require_device
from skerch_ooc.operators.objects import adapted
from skerch_ooc.planning.spec import OperatorSpec

ENTRY_POINTS = "skerch_ooc.operators"
"""The group in which packages register factories by a short name."""


def resolved(factory: str) -> str:
    """The ``"package.module:function"`` of a registered name; other factories as they are.

    Raises:
        OperatorError: If no installed package has registered it.
    """
    if ":" in factory:
        return factory
    known = entry_points(group=ENTRY_POINTS)
    if factory not in known.names:
        names = shown_list(sorted(known.names))
        raise OperatorError(
            f"operator.factory = {factory!r}: no installed package has registered this name; give "
            f"one that is registered ({names}), or 'file.py:function' for one of your own"
        )
    return known[factory].value


def factory_file(factory: str, folder: Path) -> Path | None:
    """The file that a ``"file.py:function"`` factory names; ``None`` for a module's."""
    name = factory.rpartition(":")[0]
    return folder / name if name.endswith(".py") else None


def _functions_of(module: ModuleType) -> str:
    """The functions and classes that a module defines itself, for people."""
    found = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    return shown_list(found)


def factory_sha256(factory: str, folder: Path) -> str | None:
    """Hash of the factory's file, if it is one.

    Raises:
        UsageError: If the file cannot be read.
        OperatorError: If it is a name that no installed package has registered.
    """
    path = factory_file(resolved(factory), folder)
    if path is None:
        return None
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(
            f"operator.factory = {factory!r}: cannot read {path}: {error.strerror}; give its "
            "path relative to the folder of the spec"
        ) from error


def build(
    factory: str, args: Mapping[str, Any], device: str, folder: Path, memory: int | None = None,
    content: bytes | None = None,
) -> Any:  # fmt: skip
    """Imports a factory and calls it.

    Args:
        factory: ``"package.module:function"``, ``"file.py:function"``, or a registered name.
        args: Its keyword arguments.
        device: Handed over as ``device`` if the factory has a parameter of that name.
        folder: What a file is relative to; also first on the import path, and handed over as
            ``folder`` if the factory has a parameter of that name.
        memory: Peak resident memory of the process, in bytes, handed over as ``memory`` likewise.
        content: The content of the factory's file, if it was sent to this process; else it is read.

    Returns:
        The operator.

    Raises:
        OperatorError: If the factory cannot be imported, found or called.
    """
    module_name, _, name = resolved(factory).rpartition(":")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    path = factory_file(factory, folder)
    try:
        module = _import_file(path, content) if path else importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        # Importing runs the user's code, which may raise anything.
        raise OperatorError(
            f"operator.factory = {factory!r} does not import; mend it: {_describe(error)}"
            + _said_of_lack(error, content)
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise OperatorError(
            f"operator.factory = {factory!r}: {module_name} has no function {name}; give one of: "
            f"{_functions_of(module)}"
        )
    given: dict[str, Any] = {"device": device, "folder": str(folder)}
    if memory is not None:
        given["memory"] = memory
    parameters = _parameters_of(function)
    keywords = {key: given[key] for key in given if key in parameters} | dict(args)
    _require_taken(factory, keywords, parameters)
    try:
        return function(**keywords)
    except OperatorError:
        # It says itself what is wrong.
        raise
    except (Exception, SystemExit) as error:
        # And so does calling it.
        if keywords.get("device") == device != "cpu":
            # The device itself may be the reason, which then is said in better words.
            require_device(device)
        raise OperatorError(
            f"operator.factory = {factory!r} failed with arguments {keywords}; mend it, or "
            f"them: {_describe(error)}" + _said_of_lack(error, content)
        ) from error


def _said_of_lack(error: BaseException, content: bytes | None) -> str:
    """Says what may be lacking where the file of a factory was sent, and no other file."""
    if content is None or not isinstance(error, (ImportError, FileNotFoundError)):
        return ""
    return (
        f". Of the factory only its own file was sent to this process on {socket.gethostname()}, "
        "and nothing that lies beside it: install what it imports there, as a package, and give "
        "files by absolute paths that all workers see, or by URLs"
    )


def _parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Returns the parameters of a function; none where Python does not know them."""
    with contextlib.suppress(TypeError, ValueError):
        return inspect.signature(function).parameters
    return {}


def _require_taken(
    factory: str, keywords: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> None:
    """Refuses arguments that a factory does not take, and those that it lacks.

    Raises:
        OperatorError: It names one like an unknown argument.
    """
    kinds = {one.kind for one in parameters.values()}
    if not parameters or kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY}:
        # Whether it takes them is for the factory to say.
        return
    named = {key: one for key, one in parameters.items() if one.kind is not one.VAR_POSITIONAL}
    for key in keywords:
        if key not in named:
            allowed = [name for name in named if name not in ("device", "folder", "memory")]
            raise OperatorError(
                f"operator.args.{key}: {factory} has no such argument; allowed here: "
                f"{shown_list(allowed)}{did_you_mean(key, allowed)}"
            )
    for key, one in named.items():
        if one.default is one.empty and key not in keywords:
            raise OperatorError(
                f"the key operator.args.{key} is missing: {factory} needs this argument; give it"
            )


def operator_of(
    spec: OperatorSpec, at_hand: Any, device: str, folder: Path, memory: int | None = None
) -> Any:
    """The operator that is at hand, or else the one that the factory of a spec makes.

    Raises:
        OperatorError: See :func:`build`, and :func:`~skerch_ooc.operators.objects.adapted`.
    """
    if at_hand is not None:
        # Arguments without a factory are options of the object.
        return with_options(at_hand, spec.args if spec.factory is None else {}, memory)
    assert spec.factory is not None
    return adapted(build(spec.factory, spec.args, device, folder, memory), memory)


def with_options(operator: Any, options: Mapping[str, Any], memory: int | None) -> Any:
    """What is applied in place of an object that is at hand, after what options make of it.

    Raises:
        OperatorError: See :func:`~skerch_ooc.operators.objects.adapted`, and
            :func:`~skerch_ooc.operators.prepared.prepared`.
    """
    if not options:
        return adapted(operator, memory)
    from skerch_ooc.operators.prepared import prepared

    return prepared(operator, options, memory)


class _SourceLoader(SourceFileLoader):
    """Compiles what is in the file now, or what is given as its content.

    Python takes what it compiled of an earlier file for this one's, if both were written in one
    second and are equally long.
    """

    def __init__(self, name: str, path: str, content: bytes) -> None:
        super().__init__(name, path)
        self._content = content

    def get_data(self, path: str | bytes | os.PathLike[str]) -> bytes:  # noqa: ARG002 (one file)
        return self._content

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 (one file, one module)
        return self.source_to_code(self.get_data(self.path), self.path)


def _import_file(path: Path, content: bytes | None) -> ModuleType:
    content = path.read_bytes() if content is None else content
    # A name of its own for each file and content, so that two files called model.py do not mix.
    key = str(path.resolve()).encode() + b"\0" + content
    name = f"skerch_ooc_factory_{hashlib.sha256(key).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = _SourceLoader(name, str(path), content) if path.suffix == ".py" else None
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _describe(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, SystemExit):
        return f"{error!r} ends the process ({frame.filename}:{frame.lineno})"
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
