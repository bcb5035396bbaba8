// Does a region keep its promises? Every invariant of FORMAT.md, "Invariants", judged in one walk.
//
// Reads only; called by `fsck` through the binding, in slices so that a caller can show progress. A finding
// names the invariant by its number there, where, and what was seen; wording is the caller's. Beside living
// processes a walk meets states that are about to change: each suspicion is looked at again before it is
// reported, and the caller believes only what stands in two walks. What they may leave at any time (hints
// that are off) is judged only when nobody else is there (`at_rest`).
// Each record is booked under exactly one use, so that the sums show whether anything is unaccounted for.
// What repairs a finding is in mend.hpp.
#pragma once

#include <cstring>

#include "client.hpp"
#include "remote_table.hpp"
#include "reuse.hpp"
#include "spill.hpp"

namespace pegashm {

// Numbers of FORMAT.md, never reused. 1 and 2 (header, payload files) are judged before a region is mapped.
enum class Invariant : uint32_t {
  reserved = 3,
  segments_ready = 4,
  access_clock = 5,
  journal = 6,
  counter_labels = 7,
  namespace_word = 8,
  resident_bytes = 9,
  client_word = 10,
  client_alive = 11,
  segment_word = 12,
  segment_owner_alive = 13,
  state_word = 14,
  owner_alive = 15,
  pins_alive = 16,
  has_memory = 17,
  place = 18,
  key = 19,
  reachable = 20,
  single = 21,
  touched = 22,
  free_bit = 23,
  free_bit_only = 24,
  entry_filed = 25,
  bucket_room = 26,
  namespace_limits = 27,
  spill_record = 28,
  sum_layout = 29,
  remote_hint = 30,
  remote_usable = 31,
  reuse_word = 32,
};
inline constexpr uint32_t invariant_count = 33;

struct Finding {
  uint32_t invariant;
  uint32_t slot;  // client concerned, or 0
  uint64_t where;  // record, segment, slot, byte or entry number, as the invariant has it
  uint64_t seen;
  uint64_t expected;
};
static_assert(sizeof(Finding) == 32);

// What a block is used for. "Dead": its owner is, so that it waits for a reaper.
enum class Use : uint32_t {
  free,
  lost,  // FREE without its free bit
  claimed,
  claimed_dead,
  ready,
  ready_held,  // pinned by a dead client: cannot be evicted
  unreachable,  // READY, not in the index
  duplicate,  // READY, and so is another record of the same key
  evicting,
  evicting_dead,
  damaged,
  count_,
};
inline constexpr uint32_t use_count = static_cast<uint32_t>(Use::count_);

struct Account {
  uint64_t blocks[use_count];
  uint64_t bytes[use_count];
  uint64_t records_spare;  // FREE records that have no memory: their segment holds fewer blocks
  uint64_t records_stray;  // others that have none: damage
  uint64_t segment_tail_bytes;  // assigned segments: what does not make a whole block
  uint64_t unassigned_bytes;  // segments that no stride has yet, or whose word is damaged
};

inline constexpr uint64_t clock_max = uint64_t{1} << 62;  // no clock that counts gets there

inline bool possible_block_state(uint64_t state) noexcept {
  const uint32_t owner = block_owner(state);
  if (block_generation(state) == 0) return false;
  switch (block_tag(state)) {
    case BlockTag::free:
    case BlockTag::ready:
      return owner == 0;
    case BlockTag::claimed:
    case BlockTag::evicting:
      return owner < client_count;
  }
  return false;
}

inline bool possible_segment_state(const Geometry& geometry, uint32_t segment,
                                   uint64_t state) noexcept {
  const uint64_t stride = segment_stride(state);
  const bool fits =
      stride >= geometry.block_bytes_min && segment_capacity(geometry, segment, stride) != 0;
  switch (segment_tag(state)) {
    case SegmentTag::unassigned:
      return segment_owner(state) == 0 && stride == 0;
    case SegmentTag::assigned:
      return segment_owner(state) == 0 && fits;
    case SegmentTag::changing:
      return segment_owner(state) < client_count && (stride == 0 || fits);
  }
  return false;
}

inline bool possible_namespace_state(uint64_t state) noexcept {
  const uint64_t generation = namespace_generation(state);
  return state == namespace_state(false, generation) ||
         (state == namespace_state(true, generation) && generation != 0);
}

inline bool possible_key(const View& view, const Key& key) noexcept {
  const uint64_t key_bytes = key.identity >> 48;
  if (key_bytes == 0 || key_bytes > key_bytes_max) return false;
  uint8_t bytes[key_bytes_max];
  std::memcpy(bytes, key.words, key_bytes_max);
  for (uint64_t i = key_bytes; i < key_bytes_max; ++i) {
    if (bytes[i] != 0) return false;
  }
  const uint32_t id = identity_namespace(key.identity);
  const uint32_t slot = namespace_slot(id);
  if (slot >= namespace_count || id >> 16 == 0) return false;
  // A generation that its slot has not reached: were the block left there, the namespace that reaches it
  // would take it for its own.
  const uint64_t now = namespace_generation(load_acquire(view.name_space(slot).state));
  return ((now - (id >> 16)) & 0xFFFF) < 0x8000;
}

inline bool possible_event(const View& view, uint64_t place, const JournalEntry& entry) noexcept {
  const uint64_t event = entry.what & 0xFF;
  const bool in_memory = event == static_cast<uint64_t>(Event::publish) ||
                         event == static_cast<uint64_t>(Event::evict);
  const bool on_ssd =
      event == static_cast<uint64_t>(Event::spill) || event == static_cast<uint64_t>(Event::forget);
  const uint32_t record = handle_record(entry.handle);
  const Geometry& geometry = view.geometry;
  return entry.sequence < clock_max &&
         (entry.sequence & (view.geometry.journal_entry_count - 1)) == place &&
         (entry.what >> 8 & 0xFF) <= key_bytes_max &&
         ((in_memory && record < geometry.record_count) ||
          (on_ssd && record >= geometry.record_count &&
           record - geometry.record_count < geometry.spill_record_count));
}

inline CounterLabel expected_label(uint32_t index) noexcept {
  CounterLabel label{};
  label.type = counter_type(index);
  label.key_bytes = static_cast<uint32_t>(std::strlen(counter_keys[index]));
  std::memcpy(label.key, counter_keys[index], label.key_bytes);
  return label;
}

// A label of a counter that this build does not know: right in form, or empty.
inline bool possible_label(const CounterLabel& label) noexcept {
  if (label.type > 2 || label.key_bytes > sizeof label.key ||
      (label.type == 0) != (label.key_bytes == 0)) {
    return false;
  }
  for (uint32_t i = 0; i < sizeof label.key; ++i) {
    const bool text = label.key[i] > ' ' && label.key[i] < 0x7F;
    if (i < label.key_bytes ? !text : label.key[i] != 0) return false;
  }
  return true;
}

class Audit {
 public:
  // `alive`: 128 bytes, 1 for a slot whose owner or copiers live. `findings`: room for `findings_max`.
  Audit(const View& view, const uint8_t* alive, bool at_rest, Finding* findings,
        uint64_t findings_max) noexcept
      : view_(view),
        at_rest_(at_rest),
        findings_(findings),
        findings_max_(findings_max),
        // A newer minor version may have put what we call reserved to use.
        judge_reserved_(view.header().format_minor <= format_minor) {
    for (uint32_t slot = 0; slot < client_count; ++slot) {
      if (alive[slot] != 0) alive_[slot / 64] |= pin_bit(slot);
    }
  }

