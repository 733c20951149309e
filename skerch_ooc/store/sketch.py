"""Rounds of products, their sketches and bases: planned, measured and missing columns, digests.

One-pass methods have one round. ``hmt`` has more: the test matrix of each later round is an
orthonormal basis of the sketch before it, a file in the folder of that sketch. The role of a later
round's shards contains the hash of its basis. So if the basis is ever made anew with other bits,
shards of the old one are not taken for shards of the new one.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import CorruptError, IncompleteError
from skerch_ooc.base.files import as_given, digest, is_there
from skerch_ooc.base.partition import Range
from skerch_ooc.base.places import is_object, place
from skerch_ooc.base.provenance import count_versions
from skerch_ooc.base.resources import release_memory
from skerch_ooc.planning.disk import INDEX_FROM
from skerch_ooc.planning.krylov import BasisBlock, first_block
from skerch_ooc.planning.plan import Cut, Plan
from skerch_ooc.planning.sides import (
    ADJOINT,
    BASIS,
    RANGE,
    START,
    Side,
    first_krylov_round,
    first_round,
    height_of_role,
    is_adjoint,
    krylov_round,
    later_round,
)
from skerch_ooc.planning.spec import ROLES
from skerch_ooc.planning.values import MAX_SIZE
from skerch_ooc.store import names
from skerch_ooc.store.anew import open_kept
from skerch_ooc.store.index import Index, OpenedShards, digest_of, of_own_operator, write_index
from skerch_ooc.store.names import BASIS_MATRIX
from skerch_ooc.store.pieces import lost_pieces, open_matrix
from skerch_ooc.store.readers import RoleReader, SketchReader
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import SealedFile
from skerch_ooc.store.shards import (
    Rectangle,
    by_role,
    list_shards,
    listing_of,
    missing_of,
    of_strips,
    open_shard,
    strip_of,
    used_shards,
    wait_for_columns,
)
from skerch_ooc.store.tiles import Tiles

_DIGITS = 16
"""Digits of a hash in the names of folders and roles."""

BLOCK = "block"
"""What the identity of a block of ``krylov`` says of its making."""

EARLIER = "earlier"
"""What the identity of a block, or of a basis that is used with others, says of earlier rounds."""

_DIGESTS: dict[tuple[str, str], str] = {}
"""Digests of the sketches that this process has opened, by run and by the listing of shards."""

_OPENED: WeakValueDictionary[tuple[str, str, str | None, str], Sketch] = WeakValueDictionary()
"""The sketches that this process has opened and still uses, by run, basis and listing of shards."""

_MANY = 100
"""So many files, of a hundred million rows each, leave some megabytes of holes in the memory."""

_HELD: list[list[Sketch]] = []
"""Where :func:`sketches_held` holds them."""

_LISTINGS = "listings"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LATER_ROLE = re.compile(rf"(?:round|{ADJOINT})[1-9]\d*-[0-9a-f]{{{_DIGITS}}}")


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis on disk, which is the test matrix of a later round.

    Attributes:
        file: The file of the basis, which states the hashes of its pieces if it has any.
        columns: How many vectors it has.
        digest: Hash of its content.
    """

    file: SealedFile

    @cached_property
    def matrix(self) -> Tiles:
        """The reader of the basis.

        Raises:
            CorruptError: If the file holds no basis.
        """
        matrix = open_matrix(self.file, BASIS_MATRIX)
        if matrix is None:
            raise CorruptError(f"{self.file.path} holds no {BASIS_MATRIX}{self.file.advice}")
        return matrix

    @property
    def columns(self) -> int:
        """How many vectors it has."""
        return self.matrix.shape[1]

    @cached_property
    def block(self) -> BasisBlock | None:
        """What a block of ``krylov`` was made of; ``None`` for a basis of another method.

        Raises:
            CorruptError: If the file says something else of it.
        """
        if BLOCK not in self.file.identity:
            return None
        try:
            return BasisBlock.from_json(self.file.identity[BLOCK], self.columns)
        except (LookupError, TypeError, ValueError) as error:
            raise self.unexplained() from error

    @property
    def earlier(self) -> list[str]:
        """The digests of the sketches of all rounds before that which it was made after.

        Raises:
            CorruptError: If the file does not say.
        """
        try:
            found = list(self.file.identity.get(BLOCK, self.file.identity)[EARLIER])
        except (LookupError, TypeError) as error:
            raise self.unexplained() from error
        if not all(isinstance(text, str) and _DIGEST.fullmatch(text) for text in found):
            raise self.unexplained()
        return found

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of the sketches of all rounds before that which applies it; see `earlier`."""
        return (*self.earlier, str(self.file.identity["sketch"]))

    def unexplained(self) -> CorruptError:
        """Returns the error of a file that does not say what the basis was made of."""
        return CorruptError(f"{self.file.path} does not say what it was made of{self.file.advice}")

    @cached_property
    def digest(self) -> str:
        """Hash of its content, by its identity, which has the checksums of all tiles."""
        return self.file.digest


def start_identity(plan: Plan) -> dict[str, Any]:
    """Makes the identity of the file of the vectors that a run starts with, without its data."""
    assert plan.identity.start is not None
    return names.START_VECTORS.identity(plan.run_id, start=plan.identity.start.sha256)


def given_vectors(run: Run) -> Tiles:
    """Returns the reader of the vectors that a run of ``krylov`` starts with.

    Raises:
        IncompleteError: If they are gone.
        CorruptError: If their file is damaged, or of another run.
    """
    path = run.directory / names.START_VECTORS.name()
    file = open_kept(path)
    if file is None:
        raise IncompleteError(
            f"{path} is gone: the vectors that the run starts with; give the spec that it was "
            "planned with once more, with start, or restore the file from a copy"
        )
    if not file.states_just(start_identity(run.plan)):
        raise CorruptError(f"{path} is not of this run{file.advice}")
    return file.bulk()


def is_later_role(role: str) -> bool:
    """Whether a role is that of the main sketch of a later round; see :attr:`Round.role`."""
    return _LATER_ROLE.fullmatch(role) is not None


def basis_identity(plan: Plan, sketch_digest: str) -> dict[str, Any]:
    """Makes the identity of the basis of a sketch, without the description of its data."""
    return names.BASIS.identity(plan.run_id, sketch=sketch_digest)


@dataclass(frozen=True)
class Round:
    """One round of products.

    Attributes:
        run: The run.
        number: Its number, from 1.
        basis: The test matrix of a later round; ``None`` for the first.
    """

    run: Run
    number: int = 1
    basis: Basis | None = None

    @classmethod
    def at(cls, run: Run, number: int, basis_path: str | None) -> Round:
        """The round as tasks name it, for any process.

        Raises:
            IncompleteError: If the basis is gone.
            CorruptError: If it is damaged.
        """
        if basis_path is None:
            return cls(run, number)
        file = open_kept(place(basis_path))
        if file is None:
            raise IncompleteError(f"{basis_path} is gone; run the same command again")
        return cls(run, number, Basis(file))

    @cached_property
    def bases(self) -> dict[int, Basis]:
        """The bases up to this round that are used together, by the rounds that apply them.

        Raises:
            CorruptError: If one is damaged.
            IncompleteError: If one is gone.
        """
        if self.basis is None:
            return {}
        plan = self.run.plan
        if plan.krylov is None and not plan.keeps_sketches:
            return {self.number: self.basis}
        if len(self.basis.earlier) != self.number - 2:
            raise self.basis.unexplained()
        found = {}
        for number, earlier in enumerate(self.basis.earlier, 2):
            path = sketch_folder(self.run, earlier) / names.BASIS.name()
            file = open_kept(path)
            if file is None:
                raise IncompleteError(f"{path} is gone; restore it from a copy, or plan a new run")
            found[number] = Basis(file)
        return found | {self.number: self.basis}

    @cached_property
    def blocks(self) -> list[BasisBlock]:
        """The blocks of ``krylov`` up to that which this round applies."""
        first = first_block(self.run.plan.identity.kind, self.run.plan.later_columns)
        later = (basis.block for basis in self.bases.values())
        return [first, *(block for block in later if block is not None)]

    def at_number(self, number: int) -> Round:
        """Returns the same run's round of ``krylov`` with a lower number, or this one."""
        if number == self.number:
            return self
        return Round(self.run, number, self.bases[number] if number > 1 else None)

    @cached_property
    def basis_path(self) -> str | None:
        """The file of the test matrix of a later round."""
        return str(as_given(self.basis.file.path)) if self.basis else None

    @cached_property
    def planned(self) -> dict[str, Range]:
        """The columns of each role that are measured in this round."""
        plan = self.run.plan
        if self.basis is None:
            return {role: plan.span(role) for role in ROLES if plan.reach(role)}
        return {self.role: Range(0, self.basis.columns)}

    @cached_property
    def role(self) -> str:
        """The role of this round's main sketch: ``right``, later ``roundN-HASH``."""
        if self.basis is None:
            return "right"
        name = "round"
        if self.basis.block is not None and self.adjoint:
            name = ADJOINT
        return f"{name}{self.number}-{self.basis.digest[:_DIGITS]}"

    @property
    def adjoint(self) -> bool:
        """Whether the main sketch is made with the adjoint of the operator."""
        if self.basis is not None and (block := self.basis.block) is not None:
            return self.run.plan.identity.kind == "svd" and block.side == RANGE
        return self.basis is not None and is_adjoint(self.run.plan, self.number)

    @cached_property
    def heights(self) -> dict[str, int]:
        """The number of rows of the sketch of each role that is measured in this round."""
        plan = self.run.plan
        if self.basis is None:
            return {role: height_of_role(plan, role) for role in self.planned}
        height, width = plan.identity.shape
        return {self.role: width if self.adjoint else height}

    @cached_property
    def sides(self) -> list[Side]:
        """The sides that are merged: their sketches, and the test matrices of their sums."""
        if self.run.plan.krylov is not None:
            return self._krylov_sides()
        if self.basis is None:
            return first_round(self.run.plan)
        bases = {number: basis.columns for number, basis in self.bases.items()}
        return later_round(self.run.plan, self.role, bases)

    def _krylov_sides(self) -> list[Side]:
        if self.basis is None:
            return first_krylov_round(self.run.plan)
        return krylov_round(self.run.plan, self.role, self.blocks)

    @property
    def measured_sides(self) -> list[Side]:
        """The sides that have sketches which are measured, and not drawn or made."""
        return [side for side in self.sides if side.measured]

    @property
    def products(self) -> int:
        """How many products the round takes."""
        return sum(map(len, self.planned.values())) * self.run.plan.summands

    def cuts(self, role: str) -> list[Cut]:
        """Returns the columns of a role, and how they are cut into blocks, each of one task."""
        if self.basis is None:
            return self.run.plan.cuts(role)
        columns = self.planned[role]
        return [Cut(columns.start, columns.stop, self.run.plan.block_width)]

    @cached_property
    def strips(self) -> list[Rectangle]:
        """The strips that are measured in this round, one for each role and part."""
        plan = self.run.plan
        return [
            strip_of(plan, part, role, columns, self.heights[role])
            for role, columns in self.planned.items()
            for part in plan.parts
        ]

    @cached_property
    def merged_strips(self) -> list[Rectangle]:
        """The strips that are merged, with those that a later round takes from the first."""
        plan = self.run.plan
        merged = {role for side in self.sides for role in side.measured}
        earlier = merged - self.planned.keys()
        return self.strips + [
            strip_of(plan, part, role, plan.span(role), height_of_role(plan, role))
            for role in sorted(earlier)
            for part in plan.parts
        ]

    def missing_strips(
        self, shards: Iterable[Rectangle] | None = None
    ) -> dict[Rectangle, list[Range]]:
        """Returns the columns of each role and part that no shard holds.

        Args:
            shards: The shards, if the caller has listed them.

        Raises:
            IncompleteError: If ``clean --shards`` removed all: none of them is to be made anew.
        """
        self.run.require_shards()
        listed = list_shards(self.run.shards) if shards is None else shards
        return missing_of(self.strips, listed)

    def missing(self, shards: Iterable[Rectangle] | None = None) -> dict[str, list[Range]]:
        """Returns the columns of each role that are missing for some part."""
        return by_role(self.missing_strips(shards))

    def is_measured(self, shards: Iterable[Rectangle] | None = None) -> bool:
        """Whether shards hold all columns of all roles and parts."""
        return not any(self.missing_strips(shards).values())

    def products_left(self, shards: Iterable[Rectangle] | None = None) -> int:
        """Counts the products that are still to be made; a summand's parts share a product."""
        parts = self.run.plan.parts
        left = sum(
            sum(map(len, ranges)) * parts[strip.part].weight
            for strip, ranges in self.missing_strips(shards).items()
        )
        # Weights of parts are fractions, whose sum may be a little above the whole number it means.
        return math.ceil(left - 1e-6)

    @cached_property
    def sketch(self) -> Sketch:
        """The sketch of this round, whose shards are opened when it is first asked for.

        Raises:
            IncompleteError: If measurements are missing, or were removed.
            CorruptError: If a shard is damaged, foreign, swapped or a link.
        """
        # Another round object of this process may have opened the very same shards. They are listed
        # before they are opened: if one is replaced meanwhile, the note must not map the newer
        # listing to the digest of the older shard.
        listing = self.listing(list_shards(self.run.shards))
        key = (str(self.run.directory.absolute()), self.run.plan.run_id, self.basis_path, listing)
        found = _OPENED.get(key)
        if found is None:
            found = _OPENED[key] = Sketch(self, listing)
        for held in _HELD:
            held.append(found)
        return found

    def digest(self, listed: Iterable[Rectangle]) -> str:
        """Returns the digest of its sketch; opens the shards unless this process has done so.

        Args:
            listed: The shards of the run.

        Raises:
            IncompleteError: If measurements are missing.
            CorruptError: If a shard that was opened is damaged, foreign, swapped or a link.
        """
        return _DIGESTS.get((self.run.plan.run_id, self.listing(listed))) or self.sketch.digest

    def listing(self, listed: Iterable[Rectangle]) -> str:
        """Hashes names, sizes and times of the round's shards, and the number of amendments."""
        shards = listing_of(self.run.shards, of_strips(self.merged_strips, listed))
        return digest([len(self.run.plan.amendments), shards])

    def digest_by_notes(self, listed: Iterable[Rectangle]) -> str:
        """Returns the digest of its sketch from the notes; opens the shards if there is no note.

        Args:
            listed: The shards of the run.

        Raises:
            IncompleteError: If measurements are missing.
            CorruptError: If a shard that was opened is damaged, foreign, swapped or a link.
        """
        return noted_digest(self, listed) or self.sketch.digest

    def following(self, sketch_digest: str | None = None) -> Round | None:
        """Returns the round after this one; ``None`` if its basis is not made yet.

        Args:
            sketch_digest: The digest of this round's sketch; if not given, its shards are opened.

        Raises:
            IncompleteError: If measurements are missing.
            CorruptError: If a shard or the basis is damaged.
        """
        basis = basis_of(self, sketch_digest or self.sketch.digest)
        return Round(self.run, self.number + 1, basis) if basis else None


