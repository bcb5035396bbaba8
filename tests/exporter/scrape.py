"""What does an exporter answer? Asked in this process or over HTTP, read by prometheus-client's own parsers."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from pegashm.exporter.routes import Exporter
from pegashm.peers.addresses import Address

__all__ = ["Scrape", "exporting", "get", "health", "samples"]


@contextlib.contextmanager
def exporting(name: str, *, survey_seconds: float = 0.1) -> Iterator[Exporter]:
    exporter = Exporter(name, Address("127.0.0.1", 0), survey_seconds=survey_seconds)
    exporter.start()
    try:
        yield exporter
    finally:
        exporter.stop()


def get(address: Address, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and body."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()
    finally:
        connection.close()


def health(address: Address) -> tuple[int, dict[str, Any]]:
    status, _, body = get(address, "/health")
    return status, json.loads(body)


class Scrape:
    """One answer of /metrics."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def values(self, name: str, **labels: str) -> list[float]:
        return [
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def value(self, name: str, **labels: str) -> float:
        """Of the one sample that these labels name."""
        found = self.values(name, **labels)
        assert 1 == len(found), f"{name} {labels}: {found}"
        return found[0]

    def total(self, name: str, **labels: str) -> float:
        return sum(self.values(name, **labels))


def samples(address: Address) -> Scrape:
    status, _, body = get(address, "/metrics")
    assert 200 == status, body
    return Scrape(body)