  uint64_t found() const noexcept { return found_; }
  uint64_t listed() const noexcept { return found_ < findings_max_ ? found_ : findings_max_; }
  const uint64_t* counts() const noexcept { return counts_; }
  const Account& account() const noexcept { return account_; }

  // The segments [first, last) with all their records.
  void segments(uint32_t first, uint32_t last) noexcept {
    for (uint32_t segment = first; segment < last; ++segment) audit_segment(segment);
  }

  // The buckets [first, last).
  void buckets(uint64_t first, uint64_t last) noexcept {
    constexpr uint64_t ahead = 4;
    for (uint64_t bucket = first; bucket < last; ++bucket) {
      if (bucket + ahead < last) prefetch_named(bucket + ahead);
      audit_bucket(bucket);
    }
  }

  // All else; after every segment.
  void tables() noexcept {
    audit_header();
    for (uint32_t slot = 0; slot < namespace_count; ++slot) audit_namespace(slot);
    for (uint32_t slot = 0; slot < client_count; ++slot) audit_client(slot);
    audit_counters();
    audit_journal();
    for (uint32_t index = 0; index < view_.geometry.spill_record_count; ++index) audit_spill(index);
    if (view_.geometry.remote_bucket_count != 0) audit_remote();
    if (at_rest_) audit_reuse();
  }

