"""The plan of a run: its identity (``plan.json``), its amendments (``plan.d``), and their checks.

Planning splits a spec in two. All that decides the numbers goes into the :class:`Identity`, whose
SHA-256 names the run and is written into every file. How far the columns reach and how they are cut
goes into numbered :class:`Amendment` files. The plan in force is the identity with the sum of its
amendments.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from skerch_ooc.base.errors import CorruptError, UsageError
from skerch_ooc.base.files import canonical_line, digest
from skerch_ooc.base.html import never_raising, table
from skerch_ooc.base.partition import Range, TileRanges
from skerch_ooc.planning import values
from skerch_ooc.planning.krylov import Krylov, Start
from skerch_ooc.planning.methods import METHODS, WHOLE_METHOD, Method
from skerch_ooc.planning.parts import UNNAMED, OperatorSource, Part, require_numbered
from skerch_ooc.planning.spec import (
    DTYPES,
    KINDS,
    MAX_SEED,
    NOISES,
    ROLES,
    SPARSER,
    TEST_MATRICES,
    RecoverySpec,
)
from skerch_ooc.planning.values import MAX_SIZE

FORMAT_VERSION = 1
NOISE_VERSION = 1

TILE_ROWS = 4096
TILE_COLUMNS = 512

MOST_TASKS = 2**20
"""Most tasks of a stage: they are held in lists, and most of them leave a file in one folder."""

SAMPLED_ROWS = 64
"""Rows of a stored matrix that are compared with the fingerprint."""
FUNCTIONALS = 16
"""How many functionals of its product a fingerprint states."""

FEWEST_TILES = 32
"""Least row tiles of a task that works on rows, if the matrix has so many."""


@dataclass(frozen=True)
class Identity(values.Checked):
    """All settings that decide the numbers of a run: the content of ``plan.json``.

    Attributes:
        kind: ``"eigh"`` or ``"svd"``.
        factory: As in :class:`OperatorSpec`.
        args: As in :class:`OperatorSpec`.
        factory_sha256: Hash of the factory's file, if it is a file.
        shape: ``(height, width)`` of the operator.
        dtype: Type of the products.
        seed: Seed of all test matrices.
        noise: The distribution of each test matrix.
        tile: Rows and columns of the unit of arithmetic.
        start: Vectors that ``krylov`` starts with; ``None`` for all other runs.
    """

    kind: str = values.checked(values.one_of(*KINDS))
    factory: str | None = values.checked(values.factory)
    args: Mapping[str, Any] = values.checked(values.arguments, hash=False)
    factory_sha256: str | None = values.checked(values.sha256)
    shape: tuple[int, int] = values.checked(values.shape)
    dtype: str = values.checked(values.one_of(*DTYPES))
    seed: int = values.checked(values.integer(0, MAX_SEED))
    noise: Mapping[str, str] = values.checked(
        values.table_of(values.one_of(*TEST_MATRICES), values.one_of(*NOISES, *SPARSER)),
        hash=False,
    )
    tile: tuple[int, int] = (TILE_ROWS, TILE_COLUMNS)
    start: Start | None = values.checked(values.optional(values.section(Start)), None)

    @property
    def itemsize(self) -> int:
        """Bytes of an entry of a sketch."""
        return np.dtype(self.dtype).itemsize

    @property
    def wide_dtype(self) -> np.dtype[Any]:
        """The dtype of the accumulators: float64, or complex128."""
        return np.result_type(self.dtype, np.float64)

    @property
    def epsilon(self) -> float:
        """The spacing of the products' dtype at 1."""
        return float(np.finfo(self.dtype).eps)

    @property
    def is_double(self) -> bool:
        """Whether the products are in double precision."""
        return self.wide_dtype == self.dtype

    @property
    def is_complex(self) -> bool:
        """Whether the products are complex."""
        return self.wide_dtype.kind == "c"

    def as_json(self) -> dict[str, Any]:
        """Returns the content of ``plan.json``."""
        start = {} if self.start is None else {"start": dataclasses.asdict(self.start)}
        return {
            "format": FORMAT_VERSION,
            "noise_version": NOISE_VERSION,
            "kind": self.kind,
            "operator": {
                "factory": self.factory,
                "args": dict(self.args),
                "sha256": self.factory_sha256,
                "shape": list(self.shape),
                "dtype": self.dtype,
            },
            "seed": self.seed,
            "noise": dict(self.noise),
            "tile": list(self.tile),
        } | start

    def as_bytes(self) -> bytes:
        """Returns the bytes of ``plan.json``."""
        return canonical_line(self.as_json())

    @property
    def run_id(self) -> str:
        """SHA-256 of ``plan.json``, which names the run and is written into each of its files."""
        return hashlib.sha256(self.as_bytes()).hexdigest()

    @classmethod
    def from_json(cls, value: Any, source: str) -> Identity:
        """Reads the content of ``plan.json``.

        Raises:
            UsageError: If it was written in another format or noise version.
            CorruptError: If it is not what :meth:`as_json` makes.
        """
        if isinstance(value, dict):
            for key, known in (("format", FORMAT_VERSION), ("noise_version", NOISE_VERSION)):
                if isinstance(value.get(key), int) and value[key] != known:
                    raise UsageError(
                        f"{source}: {key} {value[key]}, but this version of skerch_ooc knows "
                        f"{known}; use the version that planned the run"
                    )

        def read() -> Identity:
            operator = value["operator"]
            # The tile is not read: format 1 has one size, and _read finds any other altered.
            return cls(
                kind=value["kind"],
                factory=operator["factory"],
                args=operator["args"],
                factory_sha256=operator["sha256"],
                shape=operator["shape"],
                dtype=operator["dtype"],
                seed=value["seed"],
                noise=value["noise"],
                start=value.get("start"),
            )

        return _read("a plan", source, value, read)


