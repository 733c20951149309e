"""The parts of a run's operator in this process, each compared with its fingerprint once."""

from __future__ import annotations

from typing import Any

from skerch_ooc.errors import OperatorError
from skerch_ooc.operators.adapters import Product, product_of
from skerch_ooc.operators.loading import build_for_run
from skerch_ooc.operators.probe import check_fingerprint, fingerprint_of
from skerch_ooc.parts import Part
from skerch_ooc.provenance import provenance
from skerch_ooc.resources import operator_threads
from skerch_ooc.rundir import Run


class Operands:
    """Applies the parts of an operator; builds them when they are first needed.

    One summand is held at a time.

    Args:
        run: The run.
        device: Torch device of the operators.
        threads: Threads of the operators.
        operator: An operator that is at hand; others are built from their factories.
        summand: Of which it is the operator.
        product: The same, adapted and compared with its fingerprint already.
    """

    def __init__(
        self, run: Run, device: str, threads: int, *, operator: Any = None, summand: int = 0,
        product: Product | None = None,
    ) -> None:  # fmt: skip
        self._run, self._device, self._threads = run, device, threads
        self._at_hand = (summand, operator) if operator is not None else None
        self._opened = (summand, product) if product is not None else None
        self._checked: set[int] = set()
        if product is not None:
            # The fingerprint of an operator in one piece was taken of this very object.
            whole = (p for p in run.plan.parts if p.summand == summand and p.terms is None)
            self._checked = {part.number for part in whole if run.fingerprint(part.number)}

    def of(self, part: Part) -> Product:
        """What applies a part.

        Raises:
            OperatorError: If it cannot be built or used, or is of another shape or cut.
            DriftError: If it is not the one of the fingerprint.
        """
        product = self._summand(part)
        if part.terms is not None:
            if product.terms != part.of:
                raise OperatorError(
                    f"the operator has {product.terms} terms, the run was planned for {part.of}; "
                    "restore them, or plan a new run"
                )
            product = product.part(part.terms)
        if part.number not in self._checked:
            self._check(part, product)
            self._checked.add(part.number)
        return product

    def check_all(self, summand: int = 0) -> None:
        """Compares all parts of a summand with their fingerprints.

        Raises:
            DriftError: If one is another.
            OperatorError: If the operator is unusable.
        """
        for part in self._run.plan.parts:
            if part.summand == summand:
                self.of(part)

    def _summand(self, part: Part) -> Product:
        if self._opened is None or self._opened[0] != part.summand:
            self._opened = None
            self._opened = (part.summand, self._open(part))
        return self._opened[1]

    def _open(self, part: Part) -> Product:
        run = self._run
        if self._at_hand is not None and self._at_hand[0] == part.summand:
            operator = self._at_hand[1]
        else:
            operator = build_for_run(run, self._device, part)
        product = product_of(operator, run.plan.identity.dtype, self._device)
        if product.shape != run.plan.identity.shape:
            raise OperatorError(
                f"the operator has shape {product.shape}, the run was planned for "
                f"{run.plan.identity.shape}; restore it, or plan a new run"
            )
        return product

    def _check(self, part: Part, product: Product) -> None:
        """Takes one product of the part."""
        run, seed = self._run, self._run.plan.identity.seed
        stored = run.fingerprint(part.number)
        count = 0 if product.together else 1
        run.record("receipts", provenance(stage="fingerprint", part=part.number, products=count))
        with operator_threads(self._threads):
            sampled = product.sampled
            if stored is None:
                run.publish_fingerprint(fingerprint_of(sampled, seed), part.number)
            else:
                check_fingerprint(sampled, seed, stored)
