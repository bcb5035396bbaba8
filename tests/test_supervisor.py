"""Does `pegashm serve` do what its help says?

Real supervisors in processes of their own, on small arenas; every refusal is read as an operator would
read it.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from pegashm import creation, supervisor
from pegashm.arena import open_arena
from pegashm.cache import Cache, Copyist
from pegashm.cli import main
from pegashm.cli.serve import serve as serve_command
from pegashm.config import ServeConfig
from pegashm.errors import ArenaBusyError, ConfigError, ResourceError
from pegashm.layout import plan_layout
from pegashm.machine import hugetlb_mount, node_cpus, numa_nodes
from pegashm.names import SHM_DIRECTORY, control_path, payload_path
from pegashm.units import GIB, KIB, MIB, format_bytes, parse_bytes

from tests.served import (
    KEYS,
    NAMESPACE,
    PATIENCE_SECONDS,
    Served,
    assert_stored,
    objects,
    pegashm,
    refused,
    status,
    store,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes user, group or mounts")


# -- life ---------------------------------------------------------------------------------------


def test_serve_stop_serve_keeps_every_block(name: str, serve: Callable[..., Served]) -> None:
    first = serve().wait_ready()
    assert 0 == status(name)["exit_status"]
    store(name)
    assert 0 == first.end()
    assert "stays in place" in first.log
    assert "re-adopted" not in first.log
    report = status(name)
    assert ("unsupervised", 1) == (report["state"], report["exit_status"])
    assert_stored(name)

    second = serve().wait_ready()
    assert "8 blocks ready" in second.wait_log("re-adopted")
    assert_stored(name)
    assert 0 == second.end(signal.SIGINT)
    assert {f"pegashm.{name}.control", f"pegashm.{name}.arena0"} == objects(name)


def test_engines_work_on_while_the_supervisor_is_killed(
    name: str, serve: Callable[..., Served]
) -> None:
    first = serve().wait_ready()
    with Cache.attach(name, namespace=NAMESPACE) as cache:
        assert -signal.SIGKILL == first.end(signal.SIGKILL)
        assert status(name)["exit_status"] == 1
        store(name)
        handles, outcomes = cache.find(KEYS, pin=True)
        assert not outcomes.any()
        serve().wait_ready().wait_log("re-adopted")
        _, again = cache.find(KEYS)
        assert not again.any()
        cache.unpin(handles)


def test_status_without_its_payload_says_that_nobody_can_attach(
    name: str, serve: Callable[..., Served]
) -> None:
    serve().wait_ready().end(signal.SIGKILL)
    payload = Path("/dev/shm", f"pegashm.{name}.arena0")
    payload.unlink()
    report = status(name)
    assert ("unreadable", 2) == (report["state"], report["exit_status"])
    assert f"{payload} is gone" in report["reason"]
    assert f"pegashm purge --name {name}" in report["reason"]


def test_status_of_nothing_is_2_and_names_the_command(name: str) -> None:
    result = pegashm("status", "--name", name)
    assert 2 == result.returncode
    assert "pegashm serve" in result.stdout


def test_ephemeral_removes_everything(name: str, serve: Callable[..., Served]) -> None:
    served = serve("--size", "32M", "--ephemeral").wait_ready()
    assert 0 == served.end()
    assert set() == objects(name)


def test_removed_under_its_supervisor_it_ends(name: str, serve: Callable[..., Served]) -> None:
    served = serve().wait_ready()
    refused = pegashm("purge", "--name", name, "--yes")
    assert 1 == refused.returncode
    assert f"pid {served.process.pid}" in refused.stderr
    assert 0 == pegashm("purge", "--name", name, "--yes", "--force").returncode
    assert "was removed under its supervisor" in served.rest()
    assert 1 == served.process.returncode
    assert set() == objects(name)


def test_permissions_are_the_owners_unless_a_group_is_named(
    name: str, serve: Callable[..., Served]
) -> None:
    def modes() -> set[int]:
        return {(Path(SHM_DIRECTORY) / o).stat().st_mode & 0o777 for o in objects(name)}

    assert 0 == serve(umask=0).wait_ready().end()
    assert {0o600} == modes()
    group = str(os.getgid())
    assert 0 == serve("--size", "32M", "--group", group, umask=0o777).wait_ready().end()
    assert {0o660} == modes()
    assert 0 == serve().wait_ready().end()
    assert {0o600} == modes()


# -- the dead -----------------------------------------------------------------------------------


def test_a_dead_client_is_reaped_when_all_its_copiers_are_gone(
    name: str, serve: Callable[..., Served]
) -> None:
    served = serve().wait_ready()
    owner, release = _client_that_claims(name)
    with open_arena(name) as arena:
        client = arena.region.clients()[0]
        with Copyist.open(name) as copyist:
            region_id = arena.region.header["region_id"]
            assert copyist.serve(region_id, client["slot"], client["incarnation"])
            os.kill(owner, signal.SIGKILL)
            os.waitpid(owner, 0)
            time.sleep(2.5)  # two rounds of the supervisor, in which it must do nothing
            assert 4 == arena.region.tally()["claimed"]
            assert 1 == len(arena.region.clients())
        assert "4 claims" in served.wait_log("reaped client")
        assert 0 == arena.region.tally()["claimed"]
        assert [] == arena.region.clients()
    os.close(release)


def _client_that_claims(name: str) -> tuple[int, int]:
    """A child that holds four claims and waits to be killed."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            cache = Cache.attach(name, namespace=NAMESPACE)
            cache.claim(KEYS[:4], 4 * KIB)
            os.write(write_end, b"x")
            signal.pause()
        os._exit(1)
    os.close(write_end)
    assert b"x" == os.read(read_end, 1)
    return pid, read_end


