"""Are the units valid, hardened, and is nothing that a supervisor needs among what they deny?

`systemd-analyze` judges them without running anything. Then a real systemd runs them, as process 1 of a namespace (`systemd.py`):
memory is populated, locked and bound, blocks are spilled with O_DIRECT and promoted, hosts are listened for, the exporter
answers, all under the units' own capabilities, system calls and mounts.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.names import SHM_DIRECTORY

from tests.arenas import remove_arena
from tests.deploy.systemd import Boot, CannotBootError
from tests.ports import free_ports
from tests.served import KEYS, NAMESPACE, assert_stored, evict_stored, store
from tests.world.actors import wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
ROOT = DEPLOY.parent
UNITS = ("pegashm", "pegashm-exporter")
# What `systemd-analyze security` says today, of ten: less is better. 9.6 is a unit with nothing.
EXPOSURE_MAX = {"pegashm": 3.0, "pegashm-exporter": 2.2}
ANALYZE = shutil.which("systemd-analyze")
needs_analyze = pytest.mark.skipif(
    ANALYZE is None, reason="no systemd-analyze: apt install systemd"
)
CAPABILITIES = (0, 1, 3, 14)  # chown, dac_override, fowner, ipc_lock
pytestmark = pytest.mark.timeout(300)


@needs_analyze
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_nothing_to_complain_of(unit: str, tmp_path: Path) -> None:
    path = tmp_path / f"{unit}@kv0.service"
    shutil.copy(DEPLOY / f"{unit}@.service", path)
    for other in UNITS:  # they name each other
        shutil.copy(DEPLOY / f"{other}@.service", tmp_path / f"{other}@kv0.service")
    assert ANALYZE is not None
    done = subprocess.run(
        [ANALYZE, "verify", "--man=no", str(path)], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "pegashm" in line]
    assert (0, []) == (done.returncode, ours), done.stderr


@needs_analyze
@pytest.mark.parametrize("unit", UNITS)
def test_exposure(unit: str, tmp_path: Path) -> None:
    path = tmp_path / f"{unit}@kv0.service"
    shutil.copy(DEPLOY / f"{unit}@.service", path)
    assert ANALYZE is not None
    command = [ANALYZE, "security", "--offline=true", "--no-pager", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "--offline" in done.stderr or "unrecognized" in done.stderr:
        pytest.skip("this systemd-analyze knows no --offline")
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    print(f"{unit}: exposure {found[1]}")
    assert float(found[1]) <= EXPOSURE_MAX[unit]


# -- under a real systemd -----------------------------------------------------------------------------------


@pytest.fixture
def boot(tmp_path: Path, name: str) -> Iterator[Callable[..., Boot]]:
    """boot(**variables): a systemd with both units and an environment file of the arena."""
    with contextlib.ExitStack() as started:

        def begin(**variables: object) -> Boot:
            folder = tmp_path / "units"
            folder.mkdir()
            for unit in UNITS:
                shutil.copy(DEPLOY / f"{unit}@.service", folder)
                (folder / f"{unit}@.service.d").mkdir()
                (folder / f"{unit}@.service.d" / "test.conf").write_text(drop_in(unit))
            lines = [f"{key}={value}" for key, value in variables.items()]
            (folder / f"{name}.env").write_text("\n".join(lines) + "\n")
            try:
                boot = Boot.begin(folder)
            except CannotBootError as error:
                pytest.skip(str(error))
            started.callback(boot.end)
            return boot

        yield begin
    remove_arena(name)


def drop_in(unit: str) -> str:
    """What an operator's drop-in may change: where the command and the options are, and where it logs."""
    here = Path(sys.executable).parent
    lines = [
        "[Service]",
        f"Environment=PATH={here}:/usr/bin:/bin",
        "EnvironmentFile=/run/units/%i.env",
        f"StandardOutput=append:/run/units/{unit}.log",
        "StandardError=inherit",
    ]
    # The interpreter of a developer's machine may lie in a home, which the units hide.
    if Path(sys.executable).resolve().is_relative_to(Path.home()):
        lines.append("ProtectHome=read-only")
    return "\n".join(lines) + "\n"


