"""How does a test get several hosts, each with an arena, a real transport worker and an engine's side of it?

Each host is what a machine would be: an arena of its own name, a worker in a process of its own that listens on an address
of its own (loopback, or in a network namespace of its own), a client that stores, asks and judges every byte.
Whatever is killed or stopped on the way is cleaned up at the end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pegashm._native import REMOTE
from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.config import PeersConfig, SpillConfig
from pegashm.keys import Namespace, namespace_of
from pegashm.transport.client import TransportClient
from pegashm.transport.messages import Answer
from pegashm.transport.options import WorkerOptions
from pegashm.units import KIB, MIB

from tests.arenas import Shape, make_arena, remove_arena
from tests.ports import free_port
from tests.transport.rig import PATIENCE_SECONDS, Rig, eventually

__all__ = ["BYTES", "NAMESPACE", "Host", "connect"]

NAMESPACE = namespace_of({"model": "peers"}, label="peers test")
BYTES = 16 * KIB
# 256 blocks of 16 KiB.
SHAPE = Shape(
    segment_bytes=256 * KIB, segments_per_arena=(16,), spill_records=2000, remote_buckets=512
)


class Host(Rig):
    """One host: `start` it, tell others its `address`. Blocks, counters and requests as the transport worker's rig has."""

    def __init__(
        self,
        folder: Path,
        *,
        shape: Shape = SHAPE,
        ip: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        keys: str | None = None,
        members: Sequence[str] = (),
        spill: bool = False,
        namespace: Namespace = NAMESPACE,
        port: int = 0,
        **peers: Any,
    ) -> None:
        self.shape = shape
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.name = make_arena(shape)
        self.namespace = namespace
        self.paths = (str(folder / "spill"),) if spill else ()
        self.prefix = tuple(prefix)
        self.keys = keys
        self.members = tuple(members)
        self.address = f"{ip}:{port or free_port()}"
        self.more = peers
        self.runtime = tempfile.TemporaryDirectory(prefix="pegashm-")
        self.log = folder / "worker.log"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.attach()

    @property
    def worker_options(self) -> WorkerOptions:
        spill = SpillConfig(
            paths=self.paths, file_bytes=16 * MIB, backlog_seconds=60.0, low=0.0, high=0.0
        ) if self.paths else None  # fmt: skip
        peers = PeersConfig(
            listen=self.address,
            members=self.members,
            keys=self.keys,
            **({"fabric": "tcp"} | self.more),
        )
        return WorkerOptions(
            name=self.name, spill=spill, peers=peers, parent_pid=os.getpid(), lock_seconds=5.0
        )

    def spawn(self, traced: dict[str, Any] | None = None) -> subprocess.Popen[bytes]:
        """`traced`: how it is to be stopped, see `traced.py`."""
        module, options = "pegashm.transport.worker", self.worker_options.to_json()
        if traced is not None:
            module, options = "tests.peers.traced", json.dumps(traced | {"options": options})
        command = [*self.prefix, sys.executable, "-X", "faulthandler", "-m", module, options]
        environment = os.environ | {"RUNTIME_DIRECTORY": self.runtime.name}
        with self.log.open("ab") as log:
            process = subprocess.Popen(command, stderr=log, env=environment)
        self.processes.append(process)
        return process

    def attach(self) -> None:
        self.arena = open_arena(self.name)
        self.cache = Cache.attach(self.name, namespace=self.namespace)
        self.client = TransportClient(self.arena)

    def again(self) -> None:
        """The host as after a reboot: another region, nothing in it, at the same address."""
        if self.process.poll() is None:
            self.kill()
        self.detach()
        remove_arena(self.name)
        make_arena(self.shape, self.name)
        self.attach()

    # -- what it knows of others -------------------------------------------------------------------

    def said_of_peers(self) -> dict[str, Any]:
        """What its worker wrote last: this one, or one before it."""
        path = Path(self.runtime.name) / self.name / "peers.json"
        said: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return said

    def peers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.said_of_peers().get("peers", [])
        return found

    def has_met(self, other: Host) -> bool:
        """Whether this very worker knows that very worker, and not a life before."""
        mine, theirs = self.said_of_peers(), other.said_of_peers()
        if (mine.get("pid"), theirs.get("pid")) != (self.process.pid, other.process.pid):
            return False
        return any(peer["incarnation"] == theirs["incarnation"] for peer in mine["peers"])

    def knows(self, *others: Host) -> bool:
        known = {peer["host_id"] for peer in self.peers()}
        return all(other.cache.region_id.hex() in known for other in others)

    def follows(self, *others: Host) -> bool:
        """Whether what these hold is known here, as far as they have told it."""
        usable = {
            bytes(entry["host_id"]) for entry in self.arena.region.remote_hosts() if entry["usable"]
        }
        return all(other.cache.region_id in usable for other in others)

    def sees(self, keys: Sequence[bytes]) -> int:
        """How many of these another host has, by our hints."""
        return self.outcomes(keys).count(REMOTE)

    def fetch(self, keys: Sequence[bytes], deadline_ms: int = 20_000) -> list[Answer]:
        return self.promote(keys, deadline_ms)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> int:
        """In good order."""
        return self.kill(signal.SIGTERM)


def connect(hosts: Iterable[Host], *, start: bool = True) -> None:
    """Make each a member of all others' lists, and wait until they have met."""
    all_hosts = list(hosts)
    for host in all_hosts:
        host.members = tuple(other.address for other in all_hosts)
    if not start:
        return
    for host in all_hosts:
        host.start(files=len(host.paths))
    for host in all_hosts:
        others = [other for other in all_hosts if other is not host]
        met = lambda: host.knows(*others) and host.follows(*others)  # noqa: B023, E731 - at once
        eventually(met, PATIENCE_SECONDS)
