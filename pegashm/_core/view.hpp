// How does code reach a shared struct? A mapped region together with its checked, private geometry.
//
// The accessors do not check their index: it was checked where it entered (a record number read from
// shared memory is compared with record_count by the reader of the word). A View owns nothing.
#pragma once

#include "atomics.hpp"
#include "layout.hpp"

namespace pegashm {

struct View {
  uint8_t* control = nullptr;
  uint8_t* payload = nullptr;  // null when only the control region is mapped
  Geometry geometry{};

  template <typename T>
  T& at(uint64_t offset, uint64_t index) const noexcept {
    return reinterpret_cast<T*>(control + offset)[index];
  }
  Header& header() const noexcept { return *reinterpret_cast<Header*>(control); }
  NamespaceEntry& name_space(uint32_t slot) const noexcept {
    return at<NamespaceEntry>(geometry.namespaces_offset, slot);
  }
  ClientSlot& client(uint32_t slot) const noexcept {
    return at<ClientSlot>(geometry.clients_offset, slot);
  }
  CounterLabel& counter_label(uint32_t index) const noexcept {
    return at<CounterLabel>(geometry.counter_labels_offset, index);
  }
  CounterValue& counter_value(uint32_t index) const noexcept {
    return at<CounterValue>(geometry.counter_values_offset, index);
  }
  Segment& segment(uint32_t index) const noexcept {
    return at<Segment>(geometry.segments_offset, index);
  }
  uint64_t& free_bits(uint32_t record) const noexcept {
    return at<uint64_t>(geometry.free_bits_offset, record / 64);
  }
  Block& block(uint32_t record) const noexcept { return at<Block>(geometry.blocks_offset, record); }
  uint64_t& touched(uint32_t record) const noexcept {
    return at<uint64_t>(geometry.touches_offset, record);
  }
  Sums& sums(uint32_t record) const noexcept { return at<Sums>(geometry.sums_offset, record); }
  SpillRecord& spill(uint32_t index) const noexcept {
    return at<SpillRecord>(geometry.spill_offset, index);
  }
  Bucket& bucket(uint64_t index) const noexcept {
    return at<Bucket>(geometry.buckets_offset, index);
  }
  RemoteHosts& remote_hosts() const noexcept {
    return at<RemoteHosts>(geometry.remote_hosts_offset, 0);
  }
  RemoteBucket& remote_bucket(uint64_t index) const noexcept {
    return at<RemoteBucket>(geometry.remote_offset, index);
  }
  ReuseTick& reuse_tick(uint32_t index) const noexcept {
    return at<ReuseTick>(geometry.reuse_offset, index);
  }
  ReuseRegister& reuse_register(uint32_t index) const noexcept {
    return at<ReuseRegister>(geometry.reuse_offset + sizeof(ReuseTick) * reuse_tick_count, index);
  }
  uint64_t& ghost(uint64_t index) const noexcept {
    return at<uint64_t>(geometry.ghosts_offset, index);
  }
  JournalEntry& journal(uint64_t sequence) const noexcept {
    return at<JournalEntry>(geometry.journal_offset, sequence & (geometry.journal_entry_count - 1));
  }

  uint32_t segment_of(uint32_t record) const noexcept {
    return record / geometry.records_per_segment;
  }
  uint32_t first_record(uint32_t segment) const noexcept {
    return segment * geometry.records_per_segment;
  }
  uint32_t segments_ready() const noexcept {
    const uint64_t ready = load_acquire(header().segments_ready);
    return ready < geometry.segment_count ? static_cast<uint32_t>(ready) : geometry.segment_count;
  }
};

// Stride of a payload: what it occupies. 0 when no segment can hold it.
inline uint64_t stride_of(const Geometry& geometry, uint64_t payload_bytes) noexcept {
  if (payload_bytes == 0 || payload_bytes > geometry.segment_bytes) return 0;
  const uint64_t stride = round_up(payload_bytes, page_bytes_small);
  return stride < geometry.block_bytes_min ? geometry.block_bytes_min : stride;
}

// Payload offset of block `index` of a segment; each block starts at a multiple of its stride, so that
// "offset / stride" numbers the blocks of one stride across all arenas.
inline uint64_t block_offset(const Geometry& geometry, uint32_t segment, uint64_t stride,
                             uint32_t index) noexcept {
  return round_up(segment * geometry.segment_bytes, stride) + index * stride;
}

// How many blocks of a stride a segment holds.
inline uint32_t segment_capacity(const Geometry& geometry, uint32_t segment,
                                 uint64_t stride) noexcept {
  if (stride == 0) return 0;  // read from shared memory, so possibly damaged
  const uint64_t end = (uint64_t{segment} + 1) * geometry.segment_bytes;
  const uint64_t start = round_up(segment * geometry.segment_bytes, stride);
  if (start >= end) return 0;
  const uint64_t count = (end - start) / stride;
  return count < geometry.records_per_segment ? static_cast<uint32_t>(count)
                                              : geometry.records_per_segment;
}

}  // namespace pegashm
