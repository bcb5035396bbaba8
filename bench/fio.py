"""How fast can this file be written or read at best? Asked of `fio`, the yardstick of everybody who does I/O.

One call is one run of fio: sequential overwrites or random reads of one block size, O_DIRECT, by psync with some jobs
or by io_uring at some depth, from memory of 4 KiB pages or from a file of huge pages. Speed is fio's own figure, without its
start. Used by spill.py; fio comes from the system, and who lacks it is told what to type.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass

__all__ = ["Fio", "Sample"]


@dataclass(frozen=True, slots=True)
class Sample:
    """Gigabytes a second, and CPU seconds a gigabyte."""

    gbs: float
    cpu_s_gb: float


@dataclass(frozen=True, slots=True)
class Fio:
    """One way to drive a device."""

    engine: str
    count: int  # jobs of psync, depth of io_uring
    huge_file: str | None = None

    @property
    def name(self) -> str:
        what = "jobs" if self.engine == "psync" else "depth"
        return f"{self.engine} {what} {self.count}{', huge' if self.huge_file else ''}"

    @staticmethod
    def version() -> str:
        """Of the fio installed; SystemExit with what to type when there is none."""
        if shutil.which("fio") is None:
            raise SystemExit(
                "this bench measures beside fio, and there is none here. Type: apt install fio"
            )
        return subprocess.run(
            ["fio", "--version"], check=True, capture_output=True, text=True
        ).stdout.strip()

    def run(self, path: str, *, write: bool, block_bytes: int, seconds: float) -> Sample:
        """Time-based: `seconds` over the whole of the file, which exists and is written."""
        jobs = self.count if self.engine == "psync" else 1
        command = [
            "fio",
            "--name=bench",
            f"--filename={path}",
            f"--rw={'write' if write else 'randread'}",
            f"--bs={block_bytes}",
            "--direct=1",
            f"--ioengine={self.engine}",
            f"--numjobs={jobs}",
            f"--iodepth={1 if self.engine == 'psync' else self.count}",
            "--time_based",
            f"--runtime={seconds:.3f}s" if seconds >= 1 else f"--runtime={int(seconds * 1000)}ms",
            "--group_reporting",
            "--randrepeat=0",
            "--norandommap",
            "--output-format=json",
        ]
        if write and jobs > 1:
            command.append("--offset_increment=" + f"{100 // jobs}%")
        if self.huge_file:
            command.append(f"--iomem=mmapshared:{self.huge_file}")
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
        side = job["write" if write else "read"]
        busy = (job["usr_cpu"] + job["sys_cpu"]) / 100 * jobs * side["runtime"] / 1000
        return Sample(side["bw_bytes"] / 1e9, busy / (side["io_bytes"] / 1e9))
