"""Who are we to other hosts, and who may talk to us? CURVE keys in a folder, and a list of those allowed.

A folder has `host.key` (ours, secret, readable by its owner alone), `host.pub` (what others are to allow) and `allowed`:
a public key a line, then, if it is known, the addresses (HOST or HOST:PORT) at which its holder listens; `#` begins
a comment. `pegashm keys new` makes the folder, `pegashm keys show` prints it. `allowed` is read again when it
changes: who is struck off is refused from then on.

CURVE wants the listener's key before anything is said: a key with addresses is used for those, one without for
all others; when several have none they are tried in turn. A cluster may share one key pair (a Kubernetes secret):
then `allowed` has one line. Keys are 40 characters of Z85. Called by the command line and by the worker's threads.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from dataclasses import dataclass
from typing import Final

import zmq
import zmq.utils.z85

from pegashm.errors import ConfigError, ResourceError
from pegashm.logs import tell
from pegashm.notices import PEERS_KEYS_BAD
from pegashm.peers.addresses import Address, parse_address

__all__ = ["AllowList", "Allowed", "KeyPair", "Keys", "make_keys", "parse_allowed"]

SECRET_FILE: Final = "host.key"
PUBLIC_FILE: Final = "host.pub"
ALLOWED_FILE: Final = "allowed"
_KEY_CHARACTERS: Final = 40
_ALLOWED_TEXT: Final = """\
# Hosts that may talk to this one: a public key a line (`pegashm keys show` there prints it), then, if it is
# known, the addresses at which that host listens. Read again when it changes.
"""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Z85, as ZeroMQ takes them."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair({self.public.decode()})"


@dataclass(frozen=True, slots=True)
class Allowed:
    """One line of the list. `hosts`: HOST or HOST:PORT, none when it is not known where it listens."""

    public: bytes
    hosts: tuple[str, ...] = ()


def parse_allowed(text: str, path: str) -> tuple[Allowed, ...]:
    """ConfigError names the line."""
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        words = _without_comment(line).split()
        if not words:
            continue
        try:
            key = _checked_key(words[0])
            for host in words[1:]:
                if ":" in host:
                    parse_address(host, "an address")
        except ConfigError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from None
        entries.append(Allowed(key, tuple(words[1:])))
    return tuple(entries)


class AllowList:
    """The list as it is now. Thread-safe."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._mutex = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._entries: tuple[Allowed, ...] = ()
        self._public: frozenset[bytes] = frozenset()
        self.refresh(must=True)

    def refresh(self, *, must: bool = False) -> None:
        """Read it again if it changed. A list that cannot be read leaves the one we have, and says so once."""
        with self._mutex:
            try:
                facts = os.stat(self.path)
                seen = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
                if seen == self._seen:
                    return
                self._seen = seen
                with open(self.path, encoding="utf-8") as file:
                    self._entries = parse_allowed(file.read(), self.path)
                self._public = frozenset(entry.public for entry in self._entries)
            except (OSError, UnicodeDecodeError, ConfigError) as error:
                text = (
                    error if isinstance(error, ConfigError) else f"cannot read {self.path}: {error}"
                )
                if must:
                    raise ConfigError(str(text)) from error
                if self._seen is not None:
                    tell(PEERS_KEYS_BAD, "%s: going on with the list as it was", text)

    @property
    def entries(self) -> tuple[Allowed, ...]:
        return self._entries

    def allows(self, public: bytes) -> bool:
        return public in self._public

    def keys_for(self, address: Address) -> tuple[bytes, ...]:
        """What the host at this address may have as its key, the likely first."""
        names = {address.host, str(address)}
        named = tuple(entry.public for entry in self._entries if names & set(entry.hosts))
        return named or tuple(entry.public for entry in self._entries if not entry.hosts)


@dataclass(frozen=True, slots=True)
class Keys:
    """Our own keys and who is allowed."""

    pair: KeyPair
    allowed: AllowList

    @classmethod
    def load(cls, folder: str) -> Keys:
        """ConfigError when the folder does not hold what `make_keys` makes; also for a secret that others can read."""
        path = os.path.join(folder, SECRET_FILE)
        try:
            with open(path, encoding="ascii") as file:
                facts = os.fstat(file.fileno())
                secret = _checked_key(file.read().strip())
        except FileNotFoundError:
            raise ConfigError(
                f"there is no {path}: type `pegashm keys new {folder}` to make this host's keys"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from error
        # A mounted Kubernetes secret belongs to root and has its group's read bit (fsGroup); others never.
        if facts.st_mode & 0o037 or not stat.S_ISREG(facts.st_mode):
            raise ConfigError(
                f"{path} can be read or written by others (mode {facts.st_mode & 0o7777:04o}): type "
                f"`chmod 600 {path}`, and make new keys if somebody may have seen it"
            )
        pair = KeyPair(zmq.curve_public(secret), secret)
        return cls(pair, AllowList(os.path.join(folder, ALLOWED_FILE)))


def make_keys(folder: str) -> KeyPair:
    """New keys in `folder`, made if need be. ResourceError when there are some: they are never overwritten."""
    public, secret = zmq.curve_keypair()
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        _write(os.path.join(folder, SECRET_FILE), secret.decode() + "\n", 0o600)
        _write(os.path.join(folder, PUBLIC_FILE), public.decode() + "\n", 0o644)
        with contextlib.suppress(FileExistsError):
            _write(os.path.join(folder, ALLOWED_FILE), _ALLOWED_TEXT, 0o644)
    except FileExistsError as error:
        raise ResourceError(
            f"{error.filename} exists: it is left as it is. Remove it to make new keys (other hosts then have to "
            "allow the new public key)"
        ) from error
    except OSError as error:
        raise ResourceError(f"cannot write keys to {folder}: {error}") from error
    return KeyPair(public, secret)


def _write(path: str, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(descriptor, mode)
        file.write(text)


def _without_comment(line: str) -> str:
    # No key begins with '#', though one may have it inside.
    words = line.split()
    ends = next((at for at, word in enumerate(words) if word.startswith("#")), len(words))
    return " ".join(words[:ends])


def _checked_key(text: str) -> bytes:
    try:
        key = text.encode("ascii")
        good = len(key) == _KEY_CHARACTERS and len(zmq.utils.z85.decode(key)) == 32
    except (UnicodeEncodeError, ValueError, KeyError):
        good = False
    if not good:
        raise ConfigError(f"a key is {_KEY_CHARACTERS} characters of Z85, got {text[:60]!r}")
    return key
