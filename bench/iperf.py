"""How fast does TCP go here at best? Asked of `iperf3`, the yardstick of everybody who moves bytes between hosts.

One call is one run over an address of this machine with some streams: by one process, as `iperf3 -P` does it (one thread for
all streams up to version 3.15), or by a process a stream. Both ends send from and receive into one small buffer each, which
stays in the processor's cache: no memory is read or written, unlike ours. Used by fetch.py; iperf3 comes from the system,
and who lacks it is told what to type.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from typing import Any

__all__ = ["Iperf", "Sample"]

_START_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Sample:
    """Gigabytes a second, and CPU seconds a gigabyte of who sends and of who receives."""

    gbs: float
    send_cpu_s_gb: float
    receive_cpu_s_gb: float


@dataclass(frozen=True, slots=True)
class Iperf:
    """One way to run it."""

    streams: int
    processes: int = 1

    @property
    def name(self) -> str:
        if self.processes == 1:
            return f"iperf3 -P {self.streams}"
        return f"{self.processes} x iperf3"

    @staticmethod
    def version() -> str:
        """Of the iperf3 installed; SystemExit with what to type when there is none."""
        if shutil.which("iperf3") is None:
            raise SystemExit(
                "this bench measures beside iperf3, and there is none here. Type: apt install iperf3"
            )
        said = subprocess.run(["iperf3", "--version"], check=True, capture_output=True, text=True)
        return " ".join(said.stdout.split()[:2])

    def run(self, seconds: float) -> Sample:
        ends = [self._one(max(1, round(seconds))) for _ in range(self.processes)]
        reports = [self._report(*end) for end in ends]
        gbs = sum(report["sum_received"]["bits_per_second"] for report in reports) / 8e9
        took = max(report["sum_received"]["seconds"] for report in reports)
        moved = gbs * took
        cpu = [report["cpu_utilization_percent"] for report in reports]
        send = sum(each["host_total"] for each in cpu) / 100 * took / moved
        receive = sum(each["remote_total"] for each in cpu) / 100 * took / moved
        return Sample(gbs, send, receive)

    def _one(self, seconds: int) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
        """A server and the client that is running."""
        port = _free_port()
        server = subprocess.Popen(
            ["iperf3", "-s", "-1", "-B", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            text=True,
        )
        _wait_listening(port)
        command = ["iperf3", "-J", "-c", "127.0.0.1", "-p", str(port), "-t", str(seconds)]
        command += ["-P", str(self.streams // self.processes)]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return server, client

    def _report(
        self, server: subprocess.Popen[str], client: subprocess.Popen[str]
    ) -> dict[str, Any]:
        try:
            said, _ = client.communicate(timeout=60)
            report: dict[str, Any] = json.loads(said)
            if "error" in report:
                raise SystemExit(f"{self.name} failed: {report['error']}")
            end: dict[str, Any] = report["end"]
            return end
        finally:
            for process in (client, server):
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _wait_listening(port: int) -> None:
    """Without connecting: it serves one client."""
    wanted = f"0100007F:{port:04X}"
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with open("/proc/net/tcp", encoding="ascii") as table:
            if any(line.split()[1] == wanted and line.split()[3] == "0A" for line in table):
                return
        time.sleep(0.01)
    raise SystemExit("iperf3 does not listen")
