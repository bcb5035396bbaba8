// What is in the arena now: whose blocks, in which states, who holds them and since when? One pass over all records.
//
// For tools that run beside living engines again and again: nothing is copied out but the sums, nothing is
// written, and of a record that is FREE one word is read. Each record is consistent in itself, their sum is not.
// Called by the binding on a read-only mapping, without the GIL; allocates nothing, believes nothing it reads.
#pragma once

#include <algorithm>

#include "quota.hpp"
#include "sums.hpp"

namespace pegashm {

// Of one segment, and one of the namespaces whose blocks lie in it.
struct SurveyPart {
  uint32_t segment;
  uint32_t
      namespace_id;  // 0: of further namespaces than survey_parts_max, or of those that are no more
  uint32_t claimed;
  uint32_t ready;
  uint32_t evicting;
  uint32_t pinned;  // of those ready
  uint64_t bytes;  // occupied, of all three states
};
static_assert(sizeof(SurveyPart) == 32);

inline constexpr uint32_t survey_parts_max = 4;  // a segment

struct SurveySegment {
  uint64_t stride_bytes;  // 0: unassigned
  uint32_t capacity;
  uint32_t state;  // a SegmentTag, 3 for anything else
};
static_assert(sizeof(SurveySegment) == 16);

// Of one client slot.
struct SurveyClient {
  uint64_t pinned;
  uint64_t pinned_bytes;
  uint64_t claims;
  uint64_t claimed_bytes;
  uint64_t oldest_claim_ns;  // 0: none
  uint64_t evicting;
};
static_assert(sizeof(SurveyClient) == 48);

// Of one namespace slot; the last is of all blocks whose namespace is no more.
struct SurveyNamespace {
  uint64_t claimed;
  uint64_t ready;
  uint64_t evicting;
  uint64_t pinned;
  uint64_t bytes;
};
static_assert(sizeof(SurveyNamespace) == 40);

struct SurveyPin {
  uint64_t handle;
  uint64_t pins[2];
};
static_assert(sizeof(SurveyPin) == 24);

struct Survey {
  uint64_t tally[5];  // records by state: free, claimed, ready, evicting, anything else
  uint64_t capacity;  // blocks that the assigned segments hold
  uint64_t pinned;
  uint64_t pinned_bytes;
  uint64_t damaged;  // marked as such
  uint64_t summed;  // with checksums
  uint64_t oldest_ready_ns;  // 0: none
  uint32_t part_count;
  uint32_t pin_count;  // of those that had room
  SurveyClient clients[client_count];
  SurveyNamespace namespaces[namespace_count + 1];
};

// Where it goes: `segments` has room for all, `parts` for survey_parts_max of each, `pins` for `pins_max`.
struct SurveyRoom {
  SurveySegment* segments;
  SurveyPart* parts;
  SurveyPin* pins;
  uint32_t pins_max;
};

class Surveyor {
 public:
  Surveyor(const View& view, const SurveyRoom& room, Survey& out) noexcept
      : view_(view), room_(room), out_(out) {
    out_ = Survey{};
    for (uint32_t slot = 0; slot < namespace_count; ++slot) {
      const uint64_t state = load_acquire(view.name_space(slot).state);
      ids_[slot] =
          namespace_live(state) ? namespace_id(namespace_generation(state), slot) : dead_id;
    }
  }

  void run() noexcept {
    for (uint32_t segment = 0; segment < view_.geometry.segment_count; ++segment) survey(segment);
  }

 private:
  static constexpr uint32_t dead_id = ~uint32_t{0};

  void survey(uint32_t segment) noexcept {
    const uint64_t word = load_acquire(view_.segment(segment).state);
    SurveySegment& entry = room_.segments[segment];
    entry.state = std::min<uint32_t>(static_cast<uint8_t>(word), 3);
    entry.stride_bytes = entry.state == 1 || entry.state == 2 ? segment_stride(word) : 0;
    entry.capacity = segment_capacity(view_.geometry, segment, entry.stride_bytes);
    out_.capacity += entry.capacity;
    parts_ = room_.parts + out_.part_count;
    part_count_ = 0;
    const uint32_t first = view_.first_record(segment);
    for (uint32_t record = first; record < first + view_.geometry.records_per_segment; ++record) {
      const uint64_t state = load_acquire(view_.block(record).state);
      const uint8_t tag = static_cast<uint8_t>(state);
      ++out_.tally[std::min<uint32_t>(tag, 4)];
      if (tag >= 1 && tag <= 3) add(segment, record, state);
    }
    out_.part_count += part_count_;
  }

