"""Who may talk to whom? Keys and lists as files, hosts that prove themselves, and all others, who get nothing."""

from __future__ import annotations

import os
import random
import re
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from click.testing import CliRunner

from pegashm.cli import main
from pegashm.config import PeersConfig
from pegashm.errors import ConfigError, ResourceError
from pegashm.peers.addresses import Address, parse_address
from pegashm.peers.caller import Caller, Target
from pegashm.peers.keys import AllowList, KeyPair, Keys, make_keys, parse_allowed
from pegashm.peers.messages import (
    KEYS_MAX,
    Chunk,
    Hello,
    Introduce,
    Outcome,
    Pin,
    Pinned,
    Reason,
    Refused,
    Release,
    Released,
    Snapshot,
    Welcome,
    pack,
)
from pegashm.transport.messages import Answer

from tests.peers.hints import tell
from tests.peers.rig import BYTES, Host, connect
from tests.transport.rig import eventually, key_of

OTHER = b"o" * 16
FLOOD = 200_000 if os.environ.get("PEGASHM_LONG") else 20_000


# -- files -------------------------------------------------------------------------------------------


def test_new_and_show(tmp_path: Path) -> None:
    folder = str(tmp_path / "keys")
    made = CliRunner().invoke(main, ["keys", "new", folder])
    assert made.exit_code == 0, made.output
    public = made.stdout.strip()
    assert 40 == len(public)
    assert 0o600 == (tmp_path / "keys" / "host.key").stat().st_mode & 0o777
    shown = CliRunner().invoke(main, ["keys", "show", folder])
    assert public == shown.stdout.splitlines()[0]
    assert "nobody is allowed" in shown.stderr
    secret = (tmp_path / "keys" / "host.key").read_text().strip()
    assert secret not in shown.output
    assert secret not in repr(Keys.load(folder))
    again = CliRunner().invoke(main, ["keys", "new", folder])
    assert 1 == again.exit_code
    assert "left as it is" in again.stderr
    with (tmp_path / "keys" / "allowed").open("a") as file:
        file.write(f"{public} 10.0.0.7 10.0.0.7:7420\n")
    listed = CliRunner().invoke(main, ["keys", "show", folder, "--json"])
    assert f'{{"{public}": ["10.0.0.7", "10.0.0.7:7420"]}}' in listed.stdout


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="type `pegashm keys new"):
        Keys.load(str(tmp_path))
    make_keys(str(tmp_path))
    (tmp_path / "host.key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Keys.load(str(tmp_path))
    (tmp_path / "host.key").chmod(0o600)
    (tmp_path / "host.key").write_text("short")
    with pytest.raises(ConfigError, match="40 characters of Z85"):
        Keys.load(str(tmp_path))
    with pytest.raises(ResourceError):
        make_keys("/proc/keys")
    with pytest.raises(ConfigError, match="line 2"):
        parse_allowed("# nobody\nsomebody\n", "allowed")


def test_lists(tmp_path: Path) -> None:
    keys = [zmq.curve_keypair()[0] for _ in range(4)]
    text = f"# a comment\n\n{keys[0].decode()} 10.0.0.1 # its name\n{keys[1].decode()} kv1 10.0.0.2:7420\n"
    path = tmp_path / "allowed"
    path.write_text(text)
    allowed = AllowList(str(path))
    assert allowed.allows(keys[0])
    assert not allowed.allows(keys[2])
    assert (keys[0],) == allowed.keys_for(parse_address("10.0.0.1:1", "x"))
    assert () == allowed.keys_for(parse_address("10.0.0.2:7421", "x"))
    assert (keys[1],) == allowed.keys_for(parse_address("10.0.0.2:7420", "x"))
    path.write_text(text + f"{keys[2].decode()}\n")
    allowed.refresh()
    assert (keys[2],) == allowed.keys_for(parse_address("10.0.0.9:7421", "x"))
    path.write_text("nonsense here\n")
    allowed.refresh()
    assert allowed.allows(keys[2]), "one that cannot be read changes nothing"


def test_keys_with_a_hash_sign_inside() -> None:
    key = next(key for key in (zmq.curve_keypair()[0] for _ in range(10_000)) if b"#" in key)
    assert not key.startswith(b"#")
    (entry,) = parse_allowed(f"{key.decode()} kv0 # {key.decode()}\n#{key.decode()}\n", "x")
    assert (key, ("kv0",)) == (entry.public, entry.hosts)


@pytest.mark.parametrize(
    ("listen", "good"),
    [
        ("127.0.0.1:7420", True),
        ("[::1]:7420", True),
        ("localhost:7420", True),
        ("0.0.0.0:7420", False),
        ("[::]:7420", False),
        ("10.0.0.1:7420", False),
        ("kv0.example:7420", False),
    ],
)
def test_only_loopback_may_go_without_keys(listen: str, good: bool) -> None:
    if good:
        PeersConfig(listen=listen)
        return
    with pytest.raises(ConfigError, match="so that keys are needed"):
        PeersConfig(listen=listen)
    PeersConfig(listen=listen, keys="/etc/pegashm/keys")


@pytest.mark.parametrize(
    "text", ["", "x", ":1", "h:", "h:0", "h:65534", "a:b:1", "h/1:1", "[::1:1"]
)
def test_addresses_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match="must be HOST:PORT"):
        parse_address(text, "--listen")