def test_purge_refuses_while_a_client_lives(name: str, serve: Callable[..., Served]) -> None:
    assert 0 == serve().wait_ready().end()
    with (
        Cache.attach(name, namespace=NAMESPACE, label="engine-7"),
        pytest.raises(ArenaBusyError, match="engine-7"),
    ):
        creation.purge(name, force=False)
    assert 2 == pegashm("purge", "--name", name).returncode, "--yes is missing"
    assert 0 == pegashm("purge", "--name", name, "--yes").returncode
    assert set() == objects(name)
    again = pegashm("purge", "--name", name, "--yes")
    assert 0 == again.returncode
    assert "nothing to remove" in again.stderr


# -- refusals -----------------------------------------------------------------------------------


def test_a_second_supervisor_names_the_first(name: str, serve: Callable[..., Served]) -> None:
    first = serve().wait_ready()
    assert f"pid {first.process.pid}" in refused(name, "--size", "32M", exit_status=1)


@pytest.mark.parametrize(
    ("arguments", "both_sides"),
    [
        (["--size", "48M"], ["7 segments", "48 MiB"]),
        (["--size", "32M", "--segment-size", "8M"], ["4 MiB", "8 MiB"]),
        (["--size", "32M", "--block-min", "128K"], ["64 KiB", "128 KiB"]),
        (["--size", "32M", "--directory", "/var/tmp"], ["/dev/shm", "/var/tmp"]),
        (["--size", "32M", "--numa", "0"], ["none", "asked was 0"]),
    ],
)
def test_another_shape_is_refused_with_both_sides(
    name: str, serve: Callable[..., Served], arguments: list[str], both_sides: list[str]
) -> None:
    serve("--size", "32M", "--segment-size", "4M").wait_ready().end()
    store(name)
    message = refused(name, *arguments, exit_status=2)
    for side in [*both_sides, f"pegashm purge --name {name} --yes"]:
        assert side in message
    assert_stored(name)


@pytest.mark.parametrize("offset", [0, 8, 16])
def test_another_build_is_refused_and_left_alone(
    name: str, serve: Callable[..., Served], offset: int
) -> None:
    """Magic, major version and layout signature of somebody else."""
    serve().wait_ready().end()
    path = Path(control_path(name))
    before = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes([before[offset] ^ 0x40]))
    assert "pegashm purge" in refused(name, "--size", "32M", exit_status=1)
    assert len(before) == path.stat().st_size
    assert 2 == status(name)["exit_status"]
    assert 0 == pegashm("purge", "--name", name, "--yes").returncode
    assert set() == objects(name)


def test_a_missing_payload_file_is_damage(name: str, serve: Callable[..., Served]) -> None:
    serve().wait_ready().end()
    os.unlink(payload_path(name, SHM_DIRECTORY, 0))
    message = refused(name, "--size", "32M", exit_status=1)
    assert "is gone" in message
    assert "pegashm purge" in message


def test_more_than_there_is_says_so_at_once(name: str) -> None:
    message = refused(name, "--size", "200T", exit_status=1)
    assert "more than" in message
    assert set() == objects(name)


