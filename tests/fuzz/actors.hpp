// What does anybody do with a region? All operations of engines, workers, reapers and tools, on whatever stands there.
//
// What the calls answer about a damaged region does not matter, with these exceptions, which hold whatever the damage:
// a place they name lies inside the payload (it is written and read here, so that the sanitizer says if it does not);
// and, when nobody else changes the region meanwhile (`alone`), a hit is a READY record of that generation whose
// whole key is the one asked for, a second claim of a claimed key is refused, and creator's fields stay.
#pragma once

#include <optional>

#include "choices.hpp"
#include "damage.hpp"
#include "region.hpp"

namespace fuzz {

[[noreturn]] void fail(const char* what, uint64_t first, uint64_t second);  // of the program

class Actors {
 public:
  // `view`: with the geometry that check() gave out. `shift`: 0, when no other thread writes to the region; other
  // threads' clients have slots of their own, that far on, and the first of them is the transport worker as well.
  Actors(const View& view, const Place& place, uint32_t shift)
      : view_(view), place_(place), alone_(shift == 0), worker_(shift <= 1) {
    for (uint32_t i = 0; i < 3; ++i) clients_[i].emplace(view_, (slots[i] + shift) % client_count);
  }

  void act(Choices& choices) {
    Client& client = *clients_[choices.below(3)];
    const uint32_t size = 1 + choices.below(batch_max);
    pick_keys(choices, size);
    switch (choices.below(26)) {
      case 0:
      case 1:
      case 2: return find(client, size, choices.chance(2), choices.chance(4));
      case 3:
      case 4:
      case 5: return store(client, size, choices);
      case 6: return client.pin(handles_, size, outcomes_);
      case 7: return client.unpin(handles_, size);
      case 8: return client.touch(handles_, size);
      case 9: client.touch_keys(keys_, size); return;
      case 10: return client.evict(handles_, size, outcomes_);
      case 11: client.evict_oldest(sizes[choices.below(4)], size); return;
      case 12: return client.abandon(handles_, size);
      case 13: change_segment(view_, slots[0], choices.below(view_.geometry.segment_count),
                              stride_of(view_.geometry, sizes[choices.below(4)]),
                              place_.namespaces()[choices.below(3)]);
        return;
      case 14: reap(choices); return;
      case 15: rebuild_hints(view_); return;
      case 16: return read_journal(choices.chance(2) ? choices.word() : 0);
      case 17: return work_parts(choices, size);
      case 18: return use_registry(choices);
      case 19: return count_requests(choices, size);
      case 20: return use_spill(choices, size);
      case 21: return use_hints(choices, size);
      case 22:
        return set_eviction(view_, choices.chance(2) ? Eviction::adaptive : Eviction::lru);
      case 23: return evict_ahead(client, size, choices);
      case 24: return tell_others(choices);
      default: invent_handles(choices, size);
    }
  }

  // Uses the places of blocks as a copier would: all of it is inside the payload, or 0 bytes.
  void use_places(Client& client, uint32_t size, bool write) {
    uint64_t offsets[batch_max], bytes[batch_max];
    client.locate(handles_, size, offsets, bytes);
    const uint64_t total = view_.geometry.payload_bytes;
    for (uint32_t i = 0; i < size; ++i) {
      if (offsets[i] > total || bytes[i] > total - offsets[i]) {
        fail("a place outside the payload", offsets[i], bytes[i]);
      }
      if (bytes[i] == 0) continue;
      auto* const first = reinterpret_cast<uint64_t*>(view_.payload + offsets[i]);
      uint8_t* const last = view_.payload + offsets[i] + bytes[i] - 1;
      if (write) {
        store_relaxed(*first, handles_[i]);
        __atomic_store_n(last, uint8_t{1}, __ATOMIC_RELAXED);
      } else {
        sink_ += load_relaxed(*first) + __atomic_load_n(last, __ATOMIC_RELAXED);
      }
    }
  }

  Client& client(uint32_t index) { return *clients_[index]; }