Item = TypeVar("Item", "Identity", "Amendment")


def _read(what: str, source: str, value: Any, read: Callable[[], Item]) -> Item:
    """Reads the content of a file, and checks that writing it again would give the same content.

    Raises:
        CorruptError: If it cannot be read, or would be written otherwise.
    """
    try:
        found = read()
        # Entries that reading ignores, or that have another spelling, are found by this.
        same = found.as_json() == value
    except (LookupError, TypeError, AttributeError, ValueError, UsageError) as error:
        raise CorruptError(f"{source} is not {what}: {error}; restore it from a copy") from error
    if not same:
        raise CorruptError(
            f"{source} is not {what}: it has unknown or altered entries; restore it from a copy"
        )
    return found


@dataclass(frozen=True)
class Cut(values.Checked):
    """Columns ``start`` to ``stop`` of a role, to be measured in blocks of ``width``."""

    start: int = values.checked(values.integer(0))
    stop: int = values.checked(values.integer(0))
    width: int = values.checked(values.integer(1))

    @property
    def columns(self) -> Range:
        """The columns as a range."""
        return Range(self.start, self.stop)

    @property
    def blocks(self) -> TileRanges:
        """The columns of each block, made when they are asked for."""
        return TileRanges(self.columns, self.width)

    @property
    def widest(self) -> int:
        """The width of the widest block."""
        return min(self.width, self.stop - self.start)


