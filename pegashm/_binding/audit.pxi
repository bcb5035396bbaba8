# Invariants: judged in audit.hpp, undone in mend.hpp, worded in fsck.py.

FINDING_FIELDS = np.dtype([
    ("invariant", "u4"), ("slot", "u4"), ("where", "u8"), ("seen", "u8"), ("expected", "u8"),
])
_USES = ("free", "lost", "claimed", "claimed_dead", "ready", "ready_held", "unreachable", "duplicate",
         "evicting", "evicting_dead", "damaged")


cdef const uint8_t* _flags(bytes alive) except NULL:
    if len(alive) != client_count:
        raise ValueError(f"{client_count} flags, one a client slot, got {len(alive)}")
    return <const uint8_t*>PyBytes_AS_STRING(alive)


cdef class Audit:
    cdef CAudit* core
    cdef Region region
    cdef object user, room

    def __cinit__(self, Region region, bytes alive, *, cbool at_rest, uint64_t findings_max=1 << 16):
        cdef uint8_t[::1] room
        self.room = np.zeros(max(findings_max, 1), dtype=FINDING_FIELDS)
        room = self.room.view(np.uint8)
        self.region = region
        self.core = new CAudit(region.mapped()[0], _flags(alive), at_rest, <CFinding*>&room[0],
                               findings_max)
        self.user = _MappingUser(region)

    def __dealloc__(self):
        del self.core

    def segments(self, uint32_t first, uint32_t last):
        cdef uint32_t end = min(last, self.region.mapped().geometry.segment_count)
        with nogil:
            self.core.segments(first, end)

    def buckets(self, uint64_t first, uint64_t last):
        cdef uint64_t end = min(last, self.region.mapped().geometry.bucket_count)
        with nogil:
            self.core.buckets(first, end)

    def tables(self):
        self.region.mapped()
        with nogil:
            self.core.tables()

    @property
    def findings(self):
        return self.room[:self.core.listed()]

    @property
    def counts(self):
        cdef uint32_t number
        return {number: self.core.counts()[number] for number in range(invariant_count)
                if self.core.counts()[number]}

    @property
    def account(self):
        cdef CAccount account = self.core.account()
        return {
            "blocks": {use: account.blocks[i] for i, use in enumerate(_USES)},
            "bytes": {use: account.bytes[i] for i, use in enumerate(_USES)},
            "records_spare": account.records_spare,
            "records_stray": account.records_stray,
            "segment_tail_bytes": account.segment_tail_bytes,
            "unassigned_bytes": account.unassigned_bytes,
        }


def mend(Region region, findings, *, uint32_t slot, bytes alive, cbool at_rest):
    cdef View* view = region.mapped_writable()
    found = np.ascontiguousarray(findings, dtype=FINDING_FIELDS)
    done = np.zeros(len(found), dtype=np.bool_)
    if not len(found):
        return done
    cdef uint8_t[::1] raw = found.view(np.uint8)
    cdef uint8_t[::1] done_ = done.view(np.uint8)
    cdef CMender* mender = new CMender(view[0], slot, _flags(alive), at_rest)
    cdef Py_ssize_t i, size = len(found)
    cdef CFinding* all_ = <CFinding*>&raw[0]
    cdef object keep = _MappingUser(region)
    with nogil:
        for i in range(size):
            done_[i] = mender.mend(all_[i])
    del mender
    return done
