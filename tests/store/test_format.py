"""The format is frozen: golden files read as ever, and the documentation reads them too."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zlib
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest

import skerch_ooc as ooc
from skerch_ooc.algebra.noise import draw
from skerch_ooc.base.files import canonical_json
from skerch_ooc.base.partition import Range
from skerch_ooc.store.shards import Rectangle

GOLDEN = Path(__file__).parent.parent / "golden"
EIGH, SVD, ROUNDS, INNER, HMT, ITERATED, KEPT, KEPT_SVD = (
    GOLDEN / name
    for name in (
        "run_v1", "run_v1_svd", "run_v1_rounds", "run_v1_inner", "run_v1_hmt",
        "run_v1_hmt_iterated", "run_v1_hmt_kept", "run_v1_hmt_kept_svd",
    )
)  # fmt: skip
RUN_IDS = {
    EIGH: "670ef4219f5c58ace47bce03a7c79389dc40741a4999482b4a465949145813b7",
    SVD: "1c835f9bf16119bf526dfe483467f61057e73338d4100a123e20445851d449f8",
    ROUNDS: "d64a1a66319efd2b0cf9edfde725af1d0bdeadf838b07014eabfd851d304b06d",
    INNER: "91566820290b13393ed1535af0423be2f6544523c9ed9c5c33c27fe06667e9a0",
    HMT: "f417944ee5345b713688daac729c786485e5e783296cf48a87b3243cd13a7528",
    ITERATED: "f417944ee5345b713688daac729c786485e5e783296cf48a87b3243cd13a7528",
    KEPT: "f417944ee5345b713688daac729c786485e5e783296cf48a87b3243cd13a7528",
    KEPT_SVD: "1c835f9bf16119bf526dfe483467f61057e73338d4100a123e20445851d449f8",
}
RUNS = list(RUN_IDS)
FILES = sorted(path.relative_to(GOLDEN) for path in GOLDEN.glob("**/*.h5"))

all_runs = pytest.mark.parametrize("run", RUNS, ids=lambda path: path.name)
all_files = pytest.mark.parametrize("name", FILES, ids=str)


def hermitian_matrix(size=96):
    index = np.arange(float(size))
    return np.diag(np.where(index % 2, -1, 1) * 0.5**index).astype(np.float32)


def general_matrix(dtype):
    """Singular values ``2^-i`` on a diagonal, with signs or phases; taller than wide."""
    values = 0.5 ** np.arange(40) * (1j if dtype == "complex128" else -1) ** np.arange(40)
    return np.concatenate([np.diag(values), np.zeros((8, 40))]).astype(dtype)


def make_golden() -> None:
    """Makes golden runs that are not there. Only ever for something new in the format."""
    if not EIGH.exists():
        matrix = hermitian_matrix()
        run = ooc.plan(
            {"measurements": 24, "sketch": {"test_measurements": 6, "block": 10}},
            EIGH,
            operator=matrix,
            threads=1,
        )
        ooc.measure(run, operator=matrix, threads=1)
        ooc.merge(run, rechunk=True, threads=1)
        ooc.recover(run, threads=1)
        ooc.assess(run)
    if not SVD.exists():
        matrix = general_matrix("complex128")
        run = ooc.plan(
            {
                "kind": "svd", "measurements": 8, "tolerance": 0.1, "dtype": "complex128",
                "sketch": {"test_measurements": 10, "block": 5},
            },
            SVD, operator=matrix, threads=1,
        )  # fmt: skip
        run = ooc.extend(run, 12)
        ooc.measure(run, operator=matrix, threads=1)
        ooc.recover(run, threads=1)
        ooc.assess(run)
    if not ROUNDS.exists():
        ooc.svd(
            general_matrix("float32"), measurements=8, run_dir=ROUNDS, method="hmt",
            power_iterations=1, noise="ssrft", vectors="implicit", test_measurements=4,
        )  # fmt: skip
        ooc.assess(ooc.open_run(ROUNDS))
    if not INNER.exists():
        ooc.eigh(
            hermitian_matrix(24).astype("complex64"), measurements=9, run_dir=INNER, noise="phase",
            method="oversampled", dtype="complex64", test_measurements=4, block=6,
        )  # fmt: skip
        ooc.assess(ooc.open_run(INNER))
    # HMT, ITERATED and ROUNDS were made when results were of the last sketch alone.
    if not KEPT.exists():
        ooc.eigh(
            hermitian_matrix(48), measurements=8, run_dir=KEPT, method="hmt", power_iterations=1,
            test_measurements=6, block=5,
        )  # fmt: skip
        ooc.assess(ooc.open_run(KEPT))
    if not KEPT_SVD.exists():
        ooc.svd(
            general_matrix("complex128"), measurements=6, run_dir=KEPT_SVD, method="hmt",
            power_iterations=1, test_measurements=4, block=5, vectors="implicit",
        )  # fmt: skip
        ooc.assess(ooc.open_run(KEPT_SVD))
    for run in RUNS:
        shutil.rmtree(run / "logs", ignore_errors=True)


# A reader of its own, that follows docs/format.md and nothing else.


def read_documented(path):
    """The identity and all datasets of a sealed file, checked as the documentation says."""
    data = path.read_bytes()
    lines = data[:512].rstrip(b"\0").decode().splitlines()
    assert lines[0] == "skerch_ooc seal 1"
    assert lines[1] == f"length {len(data)}"
    numbers = list(map(int, lines[2].removeprefix("bulk ").split(" ")))
    extents = list(zip(numbers[::2], numbers[1::2], strict=True))
    assert extents == sorted(extents)
    if extents == [(0, 0)]:
        extents = []
    rest, position = b"", 512
    for offset, length in extents:
        rest += data[position:offset]
        position = offset + length
    assert lines[3] == f"sha256 {hashlib.sha256(rest + data[position:]).hexdigest()}"
    with h5py.File(path) as file:
        identity = json.loads(file["identity"][()])
        bulks = identity.get("bulk", [])
        bulks = bulks if isinstance(bulks, list) else [bulks]
        assert len(bulks) == len(extents)
        for bulk in bulks:
            dataset = file[bulk["dataset"]]
            assert list(dataset.shape) == bulk["shape"]
            chunked = bulk["tile"][1] < bulk["shape"][1]
            assert dataset.chunks == (tuple(bulk["tile"]) if chunked else None)
            start = dataset.id.get_chunk_info(0).byte_offset if chunked else dataset.id.get_offset()
            length = dict(extents)[start]
            size = bulk["tile"][0] * bulk["tile"][1] * np.dtype(bulk["dtype"]).itemsize
            stored = data[start : start + length]
            pieces = [stored[i : i + size] for i in range(0, length, size)]
            assert bulk["crc32"] == [f"{zlib.crc32(piece):08x}" for piece in pieces]
        return identity, {name: np.asarray(file[name]) for name in file if name != "provenance"}


@all_files
def test_golden_file_reads_as_the_documentation_says(name):
    identity, _ = read_documented(GOLDEN / name)
    plan = (GOLDEN / name.parts[0] / "plan.json").read_bytes()
    assert identity["run"] == hashlib.sha256(plan).hexdigest()


TYPES = {
    "right": "shard", "test": "shard", "left": "shard", "inner": "shard", "round": "shard",
    "total": "sums", "corange": "sums", "start": "sums", "noise": "noise", "basis": "basis",
    "eigh": "eigh", "svd": "svd",
}  # fmt: skip


@all_files
def test_golden_file_is_what_its_name_says(name):
    identity, _ = read_documented(GOLDEN / name)
    expected = next(kind for start, kind in TYPES.items() if name.name.startswith(start))
    assert (identity["format"], identity["type"]) == (1, expected)


@pytest.mark.parametrize("start", TYPES)
def test_every_type_of_file_is_among_the_golden_ones(start):
    assert any(name.name.startswith(start) for name in FILES)


@cache
def documented(run):
    """Plan, and sketch folders by the full hash that their files state."""
    plan = json.loads((run / "plan.json").read_bytes())
    folders = {}
    for folder in (run / "sketch").iterdir():
        for path in folder.glob("*total.h5"):
            folders[read_documented(path)[0]["sketch"]] = folder
    return plan, folders


def shards_of(run):
    """Identity and datasets of each column shard, ordered by role, part, columns, rows."""
    read = [read_documented(path) for path in (run / "shards").iterdir()]
    return sorted(read, key=lambda item: [item[0][k] for k in ("role", "part", "columns", "rows")])


def sketch_of(run, role):
    """A sketch with all its columns."""
    shards = [(identity, arrays) for identity, arrays in shards_of(run) if identity["role"] == role]
    shards.sort(key=lambda item: item[0]["columns"])
    return np.concatenate([arrays[role] for _, arrays in shards], axis=1).astype(complex)


def roles_of(run):
    return {identity["role"] for identity, _ in shards_of(run)}


@all_runs
def test_name_of_a_sketch_is_the_start_of_its_hash(run):
    assert all(folder.name == digest[:16] for digest, folder in documented(run)[1].items())


@all_runs
def test_hash_of_each_sketch_is_as_documented(run):
    first = {"right", "test", "left", "inner"}
    later = roles_of(run) - first
    # Rounds of even number apply the adjoint of a general operator, and have no test sketch then.
    # With all sketches the last one has, too.
    tested = "13" if documented(run)[0]["kind"] == "svd" else "123"
    tested += "4" if keeps_sketches(run) else ""
    roles = [first, *({role} | ({"test"} if role[5] in tested else set()) for role in later)]
    expected = {
        hashlib.sha256(
            canonical_json([i for i, _ in shards_of(run) if i["role"] in some])
        ).hexdigest()
        for some in roles
    }
    assert set(documented(run)[1]) == expected


@pytest.mark.parametrize("number", [2, 3, 4])
def test_role_of_a_round_has_the_hash_of_its_basis(number):
    (role,) = [role for role in roles_of(ROUNDS) if role.startswith(f"round{number}-")]
    hashes = [
        hashlib.sha256(canonical_json(read_documented(path)[0])).hexdigest()[:16]
        for path in ROUNDS.glob("sketch/*/basis.h5")
    ]
    assert role.removeprefix(f"round{number}-") in hashes


def basis_of(role, run=ROUNDS):
    """The basis that is the test matrix of a round."""
    for path in run.glob("sketch/*/basis.h5"):
        identity, arrays = read_documented(path)
        if role.endswith(hashlib.sha256(canonical_json(identity)).hexdigest()[:16]):
            return arrays["basis"].astype(complex)
    raise AssertionError(role)


def keeps_sketches(run):
    return json.loads((run / "plan.d/0001.json").read_bytes()).get("keeps_sketches", False)


def kept_basis(run, number):
    """The basis that a round applies."""
    (role,) = [role for role in roles_of(run) if role.startswith(f"round{number}-")]
    return basis_of(role, run)


SUMS = [name for name in FILES if name.name.endswith("total.h5")]


def placed(places):
    """What stands next to each other, in order."""
    return sorted(places.items(), key=lambda item: item[1])


def sums_and_sketches(name):
    """The datasets of a file of sums, with its ``Z`` and ``N`` as the documentation says."""
    run = GOLDEN / name.parts[0]
    plan, _ = documented(run)
    identity, arrays = read_documented(GOLDEN / name)
    side = name.name.removesuffix("total.h5").rstrip(".") or "range"
    assert identity.get("side", "range") == side
    height, width = plan["operator"]["shape"]
    rows = Range(0, width if side == "corange" else height)

    def columns_of(role, columns):
        if role.startswith("basis"):
            return kept_basis(run, int(role[5:]))
        if role == "start":
            args = plan["noise"]["right"], plan["seed"], "right", rows, Range(0, columns[1])
            return draw(*args, plan["operator"]["dtype"])
        return sketch_of(run, role)

    z = np.concatenate([columns_of(*item) for item in placed(identity["columns"])], axis=1)
    matrices = [np.zeros((len(rows), 0))]
    for key, (start, stop) in placed(identity.get("noise", identity["columns"])):
        assert start == sum(matrix.shape[1] for matrix in matrices)
        if key.startswith("basis") and key != "basis":
            matrices.append(kept_basis(run, int(key[5:])))
            continue
        if key == "basis":
            (role,) = identity["columns"].keys() - {"test"}
            matrices.append(basis_of(role, run))
            continue
        matrices.append(
            draw(plan["noise"][key], plan["seed"], key, rows, Range(0, stop - start),
                 plan["operator"]["dtype"])
        )  # fmt: skip
    return arrays, z, np.concatenate(matrices, axis=1)


@pytest.mark.parametrize("name", SUMS, ids=str)
def test_squares_are_those_of_the_sketches(name):
    arrays, z, _ = sums_and_sketches(name)
    squares = arrays.get("gram")
    if squares is None:
        squares = arrays["triangle"].conj().T @ arrays["triangle"]
    np.testing.assert_allclose(squares, z.conj().T @ z, atol=1e-9)


@pytest.mark.parametrize("name", SUMS, ids=str)
def test_cross_products_are_those_of_the_test_matrices_with_the_sketches(name):
    arrays, z, n = sums_and_sketches(name)
    np.testing.assert_allclose(arrays["cross"], n.conj().T @ z, atol=1e-6)


def test_triangle_is_one():
    triangle = read_documented(next(SVD.glob("sketch/*/total.h5")))[1]["triangle"]
    np.testing.assert_array_equal(triangle, np.triu(triangle))


@pytest.mark.parametrize("name", ["right", "test", "left", "round2", "round3", "round4"])
def test_sketches_are_the_products_that_the_documentation_says(name):
    run = SVD if name == "left" else ROUNDS
    plan, _ = documented(run)
    a = general_matrix(plan["operator"]["dtype"]).astype(complex)
    (role,) = [role for role in roles_of(run) if role.startswith(name)]
    sketch = sketch_of(run, role)
    if name.startswith("round"):
        noise = basis_of(role)
    else:
        rows = Range(0, 48 if name == "left" else 40)
        columns = Range(0, sketch.shape[1])
        dtype = plan["operator"]["dtype"]
        noise = draw(plan["noise"][name], plan["seed"], name, rows, columns, dtype)
    applied = a.conj().T if name in ("left", "round2", "round4") else a
    np.testing.assert_allclose(sketch, applied @ noise, atol=1e-6)


def test_inner_sketch_is_the_product_that_the_documentation_says():
    plan, _ = documented(INNER)
    sketch = sketch_of(INNER, "inner")
    # The first 9 columns follow from the right sketch.
    (rows, columns), shape = sketch.shape, Range(0, 24)
    phi = draw("phase", plan["seed"], "inner-left", shape, Range(0, rows), "complex64")
    xi = draw("phase", plan["seed"], "right", shape, Range(9, 9 + columns), "complex64")
    expected = phi.conj().T @ hermitian_matrix(24) @ xi
    np.testing.assert_allclose(sketch, expected, atol=1e-5)


@pytest.mark.parametrize(
    "path", sorted(ROUNDS.glob("sketch/*/noise-*.h5")), ids=lambda path: path.name
)
def test_stored_test_matrix_is_the_one_that_is_drawn(path):
    plan, _ = documented(ROUNDS)
    identity, arrays = read_documented(path)
    name, (rows, columns) = identity["noise"], arrays["noise"].shape
    assert path.name == f"noise-{name}.h5"
    drawn = draw("ssrft", plan["seed"], name, Range(0, rows), Range(0, columns), "float32")
    np.testing.assert_array_equal(arrays["noise"], drawn)


@pytest.mark.parametrize("number", [2, 3, 4])
def test_basis_is_orthonormal(number):
    (role,) = [role for role in roles_of(ROUNDS) if role.startswith(f"round{number}-")]
    basis = basis_of(role)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-6)


def documented_decomposition(run):
    """Left vectors, values and right vectors."""
    identity, arrays = read_documented(next(run.glob("results/default/*.h5")))
    if identity["type"] == "eigh":
        u = arrays["eigenvectors"]
        return u, arrays["eigenvalues"], u
    if identity["settings"].get("vectors") != "implicit":
        return arrays["U"], arrays["S"], arrays["V"]
    (last,) = [role for role in roles_of(run) if role.startswith("round4-")]
    vectors, columns = [], {"left": [basis_of(last, run)], "right": [sketch_of(run, last)]}
    if keeps_sketches(run):
        columns["left"].insert(0, kept_basis(run, 2))
        columns["right"].insert(0, kept_basis(run, 3))
    for side, parts in columns.items():
        x = np.concatenate(parts, axis=1)
        made = x @ arrays[f"{side}_transform"]
        correction = arrays.get(f"{side}_correction", np.eye(made.shape[1]))
        vectors.append((made @ correction).astype(identity["dtype"], casting="unsafe"))
    return vectors[0], arrays["S"], vectors[1]


@pytest.mark.filterwarnings("ignore:Casting complex values to real:numpy.exceptions.ComplexWarning")
@all_runs
def test_golden_decomposition_is_that_of_the_matrix(run):
    dtype = documented(run)[0]["operator"]["dtype"]
    height = documented(run)[0]["operator"]["shape"][0]
    matrix = general_matrix(dtype) if run in (SVD, ROUNDS, KEPT_SVD) else hermitian_matrix(height)
    u, values, v = documented_decomposition(run)
    error = (u * values) @ v.conj().T - matrix
    assert np.linalg.norm(error) < 2e-2 * np.linalg.norm(matrix)


@pytest.mark.filterwarnings("ignore:Casting complex values to real:numpy.exceptions.ComplexWarning")
@pytest.mark.parametrize("run", [SVD, ROUNDS, KEPT_SVD], ids=lambda path: path.name)
@pytest.mark.parametrize("which", ["U", "V"])
def test_vectors_read_as_the_documentation_says(run, which):
    stored = getattr(ooc.recover(ooc.open_run(run)), which)[:].numpy()
    expected = documented_decomposition(run)[0 if which == "U" else 2]
    np.testing.assert_allclose(stored, expected, atol=1e-6)


@all_runs
def test_golden_run_verifies(forked_command, run):
    assert forked_command("verify", run).returncode == 0


@all_runs
def test_golden_run_is_complete_and_assessed(forked_command, run):
    state = json.loads(forked_command("status", run, "--json").stdout)
    assert (state["next"], state["merged"]) == (None, True)


@all_runs
def test_golden_plan_keeps_its_run_id(run):
    assert ooc.open_run(run).plan.run_id == RUN_IDS[run]


@pytest.mark.filterwarnings("ignore:Casting complex values to real:numpy.exceptions.ComplexWarning")
@all_runs
def test_golden_run_goes_on_from_its_shards(tmp_path, run):
    """Sums and values are made anew from shards and bases: as they were, to rounding."""
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "results")
    for path in (tmp_path / "run").glob("sketch/*/*total.h5"):
        path.unlink()
    again = ooc.open_run(tmp_path / "run")
    ooc.merge(again)
    ooc.recover(again)
    values, expected = (documented_decomposition(each)[1] for each in (tmp_path / "run", run))
    both = min(len(values), len(expected))  # The smallest are in the noise, and may be cut.
    np.testing.assert_allclose(values[:both], expected[:both], rtol=1e-4, atol=1e-5)


def test_golden_sketch_is_the_matrix_times_golden_noise():
    # A diagonal matrix times signs: the first row is the signs themselves.
    signs = sketch_of(EIGH, "right")[0].real
    assert "".join("+" if x > 0 else "-" for x in signs) == "--++-++++-+--++----+--+-"


def test_golden_eigenvalues_are_those_of_the_matrix():
    with h5py.File(EIGH / "results/default/eigh.h5") as file:
        values = file["eigenvalues"][:5]
    expected = [1.0, -0.5, 0.25, -0.125, 0.0625]
    np.testing.assert_allclose(values, expected, rtol=1e-3)


AMENDMENT_KEYS = {
    "format", "run", "number", "blocks", "recovery", "device", "folder", "parts", "sha256",
}  # fmt: skip


@pytest.mark.parametrize(
    ("run", "number", "keys"),
    [
        (EIGH, 1, AMENDMENT_KEYS),
        (SVD, 1, AMENDMENT_KEYS | {"tolerance", "most"}),
        (SVD, 2, AMENDMENT_KEYS | {"tolerance", "most"}),
        (ROUNDS, 1, AMENDMENT_KEYS),
        (INNER, 1, AMENDMENT_KEYS),
        (HMT, 1, AMENDMENT_KEYS),
        (KEPT, 1, AMENDMENT_KEYS | {"keeps_sketches"}),
        (KEPT_SVD, 1, AMENDMENT_KEYS | {"keeps_sketches"}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_amendment_has_the_documented_keys(run, number, keys):
    assert json.loads((run / f"plan.d/{number:04d}.json").read_bytes()).keys() == keys


@all_runs
def test_amendment_has_the_hash_of_all_other_entries(run):
    for path in (run / "plan.d").iterdir():
        content = json.loads(path.read_bytes())
        stated = content.pop("sha256")
        assert stated == hashlib.sha256(canonical_json(content)).hexdigest()


def test_amendments_together_cover_the_columns():
    pieces = [
        json.loads(path.read_bytes())["blocks"]["right"]
        for path in sorted((SVD / "plan.d").iterdir())
    ]
    assert [(piece["start"], piece["stop"]) for piece in pieces] == [(0, 8), (8, 12)]


@pytest.mark.parametrize(
    "name",
    [
        "right.p0.c0-10.r0-96.h5",
        "test.p0.c0-6.r0-96.h5",
        "inner-left.p12.c5-6.r4096-8192.h5",
        "round2-0123456789abcdef.p0.c0-10.r0-96.h5",
    ],
)
def test_shard_names_round_trip(name):
    assert Rectangle.from_name(name).name == name


@pytest.mark.parametrize(
    "name",
    ["right.p0.c10-0.r0-96.h5", "right.p0.c0-10.r0-96.h5.tmp", "../right.p0.c0-1.r0-9.h5",
     "right.p00.c0-10.r0-96.h5", "right.p0.c0-10.r0-96", ".tmp-right.p0.c0-10.r0-96.h5"],
)  # fmt: skip
def test_other_names_are_no_shards(name):
    assert Rectangle.from_name(name) is None


# Rounds of krylov, made here: they have nothing to be compared with that was written before.


@pytest.fixture(scope="module", params=["eigh", "svd"])
def rounds_made(request, tmp_path_factory):
    """The folder of a run of krylov."""
    folder = tmp_path_factory.mktemp("krylov") / "run"
    options = {"pairs_tolerance": 1e-3, "round_width": 4, "rank": 3, "test_measurements": 10}
    if request.param == "eigh":
        ooc.eigh(hermitian_matrix(), run_dir=folder, **options)
    else:
        ooc.svd(general_matrix("float32"), run_dir=folder, **options)
    ooc.assess(ooc.open_run(folder))
    return folder


def products_of(run):
    """The products of each round by its number, those of the test sketch as number 0."""
    numbers = {"right": 1, "test": 0}
    later = roles_of(run) - numbers.keys()
    found = {role: int(re.search(r"\d+", role)[0]) for role in later}
    return {number: sketch_of(run, role) for role, number in (numbers | found).items()}


def blocks_of(run):
    """What is documented of each block by its number, with its arrays; the first one is drawn."""
    plan, _ = documented(run)
    width = plan["operator"]["shape"][1]
    rows, columns = Range(0, width), Range(0, 4)
    drawn = draw(plan["noise"]["right"], plan["seed"], "right", rows, columns, "float64")
    first = {"side": "range" if plan["kind"] == "eigh" else "corange", "number": 1}
    found = [(first, {"basis": drawn})]
    for path in run.glob("sketch/*/basis.h5"):
        identity, arrays = read_documented(path)
        found.append((identity["block"], arrays))
    found.sort(key=lambda item: item[0]["number"])
    return {block["number"]: (block, arrays) for block, arrays in found}


def test_block_is_made_as_documented(rounds_made):
    blocks, products = blocks_of(rounds_made), products_of(rounds_made)
    hermitian = documented(rounds_made)[0]["kind"] == "eigh"
    across = {k: s["side"] if hermitian else {"range": "corange", "corange": "range"}[s["side"]]
              for k, (s, _) in blocks.items()}  # fmt: skip
    used = set()
    assert len(blocks) > 3
    for number in range(2, len(blocks) + 1):
        block, arrays = blocks[number]
        earlier = [b for k, (b, _) in blocks.items() if k < number and b["side"] == block["side"]]
        none = np.zeros((len(arrays["basis"]), 0))
        f = np.concatenate([none, *(blocks[b["number"]][1]["basis"] for b in earlier)], axis=1)
        used.update(int(name[5:]) for name in block["spent"] if name.startswith("round"))
        name = block["source"]
        if name.startswith("round"):
            used.add(int(name[5:]))
            source = products[int(name[5:])]
        else:
            source = products[0][:, slice(*map(int, name[4:].split("-")))]
        others = [products[k] for k in range(1, number)
                  if k not in used and across[k] == block["side"]]  # fmt: skip
        x = np.concatenate([f, source, *others], axis=1)
        made = x @ arrays["transform"]
        if "projection" in arrays:
            made = made - f @ arrays["projection"]
        if "correction" in arrays:
            made = made @ arrays["correction"]
        np.testing.assert_allclose(arrays["basis"], made, atol=1e-6)
        metric = arrays["basis"].T.astype(float) @ np.concatenate([x, arrays["basis"]], axis=1)
        np.testing.assert_allclose(arrays["metric"], metric, atol=1e-9)


def test_block_names_the_sketches_before_it(rounds_made):
    for path in rounds_made.glob("sketch/*/basis.h5"):
        identity, _ = read_documented(path)
        block = identity["block"]
        hashes = [*block["earlier"], identity["sketch"]]
        folders = documented(rounds_made)[1]
        assert len(hashes) == block["number"] - 1
        assert [digest in folders for digest in hashes] == [True] * len(hashes)


def test_sums_of_the_first_block_are_documented(rounds_made):
    (path,) = rounds_made.glob("sketch/*/start.total.h5")
    identity, arrays = read_documented(path)
    start = blocks_of(rounds_made)[1][1]["basis"]
    plan, _ = documented(rounds_made)
    g = draw("gaussian", plan["seed"], "test", Range(0, len(start)), Range(0, 10), "float32")
    assert (identity["side"], identity["columns"]) == ("start", {"start": [0, 4]})
    np.testing.assert_allclose(arrays["gram"], start.T @ start, atol=1e-9)
    np.testing.assert_allclose(arrays["cross"], g.T.astype(float) @ start, atol=1e-6)


def test_result_of_rounds_is_documented(rounds_made):
    (path,) = (p for p in rounds_made.glob("results/default/*.h5"))
    identity, arrays = read_documented(path)
    assert identity["settings"]["method"] == "krylov"
    values = arrays.get("eigenvalues", arrays.get("S"))
    assert arrays["residuals"].shape == arrays["bounds"].shape == values.shape == (3,)
    pairs = json.loads((path.parent / "assessment.json").read_text())["pairs"]
    assert set(pairs) == {"wanted", "found", "met", "tolerance", "worst", "rounding", "rounds",
                          "confirmed", "steady", "exhausted", "small"}  # fmt: skip
    assert int(arrays["rounds"]) == pairs["rounds"]
    assert bool(arrays["confirmed"]) == pairs["confirmed"]
    assert {"rounding", "spectral_norm", "exhausted"} <= arrays.keys()


if __name__ == "__main__":
    make_golden()
