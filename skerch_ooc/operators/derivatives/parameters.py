"""Which parameters of a model are meant: by name, layer, pattern, or as tensors."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch

from skerch_ooc.base.errors import OperatorError, shown, shown_list
from skerch_ooc.base.parameter_layout import ParameterLayout

Parameters = Iterable[Any] | str
"""Names, layers, patterns, tensors, named tensors, or the groups of an optimiser."""

_PARAMETRISED = re.compile(r"parametrizations\.(\w+)\.original\d*$")
"""What parametrisations make of the name of a parameter."""
_COMPILED = "_orig_mod."
"""What torch.compile puts into the names of parameters."""


@dataclass(frozen=True)
class Chosen:
    """The parameters with respect to which a loss is differentiated.

    Attributes:
        names: Their names in the model; a foreign one is called by its place.
        tensors: The parameters.
        foreign: The names of those that are not of the model.
    """

    names: tuple[str, ...]
    tensors: tuple[torch.nn.Parameter, ...]
    foreign: tuple[str, ...] = ()

    @property
    def layout(self) -> ParameterLayout:
        """Where each is in the vector."""
        return ParameterLayout.of(
            [(n, tuple(t.shape)) for n, t in zip(self.names, self.tensors, strict=True)]
        )


def chosen_of(model: torch.nn.Module, wanted: Parameters | None) -> Chosen:
    """Finds the parameters that are meant, in the order given, each once.

    Args:
        model: The model.
        wanted: By default all that require a gradient; else names of parameters or layers,
            patterns such as ``"layers.*.weight"``, tensors, pairs of name and tensor, or an
            optimiser's ``param_groups``. Of layers and patterns those that require a gradient are
            taken.

    Raises:
        OperatorError: If a name is that of nothing, or a parameter that is given itself is frozen,
            complex or none; names it.
    """
    # Tied parameters have several names, of which the first is theirs.
    named = {
        name.replace(_COMPILED, "").removeprefix(_wrapped(model)): parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    names: dict[int, str] = {}
    for name, parameter in named.items():
        names.setdefault(id(parameter), name)
    found: dict[int, Any] = {}
    able = [parameter for parameter in named.values() if parameter.requires_grad]
    # An optimiser will do for its groups.
    wanted = getattr(wanted, "param_groups", wanted)
    if isinstance(wanted, torch.nn.Module) or not isinstance(wanted, (Iterable, NoneType)):
        raise OperatorError(
            f"parameters is a {type(wanted).__name__}; give names of layers or parameters, such as "
            f"{shown_list(list(named)[:2])}, or tensors"
        )
    for one in able if wanted is None else _flat(wanted):
        taken = _named(named, one) if isinstance(one, str) else [_given(one, names)]
        found |= {id(parameter): parameter for parameter in taken}
    if not found and wanted is not None:
        raise OperatorError(
            "parameters = [] is empty; give names or tensors, or leave it out to take all that "
            "require a gradient"
        )
    if not found:
        raise OperatorError(
            "the model has no parameters that require a gradient; call requires_grad_() on it"
        )
    foreign = [f"parameters[{i}]" for i, key in enumerate(found) if key not in names]
    ordered = [names.get(key, f"parameters[{i}]") for i, key in enumerate(found)]
    for name, parameter in zip(ordered, found.values(), strict=True):
        if parameter.is_complex():
            raise OperatorError(
                f"the parameter {name} is complex: the second derivatives of a real loss are not "
                "linear in complex vectors; give the model real parameters (torch.view_as_real)"
            )
    return Chosen(tuple(ordered), tuple(found.values()), tuple(foreign))


def _wrapped(model: torch.nn.Module) -> str:
    """Returns what a wrapper that spreads a model over devices puts before all names."""
    wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    return "module." if isinstance(model, wrappers) else ""


def _flat(wanted: Parameters) -> list[Any]:
    """Lists what is wanted one by one: groups of an optimiser are taken apart."""
    listed: list[Any] = []
    for one in [wanted] if isinstance(wanted, (str, torch.Tensor)) else list(wanted):
        if isinstance(one, dict) and "params" in one:
            listed += _flat(one["params"])
        elif isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str):
            listed.append(one[1])
        else:
            listed.append(one)
    return listed


def _given(one: Any, names: dict[int, str]) -> Any:
    """Returns a tensor that was given itself, if it can be differentiated."""
    if not isinstance(one, torch.Tensor):
        raise OperatorError(
            f"parameters holds {shown(one)}, a {type(one).__name__}; give names of layers or "
            "parameters, or tensors"
        )
    if not one.requires_grad:
        if id(one) not in names:
            raise OperatorError(
                f"parameters holds a tensor of shape {tuple(one.shape)} that is none of this "
                "model's, and requires no gradient; give parameters of the model itself"
            )
        _refuse_frozen([names[id(one)]])
    if not one.is_leaf:
        raise OperatorError(
            f"parameters holds a tensor of shape {tuple(one.shape)} that is computed from others; "
            "give parameters of the model itself"
        )
    return one


def _named(named: dict[str, torch.nn.Parameter], wanted: str) -> list[torch.nn.Parameter]:
    """Lists the parameters that a name, a layer or a pattern stands for."""
    name = wanted.replace(_COMPILED, "")
    below = {
        full: parameter
        for full, parameter in named.items()
        for called in (full, _PARAMETRISED.sub(r"\1", full))
        if called == name or called.startswith(f"{name}.") or fnmatch.fnmatchcase(called, name)
    }
    if not below:
        close = difflib.get_close_matches(name, [*named, *_layers(named)], n=3)
        meant = f"; did you mean {' or '.join(map(repr, close))}?" if close else ";"
        raise OperatorError(
            f"the model has no layer or parameter {wanted!r}{meant} give layers or parameters of "
            f"these: {shown_list(list(named))}"
        )
    able = [parameter for parameter in below.values() if parameter.requires_grad]
    if not able:
        _refuse_frozen(list(below))
    return able


def _layers(named: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in named if "." in name))


def _refuse_frozen(names: list[str]) -> None:
    raise OperatorError(
        f"the parameters {shown_list(names)} are frozen; call "
        "requires_grad_() on them, or leave them out"
    )
