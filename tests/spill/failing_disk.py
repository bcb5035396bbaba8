"""How does a test get a device that fails, hangs or vanishes, for real? A file system in user space, with one file.

Speaks the FUSE protocol of the kernel directly (no library): one file, `spill`, whose bytes are those of a file elsewhere. Run as
a child, `python -m tests.spill.failing_disk BACKING FOLDER`; it takes orders on standard input and answers each with `ok`:
`fail read OFFSET BYTES`, `fail write OFFSET BYTES` (EIO for whatever touches that range), `heal`, `hang` (no
answers to reads, writes and syncs), `go on`. Killed, it is a device that was pulled out. Needs root and
/dev/fuse; `FailingDisk` is the test's side of it, and skips the test where they are missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

__all__ = ["FailingDisk", "failing_disk"]

NAME = b"spill"
ROOT_NODE, FILE_NODE = 1, 2
LOOKUP, FORGET, GETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC = 1, 2, 3, 14, 15, 16, 17, 18, 20
FLUSH, INIT, OPENDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET = 25, 26, 27, 29, 36, 42
SILENT = (FORGET, BATCH_FORGET, INTERRUPT)
WRITE_BYTES_MAX = 1 << 20
FLAGS = 1 | 1 << 5 | 1 << 15 | 1 << 22  # ASYNC_READ, BIG_WRITES, ASYNC_DIO, MAX_PAGES
DIRECT_IO = 1

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_RW = struct.Struct("<QQIIQII")


class Server:
    """One mount and the file behind it; single-threaded, so that "hang" hangs everything."""

    def __init__(self, backing: str, folder: str) -> None:
        self.file = os.open(backing, os.O_RDWR)
        self.device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"pegashm-test", folder.encode(), b"fuse", 6, options.encode()):
            raise OSError(ctypes.get_errno(), "mount")
        self.bad: list[tuple[str, int, int]] = []
        self.hanging = False
        self.held: list[bytes] = []

    def serve(self) -> None:
        orders = b""
        while True:
            ready, _, _ = select.select([self.device, 0], [], [])
            if 0 in ready:
                some = os.read(0, 4096)
                if not some:
                    return
                *lines, orders = (orders + some).split(b"\n")
                for line in lines:
                    self.obey(line.decode().split())
                    os.write(1, b"ok\n")
            if self.device in ready:
                try:
                    request = os.read(self.device, WRITE_BYTES_MAX + 8192)
                except OSError as error:
                    if error.errno == errno.ENODEV:  # unmounted
                        return
                    if error.errno in (errno.ENOENT, errno.EINTR):
                        continue
                    raise
                self.answer(request)

    def obey(self, order: list[str]) -> None:
        match order:
            case ["fail", what, offset, nbytes]:
                self.bad.append((what, int(offset), int(nbytes)))
            case ["heal"]:
                self.bad.clear()
            case ["hang"]:
                self.hanging = True
            case ["go", "on"]:
                self.hanging = False
                held, self.held = self.held, []
                for request in held:
                    self.answer(request)
            case _:
                raise SystemExit(f"no such order: {order}")

    def answer(self, request: bytes) -> None:
        _, opcode, unique, node, *_ = _IN.unpack_from(request)
        if self.hanging and opcode in (READ, WRITE, FSYNC):
            self.held.append(request)
            return
        if opcode in SILENT:
            return
        error, data = 0, b""
        try:
            data = self.reply(opcode, node, request[_IN.size :])
        except OSError as failure:
            error = -(failure.errno or errno.EIO)
        with contextlib.suppress(FileNotFoundError):  # interrupted meanwhile
            os.write(self.device, _OUT.pack(_OUT.size + len(data), error, unique) + data)

    def reply(self, opcode: int, node: int, body: bytes) -> bytes:
        if opcode == INIT:
            return struct.pack(
                "<IIIIHHIIHHI28x", 7, 31, 1 << 20, FLAGS, 64, 48, WRITE_BYTES_MAX, 1, 256, 0, 0
            )
        if opcode == LOOKUP:
            if body.rstrip(b"\0") != NAME:
                raise FileNotFoundError(errno.ENOENT, "")
            return struct.pack("<QQQQII", FILE_NODE, 1, 1, 1, 0, 0) + self.attributes(FILE_NODE)
        if opcode == GETATTR:
            return struct.pack("<QII", 1, 0, 0) + self.attributes(node)
        if opcode in (OPEN, OPENDIR):
            return struct.pack("<QII", 0, DIRECT_IO if opcode == OPEN else 0, 0)
        if opcode == READ:
            _, offset, size, *_ = _RW.unpack_from(body)
            self.judge("read", offset, size)
            return os.pread(self.file, size, offset)
        if opcode == WRITE:
            _, offset, size, *_ = _RW.unpack_from(body)
            self.judge("write", offset, size)
            written = os.pwrite(self.file, body[_RW.size : _RW.size + size], offset)
            return struct.pack("<II", written, 0)
        if opcode in (FSYNC, FLUSH, RELEASE, RELEASEDIR):
            return b""
        if opcode == STATFS:
            return struct.pack("<QQQQQIIII24x", 1 << 20, 1 << 19, 1 << 19, 9, 9, 4096, 255, 4096, 0)
        raise OSError(errno.ENOSYS, "")

    def judge(self, what: str, offset: int, size: int) -> None:
        for each, start, nbytes in self.bad:
            if each == what and offset < start + nbytes and start < offset + size:
                raise OSError(errno.EIO, "")

    def attributes(self, node: int) -> bytes:
        size = os.fstat(self.file).st_size
        mode = stat.S_IFDIR | 0o755 if node == ROOT_NODE else stat.S_IFREG | 0o600
        return struct.pack(
            "<QQQQQQIIIIIIIIII",
            node,
            size,
            size // 512,
            0,
            0,
            0,
            0,
            0,
            0,
            mode,
            1,
            0,
            0,
            0,
            4096,
            0,
        )


class FailingDisk:
    """The test's side: `path` is the file; orders are methods."""

    def __init__(self, child: subprocess.Popen[str], path: Path) -> None:
        self.path = str(path)
        self.child = child

    def fail(self, what: str, offset: int, nbytes: int) -> None:
        self._order(f"fail {what} {offset} {nbytes}")

    def heal(self) -> None:
        self._order("heal")

    def hang(self) -> None:
        self._order("hang")

    def go_on(self) -> None:
        self._order("go on")

    def pull_out(self) -> None:
        self.child.kill()
        self.child.wait()

    def _order(self, text: str) -> None:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(text + "\n")
        self.child.stdin.flush()
        assert "ok\n" == self.child.stdout.readline()


@contextlib.contextmanager
def failing_disk(tmp_path: Path, make: Callable[[str], None]) -> Iterator[FailingDisk]:
    """`make(path)` makes the file, on an ordinary file system; then it is served through ours."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("a failing device is a FUSE file system, which needs root and /dev/fuse")
    backing, folder = tmp_path / "backing", tmp_path / "device"
    folder.mkdir()
    make(str(backing))
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.spill.failing_disk", str(backing), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert child.stdout is not None
        if child.stdout.readline() != "mounted\n":
            pytest.skip("this container may not mount a FUSE file system")
        yield FailingDisk(child, folder / NAME.decode())
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


if __name__ == "__main__":
    server = Server(sys.argv[1], sys.argv[2])
    print("mounted", flush=True)
    server.serve()