@dataclass(frozen=True)
class Amendment(values.Checked):
    """One numbered file of ``plan.d``: columns that are added, and settings that hold from then on.

    Attributes:
        run_id: The run it belongs to.
        number: Its number, from 1, without gaps.
        blocks: The added columns of each role, and how they are cut.
        recovery: The recovery settings in force from here on.
        device: The device in force from here on.
        folder: The factory's folder, relative to the run directory.
        tolerance: Relative error at which measuring may stop; ``None`` to measure all columns.
        most: Most columns of the right sketch that are measured for the tolerance; else ``None``.
        parts: The parts of the operator, and their scales, in force from here on.
        krylov: Width and number of the rounds of ``krylov``; ``None`` for other methods.
        keeps_sketches: Whether results of ``hmt`` are made of the sketches of all rounds; if not,
            of that of the last round.
        either_cut: Whether ``nystrom`` of ``svd`` may cut the core as well as the range, where test
            columns tell which is better. In plans of old it cuts the range.
    """

    run_id: str = values.checked(values.text)
    number: int = values.checked(values.integer(1))
    blocks: Mapping[str, Cut] = values.checked(
        values.table_of(values.one_of(*ROLES), values.section(Cut)), hash=False
    )
    recovery: RecoverySpec = values.checked(values.section(RecoverySpec))
    device: str = values.checked(values.text)
    folder: str = values.checked(values.text)
    tolerance: float | None = values.checked(values.optional(values.tolerance), None)
    most: int | None = values.checked(values.optional(values.integer(1)), None)
    parts: tuple[Part, ...] = (Part(),)
    krylov: Krylov | None = values.checked(values.optional(values.section(Krylov)), None)
    keeps_sketches: bool = values.checked(values.truth, False)
    either_cut: bool = values.checked(values.truth, False)

    def as_json(self) -> dict[str, Any]:
        """Returns the content of the file, with its own SHA-256."""
        content: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "run": self.run_id,
            "number": self.number,
            "blocks": {role: dataclasses.asdict(piece) for role, piece in self.blocks.items()},
            "parts": [part.as_json() for part in self.parts],
            "recovery": self.recovery.as_json() | {"vectors": self.recovery.vectors},
            "device": self.device,
            "folder": self.folder,
        }
        if self.tolerance is not None:
            content |= {"tolerance": self.tolerance, "most": self.most}
        if self.krylov is not None:
            content["rounds"] = self.krylov.as_json()
        if self.keeps_sketches:
            content["keeps_sketches"] = True
        if self.either_cut:
            content["either_cut"] = True
        return content | {"sha256": digest(content)}

    @classmethod
    def from_json(cls, value: Any, source: str) -> Amendment:
        """Reads the content of a file of ``plan.d``.

        Raises:
            CorruptError: If it is not what :meth:`as_json` makes.
        """

        def read() -> Amendment:
            amendment = cls(
                run_id=value["run"],
                number=value["number"],
                blocks=value["blocks"],
                recovery=value["recovery"],
                device=value["device"],
                folder=value["folder"],
                tolerance=value.get("tolerance"),
                most=value.get("most"),
                parts=tuple(Part.from_json(part) for part in value["parts"]),
                krylov=value.get("rounds"),
                keeps_sketches=value.get("keeps_sketches", False),
                either_cut=value.get("either_cut", False),
            )
            require_numbered(amendment.parts)
            for role, piece in amendment.blocks.items():
                if piece.start >= piece.stop:
                    raise UsageError(f"{role} has no columns from {piece.start} to {piece.stop}")
            if (amendment.tolerance is None) != (amendment.most is None):
                raise UsageError("tolerance and most belong together")
            if METHODS[amendment.recovery.method].orthogonal != (amendment.krylov is not None):
                method = amendment.recovery.method
                raise UsageError(f"method = {method!r} must not have rounds = {amendment.krylov}")
            if amendment.keeps_sketches and not METHODS[amendment.recovery.method].later_rounds:
                raise UsageError(f"method = {amendment.recovery.method!r} must not have rounds")
            return amendment

        return _read("an amendment", source, value, read)


