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
  // Blocks that requests asked for, counted when it is known what came of them: asked = hits + misses of these.
  asked,
  hits_memory,  // loaded from memory
  hits_ssd,  // loaded, after they came from SSD
  hits_remote,  // loaded, after they came from another host
  missed_never_stored,  // no trace of it: never stored here, or so long ago that nothing is left
  missed_evicted,  // evicted from memory, or overwritten on SSD, or dropped by the host that had it
  missed_other_namespace,  // stored by engines whose bytes are not interchangeable with these
  missed_not_yet,  // another engine is storing it just now
  missed_pinned_out,  // its store, or its way back into memory, found no room
  missed_tier_off,  // on SSD or on another host, and nobody brings it: no worker, or not asked to
  missed_timed_out,  // on SSD or on another host, and it did not come before the deadline
  missed_checksum,  // other bytes than were stored, or none to compare with where they are required
  missed_overloaded,  // on SSD or on another host, and too much was asked for at once
  missed_failed,  // on SSD or on another host, and the device or the connection failed
  missed_unused,  // found, and not loaded by the engine
  // Gauges of the transport worker: what it said last.
  spill_files,  // spill files it was started with
  spill_listed,  // blocks on SSD that are listed
  spill_backlog_blocks,  // blocks that wait to be written to SSD
  spill_backlog_bytes,  // their payload
  spill_daily_bytes_limit,  // write budget of 24 hours; 0 none
  spill_daily_bytes_written,  // of the last 24 hours
  // How long evicted blocks had been there since they were published. Buckets, not cumulative: at most so many seconds.
  residence_le_1,
  residence_le_10,
  residence_le_60,
  residence_le_300,
  residence_le_900,
  residence_le_3600,
  residence_le_14400,
  residence_le_86400,
  residence_le_604800,
  residence_le_inf,
  residence_sum_us,  // of all of them, in microseconds
  // How long requests to bring blocks from SSD took, the answer included.
  promote_le_0_001,
  promote_le_0_0025,
  promote_le_0_005,
  promote_le_0_01,
  promote_le_0_025,
  promote_le_0_05,
  promote_le_0_1,
  promote_le_0_25,
  promote_le_0_5,
  promote_le_1,
  promote_le_2_5,
  promote_le_5,
  promote_le_inf,
  promote_sum_us,
  // The same, from other hosts.
  fetch_le_0_001,
  fetch_le_0_0025,
  fetch_le_0_005,
  fetch_le_0_01,
  fetch_le_0_025,
  fetch_le_0_05,
  fetch_le_0_1,
  fetch_le_0_25,
  fetch_le_0_5,
  fetch_le_1,
  fetch_le_2_5,
  fetch_le_5,
  fetch_le_inf,
  fetch_sum_us,
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
    "asked",
    "hits_memory",
    "hits_ssd",
    "hits_remote",
    "missed_never_stored",
    "missed_evicted",
    "missed_other_namespace",
    "missed_not_yet",
    "missed_pinned_out",
    "missed_tier_off",
    "missed_timed_out",
    "missed_checksum",
    "missed_overloaded",
    "missed_failed",
    "missed_unused",
    "spill_files",
    "spill_listed",
    "spill_backlog_blocks",
    "spill_backlog_bytes",
    "spill_daily_bytes_limit",
    "spill_daily_bytes_written",
    "residence_le_1",
    "residence_le_10",
    "residence_le_60",
    "residence_le_300",
    "residence_le_900",
    "residence_le_3600",
    "residence_le_14400",
    "residence_le_86400",
    "residence_le_604800",
    "residence_le_inf",
    "residence_sum_us",
    "promote_le_0.001",
    "promote_le_0.0025",
    "promote_le_0.005",
    "promote_le_0.01",
    "promote_le_0.025",
    "promote_le_0.05",
    "promote_le_0.1",
    "promote_le_0.25",
    "promote_le_0.5",
    "promote_le_1",
    "promote_le_2.5",
    "promote_le_5",
    "promote_le_inf",
    "promote_sum_us",
    "fetch_le_0.001",
    "fetch_le_0.0025",
    "fetch_le_0.005",
    "fetch_le_0.01",
    "fetch_le_0.025",
    "fetch_le_0.05",
    "fetch_le_0.1",
    "fetch_le_0.25",
    "fetch_le_0.5",
    "fetch_le_1",
    "fetch_le_2.5",
    "fetch_le_5",
    "fetch_le_inf",
    "fetch_sum_us",
};
static_assert(sizeof counter_keys / sizeof *counter_keys == static_cast<uint32_t>(Counter::count_));
static_assert(static_cast<uint32_t>(Counter::count_) <= counter_count);

// What a label says it is: 1 only grows, 2 is a value of its writer's.
constexpr uint32_t counter_type(uint32_t index) noexcept {
  return index >= static_cast<uint32_t>(Counter::spill_files) &&
                 index <= static_cast<uint32_t>(Counter::spill_daily_bytes_written)
             ? 2
             : 1;
}

inline void count(const View& view, Counter counter, uint64_t amount = 1) noexcept {
  // SYNC none: relaxed, since a counter orders nothing and is read as an approximate snapshot.
  if (amount != 0) add_relaxed(view.counter_value(static_cast<uint32_t>(counter)).value, amount);
}

// Of one block that is evicted now.
inline void count_residence(const View& view, uint64_t published_at_ns, uint64_t now_ns) noexcept {
  constexpr uint64_t bounds[] = {1, 10, 60, 300, 900, 3600, 14400, 86400, 604800};
  constexpr uint32_t buckets = sizeof bounds / sizeof *bounds;
  if (published_at_ns == 0) return;
  // Behind it by a tick of the coarse clock, or more when the clock was put back: then for no time at all.
  const uint64_t stayed_us = now_ns < published_at_ns ? 0 : (now_ns - published_at_ns) / 1000;
  uint32_t bucket = 0;
  while (bucket < buckets && stayed_us > bounds[bucket] * 1000000) ++bucket;
  count(view, static_cast<Counter>(static_cast<uint32_t>(Counter::residence_le_1) + bucket));
  count(view, Counter::residence_sum_us, stayed_us);
}

inline void write_counter_labels(const View& view) noexcept {
  for (uint32_t index = 0; index < static_cast<uint32_t>(Counter::count_); ++index) {
    CounterLabel& label = view.counter_label(index);
    label.type = counter_type(index);
    label.key_bytes = static_cast<uint32_t>(std::strlen(counter_keys[index]));
    std::memcpy(label.key, counter_keys[index], label.key_bytes);
  }
}

}  // namespace pegashm