 private:
  static constexpr uint32_t batch_max = 20;  // more than one lot of find()

  void pick_keys(Choices& choices, uint32_t size) {
    const uint32_t first = choices.below(key_count + 8);
    const uint32_t id = place_.namespaces()[choices.below(3)];
    for (uint32_t i = 0; i < size; ++i) {
      const uint32_t number = (first + i) % (key_count + 8);
      // Mostly in the namespace it was stored under; some ids that no namespace has.
      keys_[i] = make_key(number, number % 5 == 4 ? id : place_.namespaces()[number % 3]);
    }
    if (choices.chance(8)) keys_[0].identity = choices.word();
  }

  void find(Client& client, uint32_t size, bool pin, bool prefix) {
    const uint32_t judged = client.find(keys_, size, pin, prefix, handles_, outcomes_);
    if (judged > size || judged == 0) fail("find judged", judged, size);
    for (uint32_t i = judged; i < size; ++i) handles_[i] = 0;
    for (uint32_t i = 0; alone_ && i < judged; ++i) {
      if (outcomes_[i] != Outcome::ok) continue;
      const uint32_t record = handle_record(handles_[i]);
      if (record >= view_.geometry.record_count) fail("a hit on no record", handles_[i], 0);
      const Block& block = view_.block(record);
      if (block.state != block_state(BlockTag::ready, block_owner(block.state),
                                     handle_generation(handles_[i]))) {
        fail("a hit that is not READY", block.state, handles_[i]);
      }
      if (std::memcmp(block.key, keys_[i].words, sizeof block.key) != 0 ||
          block.identity != keys_[i].identity) {
        fail("a hit of another key", record, i);
      }
      if (pin && (block.pins[0] | block.pins[1]) == 0) fail("a hit not pinned", record, i);
    }
    use_places(client, judged, false);
    SumsRead sums = read_sums(view_, handles_[0]);
    sink_ += sums.sums[0] + sums.part_bytes;
    if (sums.part_count > sum_count) fail("more sums than there are", sums.part_count, 0);
  }

  void store(Client& client, uint32_t size, Choices& choices) {
    const uint64_t bytes = sizes[choices.below(4)];
    client.claim(keys_, size, bytes, handles_, outcomes_);
    uint64_t again[batch_max];
    Outcome outcomes[batch_max];
    use_places(client, size, true);
    if (alone_ && choices.chance(4)) {
      Outcome before[batch_max];
      std::copy(outcomes_, outcomes_ + size, before);
      client.claim(keys_, size, bytes, again, outcomes);
      for (uint32_t i = 0; i < size; ++i) {
        // Its own eviction for the next key of the batch may have taken a READY one, never a claim.
        if (before[i] == Outcome::ok && outcomes[i] == Outcome::ok) {
          fail("one key claimed twice", handles_[i], again[i]);
        }
        if (outcomes[i] == Outcome::ok && handles_[i] == 0) handles_[i] = again[i];
      }
    }
    for (uint32_t i = 0; i < size; ++i) {
      if (choices.chance(4)) {
        write_sum(view_, handles_[i], choices.below(10), choices.word(), choices.word());
      } else {
        write_sum(view_, handles_[i], i % 2, make_sum_layout(bytes / 2, 2), i);
      }
      report_part(view_, handles_[i], !choices.chance(8));
    }
    client.publish(handles_, size, choices.below(3), outcomes_);
  }

  void reap(Choices& choices) {
    const uint32_t slot = choices.chance(2) ? choices.below(client_count) : slots[choices.below(3)];
    reap_client(view_, slot);
    attach_client(view_, slot, {1, 1, 1, place_.namespaces()[0], 0, "", 0, "fuzz", 4});
  }

  void work_parts(Choices& choices, uint32_t size) {
    for (uint32_t i = 0; i < size; ++i) {
      sink_ += parts_reported(view_, handles_[i]);
      report_part(view_, handles_[i], true);
    }
    if (choices.chance(2)) mark_damaged(view_, handles_[0]);
  }

