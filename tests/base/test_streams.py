"""Streams over tiles: an ordered parallel map, whose results do not depend on the threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from skerch_ooc.base.streams import ordered_map

THREADS_OF_TILES = """
import json, torch
from threadpoolctl import threadpool_info
from skerch_ooc.base.streams import ordered_map

def threads(_):
    return [library["num_threads"] for library in threadpool_info()]

print(json.dumps(list(ordered_map(threads, range(4), 2))))
"""


def test_linear_algebra_of_a_tile_has_one_thread_where_a_process_has_two():
    # In a process of its own: threads of torch's library begin with what the environment says.
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    answer = subprocess.run(
        [sys.executable, "-c", THREADS_OF_TILES],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    threads = json.loads(answer.stdout)
    assert {number for tile in threads for number in tile} == {1}


def test_results_come_in_the_order_of_the_items():
    assert list(ordered_map(lambda item: item * item, range(9), 3)) == [i * i for i in range(9)]
