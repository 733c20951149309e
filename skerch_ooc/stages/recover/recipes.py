"""Recipes on disk: all that a process needs to make vectors, except the columns themselves.

Where vectors are made in several pieces, the process that solves the small problems publishes the
transforms and values first. Each piece names its recipe by a hash of the content: pieces that a
killed process has left are kept if they are of the same recipe, and made anew if they are not.

The columns that tall vectors are made of stay where they are; this module also finds out which
shards or bases these are, and of which round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import CorruptError, IncompleteError, quoted
from skerch_ooc.base.files import canonical_json, remove
from skerch_ooc.base.partition import Range
from skerch_ooc.base.provenance import provenance
from skerch_ooc.planning.krylov import BasisBlock, Origin, family, partly_kept_rounds
from skerch_ooc.planning.methods import METHODS
from skerch_ooc.planning.sides import CORANGE, RANGE
from skerch_ooc.planning.spec import RecoverySpec
from skerch_ooc.stages.merge.task import Merge
from skerch_ooc.stages.merge.testmatrices import Drawn, products_of
from skerch_ooc.stages.recover.krylov import has_ended, sources_of
from skerch_ooc.stages.recover.problems import serves, tall_columns
from skerch_ooc.stages.recover.vectors import Recipe, Vectors
from skerch_ooc.store import names
from skerch_ooc.store.anew import open_if_there, stated_by
from skerch_ooc.store.names import BASIS_MATRIX
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import SealedFile, sealed_writer
from skerch_ooc.store.sketch import BLOCK, Round, given_vectors, known_rounds
from skerch_ooc.store.tiles import Beside, SomeColumns, Tiles

LEFT_VECTORS = {"eigh": "eigenvectors", "svd": "U"}
RIGHT_VECTORS = "V"

CONTENT = "content"

SUMMED_SIDE = "summed_side"
"""States the side of the columns whose sums are formed, in a recipe for these."""


@dataclass(frozen=True)
class RecipeFile:
    """The recipes of the matrices of one result or basis, on disk.

    Attributes:
        path: The file.
        identity: What the file says it is.
        matrices: The recipe of each matrix, by its name.
        arrays: The other arrays that were published with the recipes.
    """

    path: Path
    identity: Mapping[str, Any]
    matrices: Mapping[str, Recipe]
    arrays: Mapping[str, Array]

    @property
    def content(self) -> str:
        """Hash of all that the file holds."""
        return str(self.identity[CONTENT])


def recipe_identity(run: Run, sketch: str, of: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a file of recipes says it is.

    Args:
        run: The run.
        sketch: The digest of the sketch.
        of: ``{"settings": ...}`` for a result; for a basis ``{"round": ...}``, the round it is of.
    """
    return names.RECIPE.identity(run.plan.run_id, sketch=sketch, **of)


def publish_recipes(
    path: Path, identity: Mapping[str, Any], matrices: Mapping[str, Recipe],
    arrays: Mapping[str, Array], *, replace: bool = False,
) -> RecipeFile:  # fmt: skip
    """Publishes recipes, unless there are some already.

    Args:
        path: The file.
        identity: See :func:`recipe_identity`; may say more.
        matrices: The recipes.
        arrays: Other arrays to keep with them.
        replace: Whether to replace other recipes that are there.

    Returns:
        The recipes that were given.

    Raises:
        IncompleteError: If the file cannot be written.
    """
    # The hash of the content ties pieces to their recipe; so it covers every bit of the arrays.
    stored = dict(arrays)
    for name, recipe in matrices.items():
        stored |= recipe.vectors.as_arrays(f"{name}.")
        if recipe.weights is not None:
            stored[f"{name}.weights"] = recipe.weights
    whole = dict(identity) | {"rows": {name: recipe.rows for name, recipe in matrices.items()}}
    whole[CONTENT] = _hash_of(whole, stored)
    if stated_by(path) != whole:
        if replace:
            remove(path)
        with sealed_writer(path) as writer:
            writer.publish(whole, stored, provenance())
    return RecipeFile(path, whole, matrices, arrays)