 private:
  // One record and where it stands.
  struct Place {
    uint32_t record;
    uint32_t index;  // within its segment
    uint32_t segment;
    uint64_t segment_word;
    uint64_t stride;  // 0: the record has no memory
  };

  void report(Invariant invariant, uint64_t where, uint64_t seen, uint64_t expected = 0,
              uint32_t slot = 0) noexcept {
    const uint32_t number = static_cast<uint32_t>(invariant);
    if (found_ < findings_max_) findings_[found_] = {number, slot, where, seen, expected};
    ++found_;
    ++counts_[number];
  }

  bool is_alive(uint32_t slot) const noexcept {
    return slot < client_count && (alive_[slot / 64] & pin_bit(slot)) != 0;
  }

  void audit_reserved(const void* field, uint64_t bytes) noexcept {
    if (!judge_reserved_) return;
    const auto* const start = static_cast<const uint8_t*>(field);
    for (uint64_t i = 0; i < bytes; ++i) {
      if (start[i] != 0) {
        report(Invariant::reserved, static_cast<uint64_t>(start - view_.control), start[i], bytes);
        return;
      }
    }
  }

  // -- segments and records ---------------------------------------------------------------------------

  void audit_segment(uint32_t segment) noexcept {
    const Segment& entry = view_.segment(segment);
    const uint64_t word = load_acquire(entry.state);
    audit_reserved(entry.reserved_8, sizeof entry.reserved_8);
    uint64_t stride = segment_stride(word);
    if (!possible_segment_state(view_.geometry, segment, word)) {
      report(Invariant::segment_word, segment, word);
      stride = 0;
    } else if (segment_tag(word) != SegmentTag::unassigned) {
      segments_used_ = segment + 1;
      if (segment_tag(word) == SegmentTag::changing && !is_alive(segment_owner(word))) {
        report(Invariant::segment_owner_alive, segment, word, 0, segment_owner(word));
      }
    }
    const uint32_t capacity = segment_capacity(view_.geometry, segment, stride);
    (stride == 0 ? account_.unassigned_bytes : account_.segment_tail_bytes) +=
        view_.geometry.segment_bytes - capacity * stride;
    audit_records(segment, word, stride, capacity);
  }

  // In lots, so that the buckets of one lot are on their way while the lot before is judged.
  void audit_records(uint32_t segment, uint64_t word, uint64_t stride, uint32_t capacity) noexcept {
    constexpr uint32_t lot = 16;
    const uint32_t first = view_.first_record(segment);
    for (uint32_t base = 0; base < view_.geometry.records_per_segment; base += lot) {
      for (uint32_t i = base; i < base + lot; ++i) {
        const Block& block = view_.block(first + i);
        if (block_tag(load_acquire(block.state)) != BlockTag::ready) continue;
        prefetch_buckets(view_, buckets_of(view_.geometry, read_key(block)));
      }
      for (uint32_t i = base; i < base + lot; ++i) {
        audit_record({first + i, i, segment, word, i < capacity ? stride : 0});
      }
    }
  }

