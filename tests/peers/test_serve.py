"""Does `pegashm serve --listen` do what was asked, say what cannot be, and `pegashm peers` show it?"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pegashm import supervisor
from pegashm.cli import main
from pegashm.config import REMOTE_BLOCKS_DEFAULT, PeersConfig, ServeConfig, SpillConfig
from pegashm.errors import ConfigError
from pegashm.transport.options import WorkerOptions
from pegashm.units import MIB

from tests.arenas import PREFIX, remove_arena
from tests.ports import free_port
from tests.served import PATIENCE_SECONDS, Served, pegashm, refused, store
from tests.transport.rig import eventually


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="pegashm-") as folder:
        monkeypatch.setenv("RUNTIME_DIRECTORY", folder)
        yield folder


def config_of(monkeypatch: pytest.MonkeyPatch, *arguments: str, **environment: str) -> ServeConfig:
    seen: list[ServeConfig] = []
    monkeypatch.setattr(supervisor, "serve", seen.append)
    result = CliRunner().invoke(
        main, ["serve", "--name", "x", "--size", "64M", *arguments], env=environment
    )
    assert result.exit_code == 0, result.output
    return seen[0]


def test_options_from_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert config_of(monkeypatch).peers is None
    assert 0 == config_of(monkeypatch).remote_bucket_count
    expected = PeersConfig(
        listen="10.0.0.7:7420",
        members=("10.0.0.8:7420", "10.0.0.9:7420", "dns://kv:7420", "etcd://e:2379/kv"),
        keys="/k",
        fabric="tcp",
        advertise="kv7:7420",
        rdma_devices=("mlx5_0", "mlx5_1:1"),
    )
    typed = config_of(
        monkeypatch, "--listen", "10.0.0.7:7420", "--peers", "10.0.0.8:7420,10.0.0.9:7420",
        "--peers", "dns://kv:7420", "--peers", "etcd://e:2379/kv", "--keys", "/k", "--fabric", "tcp",
        "--advertise", "kv7:7420", "--rdma-devices", "mlx5_0,mlx5_1:1",
    )  # fmt: skip
    assert expected == typed.peers
    assert REMOTE_BLOCKS_DEFAULT * 10 <= typed.remote_bucket_count * 64 < REMOTE_BLOCKS_DEFAULT * 11
    environment = {
        "PEGASHM_LISTEN": "10.0.0.7:7420",
        "PEGASHM_PEERS": "10.0.0.8:7420,10.0.0.9:7420 dns://kv:7420 etcd://e:2379/kv",
        "PEGASHM_KEYS": "/k",
        "PEGASHM_FABRIC": "tcp",
        "PEGASHM_ADVERTISE": "kv7:7420",
        "PEGASHM_RDMA_DEVICES": "mlx5_0,mlx5_1:1",
    }
    assert expected == config_of(monkeypatch, **environment).peers
    file = tmp_path / "kv0.toml"
    file.write_text(
        'listen = "10.0.0.7:7420"\nkeys = "/k"\nfabric = "tcp"\nrdma-devices = "mlx5_0,mlx5_1:1"\nadvertise = "kv7:7420"\n'
        'peers = ["10.0.0.8:7420", "10.0.0.9:7420", "dns://kv:7420", "etcd://e:2379/kv"]\n'
    )
    assert expected == config_of(monkeypatch, "--config", str(file)).peers


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--peers", "10.0.0.8:7420"], "need --listen HOST:PORT"),
        (["--listen", "10.0.0.7:7420"], "so that keys are needed"),
        (["--listen", "10.0.0.7"], "must be HOST:PORT"),
        (["--listen", "127.0.0.1:7420", "--peers", "kv8"], "must be HOST:PORT"),
        (["--listen", "127.0.0.1:7420", "--keys", "keys"], "absolute path"),
        (["--listen", "0.0.0.0:7420", "--keys", "/k", "--peers", "etcd://e:1/kv"], "--advertise"),
    ],
)
def test_refusals(name: str, arguments: list[str], text: str) -> None:
    assert text in refused(name, "--size", "64M", *arguments, exit_status=2)


def test_the_workers_options_as_json() -> None:
    peers = PeersConfig(listen="127.0.0.1:7420", members=("a:1", "dns://b:2"), keys="/k")
    spill = SpillConfig(paths=("/a b",), file_bytes=64 * MIB)
    for options in (
        WorkerOptions(name="kv0", peers=peers),
        WorkerOptions(name="kv0", peers=peers, spill=spill),
        WorkerOptions(name="kv0", spill=spill),
    ):
        assert options == WorkerOptions.from_json(options.to_json())
    with pytest.raises(ConfigError, match="nothing to do"):
        WorkerOptions(name="kv0")
    text = WorkerOptions(name="kv0", peers=peers).to_json()
    with pytest.raises(ConfigError):
        WorkerOptions.from_json(text.replace("127.0.0.1:7420", "10.0.0.1"))


def peers_of(name: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["peers", "--name", name, "--json"])
    found: dict[str, Any] = json.loads(result.stdout) if result.exit_code < 2 else {"peers": []}
    return found | {"exit_status": result.exit_code}


def test_two_supervisors(name: str, serve: Callable[..., Served]) -> None:
    """Without spill files: they meet, and each shows what the other holds; one ends, the other shows that."""
    other = f"{PREFIX}{name.removeprefix(PREFIX)}-b"
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    common = ["--size", "32M", "--peers", ",".join(addresses), "--fabric", "tcp"]
    one = serve(*common, "--listen", addresses[0])
    two = Served(other, *common, "--listen", addresses[1])
    try:
        one.wait_ready()
        two.wait_ready()
        store(name)
        eventually(lambda: [p["hints"] for p in peers_of(other)["peers"]] == [8], PATIENCE_SECONDS)
        shown = pegashm("peers", "--name", other)
        assert 0 == shown.returncode
        assert addresses[0] in shown.stdout
        assert "usable" in shown.stdout
        assert 0 == one.end()
        eventually(lambda: peers_of(other)["peers"] == [])
        assert 2 == peers_of(name)["exit_status"], "its worker took its list along"
    finally:
        two.process.kill()
        two.rest()
        remove_arena(other)
    said = peers_of(other)
    assert 2 == said["exit_status"]


def test_an_arena_without_peers_says_so(name: str, serve: Callable[..., Served]) -> None:
    serve().wait_ready()
    shown = pegashm("peers", "--name", name)
    assert 2 == shown.returncode
    assert "start it with `pegashm serve --listen HOST:PORT" in shown.stderr


def test_an_address_that_is_taken(name: str, serve: Callable[..., Served]) -> None:
    """The supervisor serves its arena, and says why its worker does not start."""
    other = f"{PREFIX}{name.removeprefix(PREFIX)}-b"
    address = f"127.0.0.1:{free_port()}"
    one = serve("--size", "32M", "--listen", address, "--fabric", "tcp").wait_ready()
    one.wait_log("listening for other hosts")
    two = Served(other, "--size", "32M", "--listen", address, "--fabric", "tcp")
    try:
        two.wait_ready()
        two.wait_log(f"cannot listen .*{address.rpartition(':')[0]}")
    finally:
        two.process.kill()
        two.rest()
        remove_arena(other)
