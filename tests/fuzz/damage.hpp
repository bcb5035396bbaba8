// What can happen to the bytes of a region? One act of damage, chosen by the input.
//
// Blind damage (bits, words, ranges) and forged values that are right in form: a state with another tag or
// owner, an entry that names another record, counts off by one, words swapped with a neighbour, and tables torn
// between two states of the region. All writes are atomic words, so that the same code can strike while
// others work. Header damage comes bare (most of it must be refused) or with its checksum made right again,
// as somebody with a bug, not a bad memory, would leave it.
#pragma once

#include "choices.hpp"
#include "region.hpp"

namespace fuzz {

class Vandal {
 public:
  explicit Vandal(const Place& place) : place_(place) {}

  void strike(Choices& choices) const {
    switch (choices.below(9)) {
      case 0: return flip_bits(choices);
      case 1: return put(pick_word(choices), choices.word());
      case 2: return swap(choices);
      case 3: return put(pick_word(choices), telling(choices));
      case 4:
      case 5: return forge(choices);
      case 6: return tear(choices);
      case 7: return fill(choices);
      default: return strike_header(choices);
    }
  }

 private:
  static constexpr uint64_t mutable_from = offsetof(Header, segments_ready);
  static constexpr uint64_t mutable_to = offsetof(Header, arenas);

  uint64_t& word_at(uint64_t offset) const {
    return *reinterpret_cast<uint64_t*>(place_.control() + offset / 8 * 8);
  }
  void put(uint64_t& word, uint64_t value) const { store_release(word, value); }

  // A table, the header's mutable words counting as one; its words, near the start where things stand more often.
  uint64_t pick_offset(Choices& choices) const {
    const auto& tables = place_.tables();
    const Table& table = tables[choices.below(static_cast<uint32_t>(tables.size()))];
    if (table.offset == 0) {
      return mutable_from + 8 * choices.below((mutable_to - mutable_from) / 8);
    }
    const uint64_t words = table.bytes / 8;
    const uint64_t near = choices.chance(2) ? words : std::min<uint64_t>(words, 256);
    return table.offset + 8 * choices.below(static_cast<uint32_t>(near));
  }
  uint64_t& pick_word(Choices& choices) const { return word_at(pick_offset(choices)); }

  void flip_bits(Choices& choices) const {
    const uint32_t flips = 1 + choices.below(8);
    for (uint32_t i = 0; i < flips; ++i) {
      uint64_t& word = pick_word(choices);
      put(word, load_relaxed(word) ^ uint64_t{1} << choices.below(64));
    }
  }
  void swap(Choices& choices) const {
    const uint64_t offset = pick_offset(choices);
    const uint64_t other = choices.chance(2)     ? pick_offset(choices)
                           : offset % page_bytes_small == 0 ? offset + 8 : offset - 8;
    const uint64_t kept = load_relaxed(word_at(offset));
    put(word_at(offset), load_relaxed(word_at(other)));
    put(word_at(other), kept);
  }

  uint64_t telling(Choices& choices) const {
    const Geometry& g = place_.geometry();
    const uint64_t values[] = {0,
                               ~uint64_t{0},
                               uint64_t{1} << 63,
                               (uint64_t{1} << 63) - 1,
                               1,
                               2,
                               uint64_t{1} << 31,
                               (uint64_t{1} << 32) - 1,
                               uint64_t{1} << 32,
                               0x0101010101010101,
                               g.payload_bytes,
                               g.segment_bytes,
                               g.record_count,
                               g.segment_count,
                               g.records_per_segment,
                               g.journal_entry_count,
                               g.bucket_count,
                               page_bytes_small,
                               client_count,
                               namespace_count,
                               uint64_t{1} << 56,
                               g.control_bytes};
    const uint64_t value = values[choices.below(sizeof values / sizeof *values)];
    switch (choices.below(4)) {
      case 1: return value - 1;
      case 2: return value + 1;
      default: return value;
    }
  }

  uint32_t pick_record(Choices& choices) const {
    const uint32_t segment = choices.below(segment_count);
    const uint32_t first = segment * place_.geometry().records_per_segment;
    return first + choices.below(choices.chance(4) ? place_.geometry().records_per_segment : 18);
  }
  static uint64_t pick_tag(Choices& choices) {
    const uint64_t tags[] = {0, 1, 2, 3, 4, 0x7F, 0x80, 0xFF};
    return tags[choices.below(8)];
  }
  static uint64_t pick_owner(Choices& choices) {
    const uint64_t owners[] = {slots[0], slots[1], slots[2], 1, 64, 128, 0xFF, 0xFFFF};
    return owners[choices.below(8)];
  }