class Sketch:
    """The column shards of a round, all there and verified to be what they should be.

    Args:
        round_: The round.
        listing: The hash of the listing of its shards.

    Attributes:
        round: The round.
        readers: The reader of the row tiles of each side.
        shards: The shards that are used, in order.
        digest: A hash of its content, by the identities of the shards that are used, which have all
            checksums. Other shards have no part in it.
        folder: The folder of all that is derived from it.

    Raises:
        IncompleteError: If measurements are missing, or were removed.
        CorruptError: If a shard is damaged, foreign, swapped or a link.
    """

    def __init__(self, round_: Round, listing: str) -> None:
        self.round, self._listing = round_, listing
        run = round_.run
        run.require_shards()
        strips = round_.merged_strips
        rectangles = wait_for_columns(run, strips)
        self.shards = used_shards(strips, rectangles)
        self._index = self._noted_index()
        self._opened = OpenedShards(run, run.shards, self._index)
        bases = {f"{BASIS}{number}": basis for number, basis in round_.bases.items()}
        self.readers = {
            side.name: SketchReader(
                self._opened, rectangles, side, strips,
                {role: bases[role].matrix for role in side.sketches.keys() & bases.keys()},
            )
            for side in round_.sides
            if side.name != START
        }  # fmt: skip
        self._inner: RoleReader | None = None
        if "inner" in round_.planned:
            of_inner = [strip for strip in strips if strip.role == "inner"]
            self._inner = RoleReader(self._opened, rectangles, of_inner, run.plan.inner)
        self.digest = self._index.digest if self._index else self._hashed()
        self.folder = sketch_folder(run, self.digest)
        if len(self.shards) > _MANY:
            # The texts of a thousand identities leave holes as large as all checksums.
            release_memory()
        _DIGESTS[run.plan.run_id, self._listing] = self.digest

    def _hashed(self) -> str:
        """Opens all shards, before any is read, and hashes what they state."""
        return digest_of((file.stated for file in self._files()), self.round.run.plan)

    def _files(self) -> Iterator[SealedFile]:
        """Opens all shards; where there are many, their checksums are not held."""
        opening = self._opened.glance
        if len(self.shards) < INDEX_FROM:
            opening = self._opened.file
            if is_object(self.round.run.shards):
                self._opened.open_together(self.shards)
        return of_own_operator(self.round.run, opening, self.shards)

    def _noted_index(self) -> Index | None:
        """Opens the index of these very shards, if they were merged before."""
        run = self.round.run
        noted = _noted_digests(run).get(self._listing) if len(self.shards) >= INDEX_FROM else None
        index = None if noted is None else Index.read(run, _index_path(run, noted))
        return index if index is not None and list(index.shards) == self.shards else None

    @property
    def versions(self) -> dict[str, dict[str, int]]:
        """How many shards were made with which versions of libraries."""
        if self._index is not None:
            return self._index.versions
        return count_versions(file.provenance for file in self._files())

    def inner(self) -> Array:
        """Reads the measured columns of the inner sketch, ``(s, columns)``; there may be none."""
        plan = self.round.run.plan
        out = np.empty((plan.inner, len(plan.span("inner"))), plan.identity.dtype)
        if self._inner is not None:
            for number, rows in enumerate(plan.tiles(plan.inner)):
                self._inner.read_row(number, out[rows.slice])
        return out

    def basis(self) -> Basis | None:
        """Opens the orthonormal basis of this sketch; ``None`` if it, or a piece, is not there.

        Raises:
            CorruptError: If it is damaged.
        """
        return basis_of(self.round, self.digest)

    def note(self) -> None:
        """Notes the digest of this sketch in a log, with the listing of its shards, unless it is.

        :func:`noted_digest` finds it there. It is noted before anything is derived from the sketch:
        who asks what is left of that then need not open the shards.
        """
        _note(self.round.run, self._listing, self.digest)


