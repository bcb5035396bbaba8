"""Two hosts and their real sockets: does each see in its lookups what the other holds, whatever happens between them?"""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Iterator

import numpy as np
import pytest
import zmq

from pegashm import fsck
from pegashm.directory import follower as following
from pegashm.directory import publisher as publishing
from pegashm.directory.messages import Delta, parse_chunk, parse_delta
from pegashm.directory.publisher import interval_seconds
from pegashm.names import control_path

from tests.arenas import Shape
from tests.directory.rig import BYTES, Named, Node, node, until
from tests.model.test_spill_table import rows_of

NUMBER = 17


@pytest.fixture
def teller() -> Iterator[Node]:
    with node() as one:
        yield one


@pytest.fixture
def listener() -> Iterator[Node]:
    with node() as one:
        yield one


def heard(one: Node) -> dict[str, int]:
    counters = {row["key"]: int(row["value"]) for row in one.arena.region.counters()}
    return {name: value for name, value in counters.items() if name.startswith("remote_")}


def gaps(one: Node) -> int:
    return one.follower._hosts[NUMBER].stream.gaps


def has_told(teller: Node, events: int) -> None:
    """Before two meet: what is told while they do may be missed, and made up for by a second snapshot."""
    until(lambda: heard(teller)["remote_events_sent"] >= events)


def test_what_one_holds_the_other_finds(teller: Node, listener: Node) -> None:
    """What was there before they met, and what comes and goes afterwards; in memory and on SSD."""
    teller.put(range(10))
    teller.spill.store(rows_of([20, 21, 3], teller.cache.namespace_id))
    has_told(teller, 13)
    listener.meet(teller, NUMBER)
    until(lambda: all(listener.sees([*range(10), 20, 21])) and listener.hears(NUMBER))
    assert not any(listener.sees(range(10, 20)))
    teller.put(range(10, 15))
    teller.drop(range(3, 6))
    teller.spill.store(rows_of([30], teller.cache.namespace_id, offset=1 << 20))
    teller.spill.drop(0, BYTES, 2 * BYTES)
    until(lambda: listener.agrees_with(teller, NUMBER))
    assert [True] * 4 + [False] * 2 + [True] * 9 == listener.sees(range(15))  # 3 is on SSD still
    assert [True, False, True] == listener.sees([20, 21, 30])
    assert 0 == gaps(listener)
    until(lambda: listener.arena.region.remote_hosts()[0]["hints"] == len(teller.holdings()))
    (row,) = (row for row in listener.arena.region.remote_hosts() if row["number"] == NUMBER)
    assert (True, teller.host_id, teller.incarnation) == (
        row["usable"], row["host_id"], row["incarnation"],
    )  # fmt: skip
    assert f"127.0.0.1:{teller.publisher.port}" == row["address"]
    assert (
        1 == heard(listener)["remote_snapshots_received"] == heard(teller)["remote_snapshots_sent"]
    )
    assert 0 < heard(listener)["remote_events_received"] <= heard(teller)["remote_events_sent"]
    assert fsck.check(listener.arena).clean


def test_both_ways(teller: Node, listener: Node) -> None:
    teller.put(range(5))
    listener.put(range(5, 10))
    teller.meet(listener, 1)
    listener.meet(teller, 2)
    until(lambda: all(teller.sees(range(5, 10))) and all(listener.sees(range(5))))
    assert not any(teller.sees(range(5))), "what is here is found here"


def test_one_that_leaves_is_a_miss_at_once(teller: Node, listener: Node) -> None:
    """And its number is nobody's until its hints are gone."""
    teller.put(range(10))
    host = listener.meet(teller, NUMBER)
    until(lambda: all(listener.sees(range(10))))
    listener.follower.left(host)
    assert not any(listener.sees(range(10)))
    until(lambda: NUMBER not in listener.follower.reserved())
    assert 0 == listener.table.hints(NUMBER) == len(listener.table)
    assert [] == listener.arena.region.remote_hosts()
    listener.meet(teller, NUMBER)
    until(lambda: all(listener.sees(range(10))))


