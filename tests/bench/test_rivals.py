"""Would the rivals' bench notice a store that loses, mixes up or changes blocks, hangs or ends?

Worker and parent are real; the store is the yardstick, which needs nothing installed, and variants of it with a planted mistake.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.rivals.catalog import RIVALS, YARDSTICK
from bench.rivals.deaths import attempt
from bench.rivals.store import Rows
from bench.rivals.stores.process import ProcessStore
from bench.rivals.tables import duration, headline, said, tables, worst
from bench.rivals.worker import Worker
from bench.rivals.workers import Client, EndedError, SilentError

BUFFER_BYTES = 1 << 20
BLOCK_BYTES = 64 << 10


def worker_of(store: ProcessStore) -> Worker:
    worker = Worker(store, BUFFER_BYTES)
    worker.do_prepare(BLOCK_BYTES)
    return worker


def test_blocks_come_back_as_they_were_put() -> None:
    worker = worker_of(ProcessStore())

    worker.do_put(first=100, count=16, block_bytes=BLOCK_BYTES, a_call=5)
    got = worker.do_get(first=100, count=16, block_bytes=BLOCK_BYTES, a_call=7)

    assert (16, 16, 0) == (got["came"], got["right"], got["wrong"])
    assert 3 == len(got["ns"])


class Swapping(ProcessStore):
    """Gives one block under another's name."""

    def get(self, names: Sequence[Any], rows: Rows) -> int:
        return super().get([names[1], names[0], *names[2:]], rows)


class Flipping(ProcessStore):
    """Changes one bit of one byte."""

    def get(self, names: Sequence[Any], rows: Rows) -> int:
        came = super().get(names, rows)
        rows[3, 777] ^= 1
        return came


class Forgetting(ProcessStore):
    """Says that a block came, and leaves what was in the buffer."""

    def get(self, names: Sequence[Any], rows: Rows) -> int:
        super().get(names[1:], rows[1:])
        return len(names)


@pytest.mark.parametrize(("store", "wrong"), [(Swapping, 2), (Flipping, 1), (Forgetting, 1)])
def test_a_wrong_block_is_seen(store: type[ProcessStore], wrong: int) -> None:
    worker = worker_of(store())
    worker.do_put(first=0, count=16, block_bytes=BLOCK_BYTES, a_call=16)

    got = worker.do_get(first=0, count=16, block_bytes=BLOCK_BYTES, a_call=16)

    assert wrong == got["wrong"]


def test_what_an_earlier_get_left_does_not_count() -> None:
    class Idle(ProcessStore):
        """Says that all came."""

        def get(self, names: Sequence[Any], rows: Rows) -> int:
            return len(names) if self.idle else super().get(names, rows)

        idle = False

    store = Idle()
    worker = worker_of(store)
    worker.do_put(first=0, count=16, block_bytes=BLOCK_BYTES, a_call=16)
    assert 16 == worker.do_get(first=0, count=16, block_bytes=BLOCK_BYTES, a_call=16)["right"]
    store.idle = True

    assert 16 == worker.do_get(first=0, count=16, block_bytes=BLOCK_BYTES, a_call=16)["wrong"]


def test_a_lookup_that_misses_is_an_error() -> None:
    worker = worker_of(ProcessStore())
    worker.do_put(first=0, count=8, block_bytes=BLOCK_BYTES, a_call=8)

    worker.do_exists(chains=[0], count=8, calls=2, hit=True)
    worker.do_exists(chains=[1 << 40], count=8, calls=2, hit=False)
    with pytest.raises(AssertionError, match="8 of 9"):
        worker.do_exists(chains=[0], count=9, calls=1, hit=True)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    made = Client(
        sys.executable,
        "process",
        {},
        buffer_bytes=BUFFER_BYTES,
        log=str(tmp_path / "log"),
        environment={},
    )
    made.wait_until_ready()
    yield made
    made.close()


def test_who_does_not_answer_is_not_waited_for(client: Client) -> None:
    client.tell("put", first=0, count=1, block_bytes=4096, a_call=1, at=time.monotonic() + 30)

    with pytest.raises(SilentError):
        client.hear(0.2)
    client.kill()
    with pytest.raises(EndedError):
        client.hear(5)


def test_an_error_is_an_answer(client: Client) -> None:
    outcome = attempt(client, "get", 2, first=12345)

    assert "KeyError" in outcome["error"]
    assert "error after" in said(outcome)
    assert "error after" in worst([{"seconds": 9}, outcome])


@pytest.mark.parametrize(("seconds", "text"), [(0.0012, "1.2 ms"), (2.34, "2.3 s")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert text == duration(seconds)


def leg_of(rates: dict[str, float], durations: dict[str, float]) -> dict[str, Any]:
    lookups = [
        {"store": store, "keys": keys, "hit": hit, "us_p50": us, "us_p99": us}
        for store, us in durations.items()
        for keys in (1, 64, 1000)
        for hit in (True, False)
    ]
    copies = [
        {"store": store, "clients": clients, "block_kib": 64}
        | {f"{way}_gbs": rate for way in ("put", "get")}
        | {f"{way}_share": rate / rates["memcpy"] for way in ("put", "get")}
        for store, rate in rates.items()
        for clients in (1, 2)
    ]
    cost = {
        "title": "Rival",
        "server_processes": 1,
        "idle_cpu_share": 0.5,
        "server_resident_mib": 7,
    }
    return {"lookups": lookups, "copies": copies, **cost}


def test_times_say_who_is_ahead_and_only_within_a_leg() -> None:
    """Rates one way round, durations the other; a second leg at another speed of the machine changes nothing."""
    leg = leg_of({"memcpy": 10, "PegaShm": 15, "Rival": 5}, {"memcpy": 1, "PegaShm": 2, "Rival": 1})
    slow = leg_of(
        {"memcpy": 1, "PegaShm": 1.5, "Other": 1}, {"memcpy": 9, "PegaShm": 20, "Other": 40}
    )

    found = headline([leg, slow])["rivals"]

    assert 3.0 == found["Rival"]["put_64_times"]
    assert 0.5 == found["Rival"]["lookup_1000_times"]
    assert 1.5 == found["Other"]["get_64_times"]
    shown = tables([leg, slow], [])
    assert ["Rival", "Other"] == list(shown[3].columns[0].cells)


def test_every_rival_has_a_store_and_one_name() -> None:
    stores = Path(__file__).resolve().parents[2] / "bench" / "rivals" / "stores"

    assert len(RIVALS) == len({rival.key for rival in RIVALS})
    for rival in [YARDSTICK, *RIVALS]:
        assert (stores / f"{rival.module}.py").exists()
        assert rival.forms