  void use_registry(Choices& choices) {
    uint8_t fingerprint[32] = {};
    fingerprint[0] = static_cast<uint8_t>(1 + choices.below(6));
    const uint32_t in_use[] = {place_.namespaces()[0]};
    const uint32_t id = register_namespace(
        view_, {fingerprint, "a label longer than the field has room for, by far: a label longer than "
                             "the field has room for, by far: a label longer than",
                117, choices.word(), choices.word(), 9, in_use, 1});
    if (id != 0 && namespace_slot(id) >= namespace_count) fail("a namespace beyond all", id, 0);
    sink_ += choose_namespace_slot(view_, {fingerprint, "", 0, 0, 0, 9, in_use, 1}) >= 0 ? 1 : 0;
  }

  void count_requests(Choices& choices, uint32_t size) {
    const uint32_t tick = choices.chance(2) ? 1000 + choices.below(8) : static_cast<uint32_t>(choices.word());
    count_asked(view_, keys_, size, tick);
    count_served(view_, choices.byte(), tick);
    ReuseWindow window;
    read_reuse(view_, tick, 1 + choices.below(6000), window);
    uint64_t registers = 0;
    for (const uint32_t count : window.ranks) registers += count;
    if (registers != view_.geometry.reuse_register_count) fail("registers unaccounted for", registers, 0);
    sink_ += window.asked + window.served;
  }

  // As the spiller does: the oldest, pinned, and gone unless somebody used them meanwhile.
  void evict_ahead(Client& client, uint32_t size, Choices& choices) {
    uint64_t touches[batch_max];
    const uint32_t found = client.oldest(sizes[choices.below(4)], size, handles_, touches);
    if (found > size) fail("more of the oldest than asked for", found, size);
    if (found != 0 && choices.chance(4)) touches[choices.below(found)] = choices.word();
    client.evict_untouched(handles_, touches, found, outcomes_);
  }

  // As the directory's publisher does: what happened since, and what is here.
  void tell_others(Choices& choices) {
    constexpr uint32_t limit = 64;
    uint8_t what[limit];
    uint64_t hashes[limit];
    const uint64_t after = choices.chance(2) ? choices.word() : choices.below(64);
    const uint64_t settled = choices.chance(2) ? ~uint64_t{0} : choices.word();
    const EventsRead read = read_events(view_, after, settled, limit, what, hashes);
    if (read.count > limit) fail("more events than asked for", read.count, limit);
    const uint32_t records = view_.geometry.record_count + view_.geometry.spill_record_count;
    const uint32_t first = choices.below(records + limit);
    const uint32_t held = read_holdings(view_, first, first + limit, hashes, what);
    if (held > limit) fail("more blocks than records", held, limit);
    for (uint32_t i = 0; i < held; ++i) sink_ += hashes[i] + what[i];
  }

  // The transport worker's part: there is one, so that only one thread of the program plays it. It begins by
  // forgetting what stands there, and now and then has a successor.
  void use_spill(Choices& choices, uint32_t size) {
    if (!worker_) return;
    if (!spill_) {
      spill_.emplace(view_);
      spill_->keep_log(8);
      spill_->clear();
    }
    SpillTable& table = *spill_;
    Spilled block{};
    for (uint32_t i = 0; i < size; ++i) {
      const uint32_t record = table.find(keys_[i], block);
      if (record == SpillTable::none) continue;
      if (record >= view_.geometry.spill_record_count) fail("no spill record", record, i);
      if (alone_ && std::memcmp(&block.key, &keys_[i], sizeof block.key) != 0) {
        fail("a spilled block of another key", record, i);
      }
      if (choices.chance(4)) table.forget(block);
    }
    switch (choices.below(8)) {
      case 0: table.drop(choices.below(4), choices.chance(2) ? 0 : choices.word(), choices.word()); return;
      case 1: table.set_usable(choices.word()); return;
      case 2: return choices.chance(2) ? table.clear() : spill_.reset();
      case 3: {
        uint8_t what[4];
        uint64_t hashes[4];
        bool lost = false;
        sink_ += table.take_log(what, hashes, 4, lost);
        return;
      }
      default:
        for (uint32_t i = 0; i < size; ++i) {
          block.key = keys_[i];
          block.file = choices.byte() % spill_file_count;
          block.file_offset = choices.chance(4) ? choices.word() : uint64_t{page_bytes_small} * choices.below(1000);
          block.payload_bytes = 1 + choices.below(100000);
          block.sequence = 1 + choices.below(9);
          const uint32_t record = table.store(block);
          if (record != SpillTable::none && record >= view_.geometry.spill_record_count) {
            fail("stored in no record", record, i);
          }
        }
        if (table.size() > table.capacity()) fail("more spilled blocks than records", table.size(), 0);
    }
  }