@contextlib.contextmanager
def sketches_held() -> Iterator[None]:
    """Holds the sketches that are opened within the context, so that none is opened twice."""
    held: list[Sketch] = []
    _HELD.append(held)
    try:
        yield
    finally:
        _HELD[:] = [each for each in _HELD if each is not held]


def publish_index(round_: Round) -> None:
    """Publishes the index of a round of many shards, if all are there and it is not.

    Shards are opened one after the other, so that it takes little memory, and their digest is
    noted. If one is damaged, no index is published: the processes that merge the sketch say so.

    Args:
        round_: The round.

    Raises:
        IncompleteError: If the index cannot be written.
    """
    run = round_.run
    listed = list_shards(run.shards)
    listing, strips = round_.listing(listed), round_.merged_strips
    found = of_strips(strips, listed)
    if len(found) < INDEX_FROM or any(missing_of(strips, found).values()):
        return
    used = used_shards(strips, found)
    noted = _noted_digests(run).get(listing)
    if len(used) < INDEX_FROM or (noted is not None and is_there(_index_path(run, noted))):
        return
    opening, folder_of = partial(open_shard, run, run.shards), partial(sketch_folder, run)
    with contextlib.suppress(CorruptError):
        _note(run, listing, write_index(run, used, opening, folder_of))


