"""Tests of the proxy that loses, repeats, delays, refuses and cuts requests to an object store."""

from __future__ import annotations

import time
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from faulty_store import FaultyStore, Request, Rule, faulty_store

obstore = pytest.importorskip("obstore")
CONTENT = bytes(range(200))


@pytest.fixture
def client(bucket: str, faulty: FaultyStore) -> Any:
    """A client of the proxy that does not try again by itself, and an object ``old``."""
    client = client_of(bucket, faulty, 0)
    obstore.put(client, "old", CONTENT)
    faulty.forget()
    return client


def client_of(bucket: str, faulty: FaultyStore, retries: int) -> Any:
    from obstore.store import from_url

    return from_url(
        bucket,
        endpoint=faulty.endpoint,
        client_options={"allow_http": True, "timeout": timedelta(seconds=20)},
        retry_config={
            "max_retries": retries, "backoff": {"init_backoff": timedelta(milliseconds=1)},
        },
    )  # fmt: skip


def read(client: Any, key: str) -> bytes:
    return bytes(obstore.get(client, key).bytes())


def names(client: Any) -> list[str]:
    return [one["path"] for one in obstore.list(client).collect()]


def test_without_faults_all_passes(client):
    obstore.put(client, "a/b c%é", CONTENT, mode="create")
    assert read(client, "a/b c%é") == CONTENT
    assert obstore.head(client, "a/b c%é")["size"] == len(CONTENT)
    assert obstore.list_with_delimiter(client)["common_prefixes"] == ["a"]


@pytest.mark.parametrize(("fault", "is_done"), [("lost", True), ("reset", True), ("broken", False)])
def test_answer_does_not_come(client, faulty, fault, is_done):
    faulty.rules.append(Rule(fault, lambda request: request.kind == "create"))
    with pytest.raises(obstore.exceptions.GenericError, match="error sending request"):
        obstore.put(client, "new", CONTENT, mode="create")
    assert (names(client) == ["new", "old"]) == is_done


@pytest.mark.parametrize("seconds", [0, 7])
def test_store_is_busy(client, faulty, seconds):
    faulty.rules.append(Rule("busy", times=1, seconds=seconds))
    with pytest.raises(obstore.exceptions.GenericError, match="503"):
        read(client, "old")
    assert read(client, "old") == CONTENT


def test_busy_store_says_when_to_come_back(faulty):
    import urllib.error
    import urllib.request

    faulty.rules.append(Rule("busy", seconds=7))
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"{faulty.endpoint}/runs/key")
    with raised.value as answer:
        assert answer.headers["Retry-After"] == "7"


def test_answer_is_slow(client, faulty):
    faulty.rules.append(Rule("slow", seconds=0.2))
    since = time.monotonic()
    assert read(client, "old") == CONTENT
    assert time.monotonic() - since >= 0.2


def test_request_is_made_twice(client, faulty):
    faulty.rules.append(Rule("twice", lambda request: request.kind == "create"))
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(client, "new", CONTENT, mode="create")
    assert read(client, "new") == CONTENT


def test_request_is_made_once_more_later(client, faulty):
    faulty.rules.append(Rule("again", lambda request: request.kind == "put", 1, 1, seconds=0.2))
    obstore.put(client, "old", b"first")
    obstore.put(client, "old", b"second")
    assert read(client, "old") == b"second"
    end = time.monotonic() + 20
    while read(client, "old") != b"first" and time.monotonic() < end:
        time.sleep(0.05)
    assert read(client, "old") == b"first"


def test_answer_is_cut(client, faulty):
    faulty.rules.append(Rule("cut"))
    with pytest.raises(obstore.exceptions.GenericError):
        read(client, "old")


def test_cut_answer_is_continued(bucket, client, faulty):
    faulty.rules.append(Rule("cut", times=1))
    assert read(client_of(bucket, faulty, 2), "old") == CONTENT
    assert [request.range for request in faulty.requests] == ["", "100-199"]


def test_one_bit_is_another(client, faulty):
    faulty.rules.append(Rule("flipped", lambda request: request.kind == "get"))
    found = read(client, "old")
    assert [a ^ b for a, b in zip(found, CONTENT, strict=True)] == [0] * 199 + [1]


def test_conditions_are_ignored(client, faulty):
    faulty.rules.append(Rule("unconditional"))
    obstore.put(client, "old", b"other", mode="create")
    assert read(client, "old") == b"other"


def test_listing_is_late(client, faulty):
    faulty.rules.append(Rule("late", seconds=60))
    obstore.put(client, "new", CONTENT)
    obstore.put(client, "folder/new", CONTENT)
    found = obstore.list_with_delimiter(client)
    assert ([one["path"] for one in found["objects"]], found["common_prefixes"]) == ([], [])
    faulty.rules[0].seconds = 0
    assert names(client) == ["folder/new", "new", "old"]


def test_requests_are_counted(bucket, client, faulty):
    obstore.put(client, "new", CONTENT, mode="create")
    obstore.put(client, "large", bytes(6 << 20))
    read(client, "new")
    obstore.get_range(client, "new", start=3, end=7)
    names(client)
    obstore.copy(client, "new", "copy")
    obstore.delete(client, "new")
    assert faulty.kinds() == Counter(
        create=1, begin=1, part=2, finish=1, get=2, list=1, copy=1, delete=1
    )
    assert Request("get", "run/new", "3-6") in faulty.requests


def test_share_is_met_whatever_the_order(faulty):
    requests = [Request("get", f"{number}") for number in range(1000)]
    faulty.rules.append(Rule("slow", share=0.2))
    met = {request for request in requests if faulty.rule_for(request)}
    with faulty_store(faulty.endpoint, *faulty.rules) as other:
        assert {request for request in reversed(requests) if other.rule_for(request)} == met
    assert 150 < len(met) < 250


def test_another_seed_chooses_others(faulty):
    requests = [Request("get", f"{number}") for number in range(100)]
    faulty.rules.append(Rule("slow", share=0.2))
    met = {request for request in requests if faulty.rule_for(request)}
    with faulty_store(faulty.endpoint, *faulty.rules, seed=1) as other:
        assert {request for request in requests if other.rule_for(request)} != met


def test_closed_proxy_does_not_answer(bucket, object_server):
    with faulty_store(object_server.endpoint) as store:
        client = client_of(bucket, store, 0)
        obstore.put(client, "old", CONTENT)
    with pytest.raises(obstore.exceptions.GenericError):
        read(client, "old")


@pytest.mark.parametrize("number", range(2))
def test_each_test_meets_its_own_proxy(bucket, faulty, number):
    from skerch_ooc.base.places import place

    run = place(bucket)
    run.store.replace(f"{run.key}/key", CONTENT)
    assert faulty.kinds() == {"put": 1}
