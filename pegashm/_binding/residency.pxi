# What one namespace has here, for who keeps a list of it in step.

cdef list _engine_keys(const Key* keys, uint32_t count):
    """Keys as engines write them: hash, and four bytes of group, big-endian."""
    cdef uint32_t i, length
    cdef uint8_t data[36]
    out = []
    for i in range(count):
        length = min(<uint32_t>(keys[i].identity >> 48 & 0xFF), <uint32_t>32)
        memcpy(data, keys[i].words, length)
        data[length] = data[length + 1] = 0
        data[length + 2] = <uint8_t>(keys[i].identity >> 40)
        data[length + 3] = <uint8_t>(keys[i].identity >> 32)
        out.append(PyBytes_FromStringAndSize(<const char*>data, length + 4))
    return out


def residency_signs(Region region):
    cdef View* view = region.mapped()
    return (load_acquire(view.header().journal_head), load_acquire(view.header().spill_usable),
            load_acquire(view.header().transport_started_at_ns))


def residency(Region region, keys, uint32_t namespace_id):
    cdef _Keys batch = _Keys(keys, namespace_id)
    cdef View* view = region.mapped()
    cdef uint32_t i
    tiers = np.zeros(batch.count, dtype=np.uint8)
    cdef uint8_t[::1] tiers_ = tiers
    cdef object keep = _MappingUser(region)
    with nogil:
        for i in range(batch.count):
            tiers_[i] = c_residency(view[0], batch.keys[i])
    return tiers


def changed_keys(Region region, uint32_t namespace_id, uint64_t after, uint64_t settled, uint32_t limit):
    cdef View* view = region.mapped()
    cdef EventsRead read
    cdef object keep = _MappingUser(region)
    cdef Key* keys
    if limit < 1:
        raise ValueError("a limit is at least 1")
    keys = <Key*>malloc(limit * sizeof(Key))
    if keys == NULL:
        raise MemoryError()
    try:
        with nogil:
            read = read_changed(view[0], after, settled, limit, namespace_id, keys)
        return read.last, read.overrun, read.torn, _engine_keys(keys, read.count)
    finally:
        free(keys)


def resident_keys(Region region, uint32_t namespace_id, uint32_t first, uint32_t records_max, uint32_t keys_max):
    cdef View* view = region.mapped()
    cdef Residents found
    cdef object keep = _MappingUser(region)
    cdef Key* keys
    if keys_max < 1:
        raise ValueError("a limit is at least 1")
    keys = <Key*>malloc(keys_max * sizeof(Key))
    if keys == NULL:
        raise MemoryError()
    try:
        with nogil:
            found = read_residents(view[0], namespace_id, first, records_max, keys_max, keys)
        return found.next, _engine_keys(keys, found.count)
    finally:
        free(keys)
