"""Does the doctor see a vLLM that the connector refuses, and engines whose hashes nobody finds again? And RDMA that is not ready."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pegashm.doctor.engine import check_hashes
from pegashm.supported import VLLM

from tests.doctor.conftest import told, worst
from tests.world.mounts import mounted


def _installed(folder: Path, package: str, version: str) -> dict[str, str]:
    """An environment in which that package is found first."""
    facts = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_vllm_that_the_connector_refuses(tmp_path: Path) -> None:
    level, says, do = worst(told(env=_installed(tmp_path, "vllm", "0.99.1"))["vllm"])
    assert ("error", True) == (level, "0.99.1" in says)
    assert f"vllm=={VLLM}.*" in do


def test_vllm_that_was_tested(tmp_path: Path) -> None:
    findings = told(env=_installed(tmp_path, "vllm", f"{VLLM}.7+cpu"))["vllm"]
    assert "ok" == worst(findings)[0]


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that were started as `vllm serve` with these words; as far as /proc tells, engines."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def _start(folder: Path, *words: str, seed: str | None) -> subprocess.Popen[bytes]:
    script = folder / "vllm"
    script.write_text("print('up', flush=True)\nimport time\ntime.sleep(600)\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"}
    if seed is not None:
        environment["PYTHONHASHSEED"] = seed
    process = subprocess.Popen(
        [sys.executable, str(script), "serve", "some/model", *words],
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None
    assert b"up\n" == process.stdout.readline()
    return process


def test_an_engine_with_random_hashes(
    tmp_path: Path, engines: list[subprocess.Popen[bytes]]
) -> None:
    engines.append(_start(tmp_path, "--prefix-caching-hash-algo", "xxhash", seed=None))
    level, says, do = worst(told()["hashes"])
    assert ("error", True) == (level, f"pid {engines[0].pid}" in says)
    assert "PYTHONHASHSEED" in do


def test_engines_that_hash_differently(
    tmp_path: Path, engines: list[subprocess.Popen[bytes]]
) -> None:
    engines.append(_start(tmp_path, "--prefix-caching-hash-algo=xxhash", seed="0"))
    engines.append(_start(tmp_path, seed="0"))
    level, says, _ = worst(told()["hashes"])
    assert ("warning", True) == (level, "share nothing" in says)


def test_engines_that_hash_alike(tmp_path: Path, engines: list[subprocess.Popen[bytes]]) -> None:
    engines += [_start(tmp_path, seed="7"), _start(tmp_path, seed="7")]
    only = tmp_path / "proc"  # these processes, whoever else runs engines here
    only.mkdir()
    for engine in engines:
        (only / str(engine.pid)).symlink_to(f"/proc/{engine.pid}")
    level, says, _ = worst(check_hashes(only))
    assert ("ok", True) == (level, "hash alike" in says)


def test_an_rdma_device_that_is_down_and_cannot_be_reached(tmp_path: Path) -> None:
    """A device as /sys shows it, with a port that is down, and no /dev/infiniband."""
    port = tmp_path / "infiniband" / "rxe0" / "ports" / "1"
    port.mkdir(parents=True)
    (port / "state").write_text("1: DOWN\n")
    hide = "([ ! -d /dev/infiniband ] || mount -t tmpfs none /dev/infiniband)"
    with mounted(f"mount --bind {tmp_path} /sys/class", hide) as prefix:
        findings = told(prefix=prefix)["rdma"]
    assert any("DOWN" in f["says"] and f["level"] == "warning" for f in findings)
    assert ("error", True) == (worst(findings)[0], "modprobe ib_uverbs" in worst(findings)[2])


def test_no_rdma_device_is_fine() -> None:
    with mounted("mount -t tmpfs none /sys/class") as prefix:
        level, says, _ = worst(told(prefix=prefix)["rdma"])
    assert ("ok", True) == (level, "TCP" in says)
