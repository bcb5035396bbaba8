// Who is attached, and who may share? Writing client slots and namespaces.
//
// Rare and slow-path. The caller holds the kernel lock that FORMAT.md names for the slot or the registry,
// so there is one writer; readers look at any time and believe only a state word that was stored last.
#pragma once

#include <algorithm>
#include <cstring>

#include "counters.hpp"
#include "crash.hpp"
#include "states.hpp"
#include "view.hpp"

namespace pegashm {

template <uint64_t size>
inline void store_text(char (&field)[size], const char* text, uint64_t bytes) noexcept {
  std::memset(field, 0, size);
  std::memcpy(field, text, bytes < size ? bytes : size);
}

struct NamespaceRequest {
  const uint8_t* fingerprint;  // 32 bytes
  const char* label;
  uint64_t label_bytes;
  uint64_t reserved_bytes;
  uint64_t maximum_bytes;
  uint64_t now_ns;
  const uint32_t* in_use;  // ids that living clients use
  uint64_t in_use_count;
  const uint64_t* facts = nullptr;  // namespace_fact_words of them; nullptr: the caller knows none
};

inline bool is_in_use(const NamespaceRequest& request, uint32_t id) noexcept {
  for (uint64_t i = 0; i < request.in_use_count; ++i) {
    if (request.in_use[i] == id) return true;
  }
  return false;
}

// The slot to give a new namespace: a free one, else the one unused for longest, an empty one first.
inline int32_t choose_namespace_slot(const View& view, const NamespaceRequest& request) noexcept {
  int32_t best = -1;
  uint64_t best_rank = ~uint64_t{0};
  for (uint32_t slot = 0; slot < namespace_count; ++slot) {
    const NamespaceEntry& entry = view.name_space(slot);
    const uint64_t state = load_acquire(entry.state);
    if (!namespace_live(state)) return static_cast<int32_t>(slot);
    if (is_in_use(request, namespace_id(namespace_generation(state), slot))) continue;
    const bool empty = load_relaxed(entry.resident_bytes) == 0;
    const uint64_t rank =
        (load_relaxed(entry.attached_at_ns) >> 1) | (empty ? 0 : uint64_t{1} << 63);
    if (rank < best_rank) {
      best_rank = rank;
      best = static_cast<int32_t>(slot);
    }
  }
  return best;
}

// The namespace with a reserve that nobody alive uses, unused for longest; -1: there is none.
inline int32_t choose_idle_reserve(const View& view, const NamespaceRequest& request) noexcept {
  int32_t best = -1;
  uint64_t best_time = ~uint64_t{0};
  for (uint32_t slot = 0; slot < namespace_count; ++slot) {
    const NamespaceEntry& entry = view.name_space(slot);
    const uint64_t state = load_acquire(entry.state);
    if (!namespace_live(state) || load_relaxed(entry.reserved_bytes) == 0 ||
        std::memcmp(entry.fingerprint, request.fingerprint, 32) == 0 ||
        is_in_use(request, namespace_id(namespace_generation(state), slot))) {
      continue;
    }
    const uint64_t time = load_relaxed(entry.attached_at_ns);
    if (time < best_time) {
      best_time = time;
      best = static_cast<int32_t>(slot);
    }
  }
  return best;
}

// What all others have reserved.
inline uint64_t reserved_by_others(const View& view, const NamespaceRequest& request) noexcept {
  uint64_t sum = 0;
  for (uint32_t slot = 0; slot < namespace_count; ++slot) {
    const NamespaceEntry& entry = view.name_space(slot);
    if (!namespace_live(load_acquire(entry.state)) ||
        std::memcmp(entry.fingerprint, request.fingerprint, 32) == 0) {
      continue;
    }
    sum += std::min(load_relaxed(entry.reserved_bytes), view.geometry.payload_bytes);
  }
  return sum;
}

// Takes a namespace's reserve away: its last client has moved on, or another needs the room. Death row 30.
inline void drop_reserve(NamespaceEntry& entry) noexcept {
  store_release(entry.reserved_bytes, 0);
  crash_point(CrashPoint::namespace_reserve_dropped);
}

// The reserve that a request can have. All reserves together are at most what there is, or nobody could ever
// evict anything; where it does not suffice, those that nobody uses any more lapse, the one unused for longest first.
inline uint64_t grant_reserve(const View& view, const NamespaceRequest& request) noexcept {
  const uint64_t total = view.geometry.payload_bytes;
  const uint64_t wanted = std::min(request.reserved_bytes, total);
  if (wanted == 0) return 0;
  uint64_t others = reserved_by_others(view, request);
  for (uint32_t lapsed = 0; lapsed < namespace_count && others > total - wanted; ++lapsed) {
    const int32_t slot = choose_idle_reserve(view, request);
    if (slot < 0) break;
    drop_reserve(view.name_space(static_cast<uint32_t>(slot)));
    others = reserved_by_others(view, request);
  }
  return std::min(wanted, total - std::min(others, total));
}

// What the fingerprint was made of, as digests for people. The same for whoever has the same fingerprint.
inline void store_facts(NamespaceEntry& entry, const NamespaceRequest& request) noexcept {
  for (uint32_t i = 0; i < namespace_fact_words; ++i) {
    store_release(entry.facts[i], request.facts == nullptr ? 0 : request.facts[i]);
  }
}

// Finds or creates; 0 when every namespace is in use by somebody alive.
// A limit above all there is means all there is, and is kept as that: invariant I27.
inline uint32_t register_namespace(const View& view, const NamespaceRequest& request) noexcept {
  const uint64_t reserved = grant_reserve(view, request);
  const uint64_t maximum = std::min(request.maximum_bytes, view.geometry.payload_bytes);
  for (uint32_t slot = 0; slot < namespace_count; ++slot) {
    NamespaceEntry& entry = view.name_space(slot);
    const uint64_t state = load_acquire(entry.state);
    if (!namespace_live(state) || std::memcmp(entry.fingerprint, request.fingerprint, 32) != 0)
      continue;
    store_release(entry.attached_at_ns, request.now_ns);
    crash_point(CrashPoint::namespace_time_written);
    store_release(entry.reserved_bytes, reserved);
    crash_point(CrashPoint::namespace_reserve_written);
    store_release(entry.maximum_bytes, maximum);
    crash_point(CrashPoint::namespace_limits_written);
    // Who brings blocks back from SSD knows the fingerprint only.
    if (request.facts != nullptr) store_facts(entry, request);
    return namespace_id(namespace_generation(state), slot);
  }
  const int32_t slot = choose_namespace_slot(view, request);
  if (slot < 0) return 0;
  NamespaceEntry& entry = view.name_space(static_cast<uint32_t>(slot));
  uint64_t generation = (namespace_generation(load_acquire(entry.state)) + 1) & 0xFFFF;
  if (generation == 0) generation = 1;
  store_release(entry.state, namespace_state(false, generation));
  crash_point(CrashPoint::namespace_closed);
  // By words, since lookups of remote blocks may read it at any time: seed_of().
  for (uint32_t i = 0; i < sizeof entry.fingerprint / 8; ++i) {
    uint64_t word;
    std::memcpy(&word, request.fingerprint + 8 * i, 8);
    store_release(reinterpret_cast<uint64_t*>(entry.fingerprint)[i], word);
  }
  store_text(entry.label, request.label, request.label_bytes);
  store_facts(entry, request);
  store_release(entry.reserved_bytes, reserved);
  store_release(entry.maximum_bytes, maximum);
  store_release(entry.resident_bytes, 0);
  store_release(entry.created_at_ns, request.now_ns);
  store_release(entry.attached_at_ns, request.now_ns);
  crash_point(CrashPoint::namespace_fields_written);
  // SYNC namespace: fields become visible before `live`. Death row 19.
  store_release(entry.state, namespace_state(true, generation));
  crash_point(CrashPoint::namespace_live);
  return namespace_id(generation, static_cast<uint32_t>(slot));
}

struct ClientRequest {
  uint64_t pid;
  uint64_t started_at;
  uint64_t now_ns;
  uint32_t namespace_id;
  uint32_t mode;
  const char* engine_id;
  uint64_t engine_id_bytes;
  const char* label;
  uint64_t label_bytes;
};

// Returns the incarnation. The slot must be free (reaped) and its owner lock held.
inline uint64_t attach_client(const View& view, uint32_t slot,
                              const ClientRequest& request) noexcept {
  ClientSlot& client = view.client(slot);
  const uint64_t incarnation = client_incarnation(load_acquire(client.state)) + 1;
  client.pid = request.pid;
  client.started_at = request.started_at;
  client.attached_at_ns = request.now_ns;
  client.namespace_id = request.namespace_id;
  client.mode = request.mode;
  store_text(client.engine_id, request.engine_id, request.engine_id_bytes);
  store_text(client.label, request.label, request.label_bytes);
  crash_point(CrashPoint::client_fields_written);
  // SYNC attach: fields become visible before `attached`. Death row 18.
  store_release(client.state, client_state(true, incarnation));
  crash_point(CrashPoint::client_attached);
  count(view, Counter::clients_attached);
  return incarnation;
}

// The owner of a slot has moved: what it uses now may not be recycled. One store. Death row 33.
inline void enter_namespace(const View& view, uint32_t slot, uint32_t id) noexcept {
  view.client(slot).namespace_id = id;
  crash_point(CrashPoint::client_namespace_written);
}

}  // namespace pegashm
