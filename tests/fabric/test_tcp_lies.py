"""What can a peer that lies, floods or repeats what it heard do over TCP? Cost a miss, and nothing else.

The test itself is the liar, on raw sockets: a stranger, an admitted peer that asks for what it may not, and a server that
answers wrongly. After each, others are served as before. Messages are fuzzed twice: 10^5 and more through what reads them, and
thousands over real streams of a real server.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import xxhash

from pegashm.fabric import tcp_wire as wire
from pegashm.fabric.interface import ReadOutcome
from pegashm.fabric.tcp import TcpFabric
from pegashm.fabric.tcp_wire import Offer, Status
from pegashm.units import KIB

from tests.fabric.proxy import UP, Proxy
from tests.fabric.rig import Lease, Pair, RefusedError
from tests.figures import LONG

OK, FAILED, LATE = map(int, ReadOutcome)
BLOCKS, NBYTES = 4, 64 * KIB
PEER = b"a peer that lies"
FUZZED = 100_000 if LONG else 13_000  # of each kind of message


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair("tcp")
    yield made
    made.close()


class Raw:
    """A stream to the pair's server, by hand."""

    def __init__(self, pair: Pair, session: bytes, secret: bytes) -> None:
        self.sock = dial(pair)
        self.server_nonce = wire.parse_greeting(exactly(self.sock, wire.GREETING_BYTES))
        self.nonce = secrets.token_bytes(wire.NONCE_BYTES)
        self.sock.sendall(wire.pack_hello(session, secret, self.server_nonce, self.nonce))
        welcome = exactly(self.sock, wire.WELCOME_BYTES)
        self.status = wire.parse_welcome(welcome, secret, self.server_nonce, self.nonce)
        self.key = wire.stream_key(secret, self.server_nonce, self.nonce)

    def request(self, lease: Lease, sequence: int, blocks: list[tuple[int, int]]) -> bytes:
        ticket = wire.parse_grant(bytes.fromhex(lease.grant[1]))
        return wire.pack_request(self.key, ticket, lease.number, sequence, blocks)

    def status_of(self, sequence: int) -> Status:
        return wire.parse_reply(exactly(self.sock, wire.REPLY_BYTES), sequence)

    def close(self) -> None:
        self.sock.close()


def dial(pair: Pair) -> socket.socket:
    port = wire.parse_offer(bytes.fromhex(pair.serving.ask("offer"))).port
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def exactly(sock: socket.socket, nbytes: int) -> bytes:
    """So many bytes; fewer when it was closed."""
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while len(data) < nbytes and (piece := sock.recv(min(nbytes - len(data), 1 << 16))):
            data += piece
    return bytes(data)


