"""What the sections of pages say: each is a function of the figures of one or several rows.

Sentences hold for whatever was measured: they say how many times, not who wins.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workflows.benchmarks import common, comparison, leading
from workflows.benchmarks.figures import (
    Figures,
    Section,
    between,
    bullets,
    gigabytes,
    paragraphs,
    power,
    seconds,
    table,
    times,
)

RESNET_ROWS = 11_689_512
SKERCH, DASK, SKLEARN = "skerch", "dask", "scikit-learn"


def _value(figures: Figures, goal: str) -> float:
    return float(figures["goals"][goal]["value"])


def _of(repeats: int) -> str:
    return f"medians of {repeats} runs each" if repeats > 1 else "one run each"


# The README, and larger problems.


def dask_overhead(figures: Figures) -> str:
    """What a task costs, and what a second worker gains."""
    gains = {
        stage: _value(figures, f"{stage}, one worker / two")
        for stage in ("measure", "merge", "recover")
    }
    beyond = _value(figures, "ms for a task beyond the serial executor")
    return paragraphs(
        f"Of {figures['settings']['tasks']:,} tasks that do nothing each takes {beyond:.2f} ms "
        f"more than in one process; two workers of one thread measure {gains['measure']:.1f}, "
        f"merge {gains['merge']:.1f} and recover {gains['recover']:.1f} times as fast as one."
    )


def measured(mlp: Figures, resnet: Figures, recovery: Figures, svd: Figures, noise: Figures) -> str:
    """The README's figures."""
    return paragraphs(
        "The Hessian of a 784-50-10 network (39,760 parameters, 2000 measurements, 30 tests, "
        "float32), the whole process with start-up and disk, in turn with "
        f"[skerch](https://pypi.org/project/skerch/) in memory, {_of(len(mlp['runs']['ours']))}:",
        _mlp_table(mlp),
        _resnet(resnet),
        _recovery(recovery),
        _matrix(svd),
        f"A {_shape(noise)} matrix of random signs is made in {seconds(_median(noise['ours']))}; "
        f"skerch takes {times(noise['ratio'])} times as long.",
    )


def _mlp_table(figures: Figures) -> str:
    ours, theirs = figures["medians"]["ours"], figures["medians"]["reference"]
    ratios = figures["ratios"]
    rows = [
        [name, *(form(who[key]) for who in (ours, theirs)), f"{ratios[key]:.2f}"]
        for name, key, form in (
            ("wall", "wall", seconds), ("peak memory", "peak", gigabytes),
            ("products, the probe's among them", "products", "{:.0f}".format),
            ("relative error", "relative_error", power),
        )
    ]  # fmt: skip
    norm = power(ours["orthogonality"])
    head = ["", "skerch_ooc, one pass, on disk", "skerch, `hmt`, in memory", "ratio"]
    return table(head, [*rows, ["spectral norm of `U^H U - I`", norm, "", ""]])


def _resnet(figures: Figures) -> str:
    stages, settings = figures["stages"], figures["settings"]
    took = {name: seconds(stages[name]["wall"]) for name in ("measure", "merge", "recover")}
    peak = max(stages[name]["peak"] for name in took)
    minutes = sum(figures["fit"][name]["minutes"] for name in ("merge", "recover"))
    whole = minutes * RESNET_ROWS / settings["rows"]
    return (
        f"{settings['columns']} measurements of an operator of {settings['rows']:,} rows, half of "
        f"a ResNet-18, are measured in {took['measure']}, merged in {took['merge']}, and recovered "
        f"with all eigenvectors in {took['recover']}; at most {gigabytes(peak)} of memory. By the "
        f"rates of its stages, merging and recovering {settings['goal']} measurements of a whole "
        f"ResNet-18 ({RESNET_ROWS:,} parameters) would take {whole:.0f} minutes."
    )


def _recovery(figures: Figures) -> str:
    settings, medians = figures["settings"], figures["medians"]
    ours, dask = medians["ours"], medians["dask"]
    return (
        f"Eigenvectors from a sketch of {settings['rows']:,} rows and {settings['columns']} "
        f"columns on disk take {seconds(ours['wall'])} and {gigabytes(ours['peak'])}; "
        f"`dask.array.linalg.svd` takes {seconds(dask['wall'])} and {gigabytes(dask['peak'])}."
    )


