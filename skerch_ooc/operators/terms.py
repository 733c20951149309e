"""Operators that are made of terms: sums, and stacks of row ranges.

A run measures them term by term, in as many parts as it pays, and the result does not depend on
the cut (see :mod:`skerch_ooc.planning.parts`). Terms may be functions that return an operator:
then a process builds those that it measures, and holds one at a time.
"""

from __future__ import annotations

import copy
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Self

import numpy as np

from skerch_ooc.base.arrays import Array, converted
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.keywords import tells_keywords
from skerch_ooc.base.parameter_layout import ParameterLayout
from skerch_ooc.base.partition import Range, tree_sum
from skerch_ooc.base.progress import one_of_calls
from skerch_ooc.operators.adapters import Product, applied, dtype_of, shape_of
from skerch_ooc.planning.spec import DTYPES

Term = Any
"""An operator, or a function without arguments that returns one."""


class Terms(ABC):
    """What :class:`Sum` and :class:`Stack` share.

    Attributes:
        shape: ``(height, width)``.
        dtype: Of the products, as a name.
        content: Hashes of what the terms are made of, by their names; may be left empty.
        layout: The parameters that vectors are made of; may be left ``None``.
        remarks: Sentences for people about how the terms are made; may be left empty.
        columns_at_once: How many columns the terms apply in one inner call, where their operators
            have ``narrowed(columns_at_once)``; may be left ``None``.
    """

    shape: tuple[int, int]
    dtype: str
    content: Mapping[str, str]
    layout: ParameterLayout | None = None
    remarks: tuple[str, ...] = ()
    columns_at_once: int | None = None

    def __init__(self, terms: Iterable[Term]) -> None:
        name = type(self).__name__
        if isinstance(terms, str) or hasattr(terms, "shape") or not isinstance(terms, Iterable):
            raise OperatorError(
                f"a {name} is made of a list of operators, not of a {type(terms).__name__}; "
                "give a list"
            )
        self._terms = list(terms)
        if not self._terms:
            raise OperatorError(f"a {name} of 0 terms: give at least one term")
        for number, term in enumerate(self._terms):
            if not hasattr(term, "shape") and not callable(term):
                raise OperatorError(
                    f"term {number} of a {name} must be an operator, or a function that returns "
                    f"one, not a {type(term).__name__}"
                )
        self.content = {}
        self._scales = [1.0] * len(self)

    def __len__(self) -> int:
        """How many terms there are."""
        return len(self._terms)

    def term(self, number: int) -> Any:
        """The operator of one term."""
        term = self._terms[number]
        # An operator may be callable itself, as a torch module is.
        return term if hasattr(term, "shape") else term()

    def _common_dtype(self, wanted: str | None) -> str:
        """What is wanted, or what holds the products of all terms that are at hand."""
        if wanted is not None:
            if wanted not in DTYPES:
                raise OperatorError(f"dtype = {wanted!r}: must be one of {', '.join(DTYPES)}")
            return wanted
        at_hand = [term for term in self._terms if hasattr(term, "shape")] or [self.term(0)]
        return str(np.result_type(*(dtype_of(term) for term in at_hand)))

    def scale(self, number: int) -> float:
        """What a term is multiplied by."""
        return self._scales[number]

    @abstractmethod
    def rows(self, terms: Range) -> Range | None:
        """The rows that some terms make up; ``None`` if each makes all of them."""

    def as_product(self, dtype: str, device: str) -> TermsProduct:
        """What applies the terms."""
        return TermsProduct(self, dtype, device)

    def __matmul__(self, x: Any) -> Any:
        """``A X`` for a numpy array or torch tensor, of the same kind."""
        return applied(self, x, adjoint=False)

    def rmatmat(self, x: Any) -> Any:
        """``A^H X`` for a numpy array or torch tensor, of the same kind."""
        return applied(self, x, adjoint=True)


def _scale(value: Any) -> float:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise OperatorError(f"a scale of a sum must be a finite real number, not {value!r}")
    return float(value)


