"""What does an operator see? Health, metrics, page and log of one arena, each asked as an operator asks.

The exporter's answers over HTTP, parsed by the library that Prometheus' own client ships; `pegashm top --once --json` and other
commands as processes of the installed build. `sees` waits until it is so: whoever watches looks again.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Operator", "wait_until"]

PATIENCE_SECONDS = 60.0


def wait_until(holds: Callable[[], bool], what: Callable[[], str]) -> None:
    """Until it holds; `what` says in a failure what was there instead."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


class Operator:
    """Eyes on the arena `name`. `bin_folder`: of the build whose commands are typed."""

    def __init__(self, name: str, address: str, bin_folder: Path) -> None:
        self.name = name
        self.address = address
        self.bin_folder = bin_folder

    # -- over HTTP ---------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        return self._json("/health")

    def reasons(self) -> set[str]:
        return {reason["name"] for reason in self.health()["reasons"]}

    def page(self) -> dict[str, Any]:
        return self._json("/api/state")

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0 when there is none."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self._get("/metrics").decode())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def sees_health(self, status: str, *reasons: str) -> None:
        """/health, and the metric of the same, say so; among others these reasons."""

        def holds() -> bool:
            health = self.health()
            named = {reason["name"] for reason in health["reasons"]}
            return health["status"] == status and named >= set(reasons)

        wait_until(holds, lambda: f"expected {status} {reasons}, health is {self.health()}")
        assert all(reason["advice"] for reason in self.health()["reasons"])
        wait_until(
            lambda: self.metric("pegashm_health_status", status=status) == 1.0,
            lambda: f"the metric does not say {status}",
        )
        for reason in reasons:
            assert 1.0 == self.metric("pegashm_health_reason", reason=reason), reason

    def sees_metric(self, least: float, name: str, **labels: str) -> None:
        wait_until(
            lambda: self.metric(name, **labels) >= least,
            lambda: f"{name} {labels} is {self.metric(name, **labels)}, expected {least} or more",
        )

    # -- on the command line -----------------------------------------------------------------------

    def types(self, *arguments: str, status: int = 0) -> str:
        """A command's output; it must end with this exit status."""
        done = subprocess.run(
            [str(self.bin_folder / "pegashm"), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert status == done.returncode, (
            f"{arguments}: {done.returncode}: {done.stderr}{done.stdout}"
        )
        return done.stdout

    def top(self) -> dict[str, Any]:
        """One look of `pegashm top`."""
        said: dict[str, Any] = json.loads(
            self.types("top", "--name", self.name, "--once", "--json")
        )
        return said

    def _json(self, path: str) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self._get(path))
        return said

    def _get(self, path: str) -> bytes:
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=30) as response:
                body: bytes = response.read()
        except urllib.error.HTTPError as error:  # 503 has a body too
            body = error.read()
        return body