  // One field of one item: right in form, wrong in what it says.
  void forge(Choices& choices) const {
    const View view = place_.view();
    switch (choices.below(16)) {
      case 0: return forge_state(choices, view);
      case 1: {
        const uint64_t pages[] = {0, 1, 2, 3, 15, 16, 17, (1 << 24) - 1};
        return put(view.segment(choices.below(segment_count)).state,
                   pick_tag(choices) | (pick_owner(choices) & 0xFF) << 8 |
                       uint64_t{choices.byte()} << 16 | pages[choices.below(8)] << 40);
      }
      case 2: return forge_entry(choices, view);
      case 3: return put(view.block(pick_record(choices)).payload_offset, telling(choices));
      case 4:
        return put(view.block(pick_record(choices)).payload_offset,
                   page_bytes_small * choices.below(64));
      case 5: return put(view.block(pick_record(choices)).payload_bytes, telling(choices));
      case 6: {
        const uint32_t ids[] = {0, place_.namespaces()[0], place_.namespaces()[1],
                                0x10000 | 255, 0x10000 | 256, ~0u};
        return put(view.block(pick_record(choices)).identity,
                   make_identity(ids[choices.below(6)], choices.byte(), choices.byte()));
      }
      case 7: {
        const uint32_t record = pick_record(choices);
        return put(view.block(record).pins[choices.below(2)], uint64_t{1} << choices.below(64));
      }
      case 8: return put(view.block(pick_record(choices)).parts, telling(choices));
      case 9: return put(view.block(pick_record(choices)).sum_layout, telling(choices));
      case 10: {
        const uint32_t from = pick_record(choices), to = pick_record(choices);  // one record twice
        for (uint64_t i = 0; i < sizeof(Block) / 8; ++i) {
          put(reinterpret_cast<uint64_t*>(&view.block(to))[i],
              load_relaxed(reinterpret_cast<uint64_t*>(&view.block(from))[i]));
        }
        return;
      }
      case 11: return put(view.touched(pick_record(choices)), telling(choices));
      case 12: return forge_registry(choices, view);
      case 13: return forge_spill(choices, view);
      case 14: {
        const uint64_t bucket = choices.below(remote_buckets);
        return put(view.remote_bucket(bucket).entries[choices.below(entries_per_bucket)],
                   remote_entry(choices.below(remote_host_count), choices.below(4), choices.word()));
      }
      default: {
        uint64_t* const words[] = {&view.header().segments_ready, &view.header().access_clock,
                                   &view.header().journal_head, &view.header().freed_clock,
                                   &view.header().spill_usable, &view.header().remote_usable,
                                   &view.header().eviction,     &view.header().span,
                                   &view.header().again_share};
        return put(*words[choices.below(9)], telling(choices));
      }
    }
  }
  void forge_state(Choices& choices, const View& view) const {
    uint64_t& state = view.block(pick_record(choices)).state;
    const uint64_t was = load_relaxed(state);
    const uint64_t generations[] = {block_generation(was), 0, 1, generation_mask,
                                    block_generation(was) + 1};
    put(state, pick_tag(choices) | (choices.chance(2) ? block_owner(was) : pick_owner(choices)) << 8 |
                   generations[choices.below(5)] << 24);
  }
  void forge_entry(Choices& choices, const View& view) const {
    const uint64_t bucket = choices.below(static_cast<uint32_t>(place_.geometry().bucket_count));
    uint64_t& word = view.bucket(bucket).entries[choices.below(entries_per_bucket)];
    const uint64_t was = load_relaxed(word);
    if (choices.chance(2)) {
      return put(word, (was & ~uint64_t{0xFFFFFF}) |
                           (choices.chance(4) ? record_count_max - 1 : pick_record(choices)));
    }
    // As insert would have made it, in a bucket of its own or in one where it does not belong.
    const uint32_t record = pick_record(choices);
    const uint32_t records = place_.geometry().record_count;
    const uint32_t beyond[] = {records, records + 16, records + 1000, record_count_max - 1};
    const Buckets own = buckets_of(place_.geometry(), read_key(view.block(record)));
    const uint64_t entry =
        make_entry(choices.chance(4) ? beyond[choices.below(4)] : record,
                   block_generation(load_relaxed(view.block(record).state)), own.fingerprint);
    Bucket& target = choices.chance(2) ? view.bucket(own.second) : view.bucket(own.first);
    if (choices.chance(4)) {
      for (uint64_t& each : target.entries) put(each, entry);
    } else {
      put(target.entries[choices.below(entries_per_bucket)], entry);
    }
  }
  void forge_spill(Choices& choices, const View& view) const {
    SpillRecord& record = view.spill(choices.below(spill_records));
    uint64_t* const words = reinterpret_cast<uint64_t*>(&record);
    const uint64_t was = load_relaxed(record.state);
    switch (choices.below(4)) {
      case 0: return put(record.state, pick_tag(choices) | (was & ~uint64_t{0xFF}));
      case 1: return put(record.state, was ^ uint64_t{1} << choices.below(64));
      case 2: return put(words[choices.below(sizeof record / 8)], telling(choices));
      default: {  // one record twice
        const SpillRecord& other = view.spill(choices.below(spill_records));
        for (uint64_t i = 0; i < sizeof record / 8; ++i) {
          put(words[i], load_relaxed(reinterpret_cast<const uint64_t*>(&other)[i]));
        }
      }
    }
  }
  void forge_registry(Choices& choices, const View& view) const {
    const uint32_t item = choices.below(6);
    NamespaceEntry& entry = view.name_space(item);
    ClientSlot& client = view.client(slots[item % 3]);
    switch (choices.below(7)) {
      case 0: return put(entry.state, pick_tag(choices) | uint64_t{choices.byte()} << 16);
      case 1: return put(entry.reserved_bytes, telling(choices));
      case 2: return put(entry.maximum_bytes, telling(choices));
      case 3: return put(entry.resident_bytes, telling(choices));
      case 4: return put(entry.attached_at_ns, telling(choices));
      case 5: return put(client.state, pick_tag(choices) | uint64_t{choices.byte()} << 8);
      default:
        return put(view.client(choices.below(client_count)).state,
                   pick_tag(choices) | uint64_t{choices.byte()} << 8);
    }
  }