@dataclass(frozen=True)
class Plan:
    """The plan in force: the identity of a run with all its amendments.

    Attributes:
        identity: The settings that decide the numbers.
        amendments: All amendments, in order; at least one in a run on disk.
    """

    identity: Identity
    amendments: tuple[Amendment, ...]

    def __repr__(self) -> str:
        identity, method = self.identity, self.recovery.method
        return (
            f"Plan(kind={identity.kind!r}, shape={identity.shape}, dtype={identity.dtype!r}, "
            f"method={method!r}, measurements={self.reach('right')})"
        )

    @never_raising
    def _repr_html_(self) -> str:
        return table("Plan", self.figures)

    @property
    def figures(self) -> list[tuple[str, object]]:
        """What a notebook shows of it: names and values."""
        identity, columns = self.identity, [(role, self.reach(role)) for role in ROLES]
        tolerance = self.amendments[-1].tolerance
        return [
            ("operator", described(self)),
            ("shape", f"{identity.shape[0]} x {identity.shape[1]}, {identity.dtype}"),
            ("kind", identity.kind),
            ("method", f"{self.recovery.method}, rank = {self.recovery.rank}"),
            ("columns", ", ".join(f"{count} {role}" for role, count in columns if count)),
            ("rounds", self.rounds if self.rounds > 1 else None),
            ("tolerance", tolerance),
            ("noise", identity.noise["right"]),
            ("seed", identity.seed),
            ("id", self.run_id[:16]),
        ]

    @property
    def run_id(self) -> str:
        """See :attr:`Identity.run_id`."""
        return self.identity.run_id

    @property
    def recovery(self) -> RecoverySpec:
        """The recovery settings in force."""
        return self.amendments[-1].recovery

    @property
    def method(self) -> Method:
        """The properties of the recovery method in force."""
        method = METHODS[self.recovery.method]
        if self.keeps_sketches and self.identity.kind == "eigh":
            return dataclasses.replace(method, chooses_core=True)
        return method

    @property
    def device(self) -> str:
        """The device in force."""
        return self.amendments[-1].device

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the operator, with the scales in force."""
        return self.amendments[-1].parts

    @property
    def summands(self) -> int:
        """How many summands the operator has."""
        return self.parts[-1].summand + 1

    @property
    def rounds(self) -> int:
        """How many rounds of products the run has, at most."""
        if self.krylov is not None:
            return self.krylov.rounds
        return self.method.rounds(self.identity.kind, self.recovery.power_iterations)

    @property
    def krylov(self) -> Krylov | None:
        """Width and number of the rounds of ``krylov``; ``None`` for other methods."""
        return self.amendments[-1].krylov

    @property
    def either_cut(self) -> bool:
        """See :class:`Amendment`."""
        return self.amendments[-1].either_cut

    @property
    def keeps_sketches(self) -> bool:
        """Whether results of ``hmt`` are made of the sketches of all rounds."""
        return self.amendments[-1].keeps_sketches

    @property
    def later_columns(self) -> int:
        """How many columns a round after the first has, at most."""
        right = self.reach("right")
        return right if self.krylov is None else min(right, self.krylov.width)

    @property
    def start_columns(self) -> int:
        """How many vectors were given to start with."""
        start = self.identity.start
        return 0 if start is None else start.columns

    @property
    def space(self) -> int:
        """How many columns the vectors of a result are made of, at most, on a side."""
        if self.krylov is None:
            return self.reach("right") * self._kept_sketches
        # In svd each side has the blocks of every other round.
        rounds = self.rounds if self.identity.kind == "eigh" else -(-self.rounds // 2)
        return min(rounds * self.later_columns, min(self.identity.shape))

    def takes_whole(self, method: str) -> bool:
        """Whether a method approximates the whole operator from the rounds of ``krylov``."""
        return self.krylov is not None and method == WHOLE_METHOD

    @property
    def whole_space(self) -> int:
        """How many test columns such an approximation has, at most; without rounds ``space``."""
        beside = 0 if self.krylov is None else self.reach("right") - self.later_columns
        return self.space + beside

    @property
    def _kept_sketches(self) -> int:
        """How many sketches of ``hmt`` a side of a result is made of."""
        if not self.keeps_sketches:
            return 1
        return self.rounds if self.identity.kind == "eigh" else self.rounds // 2

    def span(self, role: str) -> Range:
        """Returns the planned columns of a role of the first round."""
        cuts = self.cuts(role)
        return Range(cuts[0].start, cuts[-1].stop) if cuts else Range(0, 0)

    def reach(self, role: str) -> int:
        """Returns how many columns of a role of the first round are planned."""
        return len(self.span(role))

    @property
    def inner(self) -> int:
        """How many rows, and columns, the inner sketch has; 0 if there is none.

        For a Hermitian operator its first columns, and perhaps all, come from the right sketch.
        """
        if not self.method.has_inner:
            return 0
        return max(self.span("inner").stop, self.reach("right"))

    def blocks(self, role: str) -> list[Range]:
        """Returns the blocks of a role: column ranges that are measured by a task each."""
        return [block for piece in self.cuts(role) for block in piece.blocks]

    def cuts(self, role: str) -> list[Cut]:
        """Returns the cuts of a role of the first round, one for each amendment that added any."""
        return [a.blocks[role] for a in self.amendments if role in a.blocks]

    def block_count(self, role: str) -> int:
        """Counts the blocks of a role without listing them: a plan on disk may state millions."""
        return sum(len(piece.blocks) for piece in self.cuts(role))

    def widest(self, role: str) -> int:
        """Returns the width of the widest block of a role; 0 if it has no columns."""
        return max((piece.widest for piece in self.cuts(role)), default=0)

    def width(self, role: str) -> int:
        """Returns the width of the blocks in which further columns of a role are measured."""
        cuts = self.cuts(role)
        return cuts[-1].width if cuts else self.block_width

    @property
    def block_width(self) -> int:
        """The width of the blocks of the right sketch and of later rounds."""
        return self.width("right")

    @property
    def products(self) -> int:
        """How many products the measurements take, without the probe and the fingerprints.

        The parts of a summand together make one product of it; each summand has products of its
        own. A later round takes one for each of its columns, or fewer if the numerical rank of what
        they are made of is lower.
        """
        later = (self.rounds - 1) * self.later_columns
        return (sum(self.reach(role) for role in ROLES) + later) * self.summands

    def tiles(self, height: int | None = None) -> Sequence[Range]:
        """Returns the row tiles of a sketch of the given height, by default the operator's."""
        rows = self.identity.shape[0] if height is None else height
        return TileRanges(Range(0, rows), self.identity.tile[0])