def test_its_successor_is_not_taken_for_it(teller: Node, listener: Node) -> None:
    """Messages of another life, or of another host, count for nothing under this number."""
    host = teller.named(NUMBER)
    stranger = Named(NUMBER, host.host_id, b"another life....", host.stream)
    listener.known[NUMBER] = stranger, teller.publisher
    listener.follower.joined(stranger)
    teller.put(range(5))
    until(lambda: heard(teller)["remote_events_sent"])
    listener.lose = lambda _: True
    time.sleep(1.2)
    assert 0 == heard(listener)["remote_events_received"]
    listener.follower.left(host)
    assert NUMBER in listener.follower._hosts, "that is another life"


def test_silence_hides_its_blocks_until_it_speaks(
    teller: Node, listener: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "SILENCE_SECONDS", 1.5)
    teller.put(range(10))
    has_told(teller, 10)
    listener.meet(teller, NUMBER)
    until(lambda: all(listener.sees(range(10))) and listener.hears(NUMBER))
    quiet = teller.publisher.tell
    teller.publisher.tell = lambda now: 0  # type: ignore[method-assign]
    until(lambda: not any(listener.sees(range(10))))
    assert 10 == listener.table.hints(NUMBER), "they are not forgotten"
    teller.put(range(10, 12))
    teller.publisher.tell = quiet  # type: ignore[method-assign]
    until(lambda: all(listener.sees(range(12))))
    assert (0, 1) == (gaps(listener), heard(listener)["remote_snapshots_received"])


def test_missed_messages_are_made_up_for(teller: Node, listener: Node) -> None:
    """As when its queue was full: a number is missing."""
    teller.put(range(10))
    has_told(teller, 10)
    listener.meet(teller, NUMBER)
    until(lambda: all(listener.sees(range(10))) and listener.hears(NUMBER))
    said = teller.publisher._send
    teller.publisher._send = lambda ops, hashes: None  # type: ignore[method-assign]
    teller.drop(range(5))
    teller.put(range(20, 25))
    until(lambda: 20 <= heard(teller)["remote_events_sent"])
    teller.publisher._send = said  # type: ignore[method-assign]
    until(lambda: listener.agrees_with(teller, NUMBER))
    assert 1 == gaps(listener)
    assert 2 == heard(listener)["remote_snapshots_received"]


def test_a_journal_that_went_round_is_told_as_a_gap(teller: Node, listener: Node) -> None:
    listener.meet(teller, NUMBER)
    until(lambda: heard(listener)["remote_snapshots_received"])
    quiet = teller.publisher.tell
    teller.publisher.tell = lambda now: 0  # type: ignore[method-assign]
    for _ in range(teller.arena.region.header["journal_entry_count"] // 20 + 2):
        teller.put(range(10))
        teller.drop(range(10))
    teller.put(range(3))
    teller.publisher.tell = quiet  # type: ignore[method-assign]
    until(lambda: gaps(listener) and listener.agrees_with(teller, NUMBER))
    assert [True] * 3 + [False] * 7 == listener.sees(range(10))
    assert 1 == teller.publisher.lost


def test_chunks_that_get_lost_are_asked_for_again(
    listener: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "CHUNK_HASHES_MAX", 16)
    monkeypatch.setattr("pegashm.directory.stream._CHUNK_SECONDS", 0.5)
    monkeypatch.setattr("pegashm.directory.stream._RETRY_SECONDS", 0.1)
    with node() as teller:
        teller.put(range(60))
        until(lambda: heard(teller)["remote_events_sent"] == 60)  # nobody hears it
        listener.lose = lambda carried: carried in (2, 7)
        listener.meet(teller, NUMBER)
        until(lambda: listener.agrees_with(teller, NUMBER))
        assert listener.carried >= 7 + 4
        assert 1 == heard(listener)["remote_snapshots_received"]


def test_a_host_that_talks_nonsense_is_not_heard_any_more(listener: Node) -> None:
    with zmq.Context() as context, context.socket(zmq.PUB) as liar:
        port = liar.bind_to_random_port("tcp://127.0.0.1")
        host = Named(NUMBER, b"h" * 16, b"i" * 16, f"tcp://127.0.0.1:{port}")
        listener.follower.joined(host)

        def left_alone() -> bool:
            for frame in (b"", b"nonsense", b"PGSD" + bytes(60)):
                liar.send(frame)
            liar.send_multipart([b"a", b"b"])
            return heard(listener)["remote_messages_bad"] >= 100

        until(left_alone)
        until(lambda: listener.follower._hosts[NUMBER].socket is None)
        assert 0 == len(listener.table)
        listener.follower.chunk(host, 0, last=True, body=b"nonsense")
        liar.close(linger=0)
    until(lambda: not listener.follower._pieces)
    assert not any(thread for thread in listener.threads if not thread.is_alive())


def test_a_half_written_event_is_waited_for_and_then_passed_over() -> None:
    """Whoever was writing it may still be at it, or dead; what comes after it is told in the end."""
    with node(running=False) as teller:
        region = teller.arena.region
        teller.put(range(2))
        assert 2 == teller.publisher.tell(0.0)
        descriptor = os.open(control_path(teller.arena.name), os.O_RDWR)
        with mmap.mmap(descriptor, 0) as control:
            os.close(descriptor)
            control[384:392] = (3).to_bytes(8, "little")  # journal_head: an event begun
        teller.put([2])
        assert 4 == region.header["journal_head"]
        assert 0 == teller.publisher.tell(0.1)
        assert 0 == teller.publisher.tell(
            0.3
        )  # the head that was seen since 0.1 has to grow old as well
        assert 1 == teller.publisher.tell(0.6)
        assert 0 == teller.publisher.lost


def test_a_snapshot_is_all_that_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "CHUNK_HASHES_MAX", 16)
    with node(running=False) as teller:
        teller.put(range(40))
        teller.spill.store(rows_of(list(range(35, 60)), teller.cache.namespace_id))
        teller.publisher.tell(0.0)
        bodies = list(teller.publisher.snapshot())
        assert len(bodies) > 3
        held: dict[int, int] = {}
        for body in bodies:
            chunk = parse_chunk(body)
            assert not isinstance(chunk, tuple) or hasattr(chunk, "as_of")
            for hashes, tier in ((chunk.memory, 1), (chunk.ssd, 2)):  # type: ignore[union-attr]
                assert len(hashes) <= 16
                for hash_ in hashes.tolist():
                    held[hash_] = held.get(hash_, 0) | tier
        assert teller.holdings() == held
        assert 65 == sum(tier & 1 for tier in held.values()) + sum(
            tier >> 1 for tier in held.values()
        )