def _index_path(run: Run, sketch_digest: str) -> Path:
    return sketch_folder(run, sketch_digest) / names.INDEX.name()


def sketch_folder(run: Run, sketch_digest: str) -> Path:
    """Returns the folder of all that is derived from a sketch."""
    return run.sketch / sketch_digest[:_DIGITS]


def noted_digest(round_: Round, listed: Iterable[Rectangle]) -> str | None:
    """Looks up the digest of a merged sketch by names, sizes and times of its shards.

    No shard is opened. The digest tells how far a run is; code that reads the sketch opens and
    verifies its shards.

    Args:
        round_: The round.
        listed: The shards of the run.

    Returns:
        The digest; ``None`` if it was not noted, or a shard was touched since.
    """
    noted = _noted_digests(round_.run)
    return noted.get(round_.listing(listed)) if noted else None


def _note(run: Run, listing: str, sketch_digest: str) -> None:
    noted = {"listing": listing, "digest": sketch_digest}
    if noted not in list(run.log(_LISTINGS)):
        run.record(_LISTINGS, noted)


def _noted_digests(run: Run) -> dict[str, str]:
    """Reads the digests of sketches that are noted, by the listings of their shards."""
    noted = {}
    for record in run.log(_LISTINGS):
        stated = record.get("listing"), record.get("digest")
        # A path is made of the digest, and a log may hold anything: only hexadecimal digits pass.
        if all(isinstance(text, str) and _DIGEST.fullmatch(text) for text in stated):
            noted[str(stated[0])] = str(stated[1])
    return noted