def test_addresses() -> None:
    assert Address("::1", 7420) == parse_address("[::1]:7420", "x")
    assert "tcp://[::1]:7421" == parse_address("[::1]:7420", "x").endpoint(7421)


# -- hosts ------------------------------------------------------------------------------------------


def allow(folder: Path, *others: Path) -> None:
    text = "".join((other / "host.pub").read_text() for other in others)
    (folder / "allowed").write_text(text)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Keys of three hosts; the first two allow each other."""
    made = [tmp_path / f"keys{number}" for number in range(3)]
    for folder in made:
        make_keys(str(folder))
    allow(made[0], made[1])
    allow(made[1], made[0])
    allow(made[2], made[0], made[1])
    return made


def test_hosts_that_allow_each_other(host: Callable[..., Host], folders: list[Path]) -> None:
    a, b = host(keys=str(folders[0])), host(keys=str(folders[1]))
    connect([a, b])
    keys = a.store(range(1, 21), BYTES)
    tell(b, a, keys)
    assert [Answer.OK] * 20 == b.fetch(keys)
    assert 20 == b.judge(keys)


def test_a_key_that_is_not_allowed_meets_nobody(
    host: Callable[..., Host], folders: list[Path]
) -> None:
    a, c = host(keys=str(folders[0])), host(keys=str(folders[2]))
    c.members = (a.address,)
    a.start(files=0)
    c.start(files=0)
    eventually(lambda: "was refused: add it to" in a.said())
    eventually(lambda: f"no host at {a.address}: it does not answer to any key allowed" in c.said())
    assert [] == c.peers()
    # Allowed now: it is let in by itself.
    allow(folders[0], folders[1], folders[2])
    eventually(lambda: c.knows(a))


def test_struck_off_the_list(host: Callable[..., Host], folders: list[Path]) -> None:
    """From then on nothing is heard of it any more, on connections that stand as well."""
    a, b = host(keys=str(folders[0])), host(keys=str(folders[1]))
    connect([a, b])
    keys = a.store(range(1, 21), BYTES)
    tell(b, a, keys)
    assert [Answer.OK] * 10 == b.fetch(keys[:10])
    allow(folders[0])
    eventually(lambda: "its key is not allowed any more" in a.said())
    answers = b.fetch(keys[10:], deadline_ms=4000)
    assert Answer.OK not in answers, answers
    assert 10 == b.judge(keys)


def test_tried_in_turn_until_one_fits(host: Callable[..., Host], folders: list[Path]) -> None:
    """A list without addresses: which key the host at an address has is found out."""
    a, b = host(keys=str(folders[0])), host(keys=str(folders[1]))
    allow(folders[1], folders[2], folders[0])
    connect([a, b])


# -- somebody who speaks, and lies -----------------------------------------------------------------------


class Stranger:
    """A program that speaks the protocol by hand, with keys that are allowed, or none."""

    def __init__(self, target: Host, pair: KeyPair | None = None, server_key: bytes = b"") -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.caller = Caller(self.context, pair, OTHER)
        self.target = Target(f"tcp://{target.address}", server_key)

    def ask(self, message: object, seconds: float = 5.0) -> object:
        return self.caller.ask(self.target, message, time.monotonic() + seconds)  # type: ignore[arg-type]

    def greet(self) -> Welcome:
        hello = Hello(
            request_id=self.caller.number(), host_id=OTHER, incarnation=OTHER, hash_version=1
        )
        said = self.ask(hello)
        assert isinstance(said, Welcome), said
        self.life = said.incarnation
        return said

    def pin(self, keys: list[bytes], **more: object) -> object:
        fields: dict[str, object] = {
            "request_id": self.caller.number(), "sender": OTHER, "incarnation": self.life,
            "fingerprint": b"", "lease_ms": 1000, "wait_ms": 0, "bytes_max": 1 << 40, "fabric": "tcp",
            "keys": tuple(keys),
        }  # fmt: skip
        return self.ask(Pin(**fields | more))  # type: ignore[arg-type]

    def close(self) -> None:
        self.caller.close()
        self.context.destroy(linger=0)


@pytest.fixture
def stranger() -> Iterator[Callable[..., Stranger]]:
    made: list[Stranger] = []

    def make(*arguments: object, **options: object) -> Stranger:
        made.append(Stranger(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_without_a_key_nothing_is_answered(
    host: Callable[..., Host], folders: list[Path], stranger: Callable[..., Stranger]
) -> None:
    a = host(keys=str(folders[0])).start(files=0)
    hello = Hello(request_id=1, host_id=OTHER, incarnation=OTHER, hash_version=1)
    assert stranger(a).ask(hello, 1.5) is None
    public, secret = zmq.curve_keypair()
    server_key = (folders[0] / "host.pub").read_text().strip().encode()
    unknown = stranger(a, KeyPair(public, secret), server_key)
    assert unknown.ask(hello, 1.5) is None
    eventually(lambda: public.decode() in a.said())


def test_nobody_releases_what_another_key_leased(
    host: Callable[..., Host], folders: list[Path], stranger: Callable[..., Stranger]
) -> None:
    """Though it names the other's host id and knows the lease."""
    allow(folders[0], folders[1], folders[2])
    a = host(keys=str(folders[0])).start(files=0)
    server_key = (folders[0] / "host.pub").read_text().strip().encode()
    one, other = (stranger(a, Keys.load(str(folder)).pair, server_key) for folder in folders[1:])
    keys = a.store(range(1, 5), BYTES)
    one.greet(), other.greet()
    pinned = one.pin(keys, fingerprint=a.namespace.fingerprint, lease_ms=30_000)
    assert isinstance(pinned, Pinned)
    for thief, intact in ((other, False), (one, True)):
        released = thief.ask(
            Release(
                request_id=thief.caller.number(),
                sender=OTHER,
                incarnation=thief.life,
                lease_id=pinned.lease_id,
            )
        )
        assert isinstance(released, Released)
        assert intact is released.intact