def _matrix(figures: Figures) -> str:
    medians = figures["medians"]
    ours, dask = medians["ours"], medians["dask"]
    error = dask["error"] / ours["error"]
    return (
        f"100 singular values and vectors of a {_shape(figures)} float32 matrix on disk "
        f"take {seconds(ours['wall'])} and {gigabytes(ours['peak'])}, from one reading; dask's "
        f"`svd_compressed` takes {seconds(dask['wall'])} and {gigabytes(dask['peak'])}, and its "
        f"error is {times(error)} times ours."
    )


def _shape(figures: Figures) -> str:
    return f"{figures['settings']['rows']:,} x {figures['settings']['columns']}"


def _median(values: Sequence[float]) -> float:
    return common.median_of([{"it": value} for value in values])["it"]


def larger(mlp: Figures, svd: Figures, recovery: Figures, noise: Figures) -> str:
    """Larger problems, a row for each comparison."""
    ours, dask = svd["medians"]["ours"], svd["medians"]["dask"]
    sklearn = svd["medians"]["scikit-learn"]
    shape = _shape(svd)
    signs = _median(noise["ours"])
    mlp_said = {
        who: f"{seconds(it['wall'])}, {gigabytes(it['peak'])}, {it['products']:.0f} products, "
        f"error {power(it['relative_error'])}"
        for who, it in mlp["medians"].items()
    }
    return table(
        ["`workflows/benchmarks/`", "", "skerch_ooc", "the other"],
        [
            ["`mlp_hessian.py`", "Hessian of 39,760 parameters, 2000 measurements; against "
             "skerch's `hmt` in memory", mlp_said["ours"], mlp_said["reference"]],
            ["`matrix_svd.py`", f"100 singular values and vectors of a {shape} matrix on disk; "
             "against dask's `svd_compressed`", _costs(ours), _costs(dask)],
            ["", "the same; against scikit-learn's `randomized_svd` with its seven iterations",
             _costs(ours), _costs(sklearn)],
            ["`recovery.py`", f"vectors from a sketch of {recovery['settings']['rows']:,} x "
             f"{recovery['settings']['columns']} on disk; against dask's `svd`",
             _costs(recovery["medians"]["ours"]), _costs(recovery["medians"]["dask"])],
            ["`noise.py`", f"a {_shape(noise)} matrix of random signs; against skerch's",
             seconds(signs), f"{times(noise['ratio'])} times as long"],
        ],
        flush_left=4,
    )  # fmt: skip


def _costs(found: Figures) -> str:
    error = f", error {found['error']:.3f}" if "error" in found else ""
    return f"{seconds(found['wall'])}, {gigabytes(found['peak'])}{error}"


def matrix_svd(figures: Figures) -> str:
    """A matrix on disk, against dask and scikit-learn."""
    columns = figures["settings"]["measurements"]
    names = {
        "ours": f"`skerch-ooc run`, {columns} measurements, one reading",
        "dask": "dask", "scikit-learn, n_iter=0": "scikit-learn, no iteration",
        "scikit-learn": "scikit-learn, its seven iterations",
    }  # fmt: skip
    rows = [
        [names[who], seconds(it["wall"]), gigabytes(it["peak"]), f"{it['error']:.3f}"]
        for who, it in figures["medians"].items()
    ]
    return table(["", "wall", "peak memory", "relative error"], rows)


def pca(figures: Figures) -> str:
    """Principal components of many samples."""
    found = figures["medians"]
    ours, batches, whole = (found[name] for name in ("ooc.PCA", "IncrementalPCA", "PCA, in memory"))
    return paragraphs(
        f"{figures['settings']['components']} components of an HDF5 file of {_shape(figures)} in "
        f"single precision, with means of some three times the spread, take "
        f"{seconds(ours['seconds'])} on one core; scikit-learn's `IncrementalPCA` takes "
        f"{seconds(batches['seconds'])}, and its `PCA`, with all in memory, "
        f"{seconds(whole['seconds'])}. Their variances have relative errors of "
        f"{power(ours['error'])}, {power(batches['error'])} and {power(whole['error'])} at most."
    )