def take_all(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(1 << 20):
            pass


def admitted(pair: Pair, peer: bytes = PEER) -> tuple[bytes, bytes]:
    introduction = wire.pack_introduction().hex()
    answer = pair.serving.ask("admit", peer=peer.hex(), introduction=introduction)
    return wire.parse_answer(bytes.fromhex(answer))


def blocks_of(lease: Lease) -> list[tuple[int, int]]:
    return [(offset, lease.nbytes) for offset in lease.sources]


def serves(pair: Pair) -> None:
    """Others are served as before."""
    lease = pair.lease(BLOCKS, NBYTES)
    assert BLOCKS == lease.judge(pair.read(pair.connect(), lease))
    pair.revoke(lease)


# -- heard and repeated ------------------------------------------------------------------------


def test_a_stream_that_was_heard_is_worth_nothing_again(pair: Pair) -> None:
    """Hello and request, sent again byte by byte while the lease still lasts."""
    proxy = Proxy(wire.parse_offer(bytes.fromhex(pair.serving.ask("offer"))).port)
    try:
        connection = pair.connect(offer=wire.pack_offer(Offer("127.0.0.1", proxy.port)))
        lease = pair.lease(BLOCKS, NBYTES)
        assert BLOCKS == lease.judge(pair.read(connection, lease))
        heard = bytes(proxy.seen[UP][0])
        assert len(heard) == wire.HELLO_BYTES + wire.REQUEST_BYTES + 16 * BLOCKS
        with dial(pair) as sock:
            exactly(sock, wire.GREETING_BYTES)
            sock.sendall(heard)
            said = exactly(sock, 1 << 20)
        assert Status.UNKNOWN == wire._WELCOME.unpack(said)[2]
    finally:
        proxy.close()
    serves(pair)


@pytest.mark.parametrize("again", ["same", "next sequence", "other stream", "other lease"])
def test_a_request_is_answered_once(pair: Pair, again: str) -> None:
    session, secret = admitted(pair)
    lease = pair.lease(1, NBYTES, peer=PEER)
    raw = Raw(pair, session, secret)
    request = raw.request(lease, 1, blocks_of(lease))
    raw.sock.sendall(request)
    assert raw.status_of(1) is Status.OK
    assert len(exactly(raw.sock, NBYTES + 8)) == NBYTES + 8
    if again == "same":
        raw.sock.sendall(request)
        assert exactly(raw.sock, 1) == b""
    elif again == "next sequence":
        raw.sock.sendall(request[:16] + (2).to_bytes(8, "little") + request[24:])
        assert raw.status_of(2) is Status.UNKNOWN
    elif again == "other stream":
        other = Raw(pair, session, secret)
        other.sock.sendall(request)
        assert other.status_of(1) is Status.UNKNOWN
        other.close()
    else:
        other_lease = pair.lease(1, NBYTES, peer=PEER)
        forged = raw.request(lease, 2, blocks_of(lease))
        forged = forged[:8] + other_lease.number.to_bytes(8, "little") + forged[16:]
        raw.sock.sendall(forged)
        assert raw.status_of(2) is Status.UNKNOWN
    raw.close()
    serves(pair)


# -- floods ------------------------------------------------------------------------------------


def test_strangers_who_say_nothing_keep_nobody_out(pair: Pair) -> None:
    connection = pair.connect()
    crowd = [dial(pair) for _ in range(200)]
    lease = pair.lease(BLOCKS, NBYTES)
    assert BLOCKS == lease.judge(pair.read(connection, lease))
    serves(pair)  # who comes new gets in as well
    for sock in crowd:
        sock.settimeout(20)
        exactly(sock, 1000)  # greeted, and closed: too many of them, or too long silent
        sock.close()
    serves(pair)


def test_a_peer_has_so_many_streams_and_no_more(pair: Pair) -> None:
    session, secret = admitted(pair)
    streams = [Raw(pair, session, secret) for _ in range(32)]
    assert {stream.status for stream in streams} == {Status.OK}
    assert Raw(pair, session, secret).status is Status.TOO_MANY
    serves(pair)
    for stream in streams:
        stream.close()


def test_a_reader_that_takes_nothing_holds_up_nobody(pair: Pair) -> None:
    """It asks for much on many streams and stands still: others read, its lease is revoked at once."""
    session, secret = admitted(pair)
    lease = pair.lease(32, 256 * KIB, peer=PEER)
    streams = [Raw(pair, session, secret) for _ in range(16)]
    for stream in streams:
        stream.sock.sendall(stream.request(lease, 1, blocks_of(lease)))
    time.sleep(0.3)
    serves(pair)
    pair.revoke(lease)
    serves(pair)
    for stream in streams:  # each is closed: nothing more is sent
        assert len(exactly(stream.sock, 64 << 20)) < 32 * (256 * KIB + 8)
        stream.close()


def test_requests_without_end_hold_up_nobody(pair: Pair) -> None:
    session, secret = admitted(pair)
    lease = pair.lease(1, 4 * KIB, peer=PEER)
    stop = threading.Event()

    def flood() -> None:
        raw = Raw(pair, session, secret)
        sequence = 0
        drain = threading.Thread(target=take_all, args=(raw.sock,), daemon=True)
        drain.start()
        with contextlib.suppress(OSError):
            while not stop.is_set():
                sent = [raw.request(lease, sequence + n, blocks_of(lease)) for n in range(1, 65)]
                sequence += 64
                raw.sock.sendall(b"".join(sent))
        with contextlib.suppress(OSError):  # closed by the server: too many refusals
            raw.sock.shutdown(socket.SHUT_RDWR)
        drain.join()
        raw.close()

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            serves(pair)
        pair.revoke(lease)
        serves(pair)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


# -- fuzz --------------------------------------------------------------------------------------


def test_any_bytes_are_read_or_refused(chance: random.Random) -> None:
    """What comes from outside is judged by these: a value or a ValueError, whatever the bytes."""
    key, ticket = bytes(32), bytes(32)
    secret, nonce = bytes(32), bytes(16)
    readers: list[tuple[bytes, Callable[[bytes], object], bool]] = [
        (wire.pack_offer(Offer("10.0.0.1", 7000, bytes(32))), wire.parse_offer, True),
        (wire.pack_introduction(), wire.parse_introduction, True),
        (wire.pack_answer(bytes(16), secret), wire.parse_answer, True),
        (wire.pack_grant(ticket), wire.parse_grant, True),
        (wire.pack_greeting(nonce), wire.parse_greeting, False),
        (wire.pack_hello(bytes(16), secret, nonce, nonce), wire.parse_hello, False),
        (
            wire.pack_welcome(Status.OK, secret, nonce, nonce),
            lambda data: wire.parse_welcome(data, secret, nonce, nonce),
            False,
        ),
        (
            wire.pack_request(key, ticket, 1, 1, [])[: wire.REQUEST_BYTES],
            wire.parse_request,
            False,
        ),
        (wire.pack_reply(Status.OK, 1), lambda data: wire.parse_reply(data, 1), False),
    ]
    refused = 0
    for genuine, read, any_length in readers:
        for _ in range(FUZZED):
            try:
                read(mutated(genuine, chance, any_length))
            except ValueError:
                refused += 1
    assert refused > 3 * FUZZED


def test_garbage_over_real_streams(pair: Pair, chance: random.Random) -> None:
    """Strangers' bytes, changed hellos, and an admitted peer's changed requests."""
    session, secret = admitted(pair)
    lease = pair.lease(BLOCKS, NBYTES, peer=PEER)
    for turn in range(600):
        if turn % 3 == 0:
            with dial(pair) as sock, contextlib.suppress(OSError):
                sock.sendall(chance.randbytes(chance.choice([0, 1, 8, 71, 72, 73, 4096])))
                sock.shutdown(socket.SHUT_WR)
                exactly(sock, 1000)
        elif turn % 3 == 1:
            with dial(pair) as sock, contextlib.suppress(OSError):
                nonce = wire.parse_greeting(exactly(sock, wire.GREETING_BYTES))
                hello = wire.pack_hello(session, secret, nonce, bytes(16))
                sock.sendall(mutated(hello, chance, True))
                sock.shutdown(socket.SHUT_WR)
                exactly(sock, 1000)
        else:
            raw = Raw(pair, session, secret)
            with contextlib.suppress(OSError):
                for sequence in range(1, 6):
                    request = raw.request(lease, sequence, blocks_of(lease))
                    raw.sock.sendall(mutated(request, chance, sequence > 3))
                raw.sock.shutdown(socket.SHUT_WR)
                exactly(raw.sock, 64 << 20)
            raw.close()
    assert pair.serving.process.poll() is None
    serves(pair)
    facts = pair.serving.ask("facts")
    assert facts["descriptors"] < 100


def test_garbage_is_one_line_a_second_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    memory = mmap.mmap(-1, 1 << 16)
    array = ctypes.c_char.from_buffer(memory)
    fabric = TcpFabric(ctypes.addressof(array), len(memory))
    try:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", fabric.port), timeout=20) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\n".ljust(wire.HELLO_BYTES))
                exactly(sock, 1000)
    finally:
        fabric.close()
    lines = [record.getMessage() for record in caplog.records]
    assert 1 <= len(lines) < 20
    assert (
        "stream from 127.0.0.1: a hello of TCP begins with b'PGTH', this one with b'GET '"
        in lines[0]
    )
    assert fabric.counters["malformed"] == 20