def test_what_is_asked_wrongly_is_refused(
    host: Callable[..., Host], stranger: Callable[..., Stranger]
) -> None:
    a = host().start(files=0)
    keys = a.store(range(1, 9), BYTES)
    one = stranger(a)
    one.greet()
    mine = a.namespace.fingerprint
    stale = one.pin(keys, incarnation=b"x" * 16, fingerprint=mine)
    assert isinstance(stale, Refused)
    assert Reason.INCARNATION == stale.reason
    no_fabric = one.pin(keys, fabric="pigeon", fingerprint=mine)
    assert isinstance(no_fabric, Refused)
    assert "offers tcp, not 'pigeon'" in no_fabric.text
    elsewhere = one.pin(keys, fingerprint=b"?" * 32)
    assert isinstance(elsewhere, Pinned)
    assert {Outcome.MISSING} == set(elsewhere.rows["outcome"].tolist())
    narrow = one.pin(keys, fingerprint=mine, bytes_max=2 * BYTES)
    assert isinstance(narrow, Pinned)
    assert [Outcome.OK] * 2 + [Outcome.NOT_NOW] * 6 == narrow.rows["outcome"].tolist()
    introduce = Introduce(
        request_id=one.caller.number(), sender=OTHER, incarnation=one.life, fabric="tcp",
        introduction=b"nonsense",
    )  # fmt: skip
    refused = one.ask(introduce)
    assert isinstance(refused, Refused)
    assert Reason.FABRIC == refused.reason
    # The narrow one was never given back.
    eventually(lambda: a.counter("remote_leases_expired") == 1)
    assert 0 == a.arena.region.blocks()["pins"].sum()


