"""How does a test get a real Prometheus? One of its own, on a free port and a folder of the test's, that scrapes exporters.

Debian's package `prometheus` has it and `promtool`; `why_not` says what is missing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pegashm.peers.addresses import Address

from tests.ports import free_port

__all__ = ["Prometheus", "why_not"]

PATIENCE_SECONDS = 60.0


def why_not() -> str | None:
    """None: it can run here."""
    missing = [tool for tool in ("prometheus", "promtool") if not shutil.which(tool)]
    return f"{' and '.join(missing)} not installed: apt-get install prometheus" if missing else None


class Prometheus:
    """Scrapes `targets` every second. `rules`: files."""

    def __init__(
        self, folder: Path, targets: Iterable[Address], *, rules: Iterable[Path] = ()
    ) -> None:
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [
                {
                    "job_name": "pegashm",
                    "static_configs": [{"targets": [str(target) for target in targets]}],
                }
            ],
        }
        path = folder / "prometheus.yml"
        path.write_text(json.dumps(config))  # JSON is YAML
        self._port = free_port()
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={path}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Prometheus:  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    def said(self) -> str:
        return self._log.read_text()

    def ask(self, path: str, **query: str) -> Any:
        """What its API answers; waits until it is up."""
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            assert self._process.poll() is None, self.said()
            try:
                with urllib.request.urlopen(url, timeout=30) as response:
                    answer = json.load(response)
            except (urllib.error.URLError, ConnectionError) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code != 503:  # it starts
                    raise AssertionError(f"{path} {query}: {error.read().decode()}") from error
                assert time.monotonic() < deadline, self.said()
                time.sleep(0.1)
                continue
            assert "success" == answer["status"], answer
            return answer["data"]

    def query(self, expression: str) -> list[tuple[Mapping[str, str], float]]:
        """Series and values now."""
        found = self.ask("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def wait_scraped(self, scrapes: int) -> None:
        """Until every target has been scraped so often, without a failure."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            counts = self.query('count_over_time(up{job="pegashm"}[10m])')
            if counts and all(count >= scrapes for _, count in counts):
                break
            assert time.monotonic() < deadline, counts
            time.sleep(0.2)
        targets = self.ask("targets")["activeTargets"]
        assert not [target["lastError"] for target in targets if target["lastError"]]
