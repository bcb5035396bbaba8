# Rows of tables, as numpy arrays hold them.

BLOCK_FIELDS = np.dtype([
    ("record", "u4"), ("state", "u1"), ("owner", "u2"), ("generation", "u8"), ("key", "u1", 32),
    ("key_bytes", "u1"), ("group", "u2"), ("namespace_id", "u4"), ("payload_offset", "u8"),
    ("payload_bytes", "u8"), ("pins", "u8", 2), ("touched", "u8"), ("claimed_at_ns", "u8"),
    ("published_at_ns", "u8"), ("parts_done", "u4"), ("parts_failed", "u4"), ("sum_parts", "u1"),
    ("damaged", "u1"),
])


# One row of BLOCK_FIELDS, which numpy packs.
cdef packed struct BlockRow:
    uint32_t record
    uint8_t state
    uint16_t owner
    uint64_t generation
    uint8_t key[32]
    uint8_t key_bytes
    uint16_t group
    uint32_t namespace_id
    uint64_t payload_offset
    uint64_t payload_bytes
    uint64_t pins[2]
    uint64_t touched
    uint64_t claimed_at_ns
    uint64_t published_at_ns
    uint32_t parts_done
    uint32_t parts_failed
    uint8_t sum_parts
    uint8_t damaged


SPILL_FIELDS = np.dtype([
    ("key", "u1", 32), ("key_bytes", "u1"), ("group", "u2"), ("namespace_id", "u4"), ("file", "u1"),
    ("file_offset", "u8"), ("payload_bytes", "u8"), ("checksum", "u8"), ("sum_layout", "u8"),
    ("published_at_ns", "u8"), ("sequence", "u8"),
])


# One row of SPILL_FIELDS, which numpy packs.
cdef packed struct SpillRow:
    uint8_t key[32]
    uint8_t key_bytes
    uint16_t group
    uint32_t namespace_id
    uint8_t file
    uint64_t file_offset
    uint64_t payload_bytes
    uint64_t checksum
    uint64_t sum_layout
    uint64_t published_at_ns
    uint64_t sequence


# What a survey counts: see `_core/survey.hpp`, whose structs these are.
SURVEY_SEGMENT_FIELDS = np.dtype([("stride_bytes", "u8"), ("capacity", "u4"), ("state", "u4")])
SURVEY_PART_FIELDS = np.dtype([
    ("segment", "u4"), ("namespace_id", "u4"), ("claimed", "u4"), ("ready", "u4"), ("evicting", "u4"),
    ("pinned", "u4"), ("bytes", "u8"),
])
SURVEY_CLIENT_FIELDS = np.dtype([
    ("pinned", "u8"), ("pinned_bytes", "u8"), ("claims", "u8"), ("claimed_bytes", "u8"),
    ("oldest_claim_ns", "u8"), ("evicting", "u8"),
])
SURVEY_NAMESPACE_FIELDS = np.dtype([
    ("claimed", "u8"), ("ready", "u8"), ("evicting", "u8"), ("pinned", "u8"), ("bytes", "u8"),
])
SURVEY_PIN_FIELDS = np.dtype([("handle", "u8"), ("pins", "u8", 2)])


cdef void _fill_row(View* view, uint32_t record, uint64_t state, BlockRow* row) noexcept:
    cdef Block* block = &view.block(record)
    row.record = record
    row.state = <uint8_t>state
    row.owner = <uint16_t>block_owner(state)
    row.generation = block_generation(state)
    memcpy(row.key, block.key, 32)
    row.key_bytes = <uint8_t>(block.identity >> 48)
    row.group = <uint16_t>(block.identity >> 32)
    row.namespace_id = <uint32_t>block.identity
    row.payload_offset = block.payload_offset
    row.payload_bytes = block.payload_bytes
    row.pins[0] = block.pins[0]
    row.pins[1] = block.pins[1]
    row.touched = load_acquire(view.touched(record))
    row.claimed_at_ns = block.claimed_at_ns
    row.published_at_ns = block.published_at_ns
    row.parts_done = <uint32_t>block.parts
    row.parts_failed = <uint32_t>(block.parts >> 32)
    row.sum_parts = <uint8_t>sum_part_count(block.sum_layout)
    row.damaged = c_is_damaged(block[0])


cdef void _fill_spill_row(const Spilled* block, SpillRow* row) noexcept:
    memcpy(row.key, block.key.words, 32)
    row.key_bytes = <uint8_t>(block.key.identity >> 48)
    row.group = <uint16_t>(block.key.identity >> 32)
    row.namespace_id = <uint32_t>block.key.identity
    row.file = <uint8_t>block.file
    row.file_offset = block.file_offset
    row.payload_bytes = block.payload_bytes
    row.checksum = block.checksum
    row.sum_layout = block.sum_layout
    row.published_at_ns = block.published_at_ns
    row.sequence = block.sequence
