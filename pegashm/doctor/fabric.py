"""Can this host read other hosts' memory by RDMA? Devices, their ports, who may use them, and pyverbs.

Without any device all is well: TCP is used. Looks at /sys and tries an import; opens no device.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pegashm.doctor.finding import Finding, error, ok, warning

__all__ = ["check_rdma"]

_DEVICES: Final = Path("/sys/class/infiniband")
_UVERBS: Final = Path("/dev/infiniband")


def check_rdma() -> list[Finding]:
    names = sorted(path.name for path in _DEVICES.glob("*"))
    if not names:
        return [ok("rdma", "no device: other hosts are read by TCP")]
    findings = [_device(name) for name in names]
    findings.append(_may_use())
    findings.append(_pyverbs())
    return findings


def _device(name: str) -> Finding:
    ports = sorted((_DEVICES / name / "ports").glob("*"))
    states = {port.name: _text(port / "state") for port in ports}
    down = {port: state for port, state in states.items() if "ACTIVE" not in state}
    if down and len(down) == len(states):
        told = ", ".join(f"port {port} is {state}" for port, state in down.items())
        return warning(
            "rdma",
            f"{name}: {told}",
            f"rdma link show {name}   and bring its network interface up (ip link set DEV up), or leave it out with --rdma-devices",
        )
    return ok("rdma", f"{name}: {len(states) - len(down)} of {len(states)} ports active")


def _may_use() -> Finding:
    nodes = sorted(_UVERBS.glob("uverbs*"))
    if not nodes:
        return error(
            "rdma",
            f"there is no {_UVERBS}/uverbs*: programs cannot reach the devices",
            "modprobe ib_uverbs   (in a container: --device /dev/infiniband)",
        )
    shut = [str(node) for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if shut:
        return error(
            "rdma",
            f"uid {os.geteuid()} may not open {shut[0]}",
            "chmod 666 /dev/infiniband/uverbs*   (rdma-core's udev rules do it)",
        )
    return ok("rdma", f"{nodes[0]} can be opened")


def _pyverbs() -> Finding:
    from pegashm.errors import ResourceError

    try:
        import pegashm.fabric.verbs_names  # noqa: F401 - whether it can be imported is the question
    except ResourceError as problem:
        return warning(
            "rdma",
            str(problem).partition(". ")[0],
            "apt-get install python3-pyverbs   and see docs/rdma.md",
        )
    return ok("rdma", "pyverbs can be imported")


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return "unreadable"
