# Bytes between files and memory, for the spill files.

# no_gc_clear: __dealloc__ needs the pool.
@cython.no_gc_clear
cdef class DiskTransfer:
    cdef CDiskTransfer core
    cdef DiskPool pool
    cdef object keep, _errors

    @property
    def finished(self):
        return self.pool.mine().finished(self.core)

    def wait(self, *, bint helping=False):
        cdef CDiskPool* pool = self.pool.mine()
        with nogil:
            pool.wait(self.core, helping)
        return self._errors

    def __dealloc__(self):
        # The threads still use the arrays: nobody may drop them before. (A forked child has no such threads.)
        if self.pool is not None and self.pool.process == os.getpid():
            with nogil:
                self.pool.core.wait(self.core, False)


cdef class DiskPool:
    cdef CDiskPool* core
    cdef readonly object process
    cdef bint closed

    def __cinit__(self, uint32_t threads=4, uint64_t piece_bytes=1 << 20):
        self.process = os.getpid()
        self.closed = False
        self.core = new CDiskPool(threads, piece_bytes)

    def __dealloc__(self):
        if self.core != NULL and self.process == os.getpid():
            del self.core

    cdef CDiskPool* mine(self) except NULL:
        if self.process != os.getpid():
            raise ValueError("this DiskPool was made by the parent process: its threads are not in a forked child")
        if self.closed:
            raise ValueError("this DiskPool is closed")
        return self.core

    @property
    def threads(self):
        return self.mine().threads()

    @property
    def waiting_seconds(self):
        return self.mine().waiting_ns() / 1e9

    def start(self, int fd, offsets, addresses, sizes, *, bint write):
        cdef CDiskPool* pool = self.mine()
        cdef DiskTransfer transfer = DiskTransfer.__new__(DiskTransfer)
        cdef const uint64_t[::1] offsets_ = _words(offsets)
        cdef const uint64_t[::1] addresses_ = _words(addresses)
        cdef const uint64_t[::1] sizes_ = _words(sizes)
        cdef Py_ssize_t count = offsets_.shape[0]
        cdef int32_t[::1] errors_
        if addresses_.shape[0] != count or sizes_.shape[0] != count:
            raise ValueError(f"{count} offsets, {addresses_.shape[0]} addresses, {sizes_.shape[0]} sizes")
        transfer._errors = np.zeros(count, dtype=np.int32)
        if count:
            errors_ = transfer._errors
            transfer.keep = (offsets_, addresses_, sizes_, errors_)
            transfer.core.offsets = &offsets_[0]
            transfer.core.addresses = &addresses_[0]
            transfer.core.bytes = &sizes_[0]
            transfer.core.errors = &errors_[0]
        transfer.core.count = <uint64_t>count
        transfer.core.fd = fd
        transfer.core.write = write
        transfer.pool = self
        pool.start(transfer.core)
        return transfer

    def transfer(self, int fd, offsets, addresses, sizes, *, bint write):
        return self.start(fd, offsets, addresses, sizes, write=write).wait(helping=True)

    def close(self, double patience_seconds=1.0):
        cdef uint64_t patience_ms = <uint64_t>(patience_seconds * 1000)
        cdef cbool ended
        if self.process != os.getpid():
            return True
        self.closed = True
        with nogil:
            ended = self.core.close(patience_ms)
        return ended
