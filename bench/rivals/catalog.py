"""Which rivals are there, what does each need, and where does its environment lie?

A rival has an environment of its own under .cache/rivals (install.py makes it) and may need Debian packages. It takes part in one or
several forms: the same servers, used in different ways. PegaShm and the yardstick run in the environment of the bench itself.
`NOT_HERE` are those that were tried on a machine without GPU and RDMA device and do not run there.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.rivals.store import Servers
from bench.rivals.stores import lmcache, lmdb, memcached, mooncake, pegashm, ray, redis

__all__ = ["NOT_HERE", "PEGASHM", "RIVALS", "YARDSTICK", "Form", "Rival"]

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".cache" / "rivals"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way to use a rival's servers."""

    title: str
    config: Mapping[str, Any] = field(default_factory=dict)
    shared_names: bool = True  # another client finds what one has put


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A store to measure."""

    key: str
    forms: Sequence[Form]
    servers: Callable[[str], Servers] | None
    roles: Sequence[str] = ()  # of its servers, each of which is killed
    requirements: Sequence[str] = ()  # for pip; empty: the bench's own environment serves
    without_dependencies: Sequence[str] = ()  # installed by --no-deps, after the others
    packages: Sequence[str] = ()  # Debian's
    program: str = ""  # from those packages, without which it cannot run
    environment: Mapping[str, str] = field(default_factory=dict)
    slow: bool = False  # takes more than some seconds to start
    installed_as: str = ""  # in the environment of another one, by the same store's file

    @property
    def folder(self) -> Path:
        return ENVIRONMENTS / self.module

    @property
    def python(self) -> str:
        """The interpreter of its clients."""
        return str(self.folder / "bin" / "python") if self.requirements else sys.executable

    @property
    def module(self) -> str:
        """Its file in stores/."""
        return self.installed_as or self.key

    def missing(self) -> str:
        """What is not there, in words; "" when it can be measured."""
        if self.requirements and not os.path.exists(self.folder / "installed"):
            return f"not installed. Type: python -m bench.rivals.install {self.module}"
        if self.program and not any(map(shutil.which, self.program.split())):
            return f"no {self.program.split()[-1]}. Type: apt install {' '.join(self.packages)}"
        return ""


_LMCACHE_NEEDS = (
    "aiofile aiofiles aiohttp awscrt blake3 cachetools cryptography fastapi grpcio>=1.78 grpcio-observability==1.78.0 "
    "httptools httpx huggingface_hub>=1.5 msgspec numba numpy<=2.2.6 nvtx opentelemetry-api<=1.40 "
    "opentelemetry-exporter-otlp opentelemetry-exporter-prometheus<=0.61b0 opentelemetry-sdk prometheus_client<=0.24.1 "
    "protobuf<7 psutil py-cpuinfo pyyaml pyzmq>=25 redis safetensors setuptools<81 sortedcontainers "
    "transformers>=5.4 uvicorn"
)


def _program(key: str, name: str = "") -> str:
    return str(ENVIRONMENTS / key / "bin" / name)


YARDSTICK = Rival(key="process", forms=[Form(title="memcpy", shared_names=False)], servers=None)
PEGASHM = Rival(
    key="pegashm",
    forms=[Form(title="PegaShm")],
    servers=pegashm.PegaShmServers,
    roles=["supervisor"],
)
RIVALS: Sequence[Rival] = (
    Rival(
        key="pegashm-huge",
        forms=[Form(title="PegaShm, 2 MiB pages")],
        servers=lambda folder: pegashm.PegaShmServers(folder, huge=True),
        installed_as="pegashm",
    ),
    Rival(
        key="lmdb",
        forms=[Form(title="LMDB in /dev/shm")],
        servers=lmdb.LmdbServers,
        roles=["no server to kill"],
        requirements=["lmdb", "numpy"],
    ),
    Rival(
        key="redis",
        forms=[
            Form(title="Redis, redis-py"),
            Form(title="Redis, bare socket", config={"bare": True}),
        ],
        servers=redis.RedisServers,
        roles=["server"],
        requirements=["redis>=5", "hiredis>=3", "numpy"],
        packages=["redis-server"],
        program="valkey-server redis-server",
    ),
    Rival(
        key="memcached",
        forms=[Form(title="memcached")],
        servers=memcached.MemcachedServers,
        roles=["server"],
        requirements=["pymemcache", "numpy"],
        packages=["memcached"],
        program="memcached",
    ),
    Rival(
        key="mooncake",
        forms=[Form(title="Mooncake, shared memory")],
        servers=lambda folder: mooncake.MooncakeServers(
            folder, _program("mooncake"), embedded=False
        ),
        roles=["master", "holder of the memory"],
        requirements=["mooncake-transfer-engine-non-cuda", "numpy"],
        packages=["libibverbs1", "libcurl4", "libnuma1"],
    ),
    Rival(
        key="mooncake-embedded",
        forms=[Form(title="Mooncake, embedded")],
        servers=lambda folder: mooncake.MooncakeServers(
            folder, _program("mooncake"), embedded=True
        ),
        roles=["master"],
        installed_as="mooncake",
        requirements=["mooncake-transfer-engine-non-cuda", "numpy"],
        packages=["libibverbs1", "libcurl4", "libnuma1"],
    ),
    Rival(
        key="lmcache",
        forms=[Form(title="LMCache server")],
        servers=lambda folder: lmcache.LmcacheServers(folder, _program("lmcache", "lmcache")),
        roles=["server"],
        # Named one by one, without what needs CUDA. torch: the build for CPUs, where pip finds it.
        requirements=["torch", *_LMCACHE_NEEDS.split()],
        without_dependencies=["lmcache==0.5.6"],
        environment={"OMP_NUM_THREADS": "1"},  # one copying thread, as the others
        slow=True,
    ),
    Rival(
        key="ray",
        forms=[Form(title="Ray object store", shared_names=False)],
        servers=lambda folder: ray.RayServers(folder, _program("ray", "ray")),
        roles=["raylet", "control store"],
        requirements=["ray", "numpy"],
        slow=True,
    ),
)
NOT_HERE: Mapping[str, str] = {
    "PegaFlow (pegaflow-llm 0.25.1)": "panics without libcuda",
    "Dynamo KVBM (kvbm 1.6.1)": "panics without libcuda",
    "InfiniStore": "needs an RDMA device",
}