def basis_of(round_: Round, sketch_digest: str) -> Basis | None:
    """Opens the orthonormal basis of a round's sketch; ``None`` if it, or a piece, is not there.

    Raises:
        CorruptError: If it is damaged.
    """
    run = round_.run
    path = sketch_folder(run, sketch_digest) / names.BASIS.name()
    file = open_kept(path)
    if file is None:
        return None
    if not file.states_just(basis_identity(run.plan, sketch_digest)):
        raise CorruptError(f"{path} is not of this sketch{file.advice}")
    return None if lost_pieces(file) else Basis(file)


def known_rounds(
    run: Run,
    shards: Sequence[Rectangle] | None = None,
    digest_of: Callable[[Round], str | None] | None = None,
) -> Iterator[Round]:
    """Yields the rounds whose test matrices are known now, in order; the last may be incomplete.

    Args:
        run: The run.
        shards: The shards, if the caller has listed them.
        digest_of: Returns the digest of a measured round's sketch; ``None`` ends the rounds. By
            default it is found by opening the shards, once in a process.

    Raises:
        IncompleteError: If the shards of a run with several rounds were removed on purpose.
        CorruptError: If a basis, or a shard of an earlier round, is damaged.
    """
    if shards is None and run.plan.rounds > 1 and run.cleaned() is None:
        shards = list_shards(run.shards)
    current: Round | None = Round(run)
    while current is not None:
        yield current
        if current.number == run.plan.rounds or not current.is_measured(shards):
            return
        known = current.digest(shards or ()) if digest_of is None else digest_of(current)
        current = None if known is None else current.following(known)


