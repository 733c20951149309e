"""Memory: what ``plan`` foretells is what the stages ask for, as both call the same functions.

What a stage asks for is overheard where too little memory is refused.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict

import numpy as np
import pytest
import torch
from pairwise import cover

import skerch_ooc as ooc
from skerch_ooc.base.partition import Range
from skerch_ooc.base.resources import SPARE_BYTES
from skerch_ooc.operators.matrix import stored
from skerch_ooc.operators.probe import Probe
from skerch_ooc.pipeline.cost import ASSUMED_BASELINE, estimate
from skerch_ooc.planning import memory
from skerch_ooc.planning.disk import opened_bytes
from skerch_ooc.planning.methods import METHODS
from skerch_ooc.planning.parts import Part
from skerch_ooc.planning.plan import Amendment, Cut, Identity, Plan
from skerch_ooc.planning.sides import planned_sides
from skerch_ooc.planning.spec import DTYPES, KINDS, VECTORS, RecoverySpec, Spec
from skerch_ooc.planning.tasks import merge_runs
from skerch_ooc.stages.measure import task as measuring
from skerch_ooc.stages.merge import task as merging
from skerch_ooc.stages.recover import basis, decomposition
from skerch_ooc.stages.recover import vectors as writing

SHAPES = {"tall": (90, 70), "wide": (70, 90), "several tiles": (9000, 8200)}
FACTORS = (KINDS, tuple(METHODS), DTYPES, tuple(SHAPES), VECTORS, ("all", 7), (1, 2), (True, False))
# The vectors of krylov are always stored.
CASES = [
    case for case in itertools.product(*FACTORS) if (case[1], case[4]) != ("krylov", "implicit")
]
# A round of svd is a half step.
ROUNDS = {"eigh": {"rounds": 4, "round_width": 6}, "svd": {"rounds": 8, "round_width": 6}}


def asked_for(kind, method):
    """What is to be measured: 20 columns, or rounds of at least as many on each side."""
    return ROUNDS[kind] if METHODS[method].orthogonal else {"measurements": 20}


class Diagonal:
    """An operator of full rank that multiplies rows by numbers."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, getattr(torch, dtype)
        self._values = (1 / (1 + torch.arange(min(shape)) % 40)).to(self.dtype)[:, None]

    def __matmul__(self, x):
        out = torch.zeros((self.shape[0], x.shape[1]), dtype=self.dtype)
        out[: min(self.shape)] = self._values * x[: min(self.shape)]
        return out

    def adjoint(self):
        return Diagonal(self.shape[::-1], str(self.dtype).removeprefix("torch."))


class Overheard:
    """The most that the stages ask for, besides what the process holds.

    Attributes:
        stage: The one at work.
        most: Bytes, by stage.
    """

    def __init__(self, monkeypatch):
        self.stage, self.most = None, defaultdict(int)
        self._patch = monkeypatch.setattr

    def listen(self, module, name, bytes_of):
        """Listens to what a function of a stage is given, or returns."""
        function = getattr(module, name)

        def overheard(*arguments, **options):
            result = function(*arguments, **options)
            self.most[self.stage] = max(self.most[self.stage], bytes_of(arguments, result))
            return result

        self._patch(module, name, overheard)


@pytest.fixture
def asked(monkeypatch):
    found = Overheard(monkeypatch)
    found.listen(measuring, "_task_bytes", lambda _, result: result)
    found.listen(decomposition, "tiles_in_flight", lambda arguments, _: sum(arguments[2:4]))
    for module in (merging, writing):
        found.listen(module, "tiles_beside_windows", lambda arguments, _: sum(arguments[2]))
    return found


def uncorrected(plan):
    """What is foretold, if nothing turns out to need a correction."""

    def of(sizes):
        return memory.vectors_bytes(plan, dataclasses.replace(sizes, corrected=False)).least

    bases = [memory.sizes_of_basis(plan, number) for number in range(2, plan.rounds + 1)]
    result = memory.sizes_of_result(plan) if plan.recovery.vectors == "stored" else []
    sides = [side for n in range(1, plan.rounds + 1) for side in planned_sides(plan, n)]
    return {
        "measure": memory.measure_bytes(plan),
        "merge": max([memory.merge_bytes(plan, side).least for side in sides] + [*map(of, bases)]),
        "recover": max([memory.solve_bytes(plan), *map(of, result)]),
    }


@pytest.mark.covered(1)
@pytest.mark.parametrize(
    ("kind", "method", "dtype", "size", "vectors", "rank", "terms", "correcting"),
    [CASES[number] for number in cover(CASES)],
)
def test_stages_ask_for_what_was_foretold(
    tmp_path, monkeypatch, asked, kind, method, dtype, size, vectors, rank, terms, correcting
):
    shape = SHAPES[size] if kind == "svd" else (SHAPES[size][1],) * 2
    core = 20 if METHODS[method].inverts_core else "auto"
    spec = Spec(
        **asked_for(kind, method), kind=kind, dtype=dtype,
        operator={"parts": terms}, sketch={"test_measurements": 6, "block": 8},
        recovery={"method": method, "core": core, "rank": rank, "vectors": vectors},
    )  # fmt: skip
    for module in (decomposition, basis):
        monkeypatch.setattr(module, "may_miss_bound", lambda *_: correcting)
    operator = ooc.Sum([Diagonal(shape, dtype) for _ in range(terms)])
    run = ooc.plan(spec, tmp_path / "run", operator=operator)
    for _ in range(run.plan.rounds):
        asked.stage = "measure"
        ooc.measure(run, operator=operator)
        asked.stage = "merge"
        ooc.merge(run)
    asked.stage = "recover"
    ooc.recover(run)
    foretold = memory.stage_bytes(run.plan)
    # Of krylov the plan says which vectors are corrected: blocks in double precision.
    known = correcting or METHODS[method].orthogonal
    assert asked.most == (foretold if known else uncorrected(run.plan))
    assert all(foretold[stage] >= needed for stage, needed in asked.most.items())


