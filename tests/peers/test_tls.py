"""A certificate in the folder of keys: are payloads encrypted then, by whom, and what when it is not to be used?"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pegashm.config import PeersConfig
from pegashm.errors import ConfigError
from pegashm.peers.addresses import parse_address
from pegashm.peers.fabrics import open_fabrics
from pegashm.transport.messages import Answer

from tests import certificates
from tests.certificates import make_certificate
from tests.peers.rig import BYTES, Host, connect
from tests.transport.rig import eventually

pytestmark = pytest.mark.skipif(bool(certificates.why_not()), reason=str(certificates.why_not()))

HostMaker = Callable[..., Host]


def certify(folder: str) -> str:
    """A certificate for this host, as PEM."""
    path = Path(folder) / "tls.crt"
    make_certificate(str(path), str(Path(folder) / "tls.key"))
    return path.read_text()


def allow_each_other(folders: Sequence[str]) -> None:
    lines = [(Path(folder) / "host.pub").read_text().strip() + "\n" for folder in folders]
    for folder in folders:
        (Path(folder) / "allowed").write_text("".join(lines))


def payload_port(host: Host) -> tuple[str, int]:
    address = parse_address(host.address, "")
    return address.host, address.port + 2


def test_payloads_by_tls(host: HostMaker, keys: list[str]) -> None:
    """Of two hosts one has a certificate: what it serves is encrypted, what the other serves is not; both arrive."""
    pem = certify(keys[0])
    allow_each_other(keys[:2])
    encrypting, plain = (host(keys=folder) for folder in keys[:2])
    connect([encrypting, plain])
    shown = ssl.get_server_certificate(payload_port(encrypting), timeout=5.0)
    assert shown.split() == pem.split(), (
        "who listens for payloads speaks TLS, with this very certificate"
    )
    with pytest.raises(OSError):
        ssl.get_server_certificate(payload_port(plain), timeout=5.0)
    for serving, reading, numbers in (
        (encrypting, plain, range(1, 61)),
        (plain, encrypting, range(101, 161)),
    ):
        stored = serving.store(numbers, BYTES, sums=True)
        eventually(lambda: reading.sees(stored) == 60)  # noqa: B023
        assert [Answer.OK] * 60 == reading.fetch(stored)
        assert 60 == reading.judge(stored)
        assert 60 * BYTES == serving.counter("remote_bytes_served")


def test_another_certificate_than_the_one_announced(host: HostMaker, keys: list[str]) -> None:
    """The fingerprint goes over CURVE. Restarted with another certificate, a host is greeted again and read by that one."""
    certify(keys[0])
    allow_each_other(keys[:2])
    serving, reading = (host(keys=folder) for folder in keys[:2])
    connect([serving, reading])
    serving.end()
    pem = certify(keys[0])
    serving.start()
    eventually(lambda: reading.knows(serving) and reading.follows(serving), 60.0)
    assert ssl.get_server_certificate(payload_port(serving), timeout=5.0).split() == pem.split()
    stored = serving.store(range(1, 31), BYTES)
    eventually(lambda: reading.sees(stored) == 30)
    eventually(lambda: set(reading.fetch(stored)) == {Answer.OK}, 60.0)
    assert 30 == reading.judge(stored)


@pytest.mark.parametrize("damage", ["no key", "another's key", "no certificate"])
def test_what_cannot_be_used_is_refused(host: HostMaker, keys: list[str], damage: str) -> None:
    """Never silently in the clear."""
    certify(keys[0])
    folder = Path(keys[0])
    if damage == "no key":
        (folder / "tls.key").unlink()
    elif damage == "another's key":
        make_certificate(str(folder / "other.crt"), str(folder / "tls.key"))
    else:
        (folder / "tls.crt").write_text("nothing\n")
    one = host(keys=keys[0])
    config = PeersConfig(listen=one.address, keys=keys[0], fabric="tcp")
    with pytest.raises(ConfigError, match=r"tls\.crt.*tls\.key.*cannot be used"):
        open_fabrics(
            config,
            one.arena.region,
            parse_address(one.address, ""),
            lock_fd=one.arena.control_fd,
        )
