# What other hosts hold, and what they are told of us.

cdef uint32_t _host_number(object host) except? 0xFFFFFFFF:
    if not 0 <= host < remote_host_count:
        raise ValueError(f"hosts are numbered 0 to {remote_host_count - 1}, got {host}")
    return <uint32_t>host


cdef class RemoteTable:
    cdef CRemoteTable* core
    cdef Region region
    cdef object user

    def __cinit__(self, Region region):
        self.region = region
        self.core = new CRemoteTable(region.mapped_writable()[0])
        self.user = _MappingUser(region)

    def __dealloc__(self):
        del self.core

    def __len__(self):
        self.region.mapped()
        return self.core.size()

    @property
    def count(self):
        return self.core.size()

    @property
    def capacity(self):
        return self.core.capacity()

    @property
    def displaced(self):
        return self.core.displaced()

    def hints(self, host):
        return self.core.hints(_host_number(host))

    def clear(self):
        self.region.mapped()
        with nogil:
            self.core.clear()

    def set_usable(self, host, bint usable):
        self.region.mapped()
        self.core.set_usable(_host_number(host), usable)

    def set_none_usable(self):
        self.region.mapped()
        self.core.set_none_usable()

    def add(self, host, hashes, uint32_t tier=1):
        cdef const uint64_t[::1] hashes_ = _words(hashes)
        cdef uint32_t number = _host_number(host)
        cdef uint64_t size = hashes_.shape[0], added = 0
        self.region.mapped()
        if not 1 <= tier <= 3:
            raise ValueError(f"a tier is 1 (memory), 2 (SSD) or 3 (both), got {tier}")
        if size:
            with nogil:
                added = self.core.add(number, &hashes_[0], size, tier)
        return added

    def remove(self, host, hashes, uint32_t tier=3):
        cdef const uint64_t[::1] hashes_ = _words(hashes)
        cdef uint32_t number = _host_number(host)
        cdef uint64_t size = hashes_.shape[0], removed = 0
        self.region.mapped()
        if not 1 <= tier <= 3:
            raise ValueError(f"a tier is 1 (memory), 2 (SSD) or 3 (both), got {tier}")
        if size:
            with nogil:
                removed = self.core.remove(number, &hashes_[0], size, tier)
        return removed

    def apply(self, host, ops, hashes):
        cdef const uint8_t[::1] ops_ = np.ascontiguousarray(ops, dtype=np.uint8).reshape(-1)
        cdef const uint64_t[::1] hashes_ = _words(hashes)
        cdef uint32_t number = _host_number(host)
        cdef uint64_t size = hashes_.shape[0]
        if ops_.shape[0] != hashes_.shape[0]:
            raise ValueError(f"{ops_.shape[0]} operations, {hashes_.shape[0]} hashes")
        self.region.mapped()
        if size:
            with nogil:
                self.core.apply(number, &ops_[0], &hashes_[0], size)

    def retire(self, host):
        self.region.mapped()
        self.core.retire(_host_number(host))

    def begin_anew(self, host):
        self.region.mapped()
        self.core.begin_anew(_host_number(host))

    def drop_retired(self):
        cdef uint64_t dropped
        self.region.mapped()
        with nogil:
            dropped = self.core.drop()
        return dropped

    def drop_host(self, host):
        self.retire(host)
        return self.drop_retired()

    def find(self, hashes):
        cdef const uint64_t[::1] hashes_ = _words(hashes)
        cdef uint64_t size = hashes_.shape[0]
        hosts = np.full((size, copies_max), 0xFFFF, dtype=np.uint16)
        tiers = np.zeros((size, copies_max), dtype=np.uint8)
        cdef uint16_t[:, ::1] hosts_ = hosts
        cdef uint8_t[:, ::1] tiers_ = tiers
        self.region.mapped()
        if size:
            with nogil:
                self.core.find(&hashes_[0], size, &hosts_[0, 0], &tiers_[0, 0])
        return hosts.view(np.int16), tiers

    def describe(self, host, *, bytes host_id, bytes incarnation, str address, uint64_t sequence,
                 uint64_t events, uint64_t heard_at_ns):
        cdef RemoteLabels labels
        cdef bytes text = address.encode()
        if len(host_id) != 16 or len(incarnation) != 16:
            raise ValueError(f"a host id and an incarnation have 16 bytes, got {len(host_id)} and {len(incarnation)}")
        labels.host_id = <const uint8_t*>PyBytes_AS_STRING(host_id)
        labels.incarnation = <const uint8_t*>PyBytes_AS_STRING(incarnation)
        labels.address = PyBytes_AS_STRING(text)
        labels.address_bytes = len(text)
        labels.sequence = sequence
        labels.events = events
        labels.heard_at_ns = heard_at_ns
        self.region.mapped()
        self.core.describe(_host_number(host), labels)