def _hash_of(identity: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(canonical_json(dict(identity)))
    for name, array in sorted(arrays.items()):
        digest.update(canonical_json([name, str(array.dtype), list(array.shape)]))
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def read_recipes(path: Path, expected: Mapping[str, Any], columns: Columns) -> RecipeFile | None:
    """Reads recipes whose columns this process knows.

    Args:
        path: The file.
        expected: What the file must say it is, at least.
        columns: The columns that the matrices are made of.

    Returns:
        The recipes; ``None`` if there are none, or they are of another sketch.

    Raises:
        CorruptError: If the file is damaged.
    """
    file = open_if_there(path)
    return _with_columns(file, columns) if file and file.states(expected) else None


def remove_other_recipes(path: Path, expected: Mapping[str, Any]) -> None:
    """Removes recipes of another sketch: the run has grown, or was measured anew, since.

    Args:
        path: The file.
        expected: What the file must say it is, at least, to be kept.

    Raises:
        CorruptError: If the file is damaged.
    """
    file = open_if_there(path)
    if file is not None and not file.states(expected):
        remove(path)


def open_recipes(run: Run, path: Path, content: str) -> RecipeFile:
    """Opens recipes in a process that knows nothing else, and finds the columns they apply to.

    Args:
        run: The run.
        path: The file.
        content: The hash that the file must state for its content.

    Raises:
        IncompleteError: If the file, or a shard, is gone, or the file was replaced.
        CorruptError: If the file, or a shard, is damaged, or shards were measured anew since.
    """
    try:
        file = SealedFile(path)
    except FileNotFoundError as error:
        raise IncompleteError(f"{path} is gone; run the same command again") from error
    if file.identity.get(CONTENT) != content:
        raise IncompleteError(f"{path} was replaced meanwhile; run the same command again")
    if "round" in file.identity:
        number = file.identity["round"]
        round_ = next((r for r in known_rounds(run) if r.number == number), None)
        if round_ is None:
            raise IncompleteError(
                f"{path} is of round {number}, and the rounds before it are not complete; run the "
                "same command again"
            )
        if BLOCK in file.identity:
            columns = columns_of_block(round_, round_.sketch.digest, file.identity[BLOCK])
        else:
            columns = columns_of_basis(round_)
    elif SUMMED_SIDE in file.identity:
        last, _ = rounds_for(run, RecoverySpec(**file.identity["settings"]))
        columns = columns_of_sums(last, file.identity[SUMMED_SIDE])
    else:
        columns = columns_of_result(run, RecoverySpec(**file.identity["settings"]))
    if columns.digest != file.identity["sketch"]:
        raise CorruptError(
            f"{path} was made of other shards than there are here now: either they were measured "
            "anew meanwhile, then run the same command again; or this is another run directory"
        )
    return _with_columns(file, columns)


def _with_columns(file: SealedFile, columns: Columns) -> RecipeFile:
    matrices, arrays = {}, dict(file.arrays)
    for name, rows in file.identity["rows"].items():
        right = name == RIGHT_VECTORS
        source = columns.right if right and columns.right else columns.left
        vectors = Vectors(
            source,
            arrays.pop(f"{name}.transform"),
            *(arrays.pop(f"{name}.{factor}", None) for factor in ("correction", "projection")),
        )
        weights = arrays.pop(f"{name}.weights", None)
        test = None
        if name == BASIS_MATRIX or weights is not None:
            test = columns.test_left if right else columns.test
        matrices[name] = Recipe(
            name, int(rows), vectors, test, weights, columns.family, columns.is_block
        )
    return RecipeFile(file.path, file.identity, matrices, arrays)


@dataclass(frozen=True)
class Columns:
    """The columns on disk that tall vectors are made of.

    Attributes:
        digest: The digest of the sketch.
        left: The columns that the left vectors, the eigenvectors, or a basis are made of.
        right: The columns that the right vectors are made of; ``None`` if there are none.
        test: The test sketch with as many rows as the left vectors; ``None`` if there is none.
        family: See :class:`~skerch_ooc.stages.recover.vectors.Recipe`.
        is_block: The same.
        test_left: The test sketch of the adjoint, with as many rows as the right vectors; ``None``
            if there is none.
    """

    digest: str
    left: Tiles
    right: Tiles | None
    test: Tiles | None
    family: int = 0
    is_block: bool = False
    test_left: Tiles | None = None


def rounds_for(
    run: Run, settings: RecoverySpec, rounds_then: int | None = None
) -> tuple[Round, Round | None]:
    """Returns the round whose sketch a method uses, and for ``hmt`` also the round before it.

    Where all sketches are kept, the sums of the last round are of all of them.

    Args:
        run: The run.
        settings: The settings of the result.
        rounds_then: For a result that was made of the rounds of ``krylov`` how many there were.

    Raises:
        UsageError: If the run's sketch does not serve the method.
        IncompleteError: If something is not measured yet, or a basis is not made yet.
    """
    serves(run.plan, settings)
    if METHODS[settings.method].is_one_pass and not run.plan.takes_whole(settings.method):
        return Round(run), None
    rounds = list(known_rounds(run))[:rounds_then]
    last = rounds[-1]
    if len(rounds) == rounds_then:
        return last, None
    orthogonal = run.plan.krylov is not None and len(rounds) < run.plan.rounds
    if orthogonal and last.is_measured() and has_ended(last, last.sketch.digest):
        return last, None
    if len(rounds) < run.plan.rounds:
        rounds[-1].sketch  # noqa: B018 (says what is missing, if measurements are)
        raise IncompleteError(
            f"round {len(rounds) + 1} of {run.plan.rounds} has no basis yet; make it with: "
            f"skerch-ooc merge {quoted(run.directory)}"
        )
    return last, None if run.plan.keeps_sketches or len(rounds) == 1 else rounds[-2]


def columns_of_result(run: Run, settings: RecoverySpec, rounds_then: int | None = None) -> Columns:
    """Finds the columns that the vectors of a result are made of.

    Args:
        run: The run.
        settings: The settings of the result.
        rounds_then: See :func:`rounds_for`.

    Raises:
        UsageError: If the run's sketch does not serve the method.
        IncompleteError: If something is not measured yet, or is gone.
        CorruptError: If a shard is damaged.
    """
    last, before = rounds_for(run, settings, rounds_then)
    if METHODS[settings.method].orthogonal:
        return _columns_of_pairs(last)
    if run.plan.takes_whole(settings.method):
        return _columns_of_whole(last)
    if last.basis and before is None:
        return Columns(last.sketch.digest, *tall_columns(last, Merge(last).readers()))
    readers = Merge(last).readers()
    left = last.basis.matrix if last.basis else readers[RANGE].roles["right"]
    right = back = None
    if CORANGE in readers:
        right = readers[CORANGE].roles[last.role if last.basis else "left"]
        back = readers[CORANGE].roles.get("test-left")
    test = Merge(before).readers()[RANGE] if before else readers[RANGE]
    return Columns(
        last.sketch.digest, left, right, test.roles.get("test"), test_left=back,
    )  # fmt: skip


def _columns_of_pairs(last: Round) -> Columns:
    """Finds the blocks that the pairs of ``krylov`` are made of."""
    right = None
    if last.run.plan.identity.kind == "svd":
        right = Beside("V", _blocks_on(last, CORANGE))
    left = Beside("U", _blocks_on(last, RANGE))
    test = Merge(last.at_number(1)).readers()[RANGE].roles.get("test")
    return Columns(last.sketch.digest, left, right, test)


def _columns_of_whole(last: Round) -> Columns:
    """Finds the columns that an approximation of the whole operator is made of.

    They are all blocks, and the products that these do not hold: those of some rounds, and those of
    a first sketch that has more columns than a round.
    """
    right = None
    if last.run.plan.identity.kind == "svd":
        right = Beside("V", [*_blocks_on(last, CORANGE), *_partly_kept(last, CORANGE)])
    left = Beside("U", [*_blocks_on(last, RANGE), *_partly_kept(last, RANGE), *_wider(last)[:1]])
    test = Merge(last.at_number(1)).readers()[RANGE].roles.get("test")
    return Columns(last.sketch.digest, left, right, test)


def _partly_kept(last: Round, side: str) -> list[Tiles]:
    """Returns the products on a side that its blocks do not hold all of."""
    rounds = partly_kept_rounds(last.run.plan.identity.kind, last.blocks, side)
    return [products_of(last.at_number(number), side) for number in rounds]


def _wider(last: Round) -> list[Tiles]:
    """Returns what a first sketch has beyond the first round's columns: products, and noise."""
    plan, first = last.run.plan, last.at_number(1)
    beyond = Range(plan.later_columns, plan.reach("right"))
    if not beyond:
        return []
    products = Merge(first).readers()[RANGE].roles["right"]
    noise = Drawn(plan, "right", beyond.stop)
    return [SomeColumns.of(each, beyond) for each in (products, noise)]


def parts_of_sums(last: Round, side: str) -> dict[str, list[Tiles]]:
    """Finds columns whose sums an approximation of the whole operator needs besides the rounds'.

    Args:
        last: The last round.
        side: The side.

    Returns:
        By what they are: the products that are partly kept, and with them what these were not
        multiplied with in the rounds. Empty if the rounds have all sums.
    """
    hermitian = last.run.plan.identity.kind == "eigh"
    kept, wider = _partly_kept(last, side), _wider(last)
    tests = last.run.plan.reach("test")
    found: dict[str, list[Tiles]] = {}
    if wider or (side == CORANGE and tests and _partly_kept(last, RANGE)):
        found["blocks"] = _blocks_on(last, side)
    found["products"] = [*kept, *wider[:1]]
    found["noise"] = wider[1:]
    if side == RANGE and tests:
        found["test"] = [Merge(last.at_number(1)).readers()[RANGE].roles["test"]]
    elif "blocks" in found and not hermitian:
        found["noise"] = [Drawn(last.run.plan, "test", tests)]
    return found if found["products"] or "blocks" in found else {}


def columns_of_sums(last: Round, side: str) -> Columns:
    """Finds the columns of :func:`parts_of_sums`, side by side.

    Raises:
        IncompleteError: If something is gone.
        CorruptError: If a shard is damaged.
    """
    parts = [part for each in parts_of_sums(last, side).values() for part in each]
    return Columns(last.sketch.digest, Beside("sums", parts), None, None)


def columns_of_block(round_: Round, digest: str, described: Mapping[str, Any]) -> Columns:
    """Finds the columns that a block of ``krylov`` is made of.

    Args:
        round_: The round before it.
        digest: The digest of its sketch.
        described: What its file says of its making.

    Raises:
        IncompleteError: If something is gone.
        CorruptError: If a shard is damaged.
    """
    block = BasisBlock.from_json(described, 0)
    blocks = _blocks_on(round_, block.side)
    kind = round_.run.plan.identity.kind
    others = [
        _tall_source(round_, block.side, source)
        for source in sources_of(kind, round_.blocks, block)
    ]
    family = sum(part.shape[1] for part in blocks)
    left = Beside(BASIS_MATRIX, [*blocks, *others])
    return Columns(digest, left, None, None, family, is_block=True)


def _blocks_on(round_: Round, side: str) -> list[Tiles]:
    """Returns the blocks on a side up to a round; the first one is drawn."""
    return [
        Drawn(round_.run.plan, "right", block.columns)
        if block.source is None
        else round_.bases[block.number].matrix
        for block in family(round_.blocks, side)
    ]


def _tall_source(round_: Round, side: str, source: Origin) -> Tiles:
    if source.is_start:
        return given_vectors(round_.run)
    if source.products is not None:
        return products_of(round_.at_number(source.products), side)
    assert source.tests is not None
    return SomeColumns.of(Merge(round_.at_number(1)).readers()[RANGE].roles["test"], source.tests)


def columns_of_basis(round_: Round) -> Columns:
    """Finds the columns that the basis after a round is made of.

    Raises:
        IncompleteError: If measurements are missing.
        CorruptError: If a shard is damaged.
    """
    merge = Merge(round_)
    reader = merge.readers()[CORANGE if round_.adjoint else RANGE]
    roles = reader.roles
    return Columns(merge.sketch.digest, roles[round_.role], None, roles.get("test"))