  void audit_record(const Place& place) noexcept {
    const Block& block = view_.block(place.record);
    const uint64_t state = load_seq(block.state);
    audit_reserved(block.reserved_112, sizeof block.reserved_112);
    const bool held = audit_pins(place.record, block);
    Use use = Use::damaged;
    if (!possible_block_state(state)) {
      report(Invariant::state_word, place.record, state);
    } else if (block_tag(state) == BlockTag::free) {
      use = audit_free(place, block, state);
    } else if (block_tag(state) == BlockTag::ready) {
      use = audit_ready(place, block, state);
      if (use == Use::ready && held) use = Use::ready_held;
    } else {
      use = audit_owned(place, state);
    }
    if (block_tag(state) != BlockTag::free) audit_taken(place, block, state);
    book(place, use);
  }

  void book(const Place& place, Use use) noexcept {
    if (place.stride != 0) {
      ++account_.blocks[static_cast<uint32_t>(use)];
      account_.bytes[static_cast<uint32_t>(use)] += place.stride;
    } else {
      ++(use == Use::free || use == Use::lost ? account_.records_spare : account_.records_stray);
    }
  }

  // Whether a dead client has pinned it.
  bool audit_pins(uint32_t record, const Block& block) noexcept {
    bool held = false;
    for (uint32_t word = 0; word < 2; ++word) {
      uint64_t dead = load_acquire(block.pins[word]) & ~alive_[word];
      for (; dead != 0; dead &= dead - 1) {
        const uint32_t slot = word * 64 + static_cast<uint32_t>(__builtin_ctzll(dead));
        report(Invariant::pins_alive, record, load_acquire(block.state), 0, slot);
        held = true;
      }
    }
    return held;
  }

  bool has_free_bit(uint32_t record) const noexcept {
    return (load_acquire(view_.free_bits(record)) >> (record % 64) & 1) != 0;
  }

  Use audit_free(const Place& place, const Block& block, uint64_t state) noexcept {
    // Only where somebody would look for it; a segment that is changing gets its bits at the end.
    if (place.stride == 0 || segment_tag(place.segment_word) != SegmentTag::assigned ||
        has_free_bit(place.record) || load_seq(block.state) != state) {
      return Use::free;
    }
    report(Invariant::free_bit, place.record, state);
    return Use::lost;
  }

  // CLAIMED or EVICTING.
  Use audit_owned(const Place& place, uint64_t state) noexcept {
    const bool claimed = block_tag(state) == BlockTag::claimed;
    if (is_alive(block_owner(state))) return claimed ? Use::claimed : Use::evicting;
    report(Invariant::owner_alive, place.record, state, 0, block_owner(state));
    return claimed ? Use::claimed_dead : Use::evicting_dead;
  }

  // Hints about any record that is not FREE.
  void audit_taken(const Place& place, const Block& block, uint64_t state) noexcept {
    if (at_rest_ && place.stride != 0 && has_free_bit(place.record)) {
      report(Invariant::free_bit_only, place.record, state);
    }
    const BlockTag tag = block_tag(state);
    if (tag != BlockTag::claimed && tag != BlockTag::ready) return;
    const uint32_t id = identity_namespace(load_acquire(block.identity));
    const uint32_t slot = namespace_slot(id);
    if (slot >= namespace_count ||
        namespace_generation(load_acquire(view_.name_space(slot).state)) != id >> 16) {
      return;
    }
    resident_[slot] += occupied_bytes(view_, block);
  }

  Use audit_ready(const Place& place, const Block& block, uint64_t state) noexcept {
    const Key key = read_key(block);
    const uint64_t offset = load_acquire(block.payload_offset);
    const uint64_t length = load_acquire(block.payload_bytes);
    const auto moved_on = [&]() noexcept {
      return load_seq(block.state) != state ||
             load_seq(view_.segment(place.segment).state) != place.segment_word;
    };
    const auto damaged = [&](Invariant invariant, uint64_t seen, uint64_t expected) noexcept {
      if (moved_on()) return Use::ready;
      report(invariant, place.record, seen, expected);
      return Use::damaged;
    };
    if (place.stride == 0) return damaged(Invariant::has_memory, state, 0);
    const uint64_t right = block_offset(view_.geometry, place.segment, place.stride, place.index);
    if (offset != right) return damaged(Invariant::place, offset, right);
    if (stride_of(view_.geometry, length) != place.stride) {
      return damaged(Invariant::place, length, place.stride);
    }
    if (!possible_key(view_, key)) return damaged(Invariant::key, key.identity, 0);
    // By the rule of who reads them: what they would not believe, they should not find.
    const uint64_t handle = make_handle(place.record, block_generation(state));
    if (!is_damaged(block) && read_sums(view_, handle).damaged) {
      return damaged(Invariant::sum_layout, load_acquire(block.sum_layout), length);
    }
    audit_touch(place.record, block, state);
    return audit_listing(place, block, state, key);
  }

