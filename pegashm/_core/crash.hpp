// Where can a process be made to die? Numbered crash points, one between any two shared stores that matter.
//
// A point stands right after the store that its name tells, and its number begins with the row of FORMAT.md,
// "Who dies where", that says what others then see and who repairs it (point 121 is of row 12). Numbers are
// never reused. The release build compiles crash_point() to nothing. The checked build (-DPEGASHM_CHECKED, see
// tests/flavours.py) looks at the environment at each pass:
//   PEGASHM_CRASH=NUMBER:PASS[:stop][,...]  SIGKILL (or SIGSTOP) to itself the PASS-th time it passes NUMBER
//                                           from when the variable got that value
//   PEGASHM_CRASH_LOG=PATH                  append each number passed, a line each
// tests/crash kills a real process at every point of every operation and fails for a point none reaches.
#pragma once

#include <cstdint>

#ifdef PEGASHM_CHECKED
#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#endif

namespace pegashm {

// number, name, row of the death table, what has just been stored
// clang-format off: one line a point
#define PEGASHM_CRASH_POINTS(point)                                                           \
  point(10, claim_record_claimed, 1, "record FREE -> CLAIMED")                                \
  point(11, claim_free_bit_cleared, 1, "its free bit cleared")                                \
  point(20, fill_touch_cleared, 2, "touch, parts and times of the last life cleared")         \
  point(21, fill_offset_written, 2, "payload offset written, payload bytes of the last life") \
  point(22, fill_bytes_written, 2, "payload bytes written, key of the last life")             \
  point(23, fill_key_written, 2, "key words written, identity of the last life")              \
  point(24, fill_identity_written, 2, "identity written, no index entry")                     \
  point(30, index_entry_inserted, 3, "index entry written")                                   \
  point(31, claim_counted, 3, "the namespace's bytes counted")                                \
  point(40, part_reported, 4, "a writer's part reported")                                     \
  point(50, publish_time_written, 5, "time of publishing written")                            \
  point(51, publish_touch_written, 5, "touch written, still CLAIMED")                         \
  point(60, publish_record_ready, 6, "CLAIMED -> READY, no journal entry")                    \
  point(70, pin_bit_set, 7, "pin bit set, state not re-checked")                              \
  point(80, pin_checked, 8, "state re-checked")                                               \
  point(90, evict_looked, 9, "nothing yet: no pin seen, about to store EVICTING")             \
  point(91, evict_record_evicting, 9, "READY -> EVICTING, bits not looked at again")          \
  point(100, evict_put_back, 10, "pins found or reserve met, EVICTING -> READY")              \
  point(101, evict_counted_again, 10, "below the reserve: the namespace's bytes given back")   \
  point(110, evict_entry_erased, 11, "index entry erased")                                    \
  point(111, evict_uncounted, 11, "the namespace's bytes taken back, entry still there")      \
  point(120, release_touch_cleared, 12, "touch cleared, record not FREE yet")                 \
  point(121, release_record_freed, 12, "record FREE, free bit not set")                       \
  point(122, release_free_bit_set, 12, "free bit set, freed_clock not advanced")              \
  point(123, release_clock_advanced, 12, "freed_clock advanced")                              \
  point(130, segment_changing, 13, "segment word CHANGING")                                   \
  point(140, segment_block_evicted, 14, "one of its blocks evicted")                          \
  point(141, segment_drain_refused, 14, "one may not go; the word not put back")              \
  point(150, segment_free_bits_written, 15, "a word of free bits for the new stride written") \
  point(160, segment_assigned, 16, "CHANGING -> ASSIGNED")                                    \
  point(180, client_fields_written, 18, "client slot written, not attached")                  \
  point(190, namespace_closed, 19, "namespace slot of a new generation, not live")            \
  point(191, namespace_fields_written, 19, "its fields written, not live")                    \
  point(200, reap_entry_erased, 20, "a dead evictor's index entry erased")                    \
  point(201, reap_entry_restored, 20, "a pinned block's index entry written again")           \
  point(202, reap_record_put_back, 20, "a pinned block put back to READY")                    \
  point(203, reap_segment_put_back, 20, "a segment put back as it was")                       \
  point(204, rebuild_free_bit_set, 20, "a missing free bit set")                              \
  point(205, rebuild_touch_written, 20, "a missing touch written")                            \
  point(206, rebuild_clock_advanced, 20, "freed_clock advanced")                              \
  point(207, rebuild_namespaces_counted, 20, "all namespaces counted")                        \
  point(210, create_fields_written, 21, "header fields written, no magic")                    \
  point(211, create_labels_written, 21, "counter labels written")                             \
  point(212, create_records_written, 21, "records written")                                   \
  point(213, create_checksum_written, 21, "checksum written, no magic")                       \
  point(220, claim_stale_bit_cleared, 22, "free bit of a record that is not FREE cleared")    \
  point(230, drop_entry_erased, 23, "a dropped claim's index entry erased, still CLAIMED")    \
  point(240, drop_uncounted, 24, "record FREE, then the namespace's bytes taken back")        \
  point(250, journal_advanced, 25, "journal_head advanced, old entry in place")               \
  point(251, journal_closed, 25, "entry's sequence 0")                                        \
  point(252, journal_half_written, 25, "event and handle written, key of the old entry")      \
  point(253, journal_fields_written, 25, "fields written, sequence 0")                        \
  point(254, journal_opened, 25, "sequence stored")                                           \
  point(260, evict_record_kept, 26, "EVICTING -> CLAIMED of the next life")                   \
  point(270, pin_bit_cleared, 27, "pin bit cleared")                                          \
  point(280, clock_advanced, 28, "access clock advanced, no touch written")                   \
  point(281, touch_written, 28, "touch written")                                              \
  point(290, segment_put_back, 29, "a segment that could not be drained put back")            \
  point(300, namespace_time_written, 30, "known namespace: time written, limits not")         \
  point(301, namespace_reserve_written, 30, "reserve written, maximum not")                   \
  point(302, namespace_limits_written, 30, "both limits written")                             \
  point(303, namespace_reserve_dropped, 30, "a reserve that nobody uses taken away")          \
  point(310, namespace_live, 31, "namespace live")                                            \
  point(320, client_attached, 32, "client attached")                                          \
  point(330, client_namespace_written, 33, "client's namespace written")                      \
  point(340, create_magic_written, 34, "magic stored")                                        \
  point(350, reap_client_freed, 35, "client slot free")                                       \
  point(360, sums_cleared, 36, "checksums of the last life cleared, their layout not")        \
  point(361, sum_written, 36, "a part's checksum written")                                    \
  point(362, sum_layout_written, 36, "the layout of checksums written, not this one")         \
  point(370, damage_marked, 37, "a READY block marked as damaged")                            \
  point(400, spill_key_written, 40, "a free spill record's key written")                      \
  point(401, spill_fields_written, 40, "its fields written, not stored")                      \
  point(410, spill_record_stored, 41, "spill record stored, no index entry")                  \
  point(411, spill_entry_inserted, 41, "its index entry written")                             \
  point(420, spill_record_freed, 42, "spill record free, its entry still there")              \
  point(421, spill_entry_erased, 42, "its entry erased")                                      \
  point(430, spill_unusable, 43, "no file counts")                                            \
  point(431, spill_usable_written, 43, "other files count")                                   \
  point(440, remote_hint_written, 44, "a hint of another host written or changed")            \
  point(441, remote_hint_erased, 44, "a hint erased")                                         \
  point(442, remote_labels_written, 44, "what tools show of a host written")                  \
  point(450, remote_unusable, 45, "no host counts, their bits still there")                   \
  point(451, remote_bits_cleared, 45, "no host's bit is on")                                  \
  point(452, remote_bit_written, 45, "a host's bit written, the summary not")                 \
  point(453, remote_summary_written, 45, "the summary written")                               \
  point(460, reuse_tick_counted, 46, "what was asked for, or served, counted")                \
  point(461, reuse_rank_met, 46, "one key of a request met")                                  \
  point(470, ghost_left, 47, "an evicted block's ghost written")                              \
  point(471, again_share_written, 47, "the share of evicted blocks used again written")       \
  point(472, ghost_taken, 47, "the ghost of a block that is being published erased")          \
  point(473, span_written, 47, "the span written")                                            \
  point(480, clock_put_ahead, 48, "the clock put ahead of all that is due, eviction not lru yet")
// clang-format on

enum class CrashPoint : uint16_t {
#define PEGASHM_CRASH_NAME(number, name, row, text) name = number,
  PEGASHM_CRASH_POINTS(PEGASHM_CRASH_NAME)
#undef PEGASHM_CRASH_NAME
};

#define PEGASHM_CRASH_ROW(number, name, row, text) static_assert((number) / 10 == (row));
PEGASHM_CRASH_POINTS(PEGASHM_CRASH_ROW)
#undef PEGASHM_CRASH_ROW

#ifndef PEGASHM_CHECKED

inline constexpr void crash_point(CrashPoint) noexcept {}

#else

// Passes of each point since PEGASHM_CRASH got its value. One process's own; its threads take turns.
struct CrashPasses {
  std::mutex mutex;
  char wanted[128] = {};
  uint32_t count[512] = {};
};
inline CrashPasses crash_passes;

inline void log_crash_point(const char* path, uint32_t number) noexcept {
  char line[16];
  const int size = std::snprintf(line, sizeof line, "%u\n", number);
  const int fd = ::open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0 || ::write(fd, line, static_cast<size_t>(size)) != size) std::abort();
  ::close(fd);
}

