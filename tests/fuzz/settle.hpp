// Is a damaged region whole again after a repair? Repairs as `fsck --repair` does, looks again, and uses all of it.
//
// Offline: every client is dead, and the repairer is a client of its own. Rounds of audit, reap, mend and rebuild
// until an audit finds nothing: few are needed, since what one round brings to light (the blocks of a segment
// whose word was damaged) the next removes. Then nothing may be left to find, and the whole capacity must serve:
// as many blocks are claimed as the segments hold, all places differ, and each is found again under its key.
#pragma once

#include "mend.hpp"
#include "region.hpp"

namespace fuzz {

[[noreturn]] void fail(const char* what, uint64_t first, uint64_t second);

inline constexpr uint32_t repairer = 90;
inline constexpr uint32_t rounds_max = 6;
inline constexpr uint64_t findings_max = 8192;

struct Settled {
  uint64_t findings = 0;  // of the first audit
  uint32_t rounds = 0;
};

inline uint64_t audit_all(const View& view, const uint8_t* alive, Finding* findings) {
  Audit audit(view, alive, true, findings, findings_max);
  audit.segments(0, view.geometry.segment_count);
  audit.buckets(0, view.geometry.bucket_count);
  audit.tables();
  uint64_t records = audit.account().records_spare + audit.account().records_stray;
  for (const uint64_t blocks : audit.account().blocks) records += blocks;
  if (records != view.geometry.record_count) fail("records unaccounted for", records, 0);
  return audit.found();
}

inline void reap_named(const View& view, const Finding* findings, uint64_t count) {
  uint64_t dead[2] = {};
  for (uint64_t i = 0; i < count; ++i) {
    switch (static_cast<Invariant>(findings[i].invariant)) {
      case Invariant::client_alive:
      case Invariant::segment_owner_alive:
      case Invariant::owner_alive:
      case Invariant::pins_alive: dead[findings[i].slot / 64] |= pin_bit(findings[i].slot); break;
      default: break;
    }
  }
  for (uint32_t slot = 0; slot < client_count; ++slot) {
    if ((dead[slot / 64] & pin_bit(slot)) != 0) reap_client(view, slot);
  }
}

inline Settled repair_all(const View& view) {
  static Finding findings[findings_max];
  uint8_t alive[client_count] = {};
  alive[repairer] = 1;
  reap_client(view, repairer);
  attach_client(view, repairer, {1, 1, 1, 0, 0, "", 0, "repair", 6});
  Settled done;
  for (; done.rounds < rounds_max; ++done.rounds) {
    const uint64_t found = audit_all(view, alive, findings);
    if (done.rounds == 0) done.findings = found;
    if (found == 0) return done;
    const uint64_t listed = std::min(found, findings_max);
    reap_named(view, findings, listed);
    Mender mender(view, repairer, alive, true);
    for (uint64_t i = 0; i < listed; ++i) mender.mend(findings[i]);
    rebuild_hints(view);
  }
  const uint64_t left = audit_all(view, alive, findings);
  if (left != 0) {
    std::fprintf(stderr, "invariant %u slot %u seen %#llx expected %#llx of %llu left\n",
                 findings[0].invariant, findings[0].slot,
                 static_cast<unsigned long long>(findings[0].seen),
                 static_cast<unsigned long long>(findings[0].expected),
                 static_cast<unsigned long long>(left));
    fail("not whole after repair", findings[0].invariant, findings[0].where);
  }
  return done;
}

// Claims, publishes and finds as many blocks of the smallest stride as the segments hold.
inline void use_all(const View& view) {
  store_release(view.header().segments_ready, view.geometry.segment_count);  // as the supervisor does
  const uint8_t fingerprint[32] = {0xEE, 0xEE};
  const uint32_t id = register_namespace(view, {fingerprint, "all", 3, 0, 0, 9, nullptr, 0});
  if (id == 0) fail("no namespace can be registered", 0, 0);
  Client client(view, repairer);
  const uint64_t stride = view.geometry.block_bytes_min;
  // A reserve that another namespace has is no damage: what is there goes first, by its handle.
  uint32_t capacity = 0;
  for (uint32_t segment = 0; segment < view.geometry.segment_count; ++segment) {
    capacity += segment_capacity(view.geometry, segment, stride);
  }
  for (uint32_t record = 0; record < view.geometry.record_count; ++record) {
    const uint64_t state = load_acquire(view.block(record).state);
    if (block_tag(state) == BlockTag::free) continue;
    const uint64_t handle = make_handle(record, block_generation(state));
    Outcome outcome = Outcome::missing;
    client.evict(&handle, 1, &outcome);
    if (outcome != Outcome::ok) fail("a block that cannot be evicted", state, record);
  }
  static uint8_t taken[4096];
  if (view.geometry.payload_bytes / stride > sizeof taken) return;
  std::memset(taken, 0, sizeof taken);
  for (uint32_t number = 0; number < capacity; ++number) {
    const Key key = make_key(10'000 + number, id);
    uint64_t handle = 0, offset = 0, bytes = 0;
    Outcome outcome = Outcome::missing;
    client.claim(&key, 1, stride, &handle, &outcome);
    if (outcome != Outcome::ok) fail("capacity lost", number, static_cast<uint64_t>(outcome));
    client.locate(&handle, 1, &offset, &bytes);
    if (bytes != stride || offset % stride != 0 || taken[offset / stride]++ != 0) {
      fail("one place for two blocks", offset, bytes);
    }
    client.publish(&handle, 1, 0, &outcome);
    if (outcome != Outcome::ok) fail("cannot be published", number, static_cast<uint64_t>(outcome));
  }
  for (uint32_t number = 0; number < capacity; ++number) {
    const Key key = make_key(10'000 + number, id);
    uint64_t handle = 0;
    Outcome outcome = Outcome::missing;
    client.find(&key, 1, false, false, &handle, &outcome);
    if (outcome != Outcome::ok) fail("stored and not found", number, capacity);
  }
}

inline Settled settle(const View& view) {
  const Settled done = repair_all(view);
  const Repaired again = rebuild_hints(view);
  if (again.free_bits + again.touches != 0) fail("hints repaired twice", again.free_bits, again.touches);
  use_all(view);
  return done;
}

}  // namespace fuzz
