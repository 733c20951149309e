"""Processes that publish one object at the same moment: one of them wins, and it is whole."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest

from skerch_ooc.base.places import place
from skerch_ooc.store.layout import Layout
from skerch_ooc.store.sealed import sealed_writer, verify

WRITERS = 8
LAYOUT = Layout("right", (256, 4), "float32", (64, 4))


def publish(url, own):
    """Publishes a sealed file that is full of a number; whether it was this one."""
    with sealed_writer(place(url), LAYOUT) as writer:
        for row in range(LAYOUT.grid[0]):
            writer.write_rows(row, np.full((64, 4), own, np.float32))
        return writer.publish({"type": "shard", "own": 0})


def publish_all(urls, own, together, won):
    """What a process does: publishes under each name, at the same moment as the others."""
    for number, url in enumerate(urls):
        together.wait()
        if publish(url, own):
            won.put((number, own))


@pytest.mark.parametrize(
    ("races", "fixture"),
    [
        pytest.param(4, "bucket", marks=pytest.mark.thorough),
        pytest.param(4, "other_bucket", marks=pytest.mark.thorough),
        pytest.param(50, "bucket", marks=pytest.mark.soak),
    ],
)
def test_first_publication_wins(request, races, fixture):
    bucket = request.getfixturevalue(fixture)
    urls = [f"{bucket}/shards/{number}.h5" for number in range(races)]
    # Connections do not survive a fork.
    context = multiprocessing.get_context("spawn")
    together, won = context.Barrier(WRITERS), context.Queue()
    processes = [
        context.Process(target=publish_all, args=(urls, own, together, won))
        for own in range(WRITERS)
    ]
    for process in processes:
        process.start()
    winners = dict(won.get(timeout=60) for _ in range(races))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(winners) == list(range(races))
    assert won.empty()
    for number, own in winners.items():
        assert (verify(place(urls[number])).bulk().read_tile(0) == own).all()