def count_products(
    run: Run, rounds: Sequence[Round] | None = None, listed: Sequence[Rectangle] | None = None
) -> dict[str, int]:
    """Counts the products of a run: ``planned``, ``done`` by the shards on disk, and ``probe``.

    The last includes fingerprints. A round whose basis is not made yet counts as many planned
    products as the round before it.

    Args:
        run: The run.
        rounds: The known rounds, if the caller has them.
        listed: The shards, if the caller has listed them.

    Raises:
        CorruptError: If the mark of removed shards, a basis, or a shard that is opened is damaged.
    """
    planned = done = last = 0
    mark = run.cleaned()
    if mark is not None:
        planned, done = mark.products["planned"], mark.products["done"]
    else:
        rounds = list(known_rounds(run)) if rounds is None else rounds
        for known in rounds:
            planned += known.products
            done += known.products - known.products_left(listed)
            last = len(known.planned[known.role]) * run.plan.summands
        planned += (run.plan.rounds - len(rounds)) * last
    checks = 0
    for record in run.receipts():
        count = record.get("products")
        if record.get("stage") not in ("probe", "fingerprint") or not isinstance(count, int):
            continue
        # Receipts are a log, in which anything may stand.
        if 0 <= count <= MAX_SIZE:
            checks += count
    return {"planned": planned, "done": done, "probe": checks}