inline void signal_self(int signal) noexcept {
  ::kill(::getpid(), signal);
  if (signal == SIGKILL) {
    for (;;) ::pause();
  }
}

inline void crash_point(CrashPoint point) noexcept {
  const uint32_t number = static_cast<uint32_t>(point);
  const char* const log = std::getenv("PEGASHM_CRASH_LOG");
  const char* const wanted = std::getenv("PEGASHM_CRASH");
  CrashPasses& passes = crash_passes;
  const std::lock_guard guard(passes.mutex);
  if (log != nullptr && *log != 0) log_crash_point(log, number);
  const char* const value = wanted == nullptr ? "" : wanted;
  if (std::strncmp(passes.wanted, value, sizeof passes.wanted - 1) != 0) {
    std::memset(passes.count, 0, sizeof passes.count);
    std::strncpy(passes.wanted, value, sizeof passes.wanted - 1);
  }
  const uint32_t pass = ++passes.count[number];
  for (const char* item = value; *item != 0;) {
    char* end = nullptr;
    const unsigned long item_number = std::strtoul(item, &end, 10);
    const unsigned long item_pass = *end == ':' ? std::strtoul(end + 1, &end, 10) : 1;
    const bool stop = std::strncmp(end, ":stop", 5) == 0;
    if (item_number == number && item_pass == pass) signal_self(stop ? SIGSTOP : SIGKILL);
    const char* const comma = std::strchr(end, ',');
    item = comma == nullptr ? "" : comma + 1;
  }
}

#endif

}  // namespace pegashm