@pytest.mark.skipif(
    hugetlb_mount(GIB) is not None, reason="a hugetlbfs of 1 GiB pages is mounted here"
)
def test_no_hugetlbfs_says_how_to_mount_one(name: str) -> None:
    message = refused(name, "--size", "8G", "--hugepages", "1G", exit_status=1)
    assert "mount -t hugetlbfs -o pagesize=1024M" in message
    assert "nr_hugepages" in message
    assert set() == objects(name)


@as_root
def test_a_full_tmpfs_says_how_to_enlarge_it(name: str, tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path, "size=16M"):
        message = refused(name, "--size", "32M", "--directory", str(tmp_path), exit_status=1)
        assert f"mount -o remount,size=1G {tmp_path}" in message
        assert set() == objects(name) | objects(name, str(tmp_path))


@as_root
def test_a_huge_tmpfs_gives_huge_pages(
    name: str, serve: Callable[..., Served], tmp_path: Path
) -> None:
    with mounted_tmpfs(tmp_path, "size=64M,huge=advise"):
        served = serve("--size", "32M", "--directory", str(tmp_path)).wait_ready()
        served.wait_log("populated")
        assert 2 * MIB == status(name)["page_bytes"]
        smaps = Path(f"/proc/{served.process.pid}/smaps").read_text()
        mapped = smaps[smaps.index(str(tmp_path)) :]
        huge = re.search(r"ShmemPmdMapped: +(\d+) kB", mapped)
        assert huge is not None
        assert int(huge[1]) > 0
        assert 0 == served.end()
        assert 0 == pegashm("purge", "--name", name, "--yes").returncode
        assert set() == objects(name) | objects(name, str(tmp_path))


@contextlib.contextmanager
def mounted_tmpfs(directory: Path, options: str) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(directory)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@as_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv to give up a capability")
def test_without_the_right_to_lock_it_warns_or_refuses(
    name: str, serve: Callable[..., Served]
) -> None:
    def lower_limit() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 * MIB, 8 * MIB))

    prefix = ["setpriv", "--bounding-set=-ipc_lock"]
    message = refused(
        name,
        "--size",
        "32M",
        "--require-lock",
        exit_status=1,
        prefix=prefix,
        preexec_fn=lower_limit,
    )
    assert "ulimit -l unlimited" in message
    assert "LimitMEMLOCK=infinity" in message
    assert set() == objects(name)

    served = serve("--size", "32M", prefix=prefix, preexec_fn=lower_limit)
    served.wait_log("warning .*LimitMEMLOCK=infinity")
    assert "and locked" not in served.wait_log("populated")


@as_root
def test_another_user_is_told_who_may(name: str, serve: Callable[..., Served]) -> None:
    served = serve().wait_ready()
    pid = os.fork()
    if pid == 0:
        code = 99
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setgid(65533)
            os.setuid(65533)
            report = status(name)
            code = 0 if report["exit_status"] == 2 and "--group" in report["reason"] else 1
            with pytest.raises(ResourceError, match="mode 0600"):
                open_arena(name)
        os._exit(code)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert 0 == served.end()


# -- options ------------------------------------------------------------------------------------


def configured(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], variables: dict[str, str]
) -> ServeConfig:
    """The config that `pegashm serve` would supervise by."""
    seen: list[ServeConfig] = []
    monkeypatch.setattr(supervisor, "serve", seen.append)
    result = CliRunner().invoke(main, ["serve", *arguments], env=variables)
    assert 0 == result.exit_code, result.output
    return seen[0]


def test_command_line_beats_variable_beats_file_beats_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "kv.toml"
    file.write_text('name = "f"\nsize = "1G"\nnuma = [0, 1]\nsegment-size = "8M"\nlock = false\n')
    variables = {"PEGASHM_CONFIG": str(file), "PEGASHM_SIZE": "2G", "PEGASHM_SEGMENT_SIZE": "16M"}
    config = configured(monkeypatch, ["--segment-size", "32M"], variables)
    assert config == ServeConfig(
        name="f", size_bytes=2 * GIB, numa=(0, 1), segment_bytes=32 * MIB, lock=False
    )
    flags = {"PEGASHM_LOCK": "1", "PEGASHM_EPHEMERAL": "1"}
    config = configured(monkeypatch, ["--keep"], variables | flags)
    assert (True, False) == (config.lock, config.ephemeral)