  void audit_touch(uint32_t record, const Block& block, uint64_t state) noexcept {
    const uint64_t touch = load_acquire(view_.touched(record));
    if (touch == 0 && load_seq(block.state) == state) {
      report(Invariant::touched, record, 0);
    } else if (touch > load_acquire(view_.header().access_clock) + ahead_now(view_)) {
      report(Invariant::access_clock, record, touch, load_acquire(view_.header().access_clock));
    }
  }

  // Is the index's way to it there, and is it the only one of its key?
  Use audit_listing(const Place& place, const Block& block, uint64_t state,
                    const Key& key) noexcept {
    const Buckets buckets = buckets_of(view_.geometry, key);
    const uint64_t own = make_entry(place.record, block_generation(state), buckets.fingerprint);
    bool listed = false;
    uint32_t twin = place.record;
    for (const uint64_t bucket : {buckets.first, buckets.second}) {
      for (uint64_t& word : view_.bucket(bucket).entries) {
        const uint64_t entry = load_acquire(word);
        if (entry == own)
          listed = true;
        else if (entry_fingerprint(entry) == buckets.fingerprint) {
          const uint32_t record = entry_record(entry);
          if (record < twin && is_ready_twin(record, entry, key)) twin = record;
        }
      }
    }
    if (!listed && load_seq(block.state) == state) {
      report(Invariant::reachable, place.record, state);
      return Use::unreachable;
    }
    if (twin == place.record) return Use::ready;
    if (at_rest_) report(Invariant::single, place.record, state, twin);
    return Use::duplicate;
  }

  bool is_ready_twin(uint32_t record, uint64_t entry, const Key& key) const noexcept {
    if (record >= view_.geometry.record_count) return false;
    const Block& block = view_.block(record);
    const uint64_t state = load_acquire(block.state);
    return possible_block_state(state) && block_tag(state) == BlockTag::ready &&
           (block_generation(state) & 0xFFFF) == entry_generation(entry) && same_key(block, key);
  }

  // -- index --------------------------------------------------------------------------------------------

  void prefetch_named(uint64_t bucket) const noexcept {
    for (const uint64_t entry : view_.bucket(bucket).entries) {
      const uint32_t record = entry_record(entry);
      if (entry != 0 && record < view_.geometry.record_count) {
        __builtin_prefetch(&view_.block(record));
      }
    }
  }

  void audit_bucket(uint64_t bucket) noexcept {
    uint32_t empty = 0, stale = 0;
    for (uint32_t i = 0; i < entries_per_bucket; ++i) {
      const uint64_t& word = view_.bucket(bucket).entries[i];
      const uint64_t entry = load_acquire(word);
      if (entry == 0) {
        ++empty;
      } else if (entry_record(entry) >=
                 view_.geometry.record_count + uint64_t{view_.geometry.spill_record_count}) {
        report(Invariant::entry_filed, bucket * entries_per_bucket + i, entry);
      } else if (is_stale(view_, entry)) {
        ++stale;
      } else if (is_misfiled(bucket, entry) && load_acquire(word) == entry) {
        report(Invariant::entry_filed, bucket * entries_per_bucket + i, entry);
      }
    }
    if (at_rest_ && empty == 0 && stale >= entries_per_bucket / 2) {
      report(Invariant::bucket_room, bucket, stale);
    }
  }

