"""Does all that is exported arrive in a real Prometheus, and do alerts and dashboard find there what they ask for?

Two hosts with real transport workers, SSD files and each other's blocks; their exporters; one Prometheus that scrapes both.
What engines would count (what came of a request's blocks) is counted by their clients here; that a real engine counts it is
shown in tests/e2e/test_server.py.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pegashm.exporter.definitions import DEFINITIONS, MISS_REASONS, TIERS
from pegashm.liveness import SUPERVISOR_BYTE, close_lock_file, open_lock_file, try_lock
from pegashm.transport.options import WorkerOptions
from pegashm.units import KIB, MIB

from tests.arenas import Shape
from tests.exporter.prometheus import Prometheus, why_not
from tests.exporter.scrape import exporting
from tests.peers.rig import BYTES, Host, connect

DEPLOY = Path(__file__).parents[2] / "deploy"
SHAPE = Shape(
    segment_bytes=256 * KIB,
    segments_per_arena=(16,),
    spill_records=2000,
    remote_buckets=512,
    reuse_registers=256,
)
WINDOW = "10s"  # of rates, where the dashboard has Grafana's variable

needs_prometheus = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


class BudgetedHost(Host):
    """With a write budget, so that there is one to show."""

    @property
    def worker_options(self) -> WorkerOptions:
        options = super().worker_options
        assert options.spill is not None
        return replace(options, spill=replace(options.spill, daily_bytes=64 * MIB))


@dataclass
class Watched:
    prometheus: Prometheus
    hosts: Sequence[Host]


def live(host: Host, other: Host, round_: int) -> None:
    """One round of traffic: stores, hits, evictions, promotions, fetches, and what engines count of requests."""
    region = host.cache.region
    keys = host.store(range(1000 * round_, 1000 * round_ + 8))
    host.wait_stored(8 * round_)
    host.cache.count_asked(keys)
    host.cache.find(keys)
    region.count("bytes_loaded", len(keys) * BYTES)
    region.count("payloads_verified", len(keys))
    host.evict(keys)
    host.promote(keys[:4])
    host.cache.count_served(4)
    for tier in TIERS:
        region.count(f"hits_{tier}", 2)
    for reason in MISS_REASONS:
        region.count(f"missed_{reason}", 1)
    region.count("asked", 2 * len(TIERS) + len(MISS_REASONS))
    other.fetch(keys[4:])


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    if why_not():
        pytest.skip(str(why_not()))
    folder = tmp_path_factory.mktemp("watched")
    with contextlib.ExitStack() as stack:
        hosts = [
            BudgetedHost(folder / f"host{number}", shape=SHAPE, spill=True) for number in range(2)
        ]
        for host in hosts:
            stack.callback(host.close)
            lock = open_lock_file(host.name)
            stack.callback(close_lock_file, lock)
            assert try_lock(lock, SUPERVISOR_BYTE)
        connect(hosts)
        exporters = [stack.enter_context(exporting(host.name)) for host in hosts]
        first = hosts[0].cache
        handles, _ = first.claim([b"held" * 8 + bytes(4)], BYTES)
        first.publish(handles)
        first.pin(handles)
        first.arena.region.register_namespace(
            b"q" * 32, label="with a limit", maximum_bytes=1 << 20, reserved_bytes=4096, now_ns=1
        )
        prometheus = stack.enter_context(
            Prometheus(
                folder,
                [exporter.address for exporter in exporters],
                rules=[DEPLOY / "prometheus" / "rules.yml"],
            )
        )
        for round_ in range(1, 4):
            prometheus.wait_scraped(2 * round_)
            live(hosts[0], hosts[1], round_)
        prometheus.wait_scraped(9)
        yield Watched(prometheus, hosts)


def test_every_metric_arrives(watched: Watched) -> None:
    """Under its name, with the labels that are promised, and its help."""
    described = watched.prometheus.ask("metadata")
    for definition in DEFINITIONS:
        suffix = "_count" if definition.kind == "histogram" else ""
        series = watched.prometheus.query(definition.exposed + suffix)
        assert series, definition.exposed
        labels = {"__name__", "arena", "instance", "job", *definition.labels}
        # A label that is empty is none to Prometheus.
        assert labels == set().union(*(metric for metric, _ in series)), definition.name
        (entry,) = described.get(definition.name) or described[definition.exposed]
        assert definition.help == entry["help"]


def test_nothing_else_arrives(watched: Watched) -> None:
    """What is exported is documented: the list of definitions has all of it."""
    known = {definition.exposed for definition in DEFINITIONS}
    names = watched.prometheus.ask("label/__name__/values")
    exported = {re.sub("_(bucket|sum|count)$", "", name) for name in names if "pegashm_" in name}
    assert exported <= known | {"pegashm"}


def test_hits_and_misses_sum_to_what_was_asked_for(watched: Watched) -> None:
    host = watched.hosts[0].name
    asked, hits, misses = (
        watched.prometheus.query(f'sum(pegashm_{what}_blocks_total{{arena="{host}"}})')[0][1]
        for what in ("asked", "hit", "missed")
    )
    assert 3 * (2 * len(TIERS) + len(MISS_REASONS)) == asked == hits + misses


def test_values_are_the_regions(watched: Watched) -> None:
    host = watched.hosts[0]
    counters = {entry["key"]: entry["value"] for entry in host.arena.region.counters()}
    for definition in DEFINITIONS:
        for value, key in definition.keys.items():
            label = f', {definition.labels[0]}="{value}"' if definition.labels else ""
            query = f'{definition.exposed}{{arena="{host.name}"{label}}}'
            assert [counters[key]] == [number for _, number in watched.prometheus.query(query)]
    header = host.arena.region.header
    for name, field in (("pool_bytes", "payload_bytes"), ("control_bytes", "control_bytes")):
        ((_, number),) = watched.prometheus.query(f'pegashm_{name}{{arena="{host.name}"}}')
        assert header[field] == number
    ((_, promotions),) = watched.prometheus.query(
        f'pegashm_promotion_seconds_count{{arena="{host.name}"}}'
    )
    assert promotions >= 3
    ((_, seconds),) = watched.prometheus.query(
        f'pegashm_promotion_seconds_sum{{arena="{host.name}"}}'
    )
    assert 0 < seconds < 60
    ((_, evicted),) = watched.prometheus.query(
        f'pegashm_block_residence_seconds_count{{arena="{host.name}"}}'
    )
    assert counters["evictions"] == evicted


def panels() -> list[dict[str, Any]]:
    document = json.loads((DEPLOY / "grafana" / "pegashm.json").read_text())
    return [panel for panel in document["panels"] if panel["type"] != "row"]


def test_every_panel_sees_data(watched: Watched) -> None:
    """But for those that say when they are empty; no panel's query is an error."""
    empty = []
    for panel in panels():
        for target in panel["targets"]:
            expression = (
                target["expr"]
                .replace("$arena", watched.hosts[0].name)
                .replace("$instance", ".*")
                .replace("$__rate_interval", WINDOW)
            )
            assert "$" not in expression
            if not watched.prometheus.query(expression):
                empty.append(panel["title"])
    assert set(empty) <= {"Not ok, because"}
    for title in empty:
        (panel,) = [panel for panel in panels() if panel["title"] == title]
        assert "Empty" in panel["description"]