def workflow_times(figures: Figures) -> str:
    """What each workflow takes."""
    taken = [f"`{name}` {it['processor']:.0f} s" for name, it in figures["workflows"].items()]
    return paragraphs(
        "Seconds of the processor, user and system, of the whole workflow with all its runs, "
        f"processes and start-up: {', '.join(taken)}."
    )


# Side by side.

OURS, POWER = "skerch_ooc", "skerch_ooc, hmt, 2 iterations"
LOWRANK = "torch.svd_lowrank"


def side_by_side(figures: Figures) -> str:
    """The tables of small problems."""
    titles = comparison.titles(Namespace(**figures["settings"]))
    parts = []
    for name, cells in figures["runs"].items():
        parts += [titles[name], comparison.table(cells, markdown=True)]
    repeats = len(next(iter(figures["runs"]["dense"].values())))
    return paragraphs(*parts, f"Here {_of(repeats)}, of {figures['settings']['threads']} threads.")


def side_by_side_says(figures: Figures) -> str:
    """What that says."""
    dense, free = (
        {name: common.median_of(runs) for name, runs in figures["runs"][problem].items()}
        for problem in ("dense", "free")
    )
    rounds = max(run["worst"] for run in figures["runs"]["free"]["skerch_ooc, hmt"])
    near = max(dense[name]["error"] for name in (LOWRANK, "sklearn randomized_svd", "scipy svds"))
    processor = dense[POWER]["processor"] / dense[LOWRANK]["processor"]
    lapack = dense["torch.linalg.svd (all values)"]["processor"] / dense[LOWRANK]["processor"]
    return bullets(
        f"**Small matrices in memory are not for `skerch_ooc`.** `{LOWRANK}`, scikit-learn and "
        f"SciPy come within {100 * (near - 1):.1f} % of the best approximation, and leave nothing "
        f"to clean up. With `hmt` and two iterations `skerch_ooc` has an error of "
        f"{dense[POWER]['error']:.3f} from more products and {times(processor)} times the "
        f"processor's seconds of `{LOWRANK}` ({seconds(dense[POWER]['inside'])} against "
        f"{seconds(dense[LOWRANK]['inside'])} once all is imported), in which it also writes its "
        f"files and estimates the error. All values by LAPACK take {times(lapack)} times the "
        f"processor's seconds of `{LOWRANK}`.",
        "**One pass costs accuracy.** Where the spectrum falls off slowly, as 1/i does, the "
        f"one-pass default ends with {dense[OURS]['error']:.1f} times the error of the best "
        f"approximation, skerch's `hmt` with {dense['skerch ssvd']['error']:.1f} and dask's "
        f"`svd_compressed` with {dense['dask svd_compressed']['error']:.1f} times.",
        "**A flat tail is hard for one pass, and easy for Lanczos.** Of the operator without "
        f"entries, `eigsh` has all 20 values to {power(free['scipy eigsh']['worst'])} from "
        f"{free['scipy eigsh']['products']:.0f} products. `hmt`, which makes its result of the "
        f"products of both rounds, has them to {power(rounds)} from "
        f"{free['skerch_ooc, hmt']['products']:.0f}, those of test and probes among them; "
        "skerch's `hmt`, of those of the second round, ends with "
        f"{free['skerch seigh']['error']:.2f} times the best error, and one pass of as many "
        f"products with {free[OURS]['error']:.1f} times, the worst of its values off by "
        f"{100 * free[OURS]['worst']:.0f} %. The error estimate says so: see [error.md](error.md).",
    )


# Leading pairs.

TWENTY = "20 pairs to 1e-04"
CHEAP = ("flat", "inverse", "exponential", "singular")
NARROW, WIDE = "krylov, rounds of 8", "krylov, rounds of 64"
BLOCKS = "PRIMME, blocks of 8"
GHOSTS, UPRIGHT = "hessian-eigenthings", "hessian-eigenthings, reorthogonalized"


def leading_pairs(figures: Figures) -> str:
    """The table of all contenders."""
    problems = figures["runs"][TWENTY]
    repeats = _of(len(problems["flat"]["scipy eigsh"]))
    return paragraphs(leading.table(problems, markdown=True), f"Here {repeats}, of one thread.")


