# Checksums of payloads: kept here, computed and compared in payload_sums.py.

def write_sums(Region region, handles, sums, *, uint32_t part, uint32_t part_count, uint64_t part_bytes):
    cdef const uint64_t[::1] handles_ = _words(handles)
    cdef const uint64_t[::1] sums_ = _words(sums)
    cdef View* view = region.mapped_writable()
    cdef uint64_t layout
    cdef Py_ssize_t i
    if part_count < 1 or part_count > sum_count or part >= part_count:
        raise ValueError(f"part {part} of {part_count}: a block has checksums for 1 to {sum_count} parts")
    if part_bytes < 1 or part_bytes >> 48:
        raise ValueError(f"a part has 1 to 2^48 - 1 bytes, got {part_bytes}")
    if handles_.shape[0] != sums_.shape[0]:
        raise ValueError(f"{handles_.shape[0]} handles, {sums_.shape[0]} checksums")
    layout = make_sum_layout(part_bytes, part_count)
    out = np.zeros(handles_.shape[0], dtype=np.bool_)
    cdef uint8_t[::1] out_ = out.view(np.uint8)
    for i in range(handles_.shape[0]):
        out_[i] = write_sum(view[0], handles_[i], part, layout, sums_[i])
    return out


def read_sums(Region region, handles):
    cdef const uint64_t[::1] handles_ = _words(handles)
    cdef View* view = region.mapped()
    cdef SumsRead read
    cdef Py_ssize_t i, j
    cdef Py_ssize_t size = handles_.shape[0]
    sums = np.zeros((size, sum_count), dtype=np.uint64)
    part_bytes = np.zeros(size, dtype=np.uint64)
    part_counts = np.zeros(size, dtype=np.uint32)
    damaged = np.zeros(size, dtype=np.bool_)
    cdef uint64_t[:, ::1] sums_ = sums
    cdef uint64_t[::1] part_bytes_ = part_bytes
    cdef uint32_t[::1] part_counts_ = part_counts
    cdef uint8_t[::1] damaged_ = damaged.view(np.uint8)
    for i in range(size):
        read = c_read_sums(view[0], handles_[i])
        part_bytes_[i] = read.part_bytes
        part_counts_[i] = read.part_count
        damaged_[i] = read.damaged
        for j in range(sum_count):
            sums_[i, j] = read.sums[j]
    return sums, part_bytes, part_counts, damaged


def mark_damaged(Region region, handles):
    cdef const uint64_t[::1] handles_ = _words(handles)
    cdef View* view = region.mapped_writable()
    cdef Py_ssize_t i
    out = np.zeros(handles_.shape[0], dtype=np.bool_)
    cdef uint8_t[::1] out_ = out.view(np.uint8)
    for i in range(handles_.shape[0]):
        out_[i] = c_mark_damaged(view[0], handles_[i])
    return out
