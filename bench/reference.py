"""How do benches call the yardsticks of reference.c? Compiled with cc into a temporary folder, called by ctypes.

Nothing is kept: each run compiles anew (half a second), so that a bench needs a C compiler and nothing installed.
Addresses and offsets are numpy arrays of uint64, passed as they are. Used by copy.py, lookup.py and spill.py.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Reference"]

SOURCE = Path(__file__).with_name("reference.c")
Words = NDArray[np.uint64]


class Reference:
    """The compiled yardsticks. `methods` are the ways to copy that this processor has, by name."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory(prefix="pegashm-bench-") as folder:
            library = os.path.join(folder, "reference.so")
            compiler = os.environ.get("CC", "cc")
            command = [compiler, "-O2", "-shared", "-fPIC", "-o", library, str(SOURCE), "-lpthread"]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except FileNotFoundError:
                raise SystemExit(
                    f"the benches compile {SOURCE.name} at run time and found no C compiler "
                    f'"{compiler}". Type: apt install gcc libc6-dev'
                ) from None
            except subprocess.CalledProcessError as error:
                raise SystemExit(f"{' '.join(command)} failed:\n{error.stderr}") from None
            self._library = ctypes.CDLL(library)
        for name in ("reference_copy", "reference_disk", "reference_lines"):
            getattr(self._library, name).restype = ctypes.c_double
        self._library.reference_method.restype = ctypes.c_char_p
        self._library.reference_walk.restype = ctypes.c_uint64
        self.methods = self._usable_methods()

    def _usable_methods(self) -> dict[str, int]:
        methods: dict[str, int] = {}
        index = 0
        while (name := self._library.reference_method(ctypes.c_uint32(index))) is not None:
            if name:
                methods[name.decode()] = index
            index += 1
        return methods

    def copy(
        self, method: str, threads: int, destinations: Words, sources: Words, sizes: Words
    ) -> float:
        """Copy these runs; seconds from the moment all threads run until the last has finished."""
        seconds = self._library.reference_copy(
            ctypes.c_uint32(self.methods[method]),
            ctypes.c_uint32(threads),
            ctypes.c_uint64(len(sizes)),
            _pointer(destinations),
            _pointer(sources),
            _pointer(sizes),
        )
        if seconds < 0:
            raise OSError(f"reference.c could not start {threads} threads")
        return float(seconds)

    def disk(
        self,
        descriptor: int,
        threads: int,
        offsets: Words,
        addresses: Words,
        sizes: Words,
        *,
        write: bool,
    ) -> float:
        """Read or write these blocks, each by one call; seconds, as of `copy`."""
        seconds = self._library.reference_disk(
            ctypes.c_int(descriptor),
            ctypes.c_int(write),
            ctypes.c_uint32(threads),
            ctypes.c_uint64(len(sizes)),
            _pointer(offsets),
            _pointer(addresses),
            _pointer(sizes),
        )
        if seconds < 0:
            raise OSError("reference.c could not start its threads, or a call moved too little")
        return float(seconds)

    def lines(self, first: Words, first_offsets: Words, second: Words, offsets: Words) -> float:
        """Seconds to read a cache line of `first` and one of `second` for every pair of offsets."""
        total = ctypes.c_uint64()
        seconds = self._library.reference_lines(
            ctypes.c_uint64(len(offsets)),
            _pointer(first),
            _pointer(first_offsets),
            _pointer(second),
            _pointer(offsets),
            ctypes.byref(total),
        )
        return float(seconds)

    def walk(self, buffer: Words) -> None:
        """Read all of a buffer, to push everything else out of the caches."""
        self._library.reference_walk(_pointer(buffer), ctypes.c_uint64(buffer.nbytes))


def _pointer(array: Words) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