def test_everything_that_a_supervisor_does_works_in_its_unit(
    name: str, boot: Callable[..., Boot], tmp_path: Path
) -> None:
    port, http = free_ports(2)
    machine = boot(
        PEGASHM_SIZE="48M",
        PEGASHM_SEGMENT_SIZE="4M",
        PEGASHM_BLOCK_MIN="16K",
        PEGASHM_REQUIRE_LOCK=1,
        PEGASHM_NUMA=0,
        PEGASHM_GROUP=1,
        PEGASHM_SPILL="/run/units/kv.spill",
        PEGASHM_SPILL_SIZE="64M",
        PEGASHM_LISTEN=f"127.0.0.1:{port}",
        PEGASHM_PEERS=f"127.0.0.1:{port}",
        PEGASHM_EXPORTER_LISTEN=f"127.0.0.1:{http}",
    )
    unit, log = f"pegashm@{name}", tmp_path / "units" / "pegashm.log"
    done = machine.systemctl("start", unit)
    assert 0 == done.returncode, done.stderr + log.read_text() + machine.log.read_text()
    # Ready has been said, and the arena can be used. All of it is locked, and on the node that was asked for.
    wait_until(lambda: "populated and locked" in log.read_text(), "locked", 60)
    assert "cannot" not in log.read_text()
    assert "segments ready" in machine.show(unit, "StatusText")
    facts = machine.status_of(unit)
    assert ("2", "1") == (facts["Seccomp"], facts["NoNewPrivs"])
    assert sum(1 << number for number in CAPABILITIES) == int(facts["CapBnd"], 16)
    locked = int(facts["VmLck"].split()[0])
    assert locked >= 32 * 1024, f"{locked} KiB are locked"
    control = Path(SHM_DIRECTORY) / f"pegashm.{name}.control"
    assert (1, 0o660) == (control.stat().st_gid, control.stat().st_mode & 0o777)

    # Blocks go to SSD and come back: the worker runs in the unit as well, and engines reach its socket.
    store(name)
    with open_arena(name) as arena:
        wait_until(lambda: len(arena.region.spilled()) >= len(KEYS), "spilled", 60)
    with Cache.attach(name, namespace=NAMESPACE) as cache:
        evict_stored(cache)
    asked = machine.run(sys.executable, "-c", PROMOTE.format(root=str(ROOT), name=name))
    assert (0, "8 promoted") == (asked.returncode, asked.stdout.strip()), asked.stderr
    assert_stored(name)
    assert (tmp_path / "units" / "kv.spill").stat().st_size >= 64 << 20

    # It answers to Prometheus under the exporter's unit, which has no capability at all.
    done = machine.systemctl("start", f"pegashm-exporter@{name}")
    assert 0 == done.returncode, done.stderr
    metrics = answer(f"http://127.0.0.1:{http}/metrics", tmp_path)
    assert "pegashm_" in metrics
    facts = machine.status_of(f"pegashm-exporter@{name}")
    assert ("2", 0) == (facts["Seccomp"], int(facts["CapBnd"], 16))

    # Restarted, then killed: engines keep their blocks, and systemd starts it again by itself.
    assert 0 == machine.systemctl("restart", unit).returncode
    assert "re-adopted: 8 blocks ready" in log.read_text().replace(f'arena "{name}" ', "")
    assert_stored(name)
    before = machine.show(unit, "MainPID")
    machine.systemctl("kill", "--signal=SIGKILL", "--kill-whom=main", unit)
    wait_until(
        lambda: (
            before != machine.show(unit, "MainPID") != "0"
            and "active" == machine.show(unit, "ActiveState")
        ),
        "started again",
        60,
    )
    assert_stored(name)
    assert 0 == machine.systemctl("stop", unit).returncode
    assert control.exists(), "a stopped unit leaves the arena in place"
    assert_stored(name)


PROMOTE = """
import sys, time
sys.path.insert(0, {root!r})
from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.transport.client import TransportClient
from tests.served import KEYS, NAMESPACE
with open_arena({name!r}) as arena, Cache.attach({name!r}, namespace=NAMESPACE) as cache:
    with TransportClient(arena) as client:
        until, ticket, replies = time.monotonic() + 40, None, []
        while not replies and time.monotonic() < until:
            ticket = ticket or client.promote(KEYS, cache.namespace_id, 30000)
            replies = client.replies()
            time.sleep(0.02)
    _, outcomes = cache.find(KEYS)
    print(int((outcomes == 0).sum()), "promoted", client.error)
"""


def test_a_wrong_option_is_not_tried_again_and_again(
    name: str, boot: Callable[..., Boot], tmp_path: Path
) -> None:
    machine = boot(PEGASHM_SIZE="lots")
    unit = f"pegashm@{name}"
    assert machine.systemctl("start", unit).returncode
    assert "'lots' is not a size" in (tmp_path / "units" / "pegashm.log").read_text()
    time.sleep(2.5)  # longer than RestartSec
    assert ("failed", "0") == (machine.show(unit, "ActiveState"), machine.show(unit, "NRestarts"))


def answer(url: str, folder: Path) -> str:
    log = folder / "units" / "pegashm-exporter.log"

    def ask() -> str:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=30) as response:
            text: str = response.read().decode()
            return text
        return ""

    try:
        said: str = wait_until(ask, f"answered at {url}", 60)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()}") from None
    return said