@tells_keywords
class Sum(Terms):
    """A sum of operators of equal shape: ``A = sum_i scales[i] terms[i]``.

    Args:
        terms: The operators, or functions without arguments that return them: those are called
            when a term is needed, and one is held at a time.
        scales: What each is multiplied by, finite real numbers; 1 by default.
        shape: Their shape ``(h, w)``; by default that of the first, which is built for it if it is
            a function.
        dtype: Of their products: ``"float32"``, ``"float64"``, ``"complex64"`` or
            ``"complex128"``; by default what holds those of all terms that are no functions.

    Raises:
        OperatorError: If there are no terms, one is no operator, there are not as many scales, or a
            scale or dtype is not allowed.
    """

    def __init__(
        self, terms: Iterable[Term], scales: Sequence[float] | None = None, *,
        shape: tuple[int, int] | None = None, dtype: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(terms)
        if scales is not None:
            if len(scales) != len(self):
                raise OperatorError(
                    f"a sum of {len(self)} terms has {len(scales)} scales; give one for each"
                )
            self._scales = [_scale(value) for value in scales]
        self.shape = shape_of(self.term(0)) if shape is None else shape
        self.dtype = self._common_dtype(dtype)

    def rows(self, terms: Range) -> None:  # noqa: ARG002 (whichever they are)
        """See :class:`Terms`: each makes all rows."""
        return


@tells_keywords
class Stack(Terms):
    """Operators of equal width, one below the other.

    Args:
        terms: The operators, from top to bottom, or functions without arguments that return them,
            as for :class:`Sum`.
        heights: The rows of each. Unless both this and ``width`` are given each term is asked for
            its shape, and is built for it if it is a function.
        width: Their columns.
        dtype: As for :class:`Sum`.

    Raises:
        OperatorError: If there are no terms, one is no operator, there are not as many heights, or
            widths differ.
    """

    def __init__(
        self, terms: Iterable[Term], *, heights: Sequence[int] | None = None,
        width: int | None = None, dtype: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(terms)
        known = heights is not None and width is not None
        shapes = [] if known else [shape_of(self.term(i)) for i in range(len(self))]
        found = [height for height, _ in shapes] if heights is None else list(heights)
        if len(found) != len(self):
            raise OperatorError(
                f"a stack of {len(self)} terms has {len(found)} heights; give one for each"
            )
        widths = {wide for _, wide in shapes} | ({width} if width is not None else set())
        if len(widths) != 1:
            raise OperatorError(
                f"operators that are stacked must be equally wide, not of widths {sorted(widths)}"
            )
        self._starts = [0, *itertools.accumulate(found)]
        self.shape = (self._starts[-1], widths.pop())
        self.dtype = self._common_dtype(dtype)

    def rows(self, terms: Range) -> Range:
        """See :class:`Terms`."""
        return Range(self._starts[terms.start], self._starts[terms.stop])


class TermsProduct(Product):
    """Applies some terms of an operator.

    Args:
        operator: The operator.
        dtype: Name of the plan's dtype.
        device: The torch device of the terms.
        chosen: Which terms; all by default.

    Raises:
        OperatorError: If a term cannot be used.
    """

    _operator: Terms

    def __init__(
        self, operator: Terms, dtype: str, device: str, chosen: Range | None = None
    ) -> None:
        self._operator = operator
        self._chosen = Range(0, len(operator)) if chosen is None else chosen
        self._rows = operator.rows(self._chosen)
        height, width = operator.shape
        self.shape = (height if self._rows is None else len(self._rows), width)
        self.dtype, self.device = dtype, device
        self._opened: dict[int, Product] = {}
        self._width: int | None = None

    @property
    def columns_at_once(self) -> int | None:
        """How many columns the terms apply in one inner call, if they can be told so."""
        return self._width or self._operator.columns_at_once

    def narrowed(self, columns_at_once: int) -> Self:
        """See :class:`Product`; each term is told so where it is used."""
        made = copy.copy(self)
        made._width = columns_at_once
        return made

    def part(self, terms: Range) -> TermsProduct:
        """The same operator with some of its terms only."""
        made = TermsProduct(self._operator, self.dtype, self.device, terms)
        # A term that is open need not be built again for each block.
        made._width, made._opened = self._width, self._opened
        return made

    def rows(self, terms: Range) -> Range | None:
        """See :meth:`Terms.rows`."""
        return self._operator.rows(terms)

    @property
    def terms(self) -> int:
        """How many terms the operator has."""
        return len(self._operator)

    def __call__(self, columns: Array, *, adjoint: bool = False, wide: bool = False) -> Array:
        """Applies the terms, or their adjoints, and adds in double precision.

        Args:
            columns: As for :class:`Product`.
            adjoint: Whether ``A^H`` is to be applied.
            wide: Whether a sum of terms is to be left in double precision.

        Returns:
            The product.

        Raises:
            OperatorError: If a term fails.
        """
        numbers = range(self._chosen.start, self._chosen.stop)
        if self._rows is not None and not adjoint:
            return np.concatenate([self._of_term(number, columns) for number in numbers])

        def scaled(number: int) -> Array:
            given = columns[self._place(number)] if adjoint else columns
            product = self._of_term(number, given, adjoint=adjoint)
            total = product.astype(np.result_type(product, np.float64))
            if self._operator.scale(number) != 1:
                total *= self._operator.scale(number)
            return total

        total = tree_sum(map(scaled, numbers), np.add)
        return total if wide else converted(total, self.dtype)

    def _of_term(self, number: int, columns: Array, *, adjoint: bool = False) -> Array:
        with one_of_calls(number - self._chosen.start, len(self._chosen)):
            return self._term(number)(columns, adjoint=adjoint)

    def _place(self, number: int) -> slice:
        """The rows of one term, among those of all that are chosen."""
        rows = self._operator.rows(Range(number, number + 1))
        if rows is None or self._rows is None:
            return slice(None)
        return rows.shifted(-self._rows.start).slice

    def _term(self, number: int) -> Product:
        product = self._opened.get(number) or self._open(number)
        if self._width is None or product.columns_at_once is None:
            return product
        return product.narrowed(self._width)

    def _open(self, number: int) -> Product:
        # One at a time, unless they are at hand anyway: each may need all the memory. Products of
        # other widths share it.
        self._opened.clear()
        product = Product(self._operator.term(number), self.dtype, self.device)
        rows = self._operator.rows(Range(number, number + 1))
        shape = (self._operator.shape[0] if rows is None else len(rows), self._operator.shape[1])
        if product.shape != shape:
            raise OperatorError(
                f"term {number} of the operator has shape {product.shape}; it must have {shape}, "
                "as was said, or as the others have"
            )
        self._opened[number] = product
        return product