def leading_more(figures: Figures) -> str:
    """Other numbers of pairs, another tolerance."""
    names = ("scipy eigsh", BLOCKS, NARROW, "krylov, rounds of 16")
    rows = [
        [f"*{problem}*, {question}".replace("e-0", "e-"), *(_effort(cells, name) for name in names)]
        for question, problems in figures["runs"].items()
        for problem, cells in problems.items()
    ]
    return table(["", *names], rows)


def _effort(cells: leading.Cells, name: str) -> str:
    """A cell of the table without seconds."""
    text = leading.cell(cells.get(name, []), []) if cells.get(name) else "-"
    return text.rpartition(";")[0] if ";" in text else text


def leading_says(twenty: Figures, more: Figures) -> str:
    """What both tables say."""
    problems = twenty["runs"][TWENTY]
    hermitian = {name: cells for name, cells in problems.items() if name != "singular"}

    def each(
        who: str, key: str, form: Callable[[float], str], chosen: Mapping[str, Any] = hermitian
    ) -> str:
        return between(
            [_median([run[key] for run in cells[who]]) for cells in chosen.values()], form
        )

    svd = {"singular": problems["singular"]}
    count = "{:.0f}".format
    cheap = {name: problems[name] for name in CHEAP}
    ours = [name for name in problems["flat"] if name.startswith("krylov")]
    slower = [
        common.median_ratio(
            [run["inside"] for run in cells[name]], [run["inside"] for run in _scipy(cells)]
        )
        for cells in cheap.values()
        for name in ours
    ]
    took = [run["inside"] for cells in cheap.values() for name in ours for run in cells[name]]
    said = [
        f"**Lanczos needs few products**, `eigsh` {each('scipy eigsh', 'products', count)} where "
        f"`krylov` in rounds of 8 needs {each(NARROW, 'products', count)}, `svds` "
        f"{each('scipy svds', 'products', count, svd)} where `krylov` needs "
        f"{each(NARROW, 'products', count, svd)}; but each waits for the one before. The rounds of "
        f"`krylov`, within which nothing waits, are {each(NARROW, 'rounds', count)} at a width of "
        f"8 (`svd`: {each(NARROW, 'rounds', count, svd)}), and "
        f"{each(WIDE, 'rounds', count, problems)} at 64.",
        "**One pass and `hmt` do not get there**: after as many products the worst value of one "
        f"pass is off by {each('nystrom', 'error', _percent, problems)}, that of `hmt` by "
        f"{each('hmt', 'error', _percent, problems)}.",
        f"**Where products cost nothing `krylov` takes {between(slower, count)} times the seconds "
        f"of ARPACK**: {between(took, '{:.1f}'.format)} s in all, for files, checksums and the "
        "check of the operator. Where they cost something, several processes make them at the "
        "same time.",
    ]
    # Others are compared with where they are installed.
    if problems["flat"].get(BLOCKS):
        said.insert(1, _primme_says(twenty, more))
    if problems["flat"].get(GHOSTS):
        said.append(_ghosts(hermitian))
    return bullets(*said)


def _primme_says(twenty: Figures, more: Figures) -> str:
    shares = {pairs: _primme_shares(found, pairs) for found, pairs in
              ((twenty, "20 pairs"), (more, "10 pairs"), (more, "50 pairs"))}  # fmt: skip
    exact = {who: power(max(_errors(more, who))) for who in (BLOCKS, NARROW)}
    return (
        f"**PRIMME with blocks of 8** makes {shares['20 pairs']} times the products of `krylov` in "
        "rounds of 8 for 20 pairs to 1e-4, and as many times its rounds; for 10 pairs "
        f"{shares['10 pairs']} times, for 50 pairs {shares['50 pairs']} times. Where 1e-6 is asked "
        f"for, its largest error is {exact[BLOCKS]}, and that of `krylov`, which sums in double "
        f"precision, {exact[NARROW]}."
    )


def _ghosts(hermitian: Mapping[str, leading.Cells]) -> str:
    off = {
        name: max(run["error"] for cells in hermitian.values() for run in cells[name])
        for name in (GHOSTS, UPRIGHT)
    }
    return (
        "**Lanczos without reorthogonalisation returns ghosts**: by default hessian-eigenthings "
        f"leaves it out above 50 steps, and then the worst of its values is off by up to "
        f"{off[GHOSTS]:.2g} times itself; with `reorthogonalize=True` by {power(off[UPRIGHT])} "
        "times."
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1g} %" if value < 0.1 else f"{100 * value:.0f} %"