  // Part of the region as it was in another state: lines, or every n-th line, from there to here.
  void tear(Choices& choices) const {
    const uint8_t* const other = place_.image(choices.below(Place::states));
    const auto& tables = place_.tables();
    const Table& table = tables[1 + choices.below(static_cast<uint32_t>(tables.size()) - 1)];
    const uint32_t lines = static_cast<uint32_t>(std::max<uint64_t>(table.bytes / 64, 1));
    const uint32_t first = choices.below(lines);
    const uint32_t last = std::min(lines, first + 1 + choices.below(64));
    const uint32_t every = 1 + choices.below(3);
    for (uint32_t line = first; line < last; line += every) {
      const uint64_t offset = table.offset + uint64_t{line} * 64;
      const uint64_t end = std::min(offset + 64, table.offset + table.bytes);
      for (uint64_t at = offset; at < end; at += 8) {
        uint64_t word;
        std::memcpy(&word, other + at, 8);
        put(word_at(at), word);
      }
    }
  }
  void fill(Choices& choices) const {
    const auto& tables = place_.tables();
    const Table& table = tables[1 + choices.below(static_cast<uint32_t>(tables.size()) - 1)];
    const uint32_t words = static_cast<uint32_t>(table.bytes / 8);
    const uint32_t first = choices.below(words);
    const uint32_t last = std::min(words, first + 1 + choices.below(512));
    const uint64_t value = choices.chance(2) ? telling(choices) : uint64_t{choices.byte()} * 0x0101010101010101;
    for (uint32_t i = first; i < last; ++i) put(word_at(table.offset + uint64_t{i} * 8), value);
  }
  void strike_header(Choices& choices) const {
    Header& header = place_.view().header();
    if (choices.chance(4)) return forge_geometry(choices, header);
    const uint64_t offset = 8 * choices.below(sizeof(Header) / 8);
    const uint64_t offsets[] = {0, 8, 16, offset % 256, 48, 56, 64, 72, 80, 88, 96, offset};
    uint64_t& word = word_at(offsets[choices.below(12)]);
    put(word, choices.chance(2) ? telling(choices)
                                : load_relaxed(word) ^ uint64_t{1} << choices.below(64));
    if (choices.chance(2)) put(header.checksum, header_checksum(header));
  }

  // A header right in every respect, of a region of other sizes than these bytes are.
  static void forge_geometry(Choices& choices, Header& header) {
    Geometry geometry{};
    const uint64_t blocks[] = {4096, 8192, 16384, 65536};
    if (!plan_geometry(choices.chance(2) ? segment_bytes : 4096 * (1 + choices.below(32)),
                       blocks[choices.below(4)], 1 + choices.below(5), geometry,
                       choices.chance(2) ? spill_records : choices.below(500),
                       choices.chance(2) ? remote_buckets : choices.below(300),
                       choices.chance(2) ? reuse_registers : 1 << choices.below(12))) {
      return;
    }
    write_header(header, geometry);
    header.arenas[0].bytes = geometry.payload_bytes;
    header.checksum = header_checksum(header);
  }

  const Place& place_;
};

}  // namespace fuzz
