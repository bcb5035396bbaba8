// Can this region be opened? Formatting a new one, and judging one that somebody else wrote.
//
// format() runs in the supervisor, under its lock, on zeroed memory; the magic is its last store.
// check() trusts nothing: every field is compared with what this build would have written for the same
// six parameters, so that no later code meets a size or an offset that does not fit the file.
#pragma once

#include <cstring>

#include "counters.hpp"
#include "crash.hpp"
#include "states.hpp"
#include "status.hpp"
#include "view.hpp"

namespace pegashm {

// Why a header was refused; the binding adds both values to the message.
enum class HeaderFault : uint8_t {
  none = 0,
  not_ready = 1,  // magic still 0
  foreign = 2,  // magic of something else
  version = 3,  // other major version
  signature = 4,  // other sizes or offsets
  truncated = 5,  // the file is shorter than it says
  inconsistent = 6,  // fields contradict each other: damaged
};

inline void write_header(Header& header, const Geometry& geometry) noexcept {
  header.format_major = format_major;
  header.format_minor = format_minor;
  header.header_bytes = sizeof(Header);
  header.layout_signature = layout_signature;
  header.control_bytes = geometry.control_bytes;
  header.payload_bytes = geometry.payload_bytes;
  header.segment_bytes = geometry.segment_bytes;
  header.block_bytes_min = geometry.block_bytes_min;
  header.segment_count = geometry.segment_count;
  header.records_per_segment = geometry.records_per_segment;
  header.record_count = geometry.record_count;
  header.bucket_count = geometry.bucket_count;
  header.journal_entry_count = geometry.journal_entry_count;
  header.namespaces_offset = geometry.namespaces_offset;
  header.clients_offset = geometry.clients_offset;
  header.counter_labels_offset = geometry.counter_labels_offset;
  header.counter_values_offset = geometry.counter_values_offset;
  header.segments_offset = geometry.segments_offset;
  header.free_bits_offset = geometry.free_bits_offset;
  header.blocks_offset = geometry.blocks_offset;
  header.touches_offset = geometry.touches_offset;
  header.sums_offset = geometry.sums_offset;
  header.buckets_offset = geometry.buckets_offset;
  header.journal_offset = geometry.journal_offset;
  header.spill_offset = geometry.spill_offset;
  header.spill_record_count = geometry.spill_record_count;
  header.remote_hosts_offset = geometry.remote_hosts_offset;
  header.remote_offset = geometry.remote_offset;
  header.remote_bucket_count = geometry.remote_bucket_count;
  header.reuse_register_count = geometry.reuse_register_count;
}

// Over all that the creator writes once: bytes [16, checksum) and the arenas. Finds damage, not malice.
inline uint64_t header_checksum(const Header& header) noexcept {
  const auto* const bytes = reinterpret_cast<const uint8_t*>(&header);
  uint64_t hash = 0x9AE16A3B2F90404F;
  const auto add = [&](uint64_t from, uint64_t to) noexcept {
    for (uint64_t at = from; at < to; at += 8) {
      uint64_t word;
      std::memcpy(&word, bytes + at, 8);
      hash = mix(hash, word);
    }
  };
  add(offsetof(Header, layout_signature), offsetof(Header, checksum));
  add(offsetof(Header, arenas), offsetof(Header, transport_pid));
  return hash;
}

// Everything but the creator's own labels, arenas and the magic. `view` is zeroed memory.
inline void format(const View& view) noexcept {
  write_header(view.header(), view.geometry);
  crash_point(CrashPoint::create_fields_written);
  write_counter_labels(view);
  crash_point(CrashPoint::create_labels_written);
  for (uint32_t record = 0; record < view.geometry.record_count; ++record) {
    view.block(record).state = block_state(BlockTag::free, 0, 1);
  }
  crash_point(CrashPoint::create_records_written);
}

// SYNC create/open: the whole region becomes visible before the magic does. Pairs with check().
inline void set_ready(Header& header) noexcept {
  header.checksum = header_checksum(header);
  crash_point(CrashPoint::create_checksum_written);
  store_release(header.magic, magic_ready);
  crash_point(CrashPoint::create_magic_written);
}

inline HeaderFault check(const Header& header, uint64_t file_bytes, Geometry& out) noexcept {
  if (file_bytes < sizeof(Header)) return HeaderFault::not_ready;
  const uint64_t magic = load_acquire(header.magic);
  if (magic == 0) return HeaderFault::not_ready;
  if (magic != magic_ready) return HeaderFault::foreign;
  if (header.format_major != format_major) return HeaderFault::version;
  if (header.layout_signature != layout_signature) return HeaderFault::signature;
  if (file_bytes < header.control_bytes) return HeaderFault::truncated;

  Header copy;
  std::memcpy(&copy, &header, sizeof copy);  // judge one copy: another process may be writing
  if (!plan_geometry(copy.segment_bytes, copy.block_bytes_min, copy.segment_count, out,
                     copy.spill_record_count, copy.remote_bucket_count,
                     copy.reuse_register_count)) {
    return HeaderFault::inconsistent;
  }
  if (copy.checksum != header_checksum(copy)) return HeaderFault::inconsistent;
  Header expected = copy;
  write_header(expected, out);
  expected.format_minor = copy.format_minor;
  if (std::memcmp(&expected, &copy, sizeof copy) != 0) return HeaderFault::inconsistent;
  if (file_bytes < out.control_bytes) return HeaderFault::truncated;
  if (copy.page_bytes != page_bytes_small && copy.page_bytes != (uint64_t{2} << 20) &&
      copy.page_bytes != (uint64_t{1} << 30)) {
    return HeaderFault::inconsistent;
  }
  if (copy.arena_count == 0 || copy.arena_count > arena_count_max) return HeaderFault::inconsistent;
  uint64_t arena_bytes = 0;
  for (uint32_t index = 0; index < copy.arena_count; ++index) {
    const ArenaEntry& arena = copy.arenas[index];
    if (arena.bytes == 0 || arena.bytes > out.payload_bytes ||
        arena.bytes % out.segment_bytes != 0 || arena.path_bytes == 0 ||
        arena.path_bytes > sizeof arena.path) {
      return HeaderFault::inconsistent;
    }
    arena_bytes += arena.bytes;
  }
  if (arena_bytes != out.payload_bytes) return HeaderFault::inconsistent;
  return HeaderFault::none;
}

}  // namespace pegashm
