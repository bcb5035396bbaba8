# Formatting a region and judging its header.

cdef Geometry _plan(uint64_t segment_bytes, uint64_t block_bytes_min, uint64_t segment_count,
                    uint64_t spill_records, uint64_t remote_buckets, uint64_t reuse_registers) except *:
    cdef Geometry geometry
    if not plan_geometry(segment_bytes, block_bytes_min, segment_count, geometry, spill_records, remote_buckets,
                         reuse_registers):
        raise ValueError(
            f"no such region: segment_bytes={segment_bytes} and block_bytes_min={block_bytes_min} must be "
            f"multiples of 4096, the second not above the first, and {segment_count} segments of them "
            f"must not hold, with {spill_records} on SSD, more than {record_count_max} blocks: raise "
            f"block_bytes_min; there are at most 2^28 buckets of remote hints, asked were {remote_buckets}; "
            f"and a power of two of registers of reuse, up to {reuse_register_count_max}, or none: asked were {reuse_registers}")
    return geometry


def plan_region(*, segment_bytes, block_bytes_min, segments_per_arena, spill_records=0, remote_buckets=0,
                reuse_registers=0):
    cdef Geometry geometry = _plan(segment_bytes, block_bytes_min, sum(segments_per_arena), spill_records,
                                   remote_buckets, reuse_registers)
    return {
        "segment_count": geometry.segment_count,
        "records_per_segment": geometry.records_per_segment,
        "record_count": geometry.record_count,
        "bucket_count": geometry.bucket_count,
        "journal_entry_count": geometry.journal_entry_count,
        "control_bytes": geometry.control_bytes,
        "payload_bytes": geometry.payload_bytes,
        "spill_record_count": geometry.spill_record_count,
        "remote_bucket_count": geometry.remote_bucket_count,
        "reuse_register_count": geometry.reuse_register_count,
    }


def format_region(control, *, bytes region_id, segment_bytes, block_bytes_min, segments_per_arena,
                  arena_paths, numa_nodes, page_bytes, created_at_ns, spill_records=0,
                  remote_buckets=0, reuse_registers=0):
    cdef uint8_t[::1] bytes_ = control
    cdef View view
    cdef Header* header
    cdef bytes path
    cdef int i
    view.geometry = _plan(segment_bytes, block_bytes_min, sum(segments_per_arena), spill_records, remote_buckets,
                          reuse_registers)
    if <uint64_t>bytes_.shape[0] < view.geometry.control_bytes:
        raise ValueError(f"control region of {bytes_.shape[0]} bytes, {view.geometry.control_bytes} needed")
    if len(region_id) != 16:
        raise ValueError(f"region_id is 16 bytes, got {len(region_id)}")
    if not 1 <= len(arena_paths) <= arena_count_max or len({len(arena_paths), len(numa_nodes), len(segments_per_arena)}) != 1:
        raise ValueError(f"1 to {arena_count_max} arenas, each with a path, a node and a number of segments")
    view.control = &bytes_[0]
    view.payload = NULL
    header = &view.header()
    memcpy(header.region_id, PyBytes_AS_STRING(region_id), 16)
    header.created_at_ns = created_at_ns
    header.page_bytes = page_bytes
    header.arena_count = <uint32_t>len(arena_paths)
    for i in range(len(arena_paths)):
        path = os.fsencode(arena_paths[i])
        if not 1 <= len(path) <= 176:
            raise ValueError(f"an arena's path has 1 to 176 bytes, got {len(path)}: {path!r}")
        header.arenas[i].bytes = segments_per_arena[i] * segment_bytes
        header.arenas[i].numa_node = numa_nodes[i]
        header.arenas[i].path_bytes = <uint32_t>len(path)
        memcpy(header.arenas[i].path, PyBytes_AS_STRING(path), len(path))
    with nogil:
        write_format(view)
        set_ready(header[0])


