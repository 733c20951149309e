"""What runs in a bucket rely on, of each server of object stores that tests start."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

obstore = pytest.importorskip("obstore")
WRITERS = 8


@pytest.fixture(params=["bucket", "other_bucket"])
def client(request: pytest.FixtureRequest) -> Any:
    """A client of each server."""
    from obstore.store import from_url

    url = request.getfixturevalue(request.param)
    return from_url(url, client_options={"allow_http": True})


def test_one_of_many_writers_wins(client):
    def write(number: int) -> bool:
        try:
            obstore.put(client, "key", bytes([number]) * 100_000, mode="create")
        except obstore.exceptions.AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(WRITERS) as pool:
        won = list(pool.map(write, range(WRITERS)))
    assert Counter(won) == {True: 1, False: WRITERS - 1}
    assert bytes(obstore.get(client, "key").bytes()) == bytes([won.index(True)]) * 100_000


def test_ranges_are_those_asked_for(client):
    content = os.urandom(1000)
    obstore.put(client, "key", content)
    assert bytes(obstore.get_range(client, "key", start=100, end=110)) == content[100:110]
    assert bytes(obstore.get_range(client, "key", start=990, end=2000)) == content[990:]


def test_listing_has_what_was_just_written(client):
    for name in ("b", "folder/c", "a"):
        obstore.put(client, name, b"")
    found = obstore.list_with_delimiter(client)
    assert [one["path"] for one in found["objects"]] == ["a", "b"]
    assert found["common_prefixes"] == ["folder"]
    obstore.delete(client, "a")
    assert {one["path"] for one in obstore.list(client).collect()} == {"b", "folder/c"}
