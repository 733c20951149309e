"""What the tests of reports share: runs of each kind, and the page as a parser sees it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import torch
from operators import dense

import skerch_ooc as ooc
from skerch_ooc.base.parameter_layout import ParameterLayout
from skerch_ooc.planning.spec import OperatorSpec, Spec

VOID = {"meta", "br", "link", "img", "input", "hr"}


@dataclass
class Node:
    """An element with its attributes and the text that is in it."""

    name: str
    attributes: dict[str, str | None]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """All elements of a page, and whatever is wrong with its nesting."""

    nodes: list[Node] = field(default_factory=list)
    open_nodes: list[Node] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag, attrs):
        self.nodes.append(Node(tag, dict(attrs)))
        if len(dict(attrs)) != len(attrs):
            self.wrong.append(f"<{tag}> has an attribute twice")
        if tag not in VOID:
            self.open_nodes.append(self.nodes[-1])

    def handle_endtag(self, tag):
        if not self.open_nodes or self.open_nodes.pop().name != tag:
            self.wrong.append(f"</{tag}> closes something else")

    def handle_data(self, data):
        for node in self.open_nodes:
            node.text += data

    def all(self, name: str) -> list[Node]:
        return [node for node in self.nodes if node.name == name]

    @property
    def text(self) -> str:
        return " ".join(self.all("body")[0].text.split())


def parsed(content: Path | bytes) -> Page:
    page = Page()
    page.feed((content if isinstance(content, bytes) else content.read_bytes()).decode())
    page.close()
    page.wrong += [f"<{node.name}> is not closed" for node in page.open_nodes]
    return page


def updated(folder: Path) -> None:
    a = dense((90, 90))
    ooc.eigh(a, measurements=40, run_dir=folder)
    run = ooc.update(ooc.open_run(folder), a @ a)
    ooc.recover(run)
    ooc.assess(run)


def extended(folder: Path) -> None:
    a = dense((90, 90), "decay")
    ooc.eigh(a, measurements=20, run_dir=folder)
    run = ooc.extend(ooc.open_run(folder), 30)
    ooc.measure(run, operator=a)
    ooc.recover(run)
    ooc.assess(run)


def grid(path: Path, lat: int = 6, lon: int = 8) -> np.ndarray:
    """Writes fields of some months on a grid as netCDF does, and returns them."""
    months, columns = np.arange(12.0), lat * lon
    spread = np.random.default_rng(3).standard_normal((12, columns)) * 0.3 ** np.arange(columns)
    fields = spread.reshape(12, lat, lon)
    axes = {"time": months, "lat": np.linspace(-60, 60, lat), "lon": np.arange(lon) * 10.0}
    with h5py.File(path, "w") as file:
        for name, values in axes.items():
            file[name] = values
            file[name].make_scale(name)
        file["lat"].attrs["units"] = "degrees_north"
        file["t2m"] = fields
        for axis, name in enumerate(axes):
            file["t2m"].dims[axis].attach_scale(file[name])
    return fields


def of_grid(folder: Path, **options) -> None:
    path = folder.parent / f"{folder.name}.nc"
    grid(path)
    arguments = {"path": str(path), "dataset": "t2m", "rows": ["time"], **options}
    spec = Spec(kind="svd", measurements=8, operator=OperatorSpec("stored", arguments))
    ooc.run(spec, folder)


class OfModel:
    """A matrix that has the layout of a model's parameters."""

    def __init__(self, a: torch.Tensor, layout: ParameterLayout) -> None:
        self.a, self.shape, self.dtype, self.layout = a, a.shape, a.dtype, layout

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        return self.a @ x


LAYERS = ParameterLayout.of(
    [("fc1.weight", (4, 10)), ("fc1.bias", (4,)), ("block.0.norm.weight", (6,)),
     ("block.0.out.weight", (5, 7)), ("block.0.out.bias", (5,))]
)  # fmt: skip


def eigh_of(a: torch.Tensor, measurements: int | None = 30, **options):
    return lambda folder: ooc.eigh(a, measurements=measurements, run_dir=folder, **options)


def svd_of(a: torch.Tensor, measurements: int | None = 20, **options):
    return lambda folder: ooc.svd(a, measurements=measurements, run_dir=folder, **options)


def pairs_missed(folder: Path) -> None:
    with contextlib.suppress(ooc.QualityError):
        eigh_of(dense(SQUARE, "slow"), None, pairs_tolerance=1e-6, rank=8, rounds=3)(folder)


SQUARE, TALL = (90, 90), (110, 70)
KINDS = {
    "eigh": eigh_of(dense(SQUARE, "decay")),
    "svd": svd_of(dense(TALL, "decay", hermitian=False)),
    "complex eigh": eigh_of(dense(SQUARE, "decay", "complex64")),
    "complex svd": svd_of(dense(TALL[::-1], "decay", "complex128", hermitian=False)),
    "single precision": eigh_of(dense(SQUARE, "slow", "float32")),
    "rounds": svd_of(dense(TALL, "decay", hermitian=False), method="hmt", power_iterations=1),
    "inner sketch": svd_of(dense(TALL, "decay", hermitian=False), 8, method="oversampled"),
    "tolerance": eigh_of(dense(SQUARE, "decay"), 60, tolerance=0.4),
    "implicit": eigh_of(dense(SQUARE, "decay"), vectors="implicit"),
    "implicit svd": svd_of(dense(TALL, "decay", hermitian=False), vectors="implicit"),
    "no error test": eigh_of(dense(SQUARE, "decay"), test_measurements=0),
    "one test": eigh_of(dense(SQUARE, "decay"), test_measurements=1),
    "limited rank": eigh_of(dense(SQUARE, "decay"), rank=1),
    "rank 1": eigh_of(dense(SQUARE, "rank 1")),
    "one entry": eigh_of(torch.full((1, 1), -3.0, dtype=torch.float64), 1),
    "flat": eigh_of(dense(SQUARE, "flat", definite=True)),
    "tiles": svd_of(dense((9000, 40), "decay", "float32", hermitian=False)),
    "pairs": eigh_of(dense(SQUARE, "slow"), None, pairs_tolerance=1e-4, rank=5, round_width=4),
    "pairs, smallest": eigh_of(dense(SQUARE, "slow", "float32"), None, rounds=4, which="SA"),
    "pairs, complex svd": svd_of(
        dense(TALL, "decay", "complex128", hermitian=False), None, pairs_tolerance=1e-3, rank=4
    ),
    "pairs, missed": pairs_missed,
    "model": eigh_of(OfModel(dense((90, 90), "decay"), LAYERS)),
    "grid": of_grid,
    "updated": updated,
    "extended": extended,
}