cdef tuple _judge(const Header* header, uint64_t file_bytes, Geometry* geometry):
    cdef HeaderFault fault_ = judge_header(header[0], file_bytes, geometry[0])
    cdef int fault = <int>(<uint8_t*>&fault_)[0]
    if fault == 0:
        return 0, "ready"
    if fault == 1:
        return 1, "its creator has not finished, or died before it did"
    if fault == 2:
        return 2, f"not a PegaShm control region (magic 0x{header.magic:016x}, expected 0x{_MAGIC:016x})"
    if fault == 3:
        return 2, (f"has format {header.format_major}.{header.format_minor}, "
                   f"this build reads {FORMAT_MAJOR}.x")
    if fault == 4:
        return 2, (f"has layout signature 0x{header.layout_signature:016x}, this build's is "
                   f"0x{LAYOUT_SIGNATURE:016x}: written by a build with other struct sizes")
    if fault == 5:
        return 2, f"is truncated: {file_bytes} bytes, its header says {header.control_bytes}"
    return 2, "has a header that contradicts itself: it is damaged"


def check_header(control, file_bytes):
    cdef const uint8_t[::1] bytes_ = control
    cdef Geometry geometry
    if bytes_.shape[0] < <Py_ssize_t>sizeof(Header):
        return 1, "its creator has not finished, or died before it did"
    return _judge(<const Header*>&bytes_[0], file_bytes, &geometry)


cdef dict _header_dict(const Header* header):
    cdef int i
    return {
        "magic": header.magic,
        "format_major": header.format_major,
        "format_minor": header.format_minor,
        "header_bytes": header.header_bytes,
        "layout_signature": header.layout_signature,
        "region_id": (<bytes>(<const char*>header.region_id)[:16]),
        "created_at_ns": header.created_at_ns,
        "control_bytes": header.control_bytes,
        "payload_bytes": header.payload_bytes,
        "segment_bytes": header.segment_bytes,
        "block_bytes_min": header.block_bytes_min,
        "segment_count": header.segment_count,
        "records_per_segment": header.records_per_segment,
        "record_count": header.record_count,
        "arena_count": header.arena_count,
        "bucket_count": header.bucket_count,
        "journal_entry_count": header.journal_entry_count,
        "namespaces_offset": header.namespaces_offset,
        "clients_offset": header.clients_offset,
        "counter_labels_offset": header.counter_labels_offset,
        "counter_values_offset": header.counter_values_offset,
        "segments_offset": header.segments_offset,
        "free_bits_offset": header.free_bits_offset,
        "blocks_offset": header.blocks_offset,
        "touches_offset": header.touches_offset,
        "buckets_offset": header.buckets_offset,
        "journal_offset": header.journal_offset,
        "page_bytes": header.page_bytes,
        "sums_offset": header.sums_offset,
        "spill_offset": header.spill_offset,
        "spill_record_count": header.spill_record_count,
        "reuse_register_count": header.reuse_register_count,
        "remote_hosts_offset": header.remote_hosts_offset,
        "remote_offset": header.remote_offset,
        "remote_bucket_count": header.remote_bucket_count,
        "checksum": header.checksum,
        "segments_ready": load_acquire(header.segments_ready),
        "supervisor_pid": header.supervisor_pid,
        "supervisor_started_at_ns": header.supervisor_started_at_ns,
        "spill_usable": load_acquire(header.spill_usable),
        "remote_usable": load_acquire(header.remote_usable),
        "eviction": load_acquire(header.eviction),
        "span": load_acquire(header.span),
        "again_share": load_acquire(header.again_share),
        "access_clock": load_acquire(header.access_clock),
        "journal_head": load_acquire(header.journal_head),
        "freed_clock": load_acquire(header.freed_clock),
        "arenas": [
            {
                "bytes": header.arenas[i].bytes,
                "numa_node": header.arenas[i].numa_node,
                "path": os.fsdecode(<bytes>header.arenas[i].path[:min(header.arenas[i].path_bytes, 176)]),
            }
            for i in range(min(header.arena_count, arena_count_max))
        ],
        "transport_pid": header.transport_pid,
        "transport_started_at_ns": header.transport_started_at_ns,
        "transport_path": os.fsdecode(
            <bytes>header.transport_path[:min(header.transport_path_bytes, TRANSPORT_PATH_BYTES)]),
        "draining_since_ns": load_acquire(header.draining_since_ns),
    }


def draining_since(header):
    cdef uint64_t word = header["draining_since_ns"]
    return word & ~<uint64_t>0xFFFF if core_is_draining(word) else 0


def header_info(control):
    cdef const uint8_t[::1] bytes_ = control
    if bytes_.shape[0] < <Py_ssize_t>sizeof(Header):
        raise FormatError(f"a header has {sizeof(Header)} bytes, only {bytes_.shape[0]} are there")
    return _header_dict(<const Header*>&bytes_[0])