  bool is_misfiled(uint64_t bucket, uint64_t entry) const noexcept {
    if (named_spill(view_, entry) != nullptr) return false;  // judged with the spill records
    const Block& block = view_.block(entry_record(entry));
    const uint64_t state = load_acquire(block.state);
    if (block_tag(state) != BlockTag::ready) return false;
    const Buckets right = buckets_of(view_.geometry, read_key(block));
    const bool filed = entry_fingerprint(entry) == right.fingerprint &&
                       (bucket == right.first || bucket == right.second);
    return !filed && load_seq(block.state) == state;
  }

  // -- spill records ------------------------------------------------------------------------------------

  void audit_spill(uint32_t index) noexcept {
    const SpillRecord& record = view_.spill(index);
    const uint64_t state = load_acquire(record.state);
    audit_reserved(record.reserved_96, sizeof record.reserved_96);
    if (!is_possible_spill(index, record, state) && load_seq(record.state) == state) {
      report(Invariant::spill_record, index, state);
    }
  }

  bool is_possible_spill(uint32_t index, const SpillRecord& record, uint64_t state) const noexcept {
    if ((state & 0xFF) == 0) return true;
    if (!spill_stored(state) || spill_file(state) >= spill_file_count ||
        load_acquire(record.file_offset) % page_bytes_small != 0) {
      return false;
    }
    const Key key = spill_key(record);
    const uint64_t key_bytes = key.identity >> 48;
    if (key_bytes == 0 || key_bytes > key_bytes_max) return false;
    const Buckets buckets = buckets_of(view_.geometry, key);
    const uint64_t own = make_entry(view_.geometry.record_count + index, block_generation(state),
                                    buckets.fingerprint);
    for (const uint64_t bucket : {buckets.first, buckets.second}) {
      for (const uint64_t& word : view_.bucket(bucket).entries) {
        if (load_acquire(word) == own) return true;
      }
    }
    return false;
  }

  // -- hints of other hosts -----------------------------------------------------------------------------

  void audit_remote() noexcept {
    for (uint32_t host = 0; host < remote_host_count; ++host) {
      const RemoteHost& record = view_.remote_hosts().hosts[host];
      audit_reserved(&record.reserved_68, sizeof record.reserved_68);
    }
    const uint64_t summary = load_acquire(view_.header().remote_usable);
    if (at_rest_ && summary != remote_summary(view_)) {
      report(Invariant::remote_usable, 0, summary, remote_summary(view_));
    }
    for (uint64_t bucket = 0; bucket < view_.geometry.remote_bucket_count; ++bucket) {
      for (uint32_t i = 0; i < entries_per_bucket; ++i) {
        const uint64_t entry = load_acquire(view_.remote_bucket(bucket).entries[i]);
        if (entry != 0 && remote_entry_tier(entry) == 0) {
          report(Invariant::remote_hint, bucket * entries_per_bucket + i, entry);
        }
      }
    }
  }

  // -- reuse --------------------------------------------------------------------------------------------

  // Readers pass over what lies ahead of the clock; it is reported because it would count when its time comes.
  void audit_reuse() noexcept {
    const uint32_t now = reuse_tick_now() + 1;
    for (uint64_t number = 0; number < reuse_word_count(view_); ++number) {
      const uint64_t word = load_relaxed(pegashm::reuse_word(view_, number));  // SYNC none
      if (!is_possible_reuse(number, word, now)) report(Invariant::reuse_word, number, word);
    }
  }

  // -- tables -------------------------------------------------------------------------------------------

  void audit_header() noexcept {
    const Header& header = view_.header();
    audit_reserved(header.reserved_328, sizeof header.reserved_328);
    audit_reserved(header.reserved_392, sizeof header.reserved_392);
    audit_reserved(header.reserved_456, sizeof header.reserved_456);
    audit_reserved(&header.reserved_3604, sizeof header.reserved_3604);
    if (!is_draining(load_acquire(header.draining_since_ns))) {
      audit_reserved(&header.draining_since_ns, sizeof header.draining_since_ns);
    }
    audit_reserved(header.reserved_3720, sizeof header.reserved_3720);
    const uint64_t ready = load_acquire(header.segments_ready);
    if (ready > view_.geometry.segment_count) {
      report(Invariant::segments_ready, 0, ready, view_.geometry.segment_count);
    } else if (ready < segments_used_) {
      report(Invariant::segments_ready, 0, ready, segments_used_);
    }
    const uint64_t clock = load_acquire(header.access_clock);
    if (clock >= clock_max) report(Invariant::access_clock, view_.geometry.record_count, clock);
  }