@pytest.mark.covered(1)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_on_disk_need_what_was_foretold_but_for_smaller_slabs(
    tmp_path, monkeypatch, kind, method
):
    # So wide that rounds which apply the adjoint need most.
    shape = (900, 900) if kind == "eigh" else (90, 900)
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    np.save(tmp_path / "a.npy", values + values.T if kind == "eigh" else values)
    matrix = stored("a.npy", folder=str(tmp_path))

    def with_whole_slabs(arguments, result):
        return result - 3 * arguments[2].slab_bytes // 2 + 3 * memory.SLAB_BYTES

    asked = Overheard(monkeypatch)
    asked.listen(measuring, "_task_bytes", with_whole_slabs)
    spec = Spec(**asked_for(kind, method), kind=kind, recovery={"method": method})
    run = ooc.plan(spec, tmp_path / "run", operator=matrix)
    assert run.plan.parts[0].together
    for _ in range(run.plan.rounds):
        ooc.measure(run, operator=matrix)
        ooc.merge(run)
    assert asked.most == {None: memory.measure_bytes(run.plan)}


def plan_of(**more):
    """A plan of 200,000 rows."""
    identity = Identity(
        kind="eigh", factory=None, args={}, factory_sha256=None, shape=(200_000, 200_000),
        dtype="float32", seed=1, noise={"right": "rademacher", "test": "gaussian"},
    )  # fmt: skip
    blocks = {"right": Cut(0, 128, 32), "test": Cut(0, 30, 32)}
    amendment = Amendment(
        identity.run_id, 1, blocks, RecoverySpec(rank=40), device="cpu", folder=".", **more
    )
    return Plan(identity, (amendment,))


class TestFormulas:
    """Those of docs/memory.md, for the plan that it shows."""

    b, d, m, q, r, n = 4, 8, 128, 30, 40, 200_000

    def test_measure(self):
        assert memory.measure_bytes(plan_of()) == 32 * self.b * (4 * self.n)

    def test_merge(self):
        plan, c = plan_of(), self.m + self.q
        (side,) = planned_sides(plan, 1)
        sums = 2 * c * c * self.d
        tile = 4096 * c * (self.d + self.b) + 2 * 4096 * c * self.d + sums
        # 49 tiles are two tasks of 32 and 17, of which a tree holds 6 and 2 sums.
        assert merge_runs(plan, side) == [Range(0, 32), Range(32, 49)]
        assert memory.merge_bytes(plan, side) == (10 * sums, tile)

    @pytest.mark.parametrize("corrected", [0, 1])
    def test_vectors(self, corrected):
        b, d, m, q, r = self.b, self.d, self.m, self.q, self.r
        figures = r * (8 + q) * d
        fixed = (m + corrected * r) * r * d + (6 + 2) * figures
        tile = 4096 * (m * (d + b) + (1 + corrected) * r * d + 2 * r * b + 2 * q * d) + figures
        sizes = memory.TallSizes(self.n, m, r, q, corrected=bool(corrected))
        assert memory.vectors_bytes(plan_of(), sizes) == (fixed, tile)

    def test_correction(self):
        b, d, m, r = self.b, self.d, self.m, self.r
        fixed = m * r * d + (6 + 2) * r * r * d
        tile = 4096 * (m * (d + b) + r * d + 2 * r * b) + r * r * d
        assert memory.gram_bytes(plan_of(), memory.TallSizes(self.n, m, r)) == (fixed, tile)

    def test_small_problems(self):
        assert memory.solve_bytes(plan_of()) == 12 * self.m**2 * self.d


def with_opened_shards(plan):
    """What the stages need, and the checksums of the shards that two of them hold."""
    held = {"measure": 0, "merge": opened_bytes(plan), "recover": opened_bytes(plan)}
    return {stage: size + held[stage] for stage, size in memory.stage_bytes(plan).items()}


class TestEstimate:
    def test_is_what_the_stages_need_in_a_process_with_its_libraries(self):
        plan = plan_of()
        needed = with_opened_shards(plan)
        foretold = estimate(plan, None).peak_bytes
        assert foretold == {s: ASSUMED_BASELINE + SPARE_BYTES + needed[s] for s in needed}

    @pytest.mark.parametrize("column", [0, 10**9])
    def test_counts_what_the_probe_saw(self, column):
        probe = Probe(
            products=18, repetition=0, width_difference=0, asymmetry=0, norm=1, call_seconds=0.0,
            column_seconds=1.0, column_bytes=column, baseline_bytes=10**8,
        )  # fmt: skip
        needed = with_opened_shards(plan_of()) | ({"measure": 32 * column} if column else {})
        foretold = estimate(plan_of(), probe).peak_bytes
        assert foretold == {s: 10**8 + SPARE_BYTES + needed[s] for s in needed}

    def test_shards_of_parts_that_are_added_are_in_double_precision(self):
        parts = tuple(Part(i, terms=Range(i, i + 1), of=2) for i in range(2))
        assert memory.shard_bytes(plan_of(parts=parts)) == 2 * 158 * 200_000 * 8
        assert memory.shard_bytes(plan_of()) == 158 * 200_000 * 4
