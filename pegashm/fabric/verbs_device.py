"""How is one RDMA device opened for a payload, and what is registered with it?

A port that is up, the address by which peers reach it, and the payload's chunks as memory regions. With memory windows
(type 2B, where the device has them) a region by itself opens nothing to anybody: only a window bound over a part of it
does. Without them each region's rkey lets an admitted peer read that chunk.
Called by `verbs.py`; the two sides take queue pairs and keys from here. Regions are made by a thread in the
background, or at once by whoever needs one first.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import threading
from collections.abc import Iterator
from ctypes import addressof, c_char
from pathlib import Path
from typing import Any, Final

from pegashm.errors import ConfigError, ResourceError
from pegashm.fabric.verbs_memory import Chunks
from pegashm.fabric.verbs_names import MR, PD, Context, PyverbsError, e
from pegashm.fabric.verbs_wire import Address
from pegashm.units import format_bytes

__all__ = ["Device", "Port", "find_ports"]

_SYSFS: Final = Path("/sys/class/infiniband")
_ACTIVE: Final = "4:"
_READS_MAX: Final = 128
_PROBE_BYTES: Final = 64


class Port:
    """A port that is up, and its address: from sysfs, so that nothing is opened to find it."""

    def __init__(self, device: str, number: int) -> None:
        self.device = device
        self.number = number
        self._path = _SYSFS / device / "ports" / str(number)
        self.ethernet = self._read("link_layer") == "Ethernet"
        self.lid = int(self._read("lid") or "0", 16)
        self.gid_index = self._choose_gid()
        self.gid = bytes.fromhex(self._read(f"gids/{self.gid_index}").replace(":", ""))
        node = _read(_SYSFS / device / "device" / "numa_node")
        self.node = int(node) if node else -1

    @property
    def name(self) -> str:
        return f"{self.device}:{self.number}"

    def _choose_gid(self) -> int:
        """InfiniBand: the first. Ethernet: RoCE v2, by an IPv4 address rather than an IPv6 one, link-local last."""
        if not self.ethernet:
            return 0
        best: tuple[int, int] | None = None
        indexes = sorted(int(entry.name) for entry in (self._path / "gids").iterdir())
        for index in indexes[:256]:
            gid = self._read(f"gids/{index}").replace(":", "")
            if not gid.strip("0"):
                continue
            routable = "v2" in self._read(f"gid_attrs/types/{index}")
            kind = 0 if gid.startswith("0" * 20 + "ffff") else 2 if gid.startswith("fe80") else 1
            rank = (kind + (0 if routable else 3), index)
            best = rank if best is None else min(best, rank)
        if best is None:
            raise ResourceError(
                f"RDMA port {self.name} has no address: give its network interface an IP address"
            )
        return best[1]

    def _read(self, name: str) -> str:
        return _read(self._path / name)


def find_ports(names: tuple[str, ...]) -> list[Port]:
    """The active ports of these devices (`mlx5_0` or `mlx5_0:1`), of all when there are no names; sorted by NUMA node.

    ConfigError names a device that is not there, ResourceError says that none is up.
    """
    try:
        present = sorted(entry.name for entry in _SYSFS.iterdir())
    except OSError:
        present = []
    for name in names:
        if name.partition(":")[0] not in present:
            raise ConfigError(
                f"there is no RDMA device {name!r} here, only {', '.join(present) or 'none at all'}"
            )
    ports, down = [], []
    for device in present:
        wanted = [name.partition(":")[2] for name in names if name.partition(":")[0] == device]
        if names and not wanted:
            continue
        for entry in sorted((_SYSFS / device / "ports").iterdir()):
            if names and "" not in wanted and entry.name not in wanted:
                continue
            if _read(entry / "state").startswith(_ACTIVE):
                ports.append(Port(device, int(entry.name)))
            else:
                down.append(f"{device}:{entry.name} is {_read(entry / 'state') or 'unreadable'}")
    if not ports:
        raise ResourceError(
            "no RDMA port is up: "
            + ("; ".join(down) or "this machine has no RDMA device in /sys/class/infiniband")
            + ". Expected one in state ACTIVE; `rdma link` and `ibv_devinfo` say more"
        )
    return sorted(ports, key=lambda port: (port.node, port.device, port.number))


class Device:
    """One port, opened. `close` after every queue pair and window on it."""

    def __init__(
        self, port: Port, payload_address: int, chunks: Chunks, *, windows: bool, probe: bytes
    ) -> None:
        self.port = port
        self.payload_address = payload_address
        self._chunks = chunks
        self._regions: list[Any] = [None] * len(chunks.all)
        self._registering = threading.Lock()
        self._probe_lock = threading.Lock()
        with contextlib.ExitStack() as undo:
            try:
                self.context = Context(name=port.device)
                undo.callback(self.context.close)
                limits = self.context.query_device()
                attributes = self.context.query_port(port.number)
                self.pd = PD(self.context)
                undo.callback(self.pd.close)
                self._page = mmap.mmap(-1, mmap.PAGESIZE)
                self._page[: len(probe)] = probe
                # Held as long as the page is registered: an address taken from it must stay its own.
                self._page_view = c_char.from_buffer(self._page)
                address = addressof(self._page_view)
                self.probe_region = MR(
                    self.pd, _PROBE_BYTES, e.IBV_ACCESS_REMOTE_READ, address=address
                )
                self.landing = MR(
                    self.pd,
                    _PROBE_BYTES,
                    e.IBV_ACCESS_LOCAL_WRITE,
                    address=address + mmap.PAGESIZE // 2,
                )
            except PyverbsError as error:
                raise ResourceError(f"cannot open RDMA device {port.name}: {error}") from error
            flags = limits.device_cap_flags
            self.windows = windows and bool(flags & e.IBV_DEVICE_MEM_WINDOW_TYPE_2B)
            self.depth = max(1, min(128, limits.max_qp_wr))
            self.address = Address(
                gid=port.gid,
                lid=port.lid,
                node=port.node,
                mtu=max(1, min(5, int(attributes.active_mtu))),
                reads=max(1, min(_READS_MAX, limits.max_qp_rd_atom, limits.max_qp_init_rd_atom)),
            )
            self._access = e.IBV_ACCESS_LOCAL_WRITE | (
                e.IBV_ACCESS_MW_BIND if self.windows else e.IBV_ACCESS_REMOTE_READ
            )
            # Now, while somebody looks, and not at the first block: a limit on locked memory shows here.
            self.region(0)
            undo.pop_all()

    def region(self, index: int) -> Any:
        """The memory region of one chunk; made now if nobody has. ResourceError when the kernel refuses."""
        region = self._regions[index]
        if region is not None:
            return region
        with self._registering:
            if self._regions[index] is None:
                chunk = self._chunks.all[index]
                try:
                    self._regions[index] = MR(
                        self.pd,
                        chunk.nbytes,
                        self._access,
                        address=self.payload_address + chunk.offset,
                    )
                except PyverbsError as error:
                    raise ResourceError(self._refused(chunk.nbytes, error)) from error
            return self._regions[index]

    def probe_landing(self) -> bytes:
        half = mmap.PAGESIZE // 2
        return self._page[half : half + 16]

    @contextlib.contextmanager
    def probing(self) -> Iterator[None]:
        """One at a time: the landing is one."""
        with self._probe_lock:
            half = mmap.PAGESIZE // 2
            self._page[half : half + 16] = bytes(16)
            yield

    def close(self) -> None:
        for region in [*self._regions, self.probe_region, self.landing]:
            if region is not None:
                region.close()
        self._regions = [None] * len(self._regions)
        self.pd.close()
        self.context.close()

    def _refused(self, nbytes: int, error: Exception) -> str:
        text = f"cannot register {format_bytes(nbytes)} with RDMA device {self.port.name}: {error}"
        soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if soft != resource.RLIM_INFINITY and (
            getattr(error, "error_code", 0) == errno.ENOMEM
            or os.strerror(errno.ENOMEM) in str(error)
        ):
            text += (
                f". Locked memory is limited to {format_bytes(soft)} here: type `ulimit -l unlimited`, set LimitMEMLOCK=infinity in "
                "the systemd unit, or give the container CAP_IPC_LOCK"
            )
        return text


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:  # an empty entry of the GID table reads as EINVAL
        return ""
