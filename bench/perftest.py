"""How fast does RDMA READ go here at best? Asked of `ib_read_bw` and `ib_read_lat`, the yardsticks of everybody who has it.

One call is one run between two devices of this machine (or over one, with itself), with a message size and so many READs under way.
Both ends use one small buffer each again and again, and check nothing. Used by fetch_rdma.py; perftest comes from the
system, and who lacks it is told what to type.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass

from bench.iperf import Sample

__all__ = ["Perftest"]

_START_SECONDS = 30
_ATTEMPTS = 3  # now and then, on a loaded machine, it says 0


@dataclass(frozen=True, slots=True)
class Perftest:
    """Which devices, and the index of the address to use on each."""

    serving: tuple[str, int]
    reading: tuple[str, int]

    @staticmethod
    def version() -> str:
        """Of the perftest installed; SystemExit with what to type when there is none."""
        for program in ("ib_read_bw", "ib_read_lat"):
            if shutil.which(program) is None:
                raise SystemExit(
                    f"this bench measures beside {program}, and there is none here. Type: apt install perftest"
                )
        said = subprocess.run(
            ["ib_read_bw", "--version"], capture_output=True, text=True, check=False
        )
        return "perftest " + (said.stdout + said.stderr).strip().removeprefix("Version:").strip()

    def bandwidth(self, nbytes: int, depth: int, count: int) -> Sample:
        """`count` READs of so many bytes, `depth` of them under way."""
        count = max(count, depth, 5)
        for _ in range(_ATTEMPTS):
            line, serving, reading = self._run("ib_read_bw", "-s", nbytes, "-n", count, "-t", depth)
            # What it calls MB is 2^20 bytes. (In Gb/s it gives two decimals, too few for a slow device.)
            if (gbs := float(line[3]) * (1 << 20) / 1e9) > 0:
                gigabytes = nbytes * count / 1e9
                return Sample(gbs, serving / gigabytes, reading / gigabytes)
        raise SystemExit(f"ib_read_bw says 0 MB/s {_ATTEMPTS} times over: {line}")

    def latency_us(self, nbytes: int, count: int) -> float:
        """The median of one READ at a time."""
        line, _, _ = self._run("ib_read_lat", "-s", nbytes, "-n", max(count, 5))
        return float(line[4])

    def _run(self, program: str, *options: object) -> tuple[list[str], float, float]:
        """The last line of figures, and the CPU seconds of both ends."""
        arguments = [*map(str, options), "-F", "-p", "18700"]
        ends = []
        for (device, gid), where in ((self.serving, []), (self.reading, ["127.0.0.1"])):
            command = [program, "-d", device, "-x", str(gid), *arguments, *where]
            if where:
                _wait_for_listener(18700)
            ends.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
            )
        said, cpu = [], []
        for end in reversed(ends):
            assert end.stdout is not None
            with end.stdout:
                said.append(end.stdout.read())
            _, status, used = os.wait4(end.pid, 0)
            end.returncode = os.waitstatus_to_exitcode(status)
            cpu.append(used.ru_utime + used.ru_stime)
            if end.returncode:
                for other in ends:
                    other.kill()
                raise SystemExit(f"{program} ended with status {end.returncode}: {said[-1]}")
        figures = [line.split() for line in said[0].splitlines() if line.strip()[:1].isdigit()]
        return figures[-1], cpu[1], cpu[0]


def _wait_for_listener(port: int) -> None:
    """Without connecting: the server takes one client."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            with open(table, encoding="ascii") as lines:
                for line in lines:
                    fields = line.split()
                    if fields[1].endswith(f":{port:04X}") and fields[3] == "0A":
                        return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port} after {_START_SECONDS} s")