def remote_hashes(Region region, keys, namespace_id=None):
    cdef View* view = region.mapped()
    cdef const uint64_t[::1] handles
    cdef uint64_t[::1] out_
    cdef _Keys batch
    cdef uint64_t seed = 0, state
    cdef uint32_t i, record, id_, known = 0
    cdef bint live = False
    cdef Key key
    if namespace_id is not None:
        batch = _Keys(keys, namespace_id)
        if not seed_of(view[0], namespace_id, seed):
            raise ValueError(f"namespace {namespace_id:#x} is not registered in this arena")
        out = np.zeros(batch.count, dtype=np.uint64)
        out_ = out
        for i in range(batch.count):
            out_[i] = remote_hash(seed, batch.keys[i])
        return out
    handles = _words(keys)
    out = np.zeros(handles.shape[0], dtype=np.uint64)
    out_ = out
    for i in range(<uint32_t>handles.shape[0]):
        if not life_holds(view[0], handles[i]):
            continue
        record = <uint32_t>(handles[i] & (record_count_max - 1))
        key = read_key(view.block(record))
        id_ = <uint32_t>key.identity
        if not live or id_ != known:
            live = seed_of(view[0], id_, seed)
            known = id_
        if live and life_holds(view[0], handles[i]):
            out_[i] = remote_hash(seed, key)
    return out


def remote_hashes_of(bytes fingerprint, keys):
    cdef _Keys batch = _Keys(keys, 0)
    cdef uint64_t seed
    cdef uint64_t words[4]
    cdef uint32_t i
    if len(fingerprint) != 32:
        raise ValueError(f"a fingerprint is 32 bytes, got {len(fingerprint)}")
    memcpy(words, PyBytes_AS_STRING(fingerprint), 32)
    seed = remote_seed(words)
    out = np.zeros(batch.count, dtype=np.uint64)
    cdef uint64_t[::1] out_ = out
    for i in range(batch.count):
        out_[i] = remote_hash(seed, batch.keys[i])
    return out


def remote_events(Region region, uint64_t after, uint64_t settled, uint32_t limit):
    cdef View* view = region.mapped()
    cdef EventsRead read
    if limit < 1:
        raise ValueError("a limit is at least 1")
    ops = np.zeros(limit, dtype=np.uint8)
    hashes = np.zeros(limit, dtype=np.uint64)
    cdef uint8_t[::1] ops_ = ops
    cdef uint64_t[::1] hashes_ = hashes
    cdef object keep = _MappingUser(region)
    with nogil:
        read = read_events(view[0], after, settled, limit, &ops_[0], &hashes_[0])
    return read.last, read.overrun, read.torn, ops[:read.count], hashes[:read.count]


def remote_holdings(Region region, uint32_t first, uint32_t end):
    cdef View* view = region.mapped()
    cdef uint32_t total = view.geometry.record_count + view.geometry.spill_record_count
    cdef uint32_t last = min(end, total), count = 0
    cdef uint32_t size = last - first if last > first else 0
    hashes = np.zeros(size, dtype=np.uint64)
    tiers = np.zeros(size, dtype=np.uint8)
    cdef uint64_t[::1] hashes_ = hashes
    cdef uint8_t[::1] tiers_ = tiers
    cdef object keep = _MappingUser(region)
    if size:
        with nogil:
            count = read_holdings(view[0], first, last, &hashes_[0], &tiers_[0])
    return hashes[:count], tiers[:count]
