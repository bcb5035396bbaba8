"""The drill of docs/upgrade.md: is PegaShm replaced under running engines, and is what cannot be refused by name?

Real wheels of other versions in environments of their own: the tree as it is, the same with a larger minor format (0.1.1),
and with another major one (0.2.0). An engine of the old version is attached all the time, in a process of its own; the
supervisor is what changes. The last part is a real vLLM.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pegashm import _native
from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.peers import messages as peer_messages
from pegashm.spill import format as spill_format
from pegashm.transport import messages as transport_messages
from pegashm.transport.client import TransportClient
from pegashm.transport.messages import Answer

from tests import flavours
from tests.arenas import remove_arena
from tests.deploy.builds import HERE, Build, BuildError, altered, from_wheel
from tests.ports import free_ports
from tests.served import KEYS, NAMESPACE, Served, evict_stored, objects, status, store
from tests.world.actors import SMALL, Actor, ActorError, wait_until

MAJOR, MINOR = _native.FORMAT_MAJOR, _native.FORMAT_MINOR
MINOR_WORDS = "inline constexpr uint16_t format_minor = {};"
MAJOR_WORDS = "inline constexpr uint16_t format_major = {};"
LAYOUT = "pegashm/_core/layout.hpp"
VERSION = 'version = "0.1.0"'
ALL_EIGHT = {"right": 8, "missing": 0, "wrong": 0}
FIRST, SECOND, THIRD = list(range(8)), list(range(8, 16)), list(range(16, 24))
pytestmark = pytest.mark.timeout(
    900
)  # wheels are compiled first, on whatever else the machine does


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Build]:
    """`minor` and `major`, each from its own wheel."""
    if reason := flavours.missing_tool():
        pytest.skip(reason)
    top = tmp_path_factory.mktemp("wheels")
    changes = {
        "minor": {
            "pyproject.toml": {VERSION: 'version = "0.1.1"'},
            LAYOUT: {MINOR_WORDS.format(MINOR): MINOR_WORDS.format(MINOR + 1)},
        },
        "major": {
            "pyproject.toml": {VERSION: 'version = "0.2.0"'},
            LAYOUT: {MAJOR_WORDS.format(MAJOR): MAJOR_WORDS.format(MAJOR + 1)},
        },
    }
    with ThreadPoolExecutor() as pool:
        made = {name: pool.submit(from_wheel, top / name, words) for name, words in changes.items()}
    try:
        return {name: future.result() for name, future in made.items()}
    except BuildError as error:
        if re.search("Could not find a version|Connection|Temporary failure", str(error)):
            pytest.skip(f"pip cannot have what builds a wheel here: {error}")
        raise


@pytest.fixture
def minor(wheels: dict[str, Build]) -> Build:
    return wheels["minor"]


@pytest.fixture
def major(wheels: dict[str, Build]) -> Build:
    return wheels["major"]


@pytest.fixture
def engine() -> Iterator[Callable[..., Actor]]:
    """Starts engines; of the running version unless told otherwise."""
    with contextlib.ExitStack() as started:
        yield lambda *a, build=HERE, **k: started.enter_context(Actor(*a, python=build.python, **k))


@pytest.fixture
def beside(name: str) -> Iterator[str]:
    """The name of a second arena on the same host."""
    yield f"{name}-b"
    remove_arena(f"{name}-b")


Serve = Callable[..., Served]


def under(serve: Serve, build: Build, *arguments: str) -> Served:
    return serve(*(arguments or SMALL), python=build.python, cwd=str(Path(build.python).parent))


def test_versions_are_what_they_say(wheels: dict[str, Build]) -> None:
    assert "0.1.1" in wheels["minor"].pegashm("--version").stdout
    assert "0.2.0" in wheels["major"].pegashm("--version").stdout


def test_a_newer_minor_takes_over_under_a_running_engine_and_back(
    name: str, serve: Serve, engine: Callable[..., Actor], minor: Build
) -> None:
    old = under(serve, HERE).wait_ready()
    working = engine(name)
    assert 8 == working.do("store", numbers=FIRST)
    assert 0 == old.end(), "as systemd stops it"
    assert working.do("check", numbers=FIRST) == ALL_EIGHT, "nobody supervises: hits go on"

    new = under(serve, minor).wait_ready()
    assert "8 blocks ready" in new.wait_log("re-adopted")
    assert working.do("check", numbers=FIRST) == ALL_EIGHT
    newcomer = engine(name, build=minor)
    assert newcomer.do("check", numbers=FIRST) == ALL_EIGHT
    assert 8 == newcomer.do("store", numbers=SECOND)
    assert working.do("check", numbers=SECOND) == ALL_EIGHT, "the old engine finds the new one's"
    assert 8 == working.do("store", numbers=THIRD)
    assert newcomer.do("check", numbers=THIRD) == ALL_EIGHT
    # Looked at by both: the arena is still of the format that made it.
    for build in (HERE, minor):
        assert f"{MAJOR}.{MINOR}," in build.pegashm("dump", "--name", name).stdout
        assert 0 == build.pegashm("fsck", "--name", name).returncode

    new.end(signal.SIGKILL)
    back = under(serve, HERE).wait_ready()
    assert "24 blocks ready" in back.wait_log("re-adopted")
    for client in (working, newcomer):
        assert client.do("check", numbers=SECOND) == ALL_EIGHT


def test_an_arena_that_the_newer_minor_made_is_opened_by_the_older(
    name: str, serve: Serve, engine: Callable[..., Actor], minor: Build
) -> None:
    """Rolling back after the arena was created anew."""
    under(serve, minor).wait_ready().end()
    assert f"{MAJOR}.{MINOR + 1}," in HERE.pegashm("dump", "--name", name).stdout
    served = under(serve, HERE).wait_ready()
    served.wait_log("re-adopted")
    working = engine(name)
    assert 8 == working.do("store", numbers=FIRST)
    assert engine(name, build=minor).do("check", numbers=FIRST) == ALL_EIGHT


def test_another_major_is_refused_by_name_and_the_old_goes_on(
    name: str, beside: str, serve: Serve, engine: Callable[..., Actor], major: Build
) -> None:
    old = under(serve, HERE).wait_ready()
    working = engine(name)
    assert 8 == working.do("store", numbers=FIRST)
    old.end()

    both = (f"has format {MAJOR}.{MINOR}", f"this build reads {MAJOR + 1}.x")
    refused = major.pegashm("serve", "--name", name, *SMALL)
    assert 1 == refused.returncode
    assert all(side in refused.stderr for side in both), refused.stderr
    newcomer = engine(name, build=major, attached=False)
    with pytest.raises(ActorError) as told:
        newcomer.do("attach")
    assert all(side in told.value.said for side in both)
    assert working.do("check", numbers=FIRST) == ALL_EIGHT

    # The way on, side by side: a second arena for the new version, both served, until the last old engine is gone.
    under(serve, HERE).wait_ready().wait_log("re-adopted")
    second = Served(beside, *SMALL, python=major.python, cwd=str(Path(major.python).parent))
    try:
        wait_until(
            lambda: 0 == major.pegashm("status", "--name", beside).returncode, "served by the new"
        )
        moved = engine(beside, build=major)
        assert 8 == moved.do("store", numbers=SECOND)
        assert moved.do("check", numbers=SECOND) == ALL_EIGHT
        assert working.do("check", numbers=FIRST) == ALL_EIGHT
        # Each version says of the other's what it is, and looks no further.
        assert "cannot be opened" in HERE.pegashm("status", "--name", beside).stdout
        assert HERE.pegashm("purge", "--name", name, "--yes").returncode, "an engine lives"
    finally:
        second.process.kill()
        second.rest()


def test_the_way_through_purge(
    name: str, serve: Serve, engine: Callable[..., Actor], major: Build
) -> None:
    """Engines ended, the arena removed by the new version (which cannot read it), and made anew."""
    old = under(serve, HERE).wait_ready()
    working = engine(name)
    assert 8 == working.do("store", numbers=FIRST)
    old.end()
    still_used = major.pegashm("purge", "--name", name, "--yes")
    assert 1 == still_used.returncode, "an engine of the old version lives"
    working.kill()
    assert 0 == major.pegashm("purge", "--name", name, "--yes").returncode
    assert set() == objects(name)
    new = Served(name, *SMALL, python=major.python, cwd=str(Path(major.python).parent))
    try:
        wait_until(lambda: 0 == major.pegashm("status", "--name", name).returncode, "ready")
        assert 8 == engine(name, build=major).do("store", numbers=FIRST)
        refusal = HERE.pegashm("status", "--name", name).stdout
        assert f"has format {MAJOR + 1}.{MINOR}" in refusal
    finally:
        new.process.kill()
        new.rest()


# -- what is spoken, and what is on SSD -------------------------------------------------------------------


def test_a_worker_that_speaks_another_version_costs_the_tier_and_no_waiting(
    name: str, serve: Serve, tmp_path: Path
) -> None:
    """Engine and supervisor of different message versions: blocks on SSD are misses at once, and both are named."""
    ours = transport_messages.VERSION
    words = {f"VERSION: Final = {ours}": f"VERSION: Final = {ours + 1}"}
    other = altered(tmp_path / "other", {"pegashm/transport/messages.py": words})
    spill = ("--spill", str(tmp_path / "kv.spill"), "--spill-size", "64M")
    served = under(serve, other, *SMALL, *spill).wait_ready()
    store(name)
    with open_arena(name) as arena, TransportClient(arena) as client:
        wait_until(lambda: client.alive, "a worker")
        wait_until(lambda: len(arena.region.spilled()) >= len(KEYS), "spilled")
        with Cache.attach(name, namespace=NAMESPACE) as cache:
            evict_stored(cache)
            ticket = wait_until(lambda: client.promote(KEYS, cache.namespace_id, 60_000), "asked")
            (done,) = wait_until(client.replies, "answered")
    assert (ticket, bytes([Answer.FAILED]) * len(KEYS)) == (done.request_id, done.outcomes), (
        served.end(),
        served.log,
        client.error,
    )
    assert f"version {ours + 1}" in client.error
    assert f"version {ours}" in client.error


def test_hosts_of_other_versions_do_without_each_other_and_say_so(
    name: str, beside: str, serve: Serve, tmp_path: Path
) -> None:
    ours = peer_messages.VERSION
    words = {f"VERSION: Final = {ours}": f"VERSION: Final = {ours + 1}"}
    other = altered(tmp_path / "other", {"pegashm/peers/messages.py": words})
    ports = free_ports(2)
    members = ",".join(f"127.0.0.1:{port}" for port in ports)
    options = [
        ("--remote-blocks", "4096", "--listen", f"127.0.0.1:{port}", "--peers", members)
        for port in ports
    ]
    here = under(serve, HERE, *SMALL, *options[0])
    there = Served(
        beside, *SMALL, *options[1], python=other.python, cwd=str(Path(other.python).parent)
    )
    try:
        for side, theirs, reads in ((here, ours + 1, ours), (there, ours, ours + 1)):
            line = side.wait_log(f"version {theirs}, this build reads version {reads}")
            assert "run the same PegaShm on all hosts" in line
        assert 0 == status(name)["exit_status"]
        store(name)  # its own memory is as good as ever
    finally:
        there.process.kill()
        there.rest()


def test_a_spill_file_of_another_major_is_left_as_it_is(
    name: str, serve: Serve, tmp_path: Path
) -> None:
    major, minor = spill_format.VERSION_MAJOR, spill_format.VERSION_MINOR
    words = {f"VERSION_MAJOR: Final = {major}": f"VERSION_MAJOR: Final = {major + 1}"}
    other = altered(tmp_path / "other", {"pegashm/spill/format.py": words})
    path = tmp_path / "kv.spill"
    spill = ("--spill", str(path), "--spill-size", "64M")
    old = under(serve, HERE, *SMALL, *spill).wait_ready()
    store(name)
    with open_arena(name) as arena:
        wait_until(lambda: len(arena.region.spilled()) >= len(KEYS), "spilled")
    old.end()
    before = path.read_bytes()

    new = under(serve, other, *SMALL, *spill).wait_ready()
    line = new.wait_log(f"has format {major}.{minor}, this build reads {major + 1}.x")
    assert f"rm {path}" in line
    with Cache.attach(name, namespace=NAMESPACE) as cache:
        assert not cache.find(KEYS)[1].any(), "memory is as good as ever"
    new.end()
    assert before == path.read_bytes()
    again = under(serve, HERE, *SMALL, *spill).wait_ready()
    with open_arena(name) as arena:
        wait_until(lambda: len(arena.region.spilled()) >= len(KEYS), "found again")
    again.end()


# -- a real engine ----------------------------------------------------------------------------------------


@pytest.mark.engine
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_a_real_engine_keeps_its_hits_while_pegashm_is_upgraded_under_it(
    name: str, serve: Serve, minor: Build, tmp_path: Path
) -> None:
    from tests.e2e.conftest import MODEL_MAKER
    from tests.e2e.engines import Engine, new_prompt

    model = tmp_path / "qwen3"
    subprocess.run([sys.executable, str(MODEL_MAKER), "qwen3", str(model)], check=True)
    options = ("--size", "128M", "--segment-size", "4M", "--no-lock")
    old = under(serve, HERE, *options).wait_ready()
    engine = Engine(model, name, tmp_path / "engine.log")
    try:
        engine.ready()
        prompt = new_prompt("upgrade")
        first = engine.ask(prompt)[0]
        old.end()
        for build in (minor, HERE):
            new = under(serve, build, *options).wait_ready()
            new.wait_log("re-adopted")
            engine.forget()
            began = time.monotonic()
            again = engine.ask(prompt)[0]
            print(f"{again.cached} tokens from the arena, {time.monotonic() - began:.2f} s")
            assert (first.tokens, 512) == (again.tokens, again.cached)
            new.end(signal.SIGKILL)
    finally:
        engine.kill()