def _scipy(cells: Mapping[str, Any]) -> Any:
    return next(runs for name, runs in cells.items() if name.startswith("scipy"))


def _primme_shares(figures: Figures, pairs: str) -> str:
    """How many times the products of ``krylov``, for so many pairs to 1e-4."""
    shares = [
        _median([run["products"] for run in cells[BLOCKS]])
        / _median([run["products"] for run in cells[NARROW]])
        for problem, cells in figures["runs"][f"{pairs} to 1e-04"].items()
        if problem != "singular" and cells.get(BLOCKS)
    ]
    return between(shares, "{:.1f}".format)


def _errors(figures: Figures, who: str) -> list[float]:
    return [
        run["error"]
        for question, problems in figures["runs"].items() if question.endswith("1e-06")
        for cells in problems.values()
        for run in cells.get(who, [])
    ]  # fmt: skip


# Matrices in files.

FILES = {
    "sparse": ("SciPy's `.npz`, 100,000 x 20,000 with 118 million entries, 50 values", {
        "scikit-learn": "scikit-learn's `TruncatedSVD`, in memory",
        "ours, hmt": "`hmt` with two power iterations", "ours, krylov": "`krylov`",
        "ours": "`skerch-ooc run`, one pass",
    }),
    "gzip": ("HDF5 by gzip, 2.4 GB, chunks of 1000 x 50, centred, 50 components", {
        "IncrementalPCA": "scikit-learn's `IncrementalPCA`", "dask": "dask's `svd_compressed`",
        "ours, PCA": "`ooc.PCA`", "ours": "`skerch-ooc run`, one pass",
    }),
    "svd": ("HDF5, contiguous, 200,000 x 4000, 100 values", {
        "dask": "dask's `svd_compressed`, two workers", "ours": "`skerch-ooc run`, one pass",
    }),
    "zarr": ("Zarr, 2.4 GB, chunks of 5000 x 500, 50 values", {
        "dask": "dask's `svd_compressed`, two workers", "ours": "`skerch-ooc run`, one pass",
    }),
}  # fmt: skip


def matrices(figures: Figures) -> str:
    """Matrices in files, a row for each contender."""
    rows = []
    for problem, (title, names) in FILES.items():
        runs = figures["problems"][problem]["runs"]
        first = [run["wall"] for run in next(iter(runs.values()))]
        for place, (who, name) in enumerate(names.items()):
            keys = ("wall", "peak", "readings", "error")
            found = {key: _middle(runs[who], key) for key in keys}
            walls = [run["wall"] for run in runs[who]]
            share = common.median_ratio(walls, first) if place and all(walls) else 0.0
            numbers = [
                format(value, form) if value else ""
                for value, form in (
                    (found["wall"], ".1f"), (share, ".2f"), (found["peak"] / 1e9, ".2f"),
                    (found["readings"], ".1f"), (found["error"], ".3f"),
                )
            ]  # fmt: skip
            rows.append([title if not place else "", name, *numbers])
    repeats = len(next(iter(figures["problems"]["sparse"]["runs"].values())))
    head = ["matrix", "", "wall, s", "of the first's", "peak, GB", "readings", "missed"]
    return paragraphs(table(head, rows, flush_left=2), f"Here {_of(repeats)}, of two threads.")


def _middle(runs: Sequence[Mapping[str, float]], key: str) -> float:
    return _median([run.get(key) or 0.0 for run in runs])


# Test matrices.


def noise(figures: Figures) -> str:
    """What test matrices cost."""
    each = 1e9 * _median(figures["ours"]) / math.prod(figures["settings"].values())
    kinds = [
        [f"`{name.split()[0]}`", name.split()[1], f"{value:.1f}"]
        for name, value in figures["nanoseconds"].items()
    ]
    return paragraphs(
        f"A {_shape(figures)} float32 matrix of random signs is filled in "
        f"{seconds(_median(figures['ours']))} on one core, {each:.1f} ns for each entry; skerch "
        f"takes {times(figures['ratio'])} times as long. How the kinds compare, in nanoseconds an "
        "entry:",
        table(["`sketch.noise`", "dtype", "ns"], kinds, flush_left=2),
    )


