"""Orthogonality of computed vectors: what to expect, what is allowed, and the correction.

``X T`` loses orthogonality where ``X`` is ill-conditioned, by the square of its condition if ``T``
comes from a Gram matrix. Then a stream before the one that writes forms ``(X T)^H (X T)``, and its
Cholesky factor corrects ``U = (X T) C`` (CholeskyQR2: Fukaya, Kannan, Nakatsukasa, Yamamoto and
Yanagisawa 2020, "Shifted Cholesky QR for computing the QR factorization of ill-conditioned
matrices", arXiv 1809.11085, section 2). The two factors are applied one after the other: as the
rounding of ``X T`` is the same in both streams, the correction sees it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skerch_ooc.algebra.linalg import eigh_by_magnitude, gram_root, hermitian_part, svd
from skerch_ooc.base.arrays import Array
from skerch_ooc.planning.plan import Plan
from skerch_ooc.stages.recover.vectors import Vectors

_DOUBLE = 2.0**-52


def orthogonality_bound(plan: Plan) -> float:
    """Returns how large ``||U^H U - I||`` may be: 1e-6 in single, 1e-11 in double precision."""
    return 1e-11 if plan.identity.is_double else 1e-6


def expected_deviation(plan: Plan, condition: float) -> float:
    """Foretells about how far ``U^H U`` is from the identity if nothing corrects it.

    Args:
        plan: The plan in force.
        condition: The condition number of the columns that were orthogonalised.
    """
    # R comes from a QR in double precision; else from a Gram matrix, which squares the condition.
    return _DOUBLE * (condition if plan.identity.is_double else condition**2)


def may_miss_bound(plan: Plan, deviation: float) -> bool:
    """Whether vectors of this deviation may exceed the bound, so that a correction is worth it."""
    # A correction costs one stream; one that turns out to be needed later costs two.
    return 8 * deviation > orthogonality_bound(plan)


def corrected(
    values: Array, vectors: Sequence[Vectors], grams: Sequence[Array]
) -> tuple[Array, list[Vectors]]:
    """Makes an orthonormal decomposition of one whose vectors are not quite orthonormal.

    With ``U^H U = L^H L`` and ``V^H V = R^H R`` the product ``U diag(values) V^H`` has the core
    ``L diag(values) R^H`` in the orthonormal ``U L^-1`` and ``V R^-1``.

    Args:
        values: Eigenvalues, or singular values.
        vectors: The eigenvectors ``U``, or ``U`` and ``V``, not corrected yet.
        grams: ``U^H U``, or ``U^H U`` and ``V^H V``.

    Returns:
        The values, and the vectors with their corrections.
    """
    left, *right = map(gram_root, grams)
    if right:
        u, found, vh = svd((left * values) @ right[0].conj().T)
        rotations = [u, vh.conj().T]
    else:
        found, u = eigh_by_magnitude(hermitian_part((left * values) @ left.conj().T))
        rotations = [u]
    return found, list(map(_corrected, vectors, (left, *right), rotations))


def _corrected(vectors: Vectors, root: Array, rotation: Array) -> Vectors:
    return Vectors(vectors.source, vectors.transform, np.linalg.solve(root, rotation))