def mutated(genuine: bytes, chance: random.Random, any_length: bool) -> bytes:
    data = bytearray(genuine)
    kind = chance.randrange(4)
    if kind == 0:
        data[:] = chance.randbytes(len(data))
    elif kind == 1 and any_length:
        del data[chance.randrange(len(data) + 1) :]
    elif kind == 2 and any_length:
        data += chance.randbytes(chance.randrange(64))
    for _ in range(chance.randrange(1, 4)):
        if data:
            data[chance.randrange(len(data))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
    return bytes(data)


# -- a server that lies ------------------------------------------------------------------------


class Liar:
    """A server that knows the session's secret and answers each request with `lie`(key, request, body)."""

    def __init__(self, lie: Callable[[Liar, bytes, wire.Request], Iterator[bytes]]) -> None:
        self.session, self.secret = secrets.token_bytes(16), secrets.token_bytes(32)
        self.ticket = b""
        self._lie = lie
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.offer = wire.pack_offer(Offer("127.0.0.1", self._listener.getsockname()[1]))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                threading.Thread(target=self._stream, args=(sock,), daemon=True).start()

    def _stream(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, ValueError):
            nonce = secrets.token_bytes(16)
            sock.sendall(wire.pack_greeting(nonce))
            hello = wire.parse_hello(exactly(sock, wire.HELLO_BYTES))
            sock.sendall(wire.pack_welcome(Status.OK, self.secret, nonce, hello.nonce))
            key = wire.stream_key(self.secret, nonce, hello.nonce)
            while data := exactly(sock, wire.REQUEST_BYTES):
                request = wire.parse_request(data)
                exactly(sock, request.body_bytes)
                for piece in self._lie(self, key, request):
                    sock.sendall(piece)

    def close(self) -> None:
        self._listener.close()


def truth(liar: Liar, key: bytes, request: wire.Request) -> Iterator[bytes]:
    """What an honest one says, of payload that is nobody's."""
    yield wire.pack_reply(Status.OK, request.sequence)
    seed = wire.payload_seed(key, liar.ticket, request.sequence)
    payload = bytes(NBYTES)
    for number in range(request.count):
        yield payload
        yield xxhash.xxh3_64_intdigest(payload, seed + number & (1 << 64) - 1).to_bytes(8, "little")


LIES: dict[str, Callable[[Liar, bytes, wire.Request], Iterator[bytes]]] = {
    "nothing": lambda *_: iter(()),
    "wrong sums": lambda _l, _k, r: iter(
        [wire.pack_reply(Status.OK, r.sequence), bytes(r.count * (NBYTES + 8))]
    ),
    "unseeded sums": lambda _l, _k, r: iter(
        [wire.pack_reply(Status.OK, r.sequence)]
        + [bytes(NBYTES) + xxhash.xxh3_64_digest(bytes(NBYTES))] * r.count
    ),
    "another sequence": lambda _l, _k, r: iter([wire.pack_reply(Status.OK, r.sequence + 1)]),
    "a status that is none": lambda _l, _k, r: iter(
        [wire._REPLY.pack(b"PGTY", 77, r.sequence), bytes(1 << 20)]
    ),
    "refused": lambda _l, _k, r: iter([wire.pack_reply(Status.NOT_COVERED, r.sequence)]),
    "without end": lambda _l, _k, _r: iter(lambda: bytes(1 << 16), None),
    "half": lambda _l, _k, r: iter([wire.pack_reply(Status.OK, r.sequence), bytes(NBYTES + 100)]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_server_is_a_miss(pair: Pair, lie: str) -> None:
    liar = Liar(LIES[lie])
    try:
        pair.reading.on_introduce = lambda _i: wire.pack_answer(liar.session, liar.secret)
        connection = pair.connect(offer=liar.offer)
        lease = pair.lease(BLOCKS, NBYTES)
        liar.ticket = wire.parse_grant(bytes.fromhex(lease.grant[1]))
        assert OK not in pair.read(connection, lease, seconds=0.7)
        lease.assert_untouched(0.1)
    finally:
        liar.close()
    pair.reading.on_introduce = None
    serves(pair)


def test_the_liar_is_believed_when_it_says_what_an_honest_one_would(pair: Pair) -> None:
    """So that the lies above fail for what they are, and not for how the liar is made."""
    liar = Liar(truth)
    try:
        pair.reading.on_introduce = lambda _i: wire.pack_answer(liar.session, liar.secret)
        connection = pair.connect(offer=liar.offer)
        lease = pair.lease(1, NBYTES)
        liar.ticket = wire.parse_grant(bytes.fromhex(lease.grant[1]))
        assert [OK] == pair.read(connection, lease, seconds=5.0)
    finally:
        liar.close()


def test_who_does_not_know_the_secret_is_no_server(pair: Pair) -> None:
    """Another process has come to listen at the peer's address."""
    liar = Liar(truth)
    try:
        answer = wire.pack_answer(liar.session, secrets.token_bytes(32))
        pair.reading.on_introduce = lambda _i: answer
        with pytest.raises(RefusedError, match="does not know the secret"):
            pair.connect(offer=liar.offer, seconds=5.0)
    finally:
        liar.close()