  void use_hints(Choices& choices, uint32_t size) {
    if (!worker_) return;
    if (!remote_) {
      remote_.emplace(view_);
      if (choices.chance(4)) remote_->clear();
    }
    RemoteTable& table = *remote_;
    const uint32_t host = choices.chance(2) ? choices.below(6) : choices.below(remote_host_count);
    uint64_t hashes[batch_max];
    uint64_t seed = 0;
    for (uint32_t i = 0; i < size; ++i) {
      const bool known = seed_of(view_, identity_namespace(keys_[i].identity), seed);
      hashes[i] = known && choices.chance(2) ? remote_hash(seed, keys_[i]) : choices.word();
    }
    switch (choices.below(8)) {
      case 0: table.set_usable(host, choices.chance(2)); return;
      case 1: table.remove(host, hashes, size, tier_any); return;
      case 2: table.begin_anew(host); return;
      case 3:
        table.retire(host);
        table.drop();
        return;
      case 4: return choices.chance(2) ? table.clear() : remote_.reset();
      case 5: {
        uint8_t what[batch_max];
        for (uint32_t i = 0; i < size; ++i) what[i] = choices.byte() % 6;
        return table.apply(host, what, hashes, size);
      }
      case 6: {
        uint16_t hosts[batch_max * RemoteTable::copies_max];
        uint8_t tiers[batch_max * RemoteTable::copies_max];
        table.find(hashes, size, hosts, tiers);
        for (uint32_t i = 0; i < size * RemoteTable::copies_max; ++i) {
          if (hosts[i] != RemoteTable::nobody && hosts[i] >= remote_host_count) fail("no host", hosts[i], i);
        }
        return;
      }
      default: table.add(host, hashes, size, 1 + choices.below(3));
    }
  }

  // As Region.journal() does.
  void read_journal(uint64_t after) {
    const uint64_t head = load_acquire(view_.header().journal_head);
    const uint64_t size = view_.geometry.journal_entry_count;
    uint64_t sequence = after;
    if (head > size && sequence < head - size) sequence = head - size;
    JournalEntry entry;
    for (uint64_t i = 0; i < size && sequence < head; ++i) {
      if (read_event(view_, ++sequence, entry)) sink_ += entry.handle;
    }
  }

  // Handles out of nowhere, as from a peer with a bug; later acts use them.
  void invent_handles(Choices& choices, uint32_t size) {
    for (uint32_t i = 0; i < size; ++i) {
      const uint32_t record = choices.below(view_.geometry.record_count + 2);
      handles_[i] = choices.chance(4)
                        ? choices.word()
                        : make_handle(record, choices.chance(2) ? choices.byte()
                                              : record < view_.geometry.record_count
                                                  ? block_generation(load_relaxed(view_.block(record).state))
                                                  : 1);
    }
  }

  const View view_;
  const Place& place_;
  const bool alone_;
  const bool worker_;
  std::optional<Client> clients_[3];
  std::optional<SpillTable> spill_;
  std::optional<RemoteTable> remote_;
  Key keys_[batch_max];
  uint64_t handles_[batch_max] = {};
  Outcome outcomes_[batch_max];
  uint64_t sink_ = 0;
};

}  // namespace fuzz
