"""Tells an unknown keyword argument with the allowed ones, and the one that is like it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from skerch_ooc.base.errors import UsageError, did_you_mean

Thing = TypeVar("Thing", bound=Callable[..., Any])


class KeywordError(UsageError, TypeError):
    """A function was given a keyword argument that it does not have. Exit code 2."""


def tells_keywords(thing: Thing) -> Thing:
    """Lets a function, or a class as it is made, say which keyword was meant; else it stays as is.

    Python itself names the unknown one alone.
    """
    if isinstance(thing, type):
        made: Any = thing
        made.__init__ = _checking(made.__init__, made.__name__)
        return thing
    return cast("Thing", _checking(thing, thing.__name__))


def _checking(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    code = function.__code__
    named = code.co_varnames[code.co_posonlyargcount : code.co_argcount + code.co_kwonlyargcount]
    allowed = [one for one in named if one != "self"]
    known = frozenset(allowed)

    @functools.wraps(function)
    def checking(*args: Any, **given: Any) -> Any:
        if not known.issuperset(given):
            wrong = next(one for one in given if one not in known)
            raise KeywordError(
                f"{name} has no argument {wrong}; allowed here: {', '.join(allowed) or 'none'}"
                f"{did_you_mean(wrong, allowed)}"
            )
        return function(*args, **given)

    return checking