# Scaling.


def scaling(figures: Figures) -> str:
    """The study of Dask's scheduler."""
    medians = figures["medians"]
    cells = {(cell["task_seconds"], int(cell["workers"])): cell for cell in medians}
    longest, most = (max(pair[place] for pair in cells) for place in (0, 1))
    alone = [
        1e3 * cell["scheduler_processor"] / cell["tasks"]
        for (each, workers), cell in cells.items() if each == longest and workers > 1
    ]  # fmt: skip
    busy = [f"tasks of {each:g} s {workers} workers for {_busy(cells, each, workers)}"
            for each, workers in ((0.2, 64), (0.05, 16)) if (each, workers) in cells]  # fmt: skip
    short = cells[min(each for each, _ in cells if each), most]
    own = 1e3 * cells[longest, most]["workers_processor"] / cells[longest, most]["tasks"]
    resident = max(cell["scheduler_resident"] for cell in medians) / 1e6
    missed = [
        f"{name} ({goal['value']:.2f}; it should be {goal['sign']} {goal['limit']:g})"
        for name, goal in figures["goals"].items() if not goal["met"]
    ]  # fmt: skip
    first = f"{longest:g} s keep {most} workers busy for {_busy(cells, longest, most)} of the time"
    return paragraphs(
        f"Here {_of(len(figures['runs']))}:",
        _scaling_table(medians),
        bullets(
            f"**Tasks of {', '.join([f'{first}**', *busy])}.",
            f"**Short tasks travel in groups.** A task of {longest:g} s, which travels by itself, "
            f"costs the scheduler {between(alone, '{:.1f}'.format)} ms of processor time. So as "
            "many tasks go together, 64 at most, as take 0.05 s, or 2 ms for each worker if that "
            f"is more. Of tasks of {short['task_seconds']:g} s {most} workers then finish "
            f"{short['rate']:.0f} a second, one in {1e3 / short['rate']:.2f} ms; of tasks that "
            f"take nothing {cells[0, most]['rate']:.0f}.",
            "The client sends groups in one message and fetches what is finished in one.",
            f"With {most} workers the limit is partly that of this machine: their own handling, "
            f"{own:.1f} ms for each task of {longest:g} s, would be spread over a cluster.",
            f"The scheduler had at most {resident:.0f} MB of resident memory.",
            "Goals of the study that were missed: " + "; ".join(missed) + "."
            if missed
            else "All goals of the study were met.",
        ),
    )


def _busy(cells: Mapping[tuple[float, int], Figures], each: float, workers: int) -> str:
    return f"{100 * cells[each, workers]['efficiency']:.0f} %"


def _scaling_table(medians: Sequence[Figures]) -> str:
    rows = [
        [
            f"{cell['task_seconds']:g} s" if cell["task_seconds"] else "nothing",
            f"{cell['workers']:.0f}", f"{cell['tasks']:,.0f}", f"{cell['wall']:.2f}",
            f"{cell['rate']:.0f}",
            *(f"{cell[key]:.2f}" if key in cell else "" for key in ("efficiency", "model")),
            *(f"{1e3 * cell[f'{who}_processor'] / cell['tasks']:.2f}"
              for who in ("scheduler", "client", "workers")),
        ]
        for cell in medians
    ]  # fmt: skip
    head = ["tasks of", "workers", "tasks", "wall, s", "tasks/s", "efficiency", "model",
            "scheduler, ms", "client, ms", "workers, ms"]  # fmt: skip
    return table(head, rows)