def test_messages_are_as_large_as_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "OPS_MAX", 8)
    with node(running=False) as teller, teller.context.socket(zmq.SUB) as listener:
        listener.setsockopt(zmq.SUBSCRIBE, b"")
        listener.connect(f"tcp://127.0.0.1:{teller.publisher.port}")
        while not listener.poll(10):
            teller.publisher.tell(time.monotonic() + 10)  # until the subscription is there
        while listener.poll(50):
            listener.recv()
        teller.put(range(20))
        teller.publisher.tell(0.0)
        deltas = []
        while listener.poll(200):
            delta = parse_delta(listener.recv())
            assert isinstance(delta, Delta)
            deltas.append((delta.sequence, len(delta.ops)))
        assert [(1, 8), (2, 8), (3, 4)] == [delta for delta in deltas if delta[1]]


def test_more_hosts_speak_less_often() -> None:
    assert [0.02, 0.02, 0.4, 1.0] == [interval_seconds(hosts) for hosts in (0, 50, 1000, 4096)]


def test_churn_ends_in_what_is_so(listener: Node, seed: int) -> None:
    """Thousands of stores and evictions, with the follower losing what it likes: in the end each hint is right."""
    chance = random.Random(seed)
    shape = Shape(segments_per_arena=(16,), spill_records=64, remote_buckets=256)
    with node(shape) as teller:
        listener.meet(teller, NUMBER)
        said = teller.publisher._send

        def lossy(ops: np.ndarray, hashes: np.ndarray) -> None:
            if chance.random() > 0.05:
                said(ops, hashes)

        teller.publisher._send = lossy  # type: ignore[method-assign]
        for turn in range(150):
            numbers = [chance.randrange(400) for _ in range(30)]
            teller.put(sorted(set(numbers)))
            teller.drop([chance.randrange(400) for _ in range(20)])
            rows = rows_of(
                sorted(set(numbers[:5])),
                teller.cache.namespace_id,
                sequence=turn,
                offset=turn << 20,
            )
            teller.spill.store(rows)
            teller.spill.forget(rows[:2])
            time.sleep(0.005)
        teller.publisher._send = said  # type: ignore[method-assign]
        until(lambda: listener.agrees_with(teller, NUMBER))
