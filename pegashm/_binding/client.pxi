# An attached client: lookups, pins, claims.

cdef class Client:
    cdef CClient* core
    cdef Region region
    cdef object user
    cdef readonly uint32_t slot
    cdef readonly uint64_t incarnation

    def __cinit__(self, Region region, uint32_t slot, uint64_t incarnation):
        if slot >= client_count:
            raise ValueError(f"client slots are 0 to {client_count - 1}, got {slot}")
        self.region = region
        self.core = new CClient(region.mapped_writable()[0], slot)
        if not self.core.valid():
            raise MemoryError("no memory for the private pin counts")
        self.user = _MappingUser(region)
        self.slot = slot
        self.incarnation = incarnation

    def __dealloc__(self):
        del self.core

    def retire(self):
        with nogil:  # another thread's call, which it waits for, may want the GIL back only afterwards
            self.core.retire()

    cdef _find(self, object keys, uint32_t namespace_id, cbool pin, cbool prefix, cbool counted):
        cdef _Keys batch = _Keys(keys, namespace_id)
        # Plain buffers, since a lookup of one key is common: memoryviews and keywords were half of what it costs.
        handles = _zeros(batch.count, _WORD)
        outcomes = _zeros(batch.count, _BYTE)
        cdef Py_buffer handles_
        cdef Py_buffer outcomes_
        cdef uint32_t judged = 0
        self.region.mapped()
        if batch.count:
            PyObject_GetBuffer(handles, &handles_, PyBUF_SIMPLE)
            PyObject_GetBuffer(outcomes, &outcomes_, PyBUF_SIMPLE)
            with nogil:
                judged = self.core.find(batch.keys, batch.count, pin, prefix, <uint64_t*>handles_.buf,
                                        <COutcome*>outcomes_.buf, counted)
            PyBuffer_Release(&outcomes_)
            PyBuffer_Release(&handles_)
        return (handles, outcomes) if judged == batch.count else (handles[:judged], outcomes[:judged])

    def find(self, keys, uint32_t namespace_id, *, bint pin=False, bint counted=True):
        return self._find(keys, namespace_id, pin, False, counted)

    def find_prefix(self, keys, uint32_t namespace_id, *, bint pin=False):
        return self._find(keys, namespace_id, pin, True, True)

    def pin(self, handles):
        cdef const uint64_t[::1] handles_ = _words(handles)
        cdef uint32_t count = <uint32_t>handles_.shape[0]
        outcomes = np.zeros(count, dtype=np.uint8)
        cdef uint8_t[::1] outcomes_ = outcomes
        self.region.mapped()
        if count:
            with nogil:
                self.core.pin(&handles_[0], count, <COutcome*>&outcomes_[0])
        return outcomes

    def unpin(self, handles):
        cdef const uint64_t[::1] handles_ = _words(handles)
        self.region.mapped()
        if handles_.shape[0]:
            with nogil:
                self.core.unpin(&handles_[0], <uint32_t>handles_.shape[0])

    def locate(self, handles):
        cdef const uint64_t[::1] handles_ = _words(handles)
        cdef uint32_t count = <uint32_t>handles_.shape[0]
        offsets = np.zeros(count, dtype=np.uint64)
        sizes = np.zeros(count, dtype=np.uint64)
        cdef uint64_t[::1] offsets_ = offsets
        cdef uint64_t[::1] sizes_ = sizes
        self.region.mapped()
        if count:
            with nogil:
                self.core.locate(&handles_[0], count, &offsets_[0], &sizes_[0])
        return offsets, sizes

    def claim(self, keys, uint32_t namespace_id, uint64_t payload_bytes):
        cdef _Keys batch = _Keys(keys, namespace_id)
        handles = np.zeros(batch.count, dtype=np.uint64)
        outcomes = np.zeros(batch.count, dtype=np.uint8)
        cdef uint64_t[::1] handles_ = handles
        cdef uint8_t[::1] outcomes_ = outcomes
        self.region.mapped()
        if batch.count:
            with nogil:
                self.core.claim(batch.keys, batch.count, payload_bytes, &handles_[0],
                                <COutcome*>&outcomes_[0])
        return handles, outcomes

    def publish(self, handles, uint32_t parts_expected=0):
        cdef const uint64_t[::1] handles_ = _words(handles)
        cdef uint32_t count = <uint32_t>handles_.shape[0]
        outcomes = np.zeros(count, dtype=np.uint8)
        cdef uint8_t[::1] outcomes_ = outcomes
        self.region.mapped()
        if count:
            with nogil:
                self.core.publish(&handles_[0], count, parts_expected, <COutcome*>&outcomes_[0])
        return outcomes

    def abandon(self, handles):
        cdef const uint64_t[::1] handles_ = _words(handles)
        self.region.mapped()
        if handles_.shape[0]:
            with nogil:
                self.core.abandon(&handles_[0], <uint32_t>handles_.shape[0])

    def touch(self, handles):
        cdef const uint64_t[::1] handles_ = _words(handles)
        self.region.mapped()
        if handles_.shape[0]:
            with nogil:
                self.core.touch(&handles_[0], <uint32_t>handles_.shape[0])

    def touch_keys(self, keys, uint32_t namespace_id):
        cdef _Keys batch = _Keys(keys, namespace_id)
        cdef uint32_t touched
        self.region.mapped()
        with nogil:
            touched = self.core.touch_keys(batch.keys, batch.count)
        return touched

    def evict(self, handles):
        cdef const uint64_t[::1] handles_ = _words(handles)
        cdef uint32_t count = <uint32_t>handles_.shape[0]
        outcomes = np.zeros(count, dtype=np.uint8)
        cdef uint8_t[::1] outcomes_ = outcomes
        self.region.mapped()
        if count:
            with nogil:
                self.core.evict(&handles_[0], count, <COutcome*>&outcomes_[0])
        return outcomes

    def evict_lru(self, uint64_t payload_bytes, uint32_t count):
        cdef uint32_t evicted
        self.region.mapped()
        with nogil:
            evicted = self.core.evict_oldest(payload_bytes, count)
        return evicted


    def oldest(self, uint64_t payload_bytes, uint32_t count):
        handles = np.zeros(count, dtype=np.uint64)
        touches = np.zeros(count, dtype=np.uint64)
        cdef uint64_t[::1] handles_ = handles
        cdef uint64_t[::1] touches_ = touches
        cdef uint32_t found = 0
        self.region.mapped()
        if count:
            with nogil:
                found = self.core.oldest(payload_bytes, count, &handles_[0], &touches_[0])
        return handles[:found], touches[:found]

    def evict_untouched(self, handles, touches):
        cdef const uint64_t[::1] handles_ = _words(handles)
        cdef const uint64_t[::1] touches_ = _words(touches)
        cdef uint32_t count = <uint32_t>handles_.shape[0]
        if touches_.shape[0] != handles_.shape[0]:
            raise ValueError(f"{handles_.shape[0]} handles, {touches_.shape[0]} touches")
        outcomes = np.zeros(count, dtype=np.uint8)
        cdef uint8_t[::1] outcomes_ = outcomes
        self.region.mapped()
        if count:
            with nogil:
                self.core.evict_untouched(&handles_[0], &touches_[0], count, <COutcome*>&outcomes_[0])
        return outcomes