def thousand_workers(figures: Figures) -> str:
    """A thousand workers on few cores."""
    slept, nothing = figures["medians"][0], figures["medians"][-1]
    workers = slept["workers"]
    alone = slept["scheduler_processor"] / slept["tasks"]
    own = 1e3 * slept["workers_processor"] / slept["tasks"]
    resident = max(cell["scheduler_resident"] for cell in figures["medians"]) / 1e6
    return paragraphs(
        _scaling_table(figures["medians"]),
        f"The machine was the limit here, by the workers' own {own:.1f} ms a task, which a cluster "
        "has cores for. What a cluster shares is the scheduler, of one thread: "
        f"{1e3 * alone:.1f} ms for each task that travels alone is at most {1 / alone:.0f} tasks a "
        f"second. So {workers:.0f} workers need tasks of at least {alone * workers:.1f} s to be "
        f"busy, better several times as long; shorter ones travel in groups, and "
        f"{nothing['tasks']:,.0f} take it {nothing['scheduler_processor']:.1f} s of processor "
        f"time. It held {resident:.0f} MB.",
    )


def billion_rows(figures: Figures) -> str:
    """A billion rows, stage by stage."""
    stages, workers = figures["stages"], figures["settings"]["workers"]
    rows = [
        [
            name, f"{stage['core_hours']:.1f}", f"{stage['minutes']:.1f}", f"{stage['read']:.3g}",
            f"{stage['written']:.2f}", f"{stage['rate']:.0f}", f"{stage['memory']:.1f}",
        ]
        for name, stage in stages.items()
    ]  # fmt: skip
    head = ["stage", "core hours", f"minutes with {workers} workers", "read, TB", "written, TB",
            "GB/s, all workers", "memory of a process, GB"]  # fmt: skip
    rates = [stage["rate"] / workers for stage in stages.values()]
    size = stages["merge"]["read"]
    enough = between([2 / rate for rate in rates], "{:.0f}".format)
    after = max(stages[name]["memory"] for name in ("merge", "recover"))
    return paragraphs(
        table(head, rows),
        f"That is {figures['tasks']} tasks, some {figures['files']:,} files, and "
        f"{figures['partial_sums'] / 1e9:.0f} GB of partial sums. What follows:",
        bullets(
            f"**The disk is the limit.** One process of one thread asks it for "
            f"{between(rates, '{:.2f}'.format)} GB/s. A file system that gives the run 2 GB/s "
            f"takes {size * 1e12 / 2e9 / 60:.0f} minutes for each pass over {size:.0f} TB, "
            f"whatever the number of workers, and more than {enough} workers only help the "
            "products.",
            "**A task of one column needs the memory of some four columns**, "
            f"{stages['measure']['memory']:.1f} GB, as its test vector, its product and what is "
            "being written are held at once. Operators that are sums over rows can be cut into "
            "parts, which divides it.",
            f"**Merging and recovering take {after:.1f} GB a process.** The checksums of all "
            "shards, 1 GB too, are in the index of the sketch, of which a process holds 22 MB.",
        ),
    )


# Accuracy.

SPECTRA = {
    "exp .02": "`10^(-0.02 i)`", "exp .1": "`10^(-0.1 i)`", "poly 1": "`1 / i`",
    "poly 2": "`1 / i^2`", "60 outliers + bulk": "60 ones, the rest 0.01",
    "poly .5": "`i^(-1/2)`", "10^(-0.1 i)": "`10^(-0.1 i)`",
}  # fmt: skip
FLAT_TAILS = ("poly 1", "poly .5", "60 outliers + bulk")
HERMITIAN = {
    "nystrom": "`nystrom`", "singlepass": "`singlepass`", "hmt": "`hmt`",
    "oversampled": "`oversampled`", "oversampled Phi=Xi": "`oversampled`, Phi=Xi",
    "nystrom square": "`nystrom`, square", "singlepass square": "`singlepass`, square",
}  # fmt: skip
ONE_PASS = {
    "nystrom": "`nystrom`", "singlepass": "`singlepass`", "auto": "`auto`",
    "skerch nystrom": "skerch nystrom", "skerch singlepass": "skerch singlepass",
    "skerch oversampled": "skerch oversampled",
}  # fmt: skip
BELOW = 1e-10


def _digits(value: float) -> str:
    return f"{value:.2g}" if value > BELOW else f"below {BELOW:g}"


def _methods(cells: Sequence[Figures], methods: Mapping[str, str], first: str) -> str:
    rows = [
        [str(SPECTRA.get(cell["matrix"], cell["matrix"])),
         *(_digits(cell["methods"][name]["median"]) for name in methods)]
        for cell in cells
    ]  # fmt: skip
    return table([first, *methods.values()], rows)


