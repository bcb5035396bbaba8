// What has happened so far? Monotonic counters in the region, readable by any process at any time.
//
// Each value has a cache line of its own; a batch adds once. The labels are written at creation, so that
// a reader needs no schema. Counters are hints: a process killed mid-batch may leave its share uncounted.
#pragma once

#include <cstring>

#include "view.hpp"

namespace pegashm {

enum class Counter : uint32_t {
  lookups,  // keys asked for
  hits,  // keys found READY
  misses,  // keys not found
  misses_pending,  // of those: claimed by somebody, not published yet
  misses_spilled,  // of those: on SSD, to be promoted
  misses_remote,  // of those: another host has it, to be fetched
  claims,  // blocks claimed
  claims_existing,  // claims refused: there already, or being written
  claims_no_space,  // claims refused: nothing free, nothing evictable
  claims_quota,  // claims refused: namespace at its maximum
  claims_other,  // claims refused: too large, index full
  publishes,  // blocks published
  publishes_incomplete,  // claims dropped at publish: a part was missing or failed
  abandons,  // claims given back
  evictions,  // blocks evicted
  evictions_pinned,  // eviction attempts that met a pin
  segments_changed,  // segments moved to another stride
  clients_attached,  // attaches ever
  clients_reaped,  // dead clients undone
  claims_reaped,  // blocks taken back from dead clients
  pins_reaped,  // pins cleared of dead clients
  loads_failed,  // copies out of the arena whose block had changed meanwhile
  bytes_stored,  // payload bytes copied in
  bytes_loaded,  // payload bytes copied out
  payloads_verified,  // blocks whose checksums were looked at before use, and held
  payloads_damaged,  // blocks found with other bytes than were stored
  spill_stored,  // blocks written to SSD
  spill_skipped,  // blocks not written: by admission or the daily budget
  spill_late,  // blocks not written: evicted before their turn, or the backlog was full
  spill_dropped,  // blocks on SSD overwritten by newer ones
  spill_promoted,  // blocks read back into memory
  spill_refused,  // promotions not done: overloaded, too late, or no space in memory
  spill_failed,  // promotions not done: the device failed
  spill_damaged,  // promotions not done: other bytes than were written
  spill_write_errors,  // writes that a device refused
  spill_payload_bytes,  // payload bytes written to SSD
  spill_file_bytes,  // bytes written to SSD in all
  spill_bytes_read,  // payload bytes read from SSD
  remote_fetched,  // blocks fetched from other hosts
  remote_missing,  // fetches not done: no host that we know of has the block any more
  remote_refused,  // fetches not done: overloaded, no host to ask, or no space in memory
  remote_failed,  // fetches not done: the connection or the peer failed
  remote_late,  // fetches not done: the deadline passed
  remote_damaged,  // fetches not done: other bytes than were stored
  remote_bytes_fetched,  // payload bytes fetched
  remote_served,  // blocks pinned here for other hosts
  remote_serve_refused,  // blocks asked for by other hosts and not pinned: missing, or too much at once
  remote_bytes_served,  // payload bytes of blocks pinned here for other hosts
  remote_leases_expired,  // pins of other hosts that they did not give back in time
  remote_events_sent,  // changes told to other hosts
  remote_events_received,  // changes told by other hosts
  remote_snapshots_sent,  // times that all we hold was told
  remote_snapshots_received,  // times that all a host holds was asked for, and came
  remote_messages_bad,  // messages of other hosts that were none, or not theirs to send
  remote_hints_displaced,  // hints that had to make room for others
  evictions_reserved,  // eviction attempts that met another namespace's reserve
  claims_draining,  // claims refused: the arena is being emptied
  count_,
};

inline constexpr const char* counter_keys[] = {
    "lookups",
    "hits",
    "misses",
    "misses_pending",
    "misses_spilled",
    "misses_remote",
    "claims",
    "claims_existing",
    "claims_no_space",
    "claims_quota",
    "claims_other",
    "publishes",
    "publishes_incomplete",
    "abandons",
    "evictions",
    "evictions_pinned",
    "segments_changed",
    "clients_attached",
    "clients_reaped",
    "claims_reaped",
    "pins_reaped",
    "loads_failed",
    "bytes_stored",
    "bytes_loaded",
    "payloads_verified",
    "payloads_damaged",
    "spill_stored",
    "spill_skipped",
    "spill_late",
    "spill_dropped",
    "spill_promoted",
    "spill_refused",
    "spill_failed",
    "spill_damaged",
    "spill_write_errors",
    "spill_payload_bytes",
    "spill_file_bytes",
    "spill_bytes_read",
    "remote_fetched",
    "remote_missing",
    "remote_refused",
    "remote_failed",
    "remote_late",
    "remote_damaged",
    "remote_bytes_fetched",
    "remote_served",
    "remote_serve_refused",
    "remote_bytes_served",
    "remote_leases_expired",
    "remote_events_sent",
    "remote_events_received",
    "remote_snapshots_sent",
    "remote_snapshots_received",
    "remote_messages_bad",
    "remote_hints_displaced",
    "evictions_reserved",
    "claims_draining",
};
static_assert(sizeof counter_keys / sizeof *counter_keys == static_cast<uint32_t>(Counter::count_));
static_assert(static_cast<uint32_t>(Counter::count_) <= counter_count);

inline void count(const View& view, Counter counter, uint64_t amount = 1) noexcept {
  // SYNC none: relaxed, since a counter orders nothing and is read as an approximate snapshot.
  if (amount != 0) add_relaxed(view.counter_value(static_cast<uint32_t>(counter)).value, amount);
}

inline void write_counter_labels(const View& view) noexcept {
  for (uint32_t index = 0; index < static_cast<uint32_t>(Counter::count_); ++index) {
    CounterLabel& label = view.counter_label(index);
    label.type = 1;
    label.key_bytes = static_cast<uint32_t>(std::strlen(counter_keys[index]));
    std::memcpy(label.key, counter_keys[index], label.key_bytes);
  }
}

}  // namespace pegashm
