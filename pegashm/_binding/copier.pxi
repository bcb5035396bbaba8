# Copying payloads, and what a process that copies for a client reports.

cdef uint64_t _forks = 0  # how many forks lie between the first process and this one


def _count_fork():
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


cdef class Copier:
    cdef CCopier* core
    cdef uint64_t forks

    def __cinit__(self, uint32_t threads=1):
        self.core = new CCopier(threads)
        self.forks = _forks

    def __dealloc__(self):
        self.close()

    def close(self):
        cdef CCopier* core = self.core
        self.core = NULL
        if self.forks != _forks:
            return  # its threads and its locks are the parent's: to end them here would be to wait for ever
        with nogil:
            del core

    def copy(self, destinations, sources, sizes, *, str method="auto"):
        cdef const uint64_t[::1] to = _words(destinations)
        cdef const uint64_t[::1] source = _words(sources)
        cdef const uint64_t[::1] nbytes = _words(sizes)
        cdef CopyBatch batch
        cdef uint8_t code
        cdef uint64_t total
        if self.core == NULL:
            raise ValueError("the copier is closed")
        if self.forks != _forks:
            raise ValueError("this copier's threads stayed in the process that forked this one: make another")
        if to.shape[0] != source.shape[0] or to.shape[0] != nbytes.shape[0]:
            raise ValueError(f"{to.shape[0]} destinations, {source.shape[0]} sources, {nbytes.shape[0]} sizes")
        if method not in _COPY_METHODS:
            raise ValueError(f"method must be one of {', '.join(_COPY_METHODS)}, got {method!r}")
        if to.shape[0] == 0:
            return 0
        code = _COPY_METHODS[method]
        batch.to = &to[0]
        batch.source = &source[0]
        batch.bytes = &nbytes[0]
        batch.count = to.shape[0]
        memcpy(&batch.method, &code, 1)
        with nogil:
            total = self.core.copy(batch)
        return total

    @staticmethod
    def methods():
        return list(_COPY_METHODS)


def generations_hold(Region region, handles):
    cdef const uint64_t[::1] handles_ = _words(handles)
    cdef View* view = region.mapped()
    cdef Py_ssize_t i
    out = np.zeros(handles_.shape[0], dtype=np.bool_)
    cdef uint8_t[::1] out_ = out.view(np.uint8)
    for i in range(handles_.shape[0]):
        out_[i] = life_holds(view[0], handles_[i])
    return out


def part_done(Region region, handles, bint ok):
    cdef const uint64_t[::1] handles_ = _words(handles)
    cdef View* view = region.mapped_writable()
    cdef Py_ssize_t i
    for i in range(handles_.shape[0]):
        report_part(view[0], handles_[i], ok)


def parts_total(Region region, handles):
    cdef const uint64_t[::1] handles_ = _words(handles)
    cdef View* view = region.mapped()
    cdef Py_ssize_t i
    out = np.zeros(handles_.shape[0], dtype=np.uint32)
    cdef uint32_t[::1] out_ = out
    for i in range(handles_.shape[0]):
        out_[i] = parts_reported(view[0], handles_[i])
    return out