def require_sound(plan: Plan) -> None:
    """Refuses a plan that no operator fits, or that has too many tasks.

    Plans that this package makes are sound, but a run directory may hold anything.

    Raises:
        UsageError: If a part of the plan does not fit; says which.
    """
    identity = plan.identity
    height, width = identity.shape
    _require_noise(identity, inner=plan.method.has_inner)
    most = 0 if plan.krylov is None else plan.later_columns
    if plan.start_columns > most:
        raise UsageError(f"start has {plan.start_columns} vectors; at most {most} are applied")
    if identity.kind == "eigh" and (height != width or plan.reach("left")):
        left = plan.reach("left")
        raise UsageError(f"kind = 'eigh' with shape {identity.shape} and {left} left columns")
    reach = {"right": min(height, width), "left": height, "inner": min(height, width)}
    for role in ROLES:
        _require_joined(plan, role)
        if plan.span(role).stop > reach.get(role, MAX_SIZE):
            raise UsageError(f"{role} has {plan.span(role)} columns, shape {identity.shape}")
    back = plan.reach("test-left")
    if back and (identity.kind == "eigh" or "test-left" not in identity.noise):
        raise UsageError(
            f"kind = {identity.kind!r} with {back} test columns of the adjoint, of which nothing "
            "is known"
        )
    if not plan.reach("right"):
        raise UsageError("there are no columns of the right sketch")
    for part in plan.parts:
        if part.rows is not None and part.rows.stop > height:
            raise UsageError(f"part {part.number} has the rows {part.rows} of {height}")
    _require_few_tasks(plan)


def _require_noise(identity: Identity, *, inner: bool) -> None:
    names = {"right", "test", "inner-left"} if inner else {"right", "test"}
    names = names if identity.kind == "eigh" else set(TEST_MATRICES) - {"test-left"}
    if not names <= identity.noise.keys():
        raise UsageError(f"the test matrices are {sorted(identity.noise)}, not {sorted(names)}")


def _require_joined(plan: Plan, role: str) -> None:
    """Refuses cuts of a role that leave gaps or overlap."""
    hermitian = plan.identity.kind == "eigh"
    position = plan.reach("right") if role == "inner" and hermitian else 0
    for amendment in plan.amendments:
        piece = amendment.blocks.get(role)
        if piece is None:
            continue
        if piece.start != position:
            raise UsageError(f"{role} goes on with column {piece.start} after {position}")
        position = piece.stop


def _require_few_tasks(plan: Plan) -> None:
    tasks = sum(map(plan.block_count, ROLES)) * len(plan.parts)
    if tasks > MOST_TASKS:
        raise UsageError(
            f"there are {tasks} tasks, each of which makes a file; at most {MOST_TASKS} can be "
            f"kept in one run: give a larger sketch.block (the one of right is {plan.block_width})"
        )
    rows = max(plan.identity.shape)
    if rows > MOST_TASKS * FEWEST_TILES * plan.identity.tile[0]:
        raise UsageError(
            f"the operator has {rows} rows or columns; at most "
            f"{MOST_TASKS * FEWEST_TILES * plan.identity.tile[0]} can be worked on"
        )


def source_of(plan: Plan, part: Part) -> OperatorSource:
    """Returns the factory that makes the operator of a part, with its arguments."""
    if part.source is not None:
        return part.source
    identity = plan.identity
    folder = plan.amendments[-1].folder
    return OperatorSource(identity.factory, identity.args, identity.factory_sha256, folder)


def described(plan: Plan) -> str:
    """Describes the operator of a run for people: its summands with their scales."""
    terms = {}
    for part in plan.parts:
        terms[part.summand] = f"{part.scale:g} x {_described(source_of(plan, part))}"
    if len(terms) == 1:
        return _described(source_of(plan, plan.parts[0]))
    return " + ".join(terms.values())


def _described(source: OperatorSource) -> str:
    if source.factory is None:
        return UNNAMED
    arguments = ", ".join(f"{key}={value!r}" for key, value in source.args.items())
    return f"{source.factory}({arguments})" if arguments else source.factory
