"""Does the exporter say what is in the arena, and does it outlive whatever happens to it?"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from pegashm.arena import Arena, open_arena
from pegashm.cache import Cache
from pegashm.cli import main
from pegashm.errors import ConfigError, ResourceError
from pegashm.exporter.reading import Reader
from pegashm.exporter.routes import Exporter
from pegashm.exporter.server import parse_listen
from pegashm.keys import namespace_of
from pegashm.peers.addresses import Address

from tests.arenas import Shape, make_arena, remove_arena
from tests.exporter.scrape import exporting, get, health, samples
from tests.served import Served, pegashm

NAMESPACE = namespace_of({"model": "watched"}, label='a "model"\nwith <b>\\', maximum_bytes=1 << 17)
KEYS = [bytes([index + 1]) * 32 + bytes(4) for index in range(8)]
PAYLOAD_BYTES = 4096


def fill(cache: Cache) -> None:
    """Six published, two of them pinned, two claimed."""
    handles, _ = cache.claim(KEYS[:6], PAYLOAD_BYTES)
    cache.publish(handles)
    cache.pin(handles[:2])
    cache.claim(KEYS[6:], PAYLOAD_BYTES)
    cache.find(KEYS[:7])
    cache.find([b"x" * 32 + bytes(4)])


def test_metrics_are_what_the_region_holds(arena: Arena) -> None:
    with Cache.attach(arena.name, namespace=NAMESPACE, label="engine") as cache:
        fill(cache)
        with exporting(arena.name) as exporter:
            scrape = samples(exporter.address)
        blocks = {
            state: scrape.value("pegashm_blocks", tier="memory", state=state)
            for state in ("free", "claimed", "ready", "evicting")
        }
        assert {"free": 8, "claimed": 2, "ready": 6, "evicting": 0} == blocks
        assert 1 == scrape.value("pegashm_up")
        assert 0 == scrape.value("pegashm_supervisor_up")
        assert arena.region.payload_bytes == scrape.value("pegashm_pool_bytes")
        assert 2 == scrape.value("pegashm_pinned_blocks")
        assert 2 * PAYLOAD_BYTES == scrape.value("pegashm_pinned_bytes")
        assert 8 * PAYLOAD_BYTES == scrape.value("pegashm_namespace_resident_bytes")
        assert 1 << 17 == scrape.value("pegashm_namespace_maximum_bytes")
        assert 6 == scrape.value("pegashm_namespace_blocks", label=NAMESPACE.label, state="ready")
        assert 2 == scrape.value("pegashm_client_pinned_blocks", slot=str(cache.slot))
        assert 2 == scrape.value("pegashm_client_claimed_blocks", slot=str(cache.slot))
        assert 1 == scrape.value("pegashm_clients", state="alive")
        assert 6 == scrape.value("pegashm_lookups_total", result="hit")
        assert 1 == scrape.value("pegashm_lookups_total", result="pending")
        assert 1 == scrape.value("pegashm_lookups_total", result="miss")
        assert 8 == scrape.total("pegashm_stores_total")
        counters = {entry["key"]: entry["value"] for entry in arena.region.counters()}
        assert counters["lookups"] == scrape.total("pegashm_lookups_total")


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text;version=1.0.0"])
def test_both_expositions(arena: Arena, accept: str) -> None:
    with exporting(arena.name) as exporter:
        status, headers, body = get(exporter.address, "/metrics", Accept=accept)
    assert 200 == status
    assert headers["Content-Type"].startswith(accept.partition(";")[0])
    assert body.endswith("# EOF\n") == accept.startswith("application/openmetrics")
    assert f'pegashm_up{{arena="{arena.name}"}} 1.0' in body


def test_survey_agrees_with_the_records(arena_name: Callable[..., str]) -> None:
    """What one native pass counts is what a copy of all records says; in several segments and sizes."""
    name = arena_name(Shape(segments_per_arena=(6,)))
    other = namespace_of({"model": "other"}, label="other")
    with (
        Cache.attach(name, namespace=NAMESPACE) as one,
        Cache.attach(name, namespace=other) as two,
    ):
        fill(one)
        handles, _ = two.claim(KEYS[:5], 3 * PAYLOAD_BYTES)
        two.publish(handles)
        two.pin(handles[:1])
        one.evict(one.find(KEYS[5:6])[0])
        found, blocks = one.region.survey(), one.region.blocks()
        tally = one.region.tally()
        assert tally["capacity"] == found["capacity"]
        assert {s: tally[s] for s in found["tally"]} == found["tally"]
        assert 3 == found["pinned"] == len(found["pins"])
        pinned = (blocks["pins"] != 0).any(axis=1)
        assert int(blocks["payload_bytes"][pinned].sum()) == found["pinned_bytes"]
        segments = one.region.segments()
        for state in ("claimed", "ready", "evicting"):
            by_segment = [0] * len(segments)
            for part in found["parts"]:
                by_segment[part["segment"]] += part[state]
            assert [segment[state] for segment in segments] == by_segment
        for cache in (one, two):
            mine = blocks[blocks["namespace_id"] == cache.namespace_id]
            row = found["namespaces"][cache.namespace_id & 0xFFFF]
            assert int((mine["state"] == 2).sum()) == row["ready"]
            assert int((mine["state"] == 1).sum()) == row["claimed"]
        assert 0 == len(one.region.survey(pins_max=0)["pins"])


def test_pins_age(arena: Arena) -> None:
    """A pin is as old as it has been seen without interruption; one that was dropped and set again is young."""
    with Cache.attach(arena.name, namespace=NAMESPACE) as cache:
        fill(cache)
        reader = Reader(arena.name, survey_seconds=0.0, fresh_seconds=0.0)
        assert 0 == reader.read().clients[0].oldest_pin_seconds
        time.sleep(0.2)
        assert 0.2 <= reader.read().clients[0].oldest_pin_seconds
        cache.unpin(cache.find(KEYS[:2])[0])
        assert 0 == reader.read().clients[0].oldest_pin_seconds == reader.read().clients[0].pinned
        cache.find(KEYS[:1], pin=True)
        assert 0 == reader.read().clients[0].oldest_pin_seconds
        reader.close()


def test_it_outlives_the_arena(name: str) -> None:
    """Before there is one, while there is, after its purge, and with its successor."""
    with exporting(name) as exporter:

        def looks(status: str, reason: str) -> None:
            time.sleep(0.6)  # a reading may be that old
            code, said = health(exporter.address)
            assert status == said["status"], said
            assert reason in [each["name"] for each in said["reasons"]]
            assert (503 if status == "down" else 200) == code
            assert code == get(exporter.address, "/ready")[0]
            assert 200 == get(exporter.address, "/live")[0]
            assert (status != "down") == samples(exporter.address).value("pegashm_up")
            assert 1 == samples(exporter.address).value("pegashm_health_reason", reason=reason)

        looks("down", "missing")
        make_arena(Shape(), name)
        looks("degraded", "unsupervised")
        with open_arena(name, writable=False) as arena:
            first = arena.region.header["region_id"].hex()
        remove_arena(name)
        looks("down", "missing")
        make_arena(Shape(segments_ready=0), name)
        looks("degraded", "populating")
        second = exporter.reader.read().region_id
        assert second not in ("", first)


def test_a_purged_arena_is_let_go(arena_name: Callable[..., str]) -> None:
    """Nobody scrapes, and its memory is given back all the same."""
    name = arena_name()
    with exporting(name) as exporter:
        assert exporter.reader.read().is_open
        remove_arena(name)
        for _ in range(100):
            time.sleep(0.1)
            with open("/proc/self/maps") as maps:
                if f"pegashm.{name}.control" not in maps.read():
                    return
        raise AssertionError("still mapped")


def test_health_of_a_supervised_arena(serve: Callable[..., Served], name: str) -> None:
    """All well with a supervisor; when it is killed, health and metric say so."""
    served = serve().wait_ready()
    with exporting(name) as exporter:
        code, said = health(exporter.address)
        while [each for each in said["reasons"] if each["name"] == "populating"]:
            time.sleep(0.1)
            code, said = health(exporter.address)
        assert (200, "ok", []) == (code, said["status"], said["reasons"])
        served.process.send_signal(signal.SIGKILL)
        served.rest()
        time.sleep(0.6)
        assert "unsupervised" in [each["name"] for each in health(exporter.address)[1]["reasons"]]
        assert 0 == samples(exporter.address).value("pegashm_supervisor_up")


def test_other_paths_and_methods(arena: Arena) -> None:
    with exporting(arena.name) as exporter:
        status, _, body = get(exporter.address, "/nothing?x=1")
        assert 404 == status
        assert "/metrics" in body
        assert 200 == get(exporter.address, "/health?x=1")[0]


def test_the_command(arena: Arena) -> None:
    """Started as an operator does, asked over HTTP, ended by SIGTERM with status 0."""
    child = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pegashm",
            "exporter",
            "--name",
            arena.name,
            "--listen",
            "127.0.0.1:0",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stderr is not None
        address = child.stderr.readline().partition("http://")[2].partition("/")[0]
        host, _, port = address.rpartition(":")
        assert 1 == samples(Address(host, int(port))).value("pegashm_up")
        child.send_signal(signal.SIGTERM)
        assert 0 == child.wait(30)
    finally:
        child.kill()
        child.wait()


def test_it_cannot_listen_there(arena: Arena) -> None:
    with exporting(arena.name) as exporter:
        taken = str(exporter.address)
        with pytest.raises(ResourceError, match="ss -ltnp"):
            Exporter(arena.name, exporter.address, survey_seconds=1.0)
        result = pegashm("exporter", "--name", arena.name, "--listen", taken)
    assert 1 == result.returncode
    assert f"cannot listen on {taken}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9470", Address("127.0.0.1", 9470)),
        ("[::1]:0", Address("::1", 0)),
        (":9470", Address("*", 9470)),
        ("host.example:1", Address("host.example", 1)),
    ],
)
def test_where_to_listen(text: str, address: Address) -> None:
    assert address == parse_listen(text)


@pytest.mark.parametrize("text", ["", "9470", "host", "::1:9470", "host:70000", "a/b:1"])
def test_where_not_to_listen(text: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        parse_listen(text)
    assert 2 == CliRunner().invoke(main, ["exporter", "--name", "x", "--listen", text]).exit_code
