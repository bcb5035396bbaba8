"""How does a test get hosts with networks of their own? Network namespaces, each with a veth cable to a common bridge.

Root only, and where the kernel has network namespaces: `why_not` says what is missing. Namespaces and links carry the pid
of the test run in their names; `close` removes them, and `sweep` those of runs that were killed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

__all__ = ["Network", "delays_work", "why_not"]

_PREFIX = "pgs"


def _run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done


def why_not() -> str | None:
    """What keeps this machine from having such networks; None: nothing."""
    if os.geteuid() or not shutil.which("ip"):
        return "network namespaces need root and iproute2"
    name = f"{_PREFIX}probe{os.getpid()}"
    if _run("ip", "netns", "add", name, check=False).returncode:
        return "this kernel or container gives no network namespaces"
    _run("ip", "netns", "del", name)
    return None


class Network:
    """Hosts 10.99.x.1 and so on, in namespaces of their own, joined by a bridge in another one."""

    def __init__(self, count: int) -> None:
        sweep()
        self._mark = f"{_PREFIX}{os.getpid()}"
        self._hub = f"{self._mark}h"
        self.names = [f"{self._mark}n{number}" for number in range(count)]
        self.addresses = [f"10.99.{os.getpid() % 250}.{number + 1}" for number in range(count)]
        for name in (self._hub, *self.names):
            _run("ip", "netns", "add", name)
        self._in(self._hub, "ip", "link", "add", "bridge", "type", "bridge")
        self._in(self._hub, "ip", "link", "set", "bridge", "up")
        for number, name in enumerate(self.names):
            port = f"port{number}"
            _run(
                "ip",
                "-n",
                self._hub,
                "link",
                "add",
                port,
                "type",
                "veth",
                "peer",
                "name",
                "eth",
                "netns",
                name,
            )
            self._in(self._hub, "ip", "link", "set", port, "master", "bridge", "up")
            self._in(name, "ip", "address", "add", f"{self.addresses[number]}/24", "dev", "eth")
            for link in ("eth", "lo"):
                self._in(name, "ip", "link", "set", link, "up")

    def prefix(self, number: int) -> list[str]:
        """What makes a command run on that host."""
        return ["ip", "netns", "exec", self.names[number]]

    def cut(self, number: int) -> None:
        """Pull its cable: what it sends is lost, and nobody is told."""
        self._in(self._hub, "ip", "link", "set", f"port{number}", "nomaster")

    def heal(self, number: int) -> None:
        self._in(self._hub, "ip", "link", "set", f"port{number}", "master", "bridge")

    def shape(self, number: int, *rule: str) -> bool:
        """`tc netem` on what it sends: delay 20ms, loss 3%, ... False where the kernel has none."""
        command = ("tc", "qdisc", "replace", "dev", "eth", "root", "netem", *rule)
        return _run(*self.prefix(number), *command, check=False).returncode == 0

    def close(self) -> None:
        for name in (self._hub, *self.names):
            _run("ip", "netns", "del", name, check=False)

    def _in(self, name: str, *command: str) -> None:
        _run("ip", "netns", "exec", name, *command)


def delays_work(network: Network) -> bool:
    """Whether this kernel has netem."""
    return network.shape(0, "delay", "0ms")


def sweep() -> None:
    """Remove what killed runs left."""
    for path in Path("/run/netns").glob(f"{_PREFIX}[0-9]*"):
        found = re.fullmatch(rf"{_PREFIX}([0-9]+)(h|n[0-9]+)", path.name)
        if found and not Path(f"/proc/{found[1]}").exists():
            _run("ip", "netns", "del", path.name, check=False)
