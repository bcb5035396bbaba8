# cython: language_level=3, boundscheck=False, wraparound=False, binding=True, embedsignature=True
# distutils: language=c++
"""The thin layer between Python and `_core`: converts, releases the GIL, and turns a status into an exception.

Decides nothing. The types and the contract of every name are in `_native.pyi`; the bytes in
`_core/FORMAT.md`. No other module touches a shared word. One file of `_binding` for one part of the core.
"""

import os

import numpy as np

from pegashm.errors import ArenaNotReadyError, FormatError, ResourceError

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer)
from cpython.object cimport PyObject
from cpython.sequence cimport PySequence_Fast, PySequence_Fast_GET_SIZE, PySequence_Fast_ITEMS
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from libcpp cimport bool as cbool

include "_binding/core.pxi"
include "_binding/names.pxi"
include "_binding/rows.pxi"
include "_binding/arguments.pxi"
include "_binding/header.pxi"
include "_binding/region.pxi"
include "_binding/client.pxi"
include "_binding/spill.pxi"
include "_binding/remote.pxi"
include "_binding/residency.pxi"
include "_binding/copier.pxi"
include "_binding/sums.pxi"
include "_binding/audit.pxi"
include "_binding/disk.pxi"
