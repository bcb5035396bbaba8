"""How does a reading look in Prometheus' terms? A collector: one reading in, families of samples out.

What is measured and what it means is in `definitions.py`; the exposition (text or OpenMetrics, whichever the scraper
wants) is prometheus-client's. Of an arena that is not there, only `up`, the build and the health remain: series of the
rest end, as Prometheus expects of what does not exist.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pegashm import __version__, _native
from pegashm.exporter.definitions import DEFINITIONS, Definition, definitions_by_name
from pegashm.exporter.judging import REASONS, Health, judge
from pegashm.exporter.reading import ClientReading, Reading

__all__ = ["ArenaCollector", "families", "render"]

_STATUSES: Final = ("ok", "degraded", "down")
_SEGMENT_STATES: Final = ("unassigned", "assigned", "changing")
_DEFINED: Final = definitions_by_name()


class ArenaCollector(Collector):
    """Asks for a reading at each scrape."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        yield from families(self._read())

    def describe(self) -> Iterator[Metric]:
        """Nothing: else registering would look at the arena."""
        return iter(())


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """All of a registry in the format that `accept` asks for, and its content type."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def families(reading: Reading) -> list[Metric]:
    """Every metric that has a sample."""
    into = _Families(reading.name)
    _add_arena(into, reading, judge(reading))
    if reading.is_open:
        _add_counters(into, reading.counters, int(reading.header["journal_head"]))
        _add_survey(into, reading)
        _add_namespaces(into, reading)
        _add_clients(into, reading)
        _add_spill(into, reading)
        _add_peers(into, reading)
    return into.made()


class _Families:
    """Families by the name of their definition, made at their first sample."""

    def __init__(self, arena: str) -> None:
        self._arena = arena
        self._made: dict[str, Metric] = {}

    def made(self) -> list[Metric]:
        return [self._made[each.name] for each in DEFINITIONS if each.name in self._made]

    def add(self, name: str, value: float, *labels: str) -> None:
        definition = _DEFINED[f"pegashm_{name}"]
        family = self._family(definition)
        family.add_metric((self._arena, *labels), value)  # type: ignore[attr-defined]

    def add_info(self, name: str, **labels: str) -> None:
        definition = _DEFINED[f"pegashm_{name}"]
        family = self._family(definition)
        family.add_metric((self._arena,), labels)  # type: ignore[attr-defined]

    def add_histogram(self, name: str, buckets: list[tuple[str, float]], total: float) -> None:
        family = self._family(_DEFINED[f"pegashm_{name}"])
        family.add_metric((self._arena,), buckets, total)  # type: ignore[attr-defined]

    def _family(self, definition: Definition) -> Metric:
        if definition.name not in self._made:
            labels = ("arena", *definition.labels) if definition.kind != "info" else ("arena",)
            self._made[definition.name] = _KINDS[definition.kind](
                definition.name, definition.help, labels=labels
            )
        return self._made[definition.name]


_KINDS: Final[Mapping[str, Callable[..., Metric]]] = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "histogram": HistogramMetricFamily,
    "info": InfoMetricFamily,
}


def _add_arena(into: _Families, reading: Reading, health: Health) -> None:
    into.add("up", float(reading.is_open))
    into.add_info(
        "build",
        version=__version__,
        format=f"{_native.FORMAT_MAJOR}.{_native.FORMAT_MINOR}",
        layout_signature=f"{_native.LAYOUT_SIGNATURE:016x}",
        python=platform.python_version(),
    )
    given = {reason.name for reason in health.reasons}
    for status in _STATUSES:
        into.add("health_status", float(status == health.status), status)
    for name in REASONS:
        into.add("health_reason", float(name in given), name)
    into.add("supervisor_up", float(reading.supervisor_alive))
    if not reading.is_open:
        return
    header = reading.header
    eviction = int(header["eviction"])
    into.add_info(
        "arena",
        region_id=reading.region_id,
        format=f"{header['format_major']}.{header['format_minor']}",
        page_bytes=str(header["page_bytes"]),
        eviction=_native.EVICTIONS[eviction] if eviction < len(_native.EVICTIONS) else "lru",
    )
    into.add("arena_created_timestamp_seconds", int(header["created_at_ns"]) / 1e9)
    if reading.has_worker:
        into.add("transport_worker_up", float(reading.worker_alive))
    ready = min(int(header["segments_ready"]), int(header["segment_count"]))
    into.add("pool_bytes", int(header["payload_bytes"]))
    into.add("pool_ready_bytes", ready * int(header["segment_bytes"]))
    into.add("control_bytes", int(header["control_bytes"]))


def _add_counters(into: _Families, counters: Mapping[str, int], journal_head: int) -> None:
    """What is nothing but counters of the region; of an arena that an older build made, those that it has."""
    for definition in DEFINITIONS:
        for value, key in definition.keys.items():
            if key in counters:
                into.add(
                    definition.name.removeprefix("pegashm_"),
                    counters[key],
                    *((value,) if definition.labels else ()),
                )
        if definition.buckets:
            _add_histogram(into, definition, counters)
    elsewhere = sum(
        counters.get(f"misses_{where}", 0) for where in ("pending", "spilled", "remote")
    )
    # Read one by one while others count.
    into.add("lookups", max(0, counters.get("misses", 0) - elsewhere), "miss")
    into.add("journal_events", journal_head)


def _add_histogram(into: _Families, definition: Definition, counters: Mapping[str, int]) -> None:
    """Prometheus' buckets are cumulative, the region's are not."""
    prefix = f"{definition.buckets}_le_"
    bounds = [key.removeprefix(prefix) for key in counters if key.startswith(prefix)]
    buckets: list[tuple[str, float]] = []
    count = 0
    for bound in sorted(bounds, key=float):
        count += counters[prefix + bound]
        buckets.append(("+Inf" if bound == "inf" else str(float(bound)), count))
    if buckets:
        into.add_histogram(
            definition.name.removeprefix("pegashm_"),
            buckets,
            counters.get(f"{definition.buckets}_sum_us", 0) / 1e6,
        )


def _add_survey(into: _Families, reading: Reading) -> None:
    survey = reading.survey
    if survey is None:
        return
    tally = survey.tally
    states = dict.fromkeys(_SEGMENT_STATES, 0)
    for state in survey.states:
        if state in states:
            states[state] += 1
    for state, count in states.items():
        into.add("segments", count, state)
    used = tally["claimed"] + tally["ready"] + tally["evicting"]
    into.add("blocks", max(0, survey.capacity - used), "memory", "free")
    for state in ("claimed", "ready", "evicting"):
        into.add("blocks", tally[state], "memory", state)
    into.add("damaged_blocks", survey.damaged)
    into.add("checksummed_blocks", survey.summed)
    into.add("oldest_block_seconds", survey.oldest_ready_seconds)
    into.add("survey_age_seconds", survey.age_seconds)
    into.add("survey_duration_seconds", survey.took_seconds)
    into.add("pinned_blocks", survey.pinned)
    into.add("pinned_bytes", survey.pinned_bytes)
    for window in survey.reuse:
        into.add("reuse_asked_blocks", window.asked, window.window)
        into.add("reuse_known_seconds", window.known_seconds, window.window)
        if window.ceiling is not None and window.hit_rate is not None:
            into.add("reuse_ceiling_ratio", window.ceiling, window.window)
            into.add("reuse_hit_ratio", window.hit_rate, window.window)


def _add_namespaces(into: _Families, reading: Reading) -> None:
    for namespace in reading.namespaces:
        labels = (namespace.fingerprint[:12], namespace.label)
        into.add("namespace_resident_bytes", namespace.resident_bytes, *labels)
        into.add("namespace_reserved_bytes", namespace.reserved_bytes, *labels)
        if namespace.maximum_bytes:
            into.add("namespace_maximum_bytes", namespace.maximum_bytes, *labels)
        for state in ("claimed", "ready", "evicting"):
            into.add("namespace_blocks", getattr(namespace, state), *labels, state)
        into.add("namespace_pinned_blocks", namespace.pinned, *labels)


def _add_clients(into: _Families, reading: Reading) -> None:
    for state in ("alive", "orphaned", "dead"):
        count = sum(1 for client in reading.clients if _state(client) == state)
        into.add("clients", count, state)
    for client in reading.clients:
        labels = (str(client.slot), str(client.pid), client.label)
        into.add("client_pinned_blocks", client.pinned, *labels)
        into.add("client_oldest_pin_seconds", client.oldest_pin_seconds, *labels)
        into.add("client_claimed_blocks", client.claims, *labels)
        into.add("client_oldest_claim_seconds", client.oldest_claim_seconds, *labels)
    for state, waiting_for in (("orphaned", "workers"), ("dead", "reap")):
        claims = sum(client.claims for client in reading.clients if _state(client) == state)
        into.add("dead_claimed_blocks", claims, waiting_for)


def _state(client: ClientReading) -> str:
    return "alive" if client.alive else "orphaned" if client.copiers_alive else "dead"


def _add_spill(into: _Families, reading: Reading) -> None:
    spill = reading.spill
    if spill is None or not spill.records:
        return
    into.add("blocks", spill.listed, "ssd", "stored")
    into.add("spill_files", spill.files_usable, "usable")
    into.add("spill_files", max(0, spill.files - spill.files_usable), "unusable")
    into.add("spill_capacity_blocks", spill.records)
    if spill.daily_bytes_limit:
        into.add("spill_daily_limit_bytes", spill.daily_bytes_limit)
    into.add("spill_daily_written_bytes", spill.daily_bytes_written)
    into.add("spill_backlog_blocks", spill.backlog_blocks)
    into.add("spill_backlog_bytes", spill.backlog_bytes)
    if spill.amplification is not None:
        into.add("spill_write_amplification_ratio", spill.amplification)


def _add_peers(into: _Families, reading: Reading) -> None:
    if reading.peers is None:
        return
    peers = reading.peers.as_dict()["peers"]
    states = {"usable": 0, "unsynchronised": 0, "left_alone": 0}
    for peer in peers:
        left_alone = peer["breaker"] == "open"
        usable = "usable" if peer["usable"] else "unsynchronised"
        states["left_alone" if left_alone else usable] += 1
        labels = (str(peer["address"]), str(peer["host_id"])[:12])
        into.add("peer_hinted_blocks", int(peer["hints"]), *labels)
        into.add("peer_load_ratio", int(peer["load"]) / 1000, *labels)
        into.add("peer_share_ratio", float(peer["share"]), *labels)
        into.add("peer_fetches", int(peer["fetched"]), *labels, "fetched")
        into.add("peer_fetches", int(peer["failed"]), *labels, "failed")
    for state, count in states.items():
        into.add("peers", count, state)
    into.add("blocks", sum(int(peer["hints"]) for peer in peers), "remote", "hinted")
