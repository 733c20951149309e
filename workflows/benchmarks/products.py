"""Seconds and memory of a product with a Hessian or Gauss-Newton matrix, for four networks.

Ours, curvlinops' and the plain double backward pass of torch are timed in turn in one process, for
inner calls of 1 to 64 columns; the least seconds count. Ours are also timed in a run of 128
measurements, with the disk and what else it takes, at the width that its plan chose. The bound is
what the matrix products and convolutions of a product take at the rate of a large matrix product:
six times those of a forward pass for a Hessian, four times for a Gauss-Newton matrix.

Usage: python workflows/benchmarks/products.py --repeats 5 --json products.json
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.append(str(Path(__file__).resolve().parents[2]))

from workflows.benchmarks.common import (
    add_json,
    resident_bytes,
    run_part,
    say,
    serve_part,
    text_table,
    write_json,
)  # fmt: skip

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
PASSES = {"hessian": 6, "ggn": 4}
"""Forward passes' worth of matrix products in a product."""

WAYS = ("ours", "curvlinops", "plain")
SHOWN = ("ours", "in a run", "curvlinops", "plain")
Network = tuple[nn.Module, Tensor, Tensor, nn.Module]


class Residual(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output."""
        return F.relu(x + self.inner(x))


class Layer(nn.Module):
    """A layer of a transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projected, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the layer's output."""
        chunks = self.projected(self.before(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in chunks)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.joined(attended.transpose(1, 2).flatten(2))
        added: Tensor = self.down(F.gelu(self.up(self.between(x))))
        return x + added


class Transformer(nn.Module):
    """Two layers, with a head that has the weights of the embedding."""

    def __init__(self, words: int = 64, width: int = 64, length: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        # As large as torch makes them, a tied head is so sure of its words that nothing is left to
        # differentiate but rounding.
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.positions = nn.Parameter(0.1 * torch.randn(length, width))
        self.layers = nn.Sequential(Layer(width), Layer(width), nn.LayerNorm(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the scores of the words, in dimension 1."""
        x = self.layers(self.embedding(tokens) + self.positions)
        return F.linear(x, self.embedding.weight).transpose(1, 2)


def _mlp() -> Network:
    model = nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10))
    return model, torch.randn(100, 784), torch.randn(100, 10), nn.MSELoss()


def _resnet() -> Network:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), Residual(16), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), Residual(32), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 10),
    )  # fmt: skip
    return model.eval(), *_images()


def _images() -> tuple[Tensor, Tensor, nn.Module]:
    return torch.randn(32, 3, 32, 32), torch.randint(10, (32,)), nn.CrossEntropyLoss()


def _gpt() -> Network:
    tokens, targets = torch.randint(64, (2, 8, 32))
    return Transformer(), tokens, targets, nn.CrossEntropyLoss()


def _three_convolutions() -> Network:
    def pooled() -> list[nn.Module]:
        return [nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)]

    model = nn.Sequential(
        nn.Conv2d(3, 64, 5), *pooled(), nn.Conv2d(64, 96, 3), *pooled(),
        nn.ZeroPad2d(1), nn.Conv2d(96, 128, 3), *pooled(), nn.Flatten(),
        nn.Linear(1152, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip
    return model, *_images()


NETWORKS: dict[str, Callable[[], Network]] = {
    "mlp": _mlp, "resnet": _resnet, "gpt": _gpt, "3c3d": _three_convolutions,
}  # fmt: skip


def _product(way: str, matrix: str, network: Network) -> Callable[[Tensor, int], Any]:
    """What multiplies a block by a matrix, with inner calls of some width."""
    model, x, y, loss = network
    if way == "ours":
        from skerch_ooc.operators import curvature

        operator = getattr(curvature, matrix)(model, loss, [(x, y)])
        return lambda block, width: operator.narrowed(width) @ block
    if way == "curvlinops":
        import curvlinops

        names = {"hessian": "HessianLinearOperator", "ggn": "GGNLinearOperator"}
        theirs: Any = getattr(curvlinops, names[matrix])(
            model, loss, list(model.parameters()), [(x, y)], check_deterministic=False
        )
        return lambda block, width: [theirs @ part for part in torch.split(block, width, 1)]
    return _plain(network)


def _plain(network: Network) -> Callable[[Tensor, int], Any]:
    model, x, y, loss = network
    parameters = list(model.parameters())
    sizes = [one.numel() for one in parameters]

    def multiply(block: Tensor, width: int) -> list[Any]:
        gradients = torch.autograd.grad(loss(model(x), y), parameters, create_graph=True)
        found: list[Any] = []
        for part in torch.split(block, width, 1):
            cuts = torch.split(part.mT.contiguous(), sizes, 1)
            pieces = [a.reshape(-1, *p.shape) for a, p in zip(cuts, parameters, strict=True)]
            if width == 1:
                pieces = [a[0] for a in pieces]
            found += torch.autograd.grad(
                gradients, parameters, pieces, retain_graph=True, is_grads_batched=width > 1
            )
        return found

    return multiply


def _made(name: str, device: str) -> Network:
    torch.manual_seed(0)
    model, x, y, loss = NETWORKS[name]()
    return model.to(device), x.to(device), y.to(device), loss


def _block(network: Network, columns: int) -> Tensor:
    parameters = list(network[0].parameters())
    return torch.randn(sum(one.numel() for one in parameters), columns).to(parameters[0].device)


def _now(device: str) -> float:
    """The time, once the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(name: str, matrix: str, device: str, columns: int, repeats: int) -> dict[str, Any]:
    """Takes the least seconds a column of each way and width, in turn, and the bound's."""
    network = _made(name, device)
    block = _block(network, columns)
    ways = [way for way in WAYS if matrix == "hessian" or way != "plain"]
    seconds: dict[str, float] = {}
    with sdpa_kernel(SDPBackend.MATH):
        products = {way: _product(way, matrix, network) for way in ways}
        for _ in range(repeats):
            for width in (width for width in WIDTHS if width <= columns):
                for way, multiply in products.items():
                    start = _now(device)
                    multiply(block, width)
                    taken = (_now(device) - start) / columns
                    key = f"{way} {width}"
                    seconds[key] = min(taken, seconds.get(key, taken))
    return {"seconds": seconds, "bound": PASSES[matrix] * _forward_seconds(network, device)}


def _forward_seconds(network: Network, device: str) -> float:
    """What the matrix products and convolutions of a forward pass take at the full rate."""
    from torch.utils.flop_counter import FlopCounterMode

    square = torch.randn(1024, 1024, device=device)
    taken = []
    for _ in range(20):
        start = _now(device)
        square @ square
        taken.append(_now(device) - start)
    with FlopCounterMode(display=False) as counter:
        network[0](network[1])
    return float(counter.get_total_flops() * min(taken) / (2 * 1024**3))


def memory_of(name: str, matrix: str, device: str, way: str, width: int) -> dict[str, Any]:
    """Takes what a product adds to the highest memory of its process or device, in bytes."""
    network = _made(name, device)
    block = _block(network, width)
    with sdpa_kernel(SDPBackend.MATH):
        multiply = _product(way, matrix, network)
        before = _highest_from_here(device)
        multiply(block, width)
    return {"bytes": _highest(device) - before}


def _highest_from_here(device: str) -> int:
    """Lets the highest memory count anew from here on, and returns it."""
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
    else:
        torch.cuda.reset_peak_memory_stats()
    return _highest(device)


def _highest(device: str) -> int:
    return resident_bytes(os.getpid()) if device == "cpu" else torch.cuda.max_memory_allocated()


def in_a_run(name: str, matrix: str, device: str, columns: int) -> dict[str, Any]:
    """Measures a run of so many products, with inner calls as the plan chooses them."""
    import skerch_ooc as ooc
    from skerch_ooc.operators import curvature

    model, x, y, loss = _made(name, device)
    operator = getattr(curvature, matrix)(model, loss, [(x, y)])
    spec = {
        "measurements": columns,
        "sketch": {"test_measurements": 0},
        "operator": {"device": device},
    }
    with tempfile.TemporaryDirectory() as folder:
        run = ooc.plan(spec, folder, operator=operator)
        before, start = _highest_from_here(device), time.perf_counter()
        ooc.measure(run, operator=operator)
        seconds = (time.perf_counter() - start) / columns
        width = run.plan.parts[0].columns_at_once
    return {"seconds": seconds, "width": width, "bytes": _highest(device) - before}


def measure(name: str, matrix: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measures the products of one network with one matrix."""
    given: dict[str, Any] = {"name": name, "matrix": matrix, "device": options.device}
    _, found = run_part(
        __file__, seconds_of, options.threads, columns=options.columns, repeats=options.repeats,
        **given,
    )  # fmt: skip
    _, best_of_plan = run_part(__file__, in_a_run, options.threads, columns=128, **given)
    best: dict[str, Any] = {"in a run": best_of_plan}
    for way in WAYS:
        of_way = {key: value for key, value in found["seconds"].items() if key.startswith(way)}
        if of_way:
            key = min(of_way, key=of_way.__getitem__)
            width = int(key.split()[1])
            _, memory = run_part(
                __file__, memory_of, options.threads, way=way, width=width, **given
            )
            best[way] = {"seconds": of_way[key], "width": width, **memory}
    return {**found, "best": best}


def row_of(name: str, matrix: str, found: dict[str, Any]) -> list[str]:
    """The line of a table: each way at its best width, and ratios to the reference and bound."""
    best = found["best"]
    cells = [name, matrix]
    for way in SHOWN:
        one = best.get(way)
        cells.append(
            f"{1e3 * one['seconds']:.2f} ms, {one['width']}, {one['bytes'] >> 20} MiB"
            if one
            else ""
        )
    ours, run, theirs = (best[key]["seconds"] for key in ("ours", "in a run", "curvlinops"))
    ratios = ours / theirs, run / theirs, ours / found["bound"]
    return [*cells, *(f"{ratio:.2f}" for ratio in ratios)]


def main() -> None:
    """Reads the command line, prints a table of seconds, widths, memory and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--columns", type=int, default=64, help="of the block handed over")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="all cores")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    add_json(parser)
    options = parser.parse_args()
    figures, rows = {}, []
    for name in options.networks:
        for matrix in PASSES:
            say(f"{name}, {matrix}")
            found = figures[f"{name} {matrix}"] = measure(name, matrix, options)
            rows.append(row_of(name, matrix, found))
    head = ["network", "matrix", *SHOWN, "to curvlinops", "in a run", "to the bound"]
    print("milliseconds a product, width of inner calls, memory that it adds")
    print(text_table(head, rows))
    write_json(options.json, figures)


if __name__ == "__main__" and not serve_part([seconds_of, memory_of, in_a_run]):
    main()