  void add(uint32_t segment, uint32_t record, uint64_t state) noexcept {
    const Block& block = view_.block(record);
    const uint32_t id = identity_namespace(load_acquire(block.identity));
    const uint32_t slot = namespace_slot(id);
    const bool known = slot < namespace_count && ids_[slot] == id;
    const uint64_t bytes = occupied_bytes(view_, block);
    SurveyNamespace& owner = out_.namespaces[known ? slot : namespace_count];
    SurveyPart& part = part_of(segment, known ? id : 0);
    owner.bytes += bytes;
    part.bytes += bytes;
    if (block_tag(state) == BlockTag::ready) {
      ++owner.ready;
      ++part.ready;
      if (add_ready(block, record, state, bytes)) {
        ++owner.pinned;
        ++part.pinned;
      }
      return;
    }
    const bool claimed = block_tag(state) == BlockTag::claimed;
    ++(claimed ? owner.claimed : owner.evicting);
    ++(claimed ? part.claimed : part.evicting);
    if (block_owner(state) >= client_count) return;
    SurveyClient& client = out_.clients[block_owner(state)];
    if (!claimed) {
      ++client.evicting;
      return;
    }
    ++client.claims;
    client.claimed_bytes += bytes;
    const uint64_t since = load_acquire(block.claimed_at_ns);
    if (client.oldest_claim_ns == 0 || since < client.oldest_claim_ns)
      client.oldest_claim_ns = since;
  }

  // Whether anybody has pinned it.
  bool add_ready(const Block& block, uint32_t record, uint64_t state, uint64_t bytes) noexcept {
    const uint64_t since = load_acquire(block.published_at_ns);
    if (out_.oldest_ready_ns == 0 || since < out_.oldest_ready_ns) out_.oldest_ready_ns = since;
    out_.damaged += is_damaged(block) ? 1u : 0u;
    out_.summed += sum_part_count(load_acquire(block.sum_layout)) != 0 ? 1u : 0u;
    const uint64_t pins[2] = {load_acquire(block.pins[0]), load_acquire(block.pins[1])};
    if ((pins[0] | pins[1]) == 0) return false;
    ++out_.pinned;
    out_.pinned_bytes += bytes;
    for (uint32_t word = 0; word < 2; ++word) {
      for (uint64_t left = pins[word]; left != 0; left &= left - 1) {
        SurveyClient& client =
            out_.clients[word * 64 + static_cast<uint32_t>(__builtin_ctzll(left))];
        ++client.pinned;
        client.pinned_bytes += bytes;
      }
    }
    if (out_.pin_count < room_.pins_max) {
      room_.pins[out_.pin_count++] = {make_handle(record, block_generation(state)),
                                      {pins[0], pins[1]}};
    }
    return true;
  }

  // A segment's blocks are mostly of one namespace; the last part takes what has no part of its own.
  SurveyPart& part_of(uint32_t segment, uint32_t id) noexcept {
    for (uint32_t i = 0; i < part_count_; ++i) {
      if (parts_[i].namespace_id == id) return parts_[i];
    }
    if (part_count_ == survey_parts_max) {
      parts_[survey_parts_max - 1].namespace_id = 0;
      return parts_[survey_parts_max - 1];
    }
    SurveyPart& part = parts_[part_count_++];
    part = SurveyPart{segment, id, 0, 0, 0, 0, 0};
    return part;
  }

  const View& view_;
  const SurveyRoom& room_;
  Survey& out_;
  SurveyPart* parts_ = nullptr;
  uint32_t part_count_ = 0;
  uint32_t ids_[namespace_count];
};

inline void survey_region(const View& view, const SurveyRoom& room, Survey& out) noexcept {
  Surveyor(view, room, out).run();
}

}  // namespace pegashm
