"""How does a test run units under a real systemd, and touch nothing of the machine?

systemd as process 1 of a PID, mount and cgroup namespace of its own. It sees only the units that the test gives it (its unit path
is that one folder, its targets are stubs, there are no generators), so that nothing of a boot runs: no tmpfiles, no
sysctl, no udev. /run, /tmp and /var/tmp are empty and its own. /dev/shm and the network are the machine's, which is what lets the
test be an engine beside the units. Killing `unshare` kills all of it. Needs root; `Boot.begin` says why when it cannot be.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

__all__ = ["Boot", "CannotBootError"]

SYSTEMD = "/lib/systemd/systemd"
PATIENCE_SECONDS = 90.0
# The order matters: the folder is bound before /tmp, in which it lies, is covered.
SCRIPT = f"""
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/units && mount --bind "$1" /run/units
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=1777 tmpfs /var/tmp
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
export SYSTEMD_UNIT_PATH=/run/units SYSTEMD_GENERATOR_PATH=/run/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/none
export container=pegashm-test
cd /
exec {SYSTEMD} --system --unit=boot.target --log-target=console --log-level=notice --show-status=0
"""
TARGETS = (
    "boot",
    "basic",
    "sysinit",
    "local-fs",
    "network-online",
    "multi-user",
    "shutdown",
    "umount",
)
NAMESPACES = (
    "--mount",
    "--pid",
    "--fork",
    "--mount-proc",
    "--cgroup",
    "--uts",
    "--kill-child=SIGKILL",
)


class CannotBootError(Exception):
    """systemd cannot be process 1 of a namespace here; the message says why."""


class Boot:
    """A systemd with the units of `folder`, which it sees as /run/units. `log`: what it says itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "systemd.log"
        self._unshare: subprocess.Popen[bytes] | None = None
        self._pid = 0

    @classmethod
    def begin(cls, folder: Path) -> Boot:
        if os.geteuid() or not Path(SYSTEMD).exists() or shutil.which("unshare") is None:
            raise CannotBootError(f"needs root, {SYSTEMD} and unshare")
        for name in TARGETS:
            text = f"[Unit]\nDescription={name}\nDefaultDependencies=no\n"
            (folder / f"{name}.target").write_text(text)
        boot = cls(folder)
        try:
            boot._start()
        except BaseException:
            boot.end()
            raise
        return boot

    def _start(self) -> None:
        command = ["unshare", *NAMESPACES, "bash", "-c", SCRIPT, "boot", str(self.folder)]
        with self.log.open("wb") as log:
            self._unshare = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            if self._unshare.poll() is not None or time.monotonic() > until:
                raise CannotBootError(f"systemd did not come up: {self.log.read_text()[-1000:]}")
            if self._pid or (children := self._children()):
                self._pid = self._pid or children[0]
                if self.systemctl("is-system-running").stdout.strip() in ("running", "degraded"):
                    return
            time.sleep(0.1)

    def _children(self) -> list[int]:
        assert self._unshare is not None
        pid = self._unshare.pid
        try:
            return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in its namespaces, as on a console of that machine."""
        enter = ["nsenter", "--target", str(self._pid), "--mount", "--pid", "--cgroup"]
        return subprocess.run(
            [*enter, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )

    def systemctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("systemctl", "--no-pager", *arguments)

    def show(self, unit: str, field: str) -> str:
        return self.systemctl("show", "--property", field, "--value", unit).stdout.strip()

    def status_of(self, unit: str) -> dict[str, str]:
        """/proc/PID/status of the unit's main process, as the machine's kernel has it."""
        text = self.run("cat", f"/proc/{self.show(unit, 'MainPID')}/status").stdout
        return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)

    def end(self) -> None:
        if self._unshare is not None and self._unshare.poll() is None:
            self._unshare.send_signal(signal.SIGKILL)
            self._unshare.wait()