def test_one_that_pins_and_never_releases(
    host: Callable[..., Host], stranger: Callable[..., Stranger]
) -> None:
    """It holds its share at most, and no longer than its leases."""
    a = host().start(files=0)
    keys = a.store(range(1, 201), BYTES)
    greedy = stranger(a)
    greedy.greet()
    mine = a.namespace.fingerprint
    answers = [greedy.pin(keys, fingerprint=mine, lease_ms=3000) for _ in range(40)]
    assert any(
        isinstance(answer, Refused) and Reason.OVERLOADED == answer.reason for answer in answers
    )
    pinned = int((a.arena.region.blocks()["pins"] != 0).any(axis=1).sum())
    assert pinned * BYTES <= a.arena.region.payload_bytes // 8
    eventually(lambda: "was not given back in time" in a.said())
    assert a.counter("remote_leases_expired") > 0
    eventually(lambda: not a.arena.region.blocks()["pins"].any())


def test_oversized_batches(host: Callable[..., Host], stranger: Callable[..., Stranger]) -> None:
    """More keys than a PIN may name, frames beyond the largest, messages of many frames: nobody is hurt."""
    a = host().start(files=0)
    one = stranger(a)
    one.greet()
    frame = pack(
        Pin(
            request_id=1, sender=OTHER, incarnation=one.life, fingerprint=bytes(32), lease_ms=1, wait_ms=0,
            bytes_max=1, fabric="tcp", keys=(key_of(1),),
        )
    )  # fmt: skip
    route = one.caller._route(one.target)
    many = frame[:-41] + struct.pack("<I", KEYS_MAX + 1) + frame[-37:] * (KEYS_MAX + 1)
    for frames in ([many], [many, many], [b""] * 50, [bytes(1 << 20)]):
        one.caller._socket.send_multipart([route, *frames])
    assert isinstance(one.greet(), Welcome)
    one.caller._socket.send_multipart([route, bytes(1 << 24)])  # libzmq ends the connection
    eventually(
        lambda: isinstance(one.ask(Snapshot(one.caller.number(), OTHER, one.life), 1.0), Chunk)
    )
    said = a.said()
    assert re.search(r"says 4097 keys, expected 1 to 4096|is one frame, this one has", said), said
    assert a.process.poll() is None


def test_fuzz_of_a_living_host(
    pair: Callable[..., tuple[Host, Host]],
    stranger: Callable[..., Stranger],
    chance: random.Random,
) -> None:
    """Mangled messages as fast as they can be sent, while another host fetches from it: that one is served."""
    from tests.peers.test_messages import MESSAGES, mangled

    a, b = pair()
    keys = a.store(range(1, 101), BYTES)
    tell(b, a, keys)
    one = stranger(a)
    one.greet()
    route = one.caller._route(one.target)
    frames = [pack(message) for message in MESSAGES]
    fetched = sent = 0
    for number in range(FLOOD):
        try:
            one.caller._socket.send_multipart(
                [route, mangled(chance.choice(frames), chance)], zmq.DONTWAIT
            )
            sent += 1
        except zmq.ZMQError:
            time.sleep(0.001)
        if number % (FLOOD // 10) == 0:
            some = keys[fetched * 10 : fetched * 10 + 10]
            if some:
                assert [Answer.OK] * 10 == b.fetch(some)
                fetched += 1
    assert fetched * 10 == b.judge(keys)
    eventually(lambda: a.counter("remote_messages_bad") > FLOOD // 10)
    assert a.process.poll() is None, a.said()
    assert len(a.said().splitlines()) < 100, "the log is not filled"
    print(f"{sent} sent, {a.counter('remote_messages_bad')} refused")
    assert isinstance(stranger(a).greet(), Welcome)
