# The table of blocks on SSD.

cdef class SpillTable:
    cdef CSpillTable* core
    cdef Region region
    cdef object user

    def __cinit__(self, Region region):
        self.region = region
        self.core = new CSpillTable(region.mapped_writable()[0])
        self.user = _MappingUser(region)

    def __dealloc__(self):
        del self.core

    def __len__(self):
        self.region.mapped()
        return self.core.size()

    @property
    def capacity(self):
        return self.core.capacity()

    def clear(self):
        self.region.mapped()
        with nogil:
            self.core.clear()

    def set_usable(self, uint64_t files):
        self.region.mapped()
        self.core.set_usable(files)

    def store(self, rows):
        cdef const SpillRow* row
        cdef uint32_t i, index, stored = 0
        cdef Spilled block
        rows = np.ascontiguousarray(rows, dtype=SPILL_FIELDS)
        cdef uint32_t count = <uint32_t>rows.shape[0]
        kept = np.zeros(count, dtype=np.bool_)
        cdef uint8_t[::1] kept_ = kept.view(np.uint8)
        cdef const uint8_t[::1] raw = rows.view(np.uint8)
        self.region.mapped()
        if count:
            if int(rows["key_bytes"].min()) < 1 or int(rows["key_bytes"].max()) > 32:
                raise ValueError("a key has 1 to 32 bytes")
            if int(rows["file"].max()) >= spill_file_count:
                raise ValueError(f"files are 0 to {spill_file_count - 1}, got {rows['file'].max()}")
            with nogil:
                for i in range(count):
                    row = <const SpillRow*>&raw[i * sizeof(SpillRow)]
                    memcpy(block.key.words, row.key, 32)
                    block.key.identity = make_identity(row.namespace_id, row.group, row.key_bytes)
                    block.file = row.file
                    block.file_offset = row.file_offset
                    block.payload_bytes = row.payload_bytes
                    block.checksum = row.checksum
                    block.sum_layout = row.sum_layout
                    block.published_at_ns = row.published_at_ns
                    block.sequence = row.sequence
                    kept_[i] = self.core.store(block) != <uint32_t>0xFFFFFFFF
        return kept

    def find(self, keys, uint32_t namespace_id):
        cdef _Keys batch = _Keys(keys, namespace_id)
        cdef uint32_t i
        cdef Spilled block
        out = np.zeros(batch.count, dtype=SPILL_FIELDS)
        cdef uint8_t[::1] raw = out.view(np.uint8)
        self.region.mapped()
        for i in range(batch.count):
            if self.core.find(batch.keys[i], block) == <uint32_t>0xFFFFFFFF:
                continue
            _fill_spill_row(&block, <SpillRow*>&raw[i * sizeof(SpillRow)])
        return out

    def forget(self, rows):
        cdef const SpillRow* row
        cdef Spilled block
        cdef uint32_t i, forgotten = 0
        rows = np.ascontiguousarray(rows, dtype=SPILL_FIELDS).reshape(-1)
        cdef const uint8_t[::1] raw = rows.view(np.uint8)
        self.region.mapped()
        for i in range(<uint32_t>rows.shape[0]):
            row = <const SpillRow*>&raw[i * sizeof(SpillRow)]
            memcpy(block.key.words, row.key, 32)
            block.key.identity = make_identity(row.namespace_id, row.group, row.key_bytes)
            block.file = row.file
            block.file_offset = row.file_offset
            block.sequence = row.sequence
            forgotten += self.core.forget(block)
        return forgotten

    def drop(self, uint32_t file, uint64_t first, uint64_t end):
        cdef uint32_t dropped
        self.region.mapped()
        with nogil:
            dropped = self.core.drop(file, first, end)
        return dropped

    def keep_log(self, uint32_t size):
        self.region.mapped()
        self.core.keep_log(size)

    def take_log(self):
        cdef uint32_t size = self.core.log_count(), count = 0
        cdef cbool lost = False
        ops = np.zeros(size, dtype=np.uint8)
        hashes = np.zeros(size, dtype=np.uint64)
        cdef uint8_t[::1] ops_ = ops
        cdef uint64_t[::1] hashes_ = hashes
        self.region.mapped()
        if size:
            with nogil:
                count = self.core.take_log(&ops_[0], &hashes_[0], size, lost)
        return ops[:count], hashes[:count], lost