  void audit_namespace(uint32_t slot) noexcept {
    const NamespaceEntry& entry = view_.name_space(slot);
    const uint64_t state = load_acquire(entry.state);
    if (!possible_namespace_state(state)) report(Invariant::namespace_word, slot, state);
    for (const uint64_t* limit : {&entry.reserved_bytes, &entry.maximum_bytes}) {
      const uint64_t bytes = load_acquire(*limit);
      if (namespace_live(state) && bytes > view_.geometry.payload_bytes) {
        report(Invariant::namespace_limits, slot, bytes, view_.geometry.payload_bytes);
      }
    }
    const uint64_t resident = load_acquire(entry.resident_bytes);
    if (at_rest_ && resident != resident_[slot]) {
      report(Invariant::resident_bytes, slot, resident, resident_[slot]);
    }
  }

  void audit_client(uint32_t slot) noexcept {
    const ClientSlot& client = view_.client(slot);
    const uint64_t state = load_acquire(client.state);
    audit_reserved(client.reserved_40, sizeof client.reserved_40);
    if ((state & 0xFF) > 1 || (client_attached(state) && client.mode > 2)) {
      report(Invariant::client_word, slot, state, client.mode, slot);
    } else if (client_attached(state) && !is_alive(slot)) {
      report(Invariant::client_alive, slot, state, client.pid, slot);
    }
  }

  void audit_counters() noexcept {
    constexpr uint32_t known = static_cast<uint32_t>(Counter::count_);
    bool later = false;  // a label stands further on, so that an empty one is no older build's
    for (uint32_t index = counter_count; index-- > 0;) {
      const CounterLabel label = view_.counter_label(index);
      audit_reserved(view_.counter_value(index).reserved_8,
                     sizeof view_.counter_value(index).reserved_8);
      const CounterLabel right = index < known ? expected_label(index) : CounterLabel{};
      const bool same = std::memcmp(&label, &right, sizeof label) == 0;
      const bool empty = label.type == 0 && possible_label(label);
      const bool may_be = index < known ? same || (empty && !later) : possible_label(label);
      if (!may_be) report(Invariant::counter_labels, index, label.type, right.type);
      later = later || !empty;
    }
  }

  void audit_journal() noexcept {
    const uint64_t head = load_acquire(view_.header().journal_head);
    if (head >= clock_max) {
      report(Invariant::journal, view_.geometry.journal_entry_count, head);
    }
    for (uint64_t place = 0; place < view_.geometry.journal_entry_count; ++place) {
      JournalEntry& entry = view_.journal(place);
      audit_reserved(&entry.reserved_24, sizeof entry.reserved_24);
      JournalEntry copy{};
      const uint64_t sequence = load_acquire(entry.sequence);
      if (sequence == 0) continue;
      copy.sequence = sequence;
      copy.what = load_acquire(entry.what);
      copy.handle = load_acquire(entry.handle);
      const bool sound = possible_event(view_, place, copy) &&
                         sequence <= load_acquire(view_.header().journal_head);
      if (!sound && load_acquire(entry.sequence) == sequence) {
        report(Invariant::journal, place, sequence, head);
      }
    }
  }

  const View view_;
  const bool at_rest_;
  Finding* const findings_;
  const uint64_t findings_max_;
  const bool judge_reserved_;
  uint64_t alive_[2] = {};
  uint64_t found_ = 0;
  uint64_t counts_[invariant_count] = {};
  uint32_t segments_used_ = 0;
  uint64_t resident_[namespace_count] = {};
  Account account_{};
};

}  // namespace pegashm