def accuracy_hermitian(figures: Figures) -> str:
    """Hermitian matrices, with as many products for each method."""
    cells = figures["hermitian"]
    tails = [cell["methods"] for cell in cells if cell["matrix"] in FLAT_TAILS]

    def left(*names: str) -> str:
        return between([each[name]["median"] for each in tails for name in names], _digits)

    return paragraphs(
        _methods(cells, HERMITIAN, "spectrum"),
        f"Medians of {figures['seeds']} seeds. On flat tails (`1 / i`, `i^(-1/2)`, outliers over a "
        f"bulk) a chosen core leaves {left('nystrom', 'singlepass')} times the best error on top "
        f"of it, all of the core {left('nystrom square', 'singlepass square')} times.",
    )


def accuracy_general(figures: Figures) -> str:
    """The synthetic matrices at several budgets."""
    budgets = list(dict.fromkeys(cell["budget"] for cell in figures["general"]))
    found = {(cell["matrix"], cell["budget"]): cell["methods"] for cell in figures["general"]}
    rows = [
        [matrix if method == "oversampled" else "", f"`{method}`",
         *(_digits(found[matrix, budget][method]["median"]) for budget in budgets)]
        for matrix in dict.fromkeys(matrix for matrix, _ in found)
        for method in ("oversampled", "nystrom")
    ]  # fmt: skip
    head = ["matrix", "method", *map(str, budgets)]
    return paragraphs(table(head, rows, flush_left=2), f"Medians of {figures['seeds']} seeds.")


def accuracy_one_pass(figures: Figures) -> str:
    """Errors of the whole, of methods of one pass."""
    cells = [cell for cell in figures["one_pass"] if cell["dtype"] == "complex128"]
    return paragraphs(_methods(cells, ONE_PASS, "matrix"), f"Medians of {figures['seeds']} seeds.")


SECTIONS = (
    Section("README.md", "dask-overhead", ("dask_overhead",), dask_overhead, (DASK,)),
    Section("README.md", "measured",
            ("mlp_hessian", "resnet18_scale", "recovery", "matrix_svd", "noise"), measured,
            (SKERCH, DASK)),
    Section("docs/comparison.md", "side-by-side", ("comparison",), side_by_side,
            ("numpy", "scipy", SKLEARN, DASK, SKERCH)),
    Section("docs/comparison.md", "side-by-side-says", ("comparison",), side_by_side_says,
            caption=False),
    Section("docs/comparison.md", "leading", ("leading",), leading_pairs,
            ("numpy", "scipy", SKERCH, "primme", "hessian-eigenthings")),
    Section("docs/comparison.md", "leading-more", ("leading_more",), leading_more,
            ("scipy", "primme")),
    Section("docs/comparison.md", "leading-says", ("leading", "leading_more"), leading_says,
            caption=False),
    Section("docs/comparison.md", "matrices", ("matrices",), matrices,
            ("h5py", "scipy", SKLEARN, DASK, "zarr")),
    Section("docs/comparison.md", "larger",
            ("mlp_hessian", "matrix_svd", "recovery", "noise"), larger, (SKLEARN, DASK, SKERCH)),
    Section("docs/operators.md", "matrix-svd", ("matrix_svd",), matrix_svd, (SKLEARN, DASK)),
    Section("docs/workflows.md", "times", ("workflow_times",), workflow_times),
    Section("docs/pca.md", "pca", ("pca",), pca, (SKLEARN,)),
    Section("docs/methods.md", "hermitian", ("accuracy_hermitian",), accuracy_hermitian),
    Section("docs/methods.md", "general", ("accuracy_general",), accuracy_general),
    Section("docs/methods.md", "one-pass", ("accuracy_one_pass",), accuracy_one_pass, (SKERCH,)),
    Section("docs/noise.md", "noise", ("noise",), noise, ("numpy", SKERCH)),
    Section("docs/scaling.md", "scaling", ("dask_scaling",), scaling, ("distributed",)),
    Section("docs/scaling.md", "thousand-workers", ("thousand_workers",), thousand_workers,
            ("distributed",)),
    Section("docs/scaling.md", "billion-rows", ("billion_rows",), billion_rows, ("h5py",)),
)  # fmt: skip