def test_the_dashboard_can_be_imported() -> None:
    """What Grafana wants of a dashboard: panels with ids of their own, places that do not overlap, known variables."""
    document = json.loads((DEPLOY / "grafana" / "pegashm.json").read_text())
    variables = {variable["name"] for variable in document["templating"]["list"]}
    assert {"datasource", "arena", "instance"} == variables
    assert len(document["panels"]) == len({panel["id"] for panel in document["panels"]})
    taken: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        for name in re.findall(r"\$\{?(\w+)", json.dumps(panel.get("targets", []))):
            assert name in variables | {"__rate_interval"}


@needs_prometheus
def test_rules_are_right() -> None:
    """promtool reads them, and each alert fires and is silent where tests.yml says so."""
    folder = DEPLOY / "prometheus"
    for command in (["check", "rules", "rules.yml"], ["test", "rules", "tests.yml"]):
        done = subprocess.run(
            ["promtool", *command], cwd=folder, capture_output=True, text=True, check=False
        )
        assert 0 == done.returncode, done.stdout + done.stderr


def test_rules_are_evaluated_on_what_is_exported(watched: Watched) -> None:
    """No rule fails there, and those that a ratio is recorded by have a value."""
    groups = watched.prometheus.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 15
    assert not [rule["lastError"] for rule in rules if rule.get("lastError")]
    assert watched.prometheus.query("pegashm:hit_ratio:rate5m")
