"""Who can speak to the worker, and what happens to those who speak nonsense?"""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from pegashm.creation import purge
from pegashm.errors import ConfigError, ResourceError
from pegashm.names import runtime_directory
from pegashm.transport.endpoint import Endpoint
from pegashm.transport.messages import Answer, Error, Ping, Pong, Promote, pack, parse

from tests.arenas import make_arena, remove_arena
from tests.transport.rig import Rig, eventually, key_of

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="speaks as another user")
NOBODY = 65534

SPEAK = """
import os, sys, zmq
os.setgid(int(sys.argv[3])); os.setgroups([]); os.setuid(int(sys.argv[2]))
socket = zmq.Context().socket(zmq.DEALER)
socket.setsockopt(zmq.LINGER, 0)
socket.connect("ipc://" + sys.argv[1])
socket.send(bytes.fromhex(sys.argv[4]))
print("answered" if socket.poll(3000) else "nothing", flush=True)
os._exit(0)
"""


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


def dealer(context: zmq.Context[zmq.Socket[bytes]], path: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(f"ipc://{path}")
    return socket


def socket_of(one: Rig) -> str:
    return str(one.arena.region.header["transport_path"])


def said_as(path: str, uid: int, gid: int) -> str:
    command = [sys.executable, "-c", SPEAK, path, str(uid), str(gid), pack(Ping(5)).hex()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() or done.stderr


def test_modes(rig: Callable[..., Rig]) -> None:
    one = rig().start()
    path = socket_of(one)
    assert 0o600 == stat.S_IMODE(os.stat(path).st_mode)
    assert 0o700 == stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode)


@as_root
def test_another_user_is_not_heard(rig: Callable[..., Rig]) -> None:
    """Even where the folder lets him in, the kernel says who he is."""
    one = rig().start()
    path = socket_of(one)
    assert "answered" == said_as(path, os.geteuid(), os.getegid())
    assert "nothing" == said_as(path, NOBODY, NOBODY)
    os.chmod(os.path.dirname(path), 0o755)
    os.chmod(path, 0o666)
    assert "nothing" == said_as(path, NOBODY, NOBODY)
    assert "answered" == said_as(path, os.geteuid(), os.getegid())


@as_root
def test_members_of_the_group_are_heard(
    context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"/tmp/pegashm-test-{os.getpid()}")
    os.mkdir(os.environ["RUNTIME_DIRECTORY"], 0o755)
    endpoint = Endpoint.listen(context, "grouped", 2)
    try:
        folder = os.stat(os.path.dirname(endpoint.path))
        assert (0o750, 2) == (stat.S_IMODE(folder.st_mode), folder.st_gid)
        speaker = subprocess.Popen(
            [sys.executable, "-c", SPEAK, endpoint.path, str(NOBODY), "2", pack(Ping(5)).hex()],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert endpoint.router.poll(20_000)
        peer, frame = endpoint.router.recv_multipart()
        assert Ping(5) == parse(frame)
        endpoint.router.send_multipart([peer, pack(Pong(5, 1, 1))])
        assert "answered\n" == speaker.communicate(timeout=30)[0]
    finally:
        endpoint.close()
        os.rmdir(os.environ["RUNTIME_DIRECTORY"])


def test_where_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "/run/pegashm/kv0" == runtime_directory("kv0")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "/tmp/pegashm-1000/kv0" == runtime_directory("kv0")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert "/run/user/1000/pegashm/kv0" == runtime_directory("kv0")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/pegashm:/run/other")
    assert "/run/pegashm/kv0" == runtime_directory("kv0")


def test_folders_that_are_not_safe(
    context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"/tmp/{'x' * 120}")
    with pytest.raises(ConfigError, match="at most 104 can be used"):
        Endpoint.listen(context, "kv0", None)
    shared = Path(f"/tmp/pegashm-open-{os.getpid()}")
    shared.mkdir()
    shared.chmod(0o777)
    try:
        monkeypatch.setenv("RUNTIME_DIRECTORY", str(shared))
        with pytest.raises(ResourceError, match="others could put another socket there"):
            Endpoint.listen(context, "kv0", None)
        shared.chmod(0o755)
        (shared / "kv0").symlink_to(tmp_path)
        with pytest.raises(ResourceError, match="is not a folder of uid"):
            Endpoint.listen(context, "kv0", None)
        (shared / "kv0").unlink()
        if os.geteuid() == 0:
            (shared / "kv0").mkdir()
            os.chown(shared / "kv0", NOBODY, NOBODY)
            with pytest.raises(ResourceError, match=f"belongs to uid {NOBODY}"):
                Endpoint.listen(context, "kv0", None)
            (shared / "kv0").rmdir()
    finally:
        shared.rmdir()


def test_a_dead_workers_socket_is_replaced(rig: Callable[..., Rig]) -> None:
    one = rig().start()
    path = socket_of(one)
    one.kill()
    assert os.path.exists(path)
    one.start()
    assert not os.path.exists(path)
    path = socket_of(one)
    assert os.path.exists(path)
    keys = one.store(range(1, 3))
    one.wait_stored(2)
    one.evict(keys)
    assert [Answer.OK] * 2 == one.promote(keys)
    one.kill(15)
    assert not os.path.exists(path)


def test_purge_removes_a_dead_workers_socket(rig: Callable[..., Rig]) -> None:
    one = rig().start()
    folder = os.path.dirname(socket_of(one))
    one.kill()
    assert os.listdir(folder)
    os.environ["RUNTIME_DIRECTORY"] = one.runtime.name
    try:
        purge(one.name, force=True)
    finally:
        del os.environ["RUNTIME_DIRECTORY"]
    assert not os.path.exists(folder)


def test_a_late_end_leaves_the_successors_socket(rig: Callable[..., Rig]) -> None:
    """The arena is purged and made anew under a worker: what it removes at its end is its own."""
    one = rig(files=1).start()
    old = one.process
    old.send_signal(signal.SIGSTOP)
    remove_arena(one.name)
    make_arena(one.shape, one.name)
    one.options = replace(
        one.options, spill=replace(one.options.spill, paths=(one.paths[0] + "b",))
    )
    one.detach()
    one.attach()
    one.start()
    old.send_signal(signal.SIGCONT)
    assert 1 == old.wait(30)
    keys = one.store(range(1, 5))
    one.wait_stored(4)
    one.evict(keys)
    assert [Answer.OK] * 4 == one.promote(keys)
    assert os.path.exists(socket_of(one))


def test_nonsense_is_answered_or_ignored_and_costs_nothing(
    rig: Callable[..., Rig], context: zmq.Context[zmq.Socket[bytes]], chance: random.Random
) -> None:
    one = rig().start()
    keys = one.store(range(1, 5))
    one.wait_stored(4)
    one.evict(keys)
    socket = dealer(context, socket_of(one))
    socket.send(b"GET / HTTP/1.1\r\n\r\n")
    assert socket.poll(20_000)
    answer = parse(socket.recv())
    assert isinstance(answer, Error)
    assert "begins with b'PGSM'" in answer.text
    socket.send_multipart([b"one", b"two", b"three"])
    assert socket.poll(20_000)
    assert "one frame" in str(parse(socket.recv()))
    good = pack(
        Promote(
            request_id=1,
            region_id=one.cache.region_id,
            namespace_id=one.cache.namespace_id,
            deadline_ms=5000,
            keys=(key_of(1000),),
        )
    )
    for _ in range(2000):
        frame = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            frame[chance.randrange(len(frame))] = chance.randrange(256)
        socket.send(bytes(frame[: chance.randrange(len(frame) + 1)]))
    socket.send(bytes(4 << 20))  # larger than any message: libzmq drops the connection
    # A raw speaker that is no ZeroMQ at all.
    import socket as sockets

    with sockets.socket(sockets.AF_UNIX) as raw:
        raw.connect(socket_of(one))
        raw.sendall(chance.randbytes(100_000))
    assert [Answer.OK] * 4 == one.promote(keys)
    assert 4 == one.judge(keys)
    assert one.process.poll() is None
    assert "Traceback" not in one.said()


def test_ping(rig: Callable[..., Rig], context: zmq.Context[zmq.Socket[bytes]]) -> None:
    one = rig().start()
    socket = dealer(context, socket_of(one))
    socket.send(pack(Ping(77)))
    assert socket.poll(20_000)
    pong = parse(socket.recv())
    assert isinstance(pong, Pong)
    assert (77, one.process.pid) == (pong.request_id, pong.pid)
    assert pong.started_at_ns == one.arena.region.header["transport_started_at_ns"]


def test_many_who_never_read(
    rig: Callable[..., Rig], context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    """Answers to somebody who does not take them are dropped; the others have theirs."""
    one = rig().start()
    keys = one.store(range(1, 9))
    one.wait_stored(8)
    one.evict(keys)
    mute = dealer(context, socket_of(one))
    until = time.monotonic() + 2
    sent = 0
    while time.monotonic() < until:
        try:
            mute.send(pack(Ping(sent)), zmq.DONTWAIT)
            sent += 1
        except zmq.Again:
            time.sleep(0.001)
    assert sent > 1000
    assert [Answer.OK] * 8 == one.promote(keys)
    eventually(lambda: one.judge(keys) == 8)
