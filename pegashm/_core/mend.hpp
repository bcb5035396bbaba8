// How is each finding of audit.hpp undone?
//
// One function for each invariant, given the finding and acting only while what was seen still stands, so that
// a repair beside living clients loses against them instead of harming them; all of it may be killed at any step
// and repeated. The caller is an attached client of `slot` (an eviction needs an owner that can be reaped) and
// holds the registry lock (a namespace has one writer). What a dead client left is not undone here but by
// reap_client(), under the locks that prove the death; hints are rebuilt by rebuild_hints().
// The rule for a cache: what cannot be believed is evicted, never put right by guessing. A READY record that
// the index does not name may be one whose key was damaged: listed again it could answer for another's key.
#pragma once

#include "audit.hpp"
#include "repair.hpp"

namespace pegashm {

class Mender {
 public:
  // `at_rest`: nobody but the caller is attached, or copies, and nobody can attach meanwhile.
  Mender(const View& view, uint32_t slot, const uint8_t* alive, bool at_rest) noexcept
      : view_(view), slot_(slot), alive_(alive), at_rest_(at_rest) {}

  // Whether something was done. False: it is no longer so, it has to wait, or others repair it.
  bool mend(const Finding& finding) noexcept {
    const uint64_t where = finding.where;
    const auto below = [where](uint64_t count) noexcept { return where < count; };
    const Geometry& geometry = view_.geometry;
    switch (static_cast<Invariant>(finding.invariant)) {
      case Invariant::reserved:
        return zero(where, finding.expected);
      case Invariant::segments_ready:
        return replace(view_.header().segments_ready, finding.seen, finding.expected);
      case Invariant::access_clock:
        return where <= geometry.record_count && mend_clock(finding);
      case Invariant::journal:
        return where <= geometry.journal_entry_count && mend_journal(finding);
      case Invariant::counter_labels:
        return below(counter_count) && mend_label(static_cast<uint32_t>(where));
      case Invariant::namespace_word:
        return below(namespace_count) && mend_namespace(finding);
      case Invariant::sum_layout:
        return below(geometry.record_count) && condemn(static_cast<uint32_t>(where));
      case Invariant::namespace_limits:
        return below(namespace_count) && mend_limits(static_cast<uint32_t>(where), finding.seen);
      case Invariant::client_word:
        return below(client_count) && mend_client(finding);
      case Invariant::segment_word:
        return below(geometry.segment_count) && mend_segment(finding);
      case Invariant::state_word:
        return below(geometry.record_count) && mend_state(finding);
      case Invariant::has_memory:
      case Invariant::place:
      case Invariant::key:
      case Invariant::reachable:
      case Invariant::single:
        return below(geometry.record_count) && evict_record(static_cast<uint32_t>(where));
      case Invariant::free_bit_only:
        return below(geometry.record_count) && clear_free_bit(static_cast<uint32_t>(where));
      case Invariant::entry_filed:
        return below(geometry.bucket_count * entries_per_bucket) &&
               replace(view_.bucket(where / entries_per_bucket).entries[where % entries_per_bucket],
                       finding.seen, 0);
      case Invariant::bucket_room:
        return below(geometry.bucket_count) && clear_stale(where);
      case Invariant::spill_record:
        return below(geometry.spill_record_count) &&
               replace(view_.spill(static_cast<uint32_t>(where)).state, finding.seen,
                       spill_state(false, 0, block_generation(finding.seen)));
      case Invariant::remote_hint:
        return below(geometry.remote_bucket_count * entries_per_bucket) &&
               replace(view_.remote_bucket(where / entries_per_bucket)
                           .entries[where % entries_per_bucket],
                       finding.seen, 0);
      case Invariant::remote_usable:
        return geometry.remote_bucket_count != 0 &&
               replace(view_.header().remote_usable, finding.seen, remote_summary(view_));
      case Invariant::reuse_word:
        return below(reuse_word_count(view_)) &&
               replace(pegashm::reuse_word(view_, where), finding.seen, 0);
      case Invariant::resident_bytes:
      case Invariant::touched:
      case Invariant::free_bit:
        return false;  // rebuild_hints()
      case Invariant::client_alive:
      case Invariant::segment_owner_alive:
      case Invariant::owner_alive:
      case Invariant::pins_alive:
        return false;  // reap_client()
    }
    return false;
  }

 private:
  static bool replace(uint64_t& word, uint64_t seen, uint64_t value) noexcept {
    return seen != value && cas_seq(word, seen, value);
  }

  bool zero(uint64_t offset, uint64_t bytes) noexcept {
    const uint64_t size = view_.geometry.control_bytes;
    if (bytes > size || offset > size - bytes) return false;
    std::memset(view_.control + offset, 0, bytes);
    return true;
  }

  // A clock that no counting reaches starts again above every touch that one could; a touch ahead of the
  // clock draws it after itself, since it only has to grow, unless it is beyond reason itself.
  bool mend_clock(const Finding& finding) noexcept {
    uint64_t& clock = view_.header().access_clock;
    if (finding.where == view_.geometry.record_count) {
      uint64_t newest = 0;
      for (uint32_t record = 0; record < view_.geometry.record_count; ++record) {
        const uint64_t touch = load_acquire(view_.touched(record));
        if (touch < clock_max && touch > newest) newest = touch;
      }
      return replace(clock, finding.seen, newest);
    }
    uint64_t& touched = view_.touched(static_cast<uint32_t>(finding.where));
    if (finding.seen >= clock_max) return replace(touched, finding.seen, 1);
    return raise(clock, finding.seen);
  }