def test_every_option_of_serve_has_a_variable_named_after_it() -> None:
    for option in serve_command.params:
        assert option.name is not None
        assert f"PEGASHM_{option.name.upper()}" == option.envvar


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "64X"], "64X"),
        (["--size", "1M"], "at least 4M"),
        (["--size", "64M", "--segment-size", "3M"], "power of two"),
        (["--size", "64M", "--segment-size", "64M"], "too small"),
        (["--size", "64M", "--block-min", "5000"], "multiple of 4K"),
        (["--size", "64M", "--numa", "left"], "auto, none"),
        (["--size", "64M", "--hugepages", "2M", "--directory", "/x"], "one of the two"),
        (["--size", "64M", "--directory", "x"], "absolute"),
        (["--size", "64M", "--no-lock", "--require-lock"], "contradict"),
        (["--size", "64M", "--group", "no such group"], "getent group"),
        ([], "--size"),
    ],
)
def test_wrong_usage_is_exit_status_2(name: str, arguments: list[str], said: str) -> None:
    assert said in refused(name, *arguments, exit_status=2)
    assert set() == objects(name)


def test_a_wrong_name_or_file_is_exit_status_2(tmp_path: Path) -> None:
    assert "letters" in refused("../x", "--size", "64M", exit_status=2)
    file = tmp_path / "kv.toml"
    file.write_text("sice = 1\n")
    message = refused("x", "--config", str(file), exit_status=2)
    assert "'sice'" in message
    assert "segment-size" in message
    file.write_text("size = \n")
    assert "not valid TOML" in refused("x", "--config", str(file), exit_status=2)


def test_a_node_that_is_not_there_is_refused(name: str) -> None:
    assert "lscpu" in refused(name, "--size", "32M", "--numa", "0,77", exit_status=1)


@pytest.mark.skipif(not node_cpus(0), reason="the kernel tells of no NUMA node here")
def test_an_arena_bound_to_a_node(name: str, serve: Callable[..., Served]) -> None:
    node = numa_nodes()[0]
    served = serve("--size", "32M", "--numa", str(node)).wait_ready()
    served.wait_log("populated")
    assert "cannot bind" not in served.log
    assert [node] == [arena["numa_node"] for arena in status(name)["arenas"]]
    policy = Path(f"/proc/{served.process.pid}/numa_maps").read_text()
    assert re.search(rf"bind[^ ]*:{node} .*{name}\.arena0", policy)


@pytest.mark.parametrize("size", ["4M", "5M", "33M", "64M", "1G", "100G", "1T", "5T", "40T"])
def test_a_cap_is_a_cap(size: str) -> None:
    config = ServeConfig(name="cap", size_bytes=parse_bytes(size), numa="none")
    layout = plan_layout(config)
    total = layout.plan["payload_bytes"] + layout.plan["control_bytes"]
    assert config.size_bytes - 2 * layout.segment_bytes < total <= config.size_bytes
    assert sum(layout.segments_per_arena) == layout.plan["segment_count"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64G", 64 * GIB),
        ("64 GiB", 64 * GIB),
        ("1.5k", 1536),
        ("2GB", 2 * 10**9),
    ],
)
def test_sizes_as_people_write_them(text: str, count: int) -> None:
    assert count == parse_bytes(text)


@pytest.mark.parametrize("text", ["", "G", "-1G", "1e3", "1.0000001K", "64Gi", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_bytes(text)


def test_sizes_as_we_write_them() -> None:
    assert ["0 bytes", "4 KiB", "1.50 KiB", "3 TiB"] == [
        format_bytes(n) for n in (0, 4096, 1536, 3 << 40)
    ]


# -- telling others -----------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_ready_status_watchdog_and_stopping(
    name: str, serve: Callable[..., Served], tmp_path: Path, abstract: bool
) -> None:
    address = f"@pegashm-{name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)
        manager.settimeout(PATIENCE_SECONDS)
        environment = os.environ | {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}
        served = serve("--size", "32M", env=environment)
        heard: list[str] = []
        while heard.count("WATCHDOG=1") < 3:
            heard += manager.recv(4096).decode().splitlines()
        assert "READY=1" in heard
        assert any(line.startswith("STATUS=reserving") for line in heard)
        assert "STATUS=7 of 7 segments ready" in heard
        assert 0 == served.end()
        manager.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                heard += manager.recv(4096).decode().splitlines()
        assert "STOPPING=1" == heard[-1]