  // Up to `value`; whoever advances it meanwhile only makes it larger.
  static bool raise(uint64_t& word, uint64_t value) noexcept {
    const uint64_t now = load_acquire(word);
    if (now < value) add_relaxed(word, value - now);
    return now < value;
  }

  bool mend_journal(const Finding& finding) noexcept {
    uint64_t& head = view_.header().journal_head;
    if (finding.where == view_.geometry.journal_entry_count) {
      uint64_t newest = 0;
      for (uint64_t place = 0; place < view_.geometry.journal_entry_count; ++place) {
        const JournalEntry& entry = view_.journal(place);
        if (possible_event(view_, place, entry) && entry.sequence > newest) newest = entry.sequence;
      }
      return replace(head, finding.seen, newest);
    }
    JournalEntry& entry = view_.journal(finding.where);
    if (load_acquire(entry.sequence) != finding.seen) return false;
    if (possible_event(view_, finding.where, entry)) return raise(head, finding.seen);
    return replace(entry.sequence, finding.seen, 0);
  }

  bool mend_label(uint32_t index) noexcept {
    const bool known = index < static_cast<uint32_t>(Counter::count_);
    view_.counter_label(index) = known ? expected_label(index) : CounterLabel{};
    return true;
  }

  // Free again. Its blocks answer until the slot's next namespace, then match no key: nobody can tell
  // whether the word's generation is right, so none may live until that is reached.
  bool mend_namespace(const Finding& finding) noexcept {
    const uint32_t slot = static_cast<uint32_t>(finding.where);
    const uint64_t generation = namespace_generation(finding.seen);
    if (!replace(view_.name_space(slot).state, finding.seen, namespace_state(false, generation))) {
      return false;
    }
    for (uint32_t record = 0; record < view_.geometry.record_count; ++record) {
      const uint32_t id = identity_namespace(load_acquire(view_.block(record).identity));
      if (namespace_slot(id) == slot) evict_record(record);
    }
    return true;
  }

  // What was asked for is lost: none, until its next client registers and says it again.
  bool mend_limits(uint32_t slot, uint64_t seen) noexcept {
    NamespaceEntry& entry = view_.name_space(slot);
    const bool reserve = replace(entry.reserved_bytes, seen, 0);
    return replace(entry.maximum_bytes, seen, 0) || reserve;
  }

  bool mend_client(const Finding& finding) noexcept {
    const uint32_t slot = static_cast<uint32_t>(finding.where);
    ClientSlot& client = view_.client(slot);
    const uint64_t incarnation = client_incarnation(finding.seen);
    if (client.mode > 2) client.mode = 0;
    const uint64_t right = client_state(alive_[slot] != 0, incarnation);
    return replace(client.state, finding.seen, right) || right == finding.seen;
  }

  // No stride can be believed, so its blocks have no place: they are found next, and evicted.
  bool mend_segment(const Finding& finding) noexcept {
    const uint32_t segment = static_cast<uint32_t>(finding.where);
    const uint64_t right =
        segment_state(SegmentTag::unassigned, 0, segment_epoch(finding.seen) + 1, 0);
    if (!replace(view_.segment(segment).state, finding.seen, right)) return false;
    write_free_bits(view_, segment, 0);
    add_release(view_.header().freed_clock, 1);
    return true;
  }

  // What the word said is lost: perhaps that somebody writes there, so all who could must be gone.
  bool mend_state(const Finding& finding) noexcept {
    const uint32_t record = static_cast<uint32_t>(finding.where);
    if (!at_rest_ || load_acquire(view_.block(record).state) != finding.seen) return false;
    // Of whatever generation: the word's own cannot be believed, and the next life may get that of an entry.
    const Buckets buckets = buckets_of(view_.geometry, read_key(view_.block(record)));
    for (const uint64_t bucket : {buckets.first, buckets.second}) {
      for (uint64_t& word : view_.bucket(bucket).entries) {
        const uint64_t entry = load_acquire(word);
        if (entry != 0 && entry_record(entry) == record) cas_seq(word, entry, 0);
      }
    }
    return release_record(view_, record, finding.seen);
  }

  bool evict_record(uint32_t record) noexcept {
    const uint64_t state = load_acquire(view_.block(record).state);
    return slot_ < client_count && block_tag(state) == BlockTag::ready &&
           evict_block(view_, slot_, make_handle(record, block_generation(state))) == Outcome::ok;
  }

  // Marked first: so the record's next life clears all its checksums, also those that no layout speaks of.
  bool condemn(uint32_t record) noexcept {
    const uint64_t state = load_acquire(view_.block(record).state);
    mark_damaged(view_, make_handle(record, block_generation(state)));
    return evict_record(record);
  }

  // SYNC free bit: as in begin_claim(), so that a record that becomes free meanwhile keeps its bit.
  bool clear_free_bit(uint32_t record) noexcept {
    const uint64_t bit = uint64_t{1} << (record % 64);
    const Block& block = view_.block(record);
    if (block_tag(load_acquire(block.state)) == BlockTag::free) return false;
    and_seq(view_.free_bits(record), ~bit);
    if (block_tag(load_seq(block.state)) == BlockTag::free) or_seq(view_.free_bits(record), bit);
    return true;
  }

  bool clear_stale(uint64_t bucket) noexcept {
    bool done = false;
    for (uint64_t& word : view_.bucket(bucket).entries) {
      const uint64_t entry = load_acquire(word);
      if (entry != 0 && is_stale(view_, entry)) done = replace(word, entry, 0) || done;
    }
    return done;
  }

  const View view_;
  const uint32_t slot_;
  const uint8_t* const alive_;
  const bool at_rest_;
};

}  // namespace pegashm
