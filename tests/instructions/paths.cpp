// How many instructions do the hot paths of the core take? Each run once, between marks that callgrind counts by.
//
// A region in plain memory, no kernel, no Python. What a path finds is made before it is counted: the region is warmed, the
// caches do not matter to a count. `measured_*` are the paths; callgrind counts between their marks alone and writes
// one file for each (test_instructions.py). What each did is looked at, so that a path that does something else
// than it says fails here.
#include <valgrind/callgrind.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "client.hpp"
#include "header.hpp"
#include "registry.hpp"
#include "repair.hpp"

namespace {

using namespace pegashm;

constexpr uint64_t block_bytes = 4096;
constexpr uint64_t segment_bytes = 1024 * block_bytes;
constexpr uint32_t segment_count = 16;
constexpr uint32_t records = segment_count * 1024;
constexpr uint32_t batch = 1000;

View view;
uint32_t name_space;
uint64_t handles[batch];
Outcome outcomes[batch];
uint64_t offsets[batch], sizes[batch];

std::vector<Key> keys_of(uint64_t first, uint32_t count, uint32_t id) {
  std::vector<Key> keys(count);
  for (uint32_t i = 0; i < count; ++i) {
    uint64_t seed = first + i;
    for (uint64_t& word : keys[i].words) word = seed = mix(seed + 1, 0x9E3779B97F4A7C15);
    keys[i].identity = make_identity(id, 0, 32);
  }
  return keys;
}

uint32_t register_label(const char* label, uint64_t reserved) {
  uint8_t fingerprint[32] = {};
  std::memcpy(fingerprint, label, std::strlen(label));
  return register_namespace(view,
                            {fingerprint, label, std::strlen(label), reserved, 0, 1, nullptr, 0});
}

void make_region() {
  const bool planned =
      plan_geometry(segment_bytes, block_bytes, segment_count, view.geometry, 0, 64, 1u << 14);
  if (!planned) std::exit(2);
  view.control = static_cast<uint8_t*>(std::aligned_alloc(4096, view.geometry.control_bytes));
  std::memset(view.control, 0, view.geometry.control_bytes);
  format(view);
  view.header().segments_ready = segment_count;
  name_space = register_label("measured", 0);
}

uint32_t ok_count() {
  uint32_t count = 0;
  for (const Outcome outcome : outcomes) count += outcome == Outcome::ok ? 1u : 0u;
  return count;
}

void say(const char* path, uint64_t operations, uint64_t expected, uint64_t done) {
  std::printf("%s %llu\n", path, static_cast<unsigned long long>(operations));
  if (done == expected) return;
  std::fprintf(stderr, "%s did %llu, expected %llu\n", path, static_cast<unsigned long long>(done),
               static_cast<unsigned long long>(expected));
  std::exit(1);
}

// Not inlined, so that each is compiled as a caller elsewhere would find it. The marks do nothing outside valgrind.
#define MEASURED(name, ...)                                                          \
  __attribute__((noinline)) void measured_##name([[maybe_unused]] Client& client,    \
                                                 [[maybe_unused]] const Key* keys) { \
    CALLGRIND_TOGGLE_COLLECT;                                                        \
    __VA_ARGS__;                                                                     \
    CALLGRIND_TOGGLE_COLLECT;                                                        \
    CALLGRIND_DUMP_STATS_AT(#name);                                                  \
  }
// clang-format off: a path a line
MEASURED(nothing, (void)0)
MEASURED(find_1, client.find(keys, 1, false, false, handles, outcomes))
MEASURED(find_hits, client.find(keys, batch, false, false, handles, outcomes))
MEASURED(find_misses, client.find(keys, batch, false, false, handles, outcomes))
MEASURED(find_misses_hinted, client.find(keys, batch, false, false, handles, outcomes))
MEASURED(find_pinned, client.find(keys, batch, true, false, handles, outcomes))
MEASURED(unpin, client.unpin(handles, batch))
MEASURED(locate, client.locate(handles, batch, offsets, sizes))
MEASURED(touch, client.touch(handles, batch))
MEASURED(touch_keys, client.touch_keys(keys, batch))
MEASURED(claim_free, client.claim(keys, batch, block_bytes, handles, outcomes))
MEASURED(publish, client.publish(handles, batch, 0, outcomes))
MEASURED(evict, client.evict(handles, batch, outcomes))
MEASURED(claim_full, client.claim(keys, batch, block_bytes, handles, outcomes))
MEASURED(claim_full_reserved, client.claim(keys, batch, block_bytes, handles, outcomes))
MEASURED(count_asked, count_asked(view, keys, batch, 100'000'000))
MEASURED(report_part, for (const uint64_t handle : handles) report_part(view, handle, true))
MEASURED(rebuild_hints, rebuild_hints(view))
MEASURED(claim_full_adaptive, client.claim(keys, batch, block_bytes, handles, outcomes))
MEASURED(publish_adaptive, client.publish(handles, batch, 0, outcomes))
MEASURED(touch_keys_adaptive, client.touch_keys(keys, batch))
// clang-format on

}  // namespace

int main() {
  make_region();
  attach_client(view, 0, {1, 1, 1, name_space, 0, "", 0, "", 0});
  Client client(view, 0);
  const std::vector<Key> here = keys_of(1, batch, name_space);
  const std::vector<Key> absent = keys_of(1'000'000, batch, name_space);

  measured_nothing(client, here.data());
  say("nothing", 1, 0, 0);

  // A segment that has its size, and room.
  client.claim(absent.data(), 1, block_bytes, handles, outcomes);
  client.abandon(handles, 1);
  measured_claim_free(client, here.data());
  say("claim_free", batch, batch, ok_count());
  measured_report_part(client, here.data());
  say("report_part", batch, 1, parts_reported(view, handles[batch - 1]));
  measured_publish(client, here.data());
  say("publish", batch, batch, ok_count());

  measured_find_1(client, here.data());
  say("find_1", 1, 1, outcomes[0] == Outcome::ok ? 1u : 0u);
  measured_find_hits(client, here.data());
  say("find_hits", batch, batch, ok_count());
  measured_find_misses(client, absent.data());
  say("find_misses", batch, 0, ok_count());
  measured_find_pinned(client, here.data());
  say("find_pinned", batch, batch, ok_count());
  measured_locate(client, here.data());
  say("locate", batch, block_bytes, sizes[batch - 1]);
  measured_touch(client, here.data());
  say("touch", batch, view.header().access_clock, view.touched(handle_record(handles[batch - 1])));
  measured_unpin(client, here.data());
  say("unpin", batch, 0, is_pinned(view.block(handle_record(handles[0]))) ? 1u : 0u);
  measured_touch_keys(client, here.data());
  say("touch_keys", batch, view.header().access_clock,
      view.touched(handle_record(handles[batch - 1])));
  count_asked(view, absent.data(), batch, 100'000'000);
  measured_count_asked(client, here.data());
  say("count_asked", batch, 2 * batch,
      view.reuse_tick(100'000'000 % reuse_tick_count).asked & 0xFFFFFFFF);

  // With hints of other hosts to be looked at, a miss goes on there.
  view.remote_hosts().usable[0] = 2;
  view.header().remote_usable = 1;
  measured_find_misses_hinted(client, absent.data());
  say("find_misses_hinted", batch, 0, ok_count());
  view.header().remote_usable = 0;

  client.find(here.data(), batch, false, false, handles, outcomes);
  measured_evict(client, here.data());
  say("evict", batch, batch, ok_count());

  // Full: each claim evicts.
  for (uint32_t first = 0; first < records; first += batch) {
    const uint32_t count = std::min(batch, records - first);
    client.claim(keys_of(2'000'000 + first, count, name_space).data(), count, block_bytes, handles,
                 outcomes);
    client.publish(handles, count, 0, outcomes);
  }
  measured_claim_full(client, here.data());
  say("claim_full", batch, batch, ok_count());
  client.publish(handles, batch, 0, outcomes);

  // The same for another namespace, with half of it all reserved for the first.
  const uint32_t other = register_label("other", 0);
  register_label("measured", view.geometry.payload_bytes / 2);
  const std::vector<Key> others = keys_of(3'000'000, batch, other);
  Client another(view, 1);
  measured_claim_full_reserved(another, others.data());
  say("claim_full_reserved", batch, batch, ok_count());
  another.publish(handles, batch, 0, outcomes);

  measured_rebuild_hints(client, here.data());
  say("rebuild_hints", records, 0, 0);

  // By the other way to evict, and with no reserves.
  view.header().eviction = static_cast<uint64_t>(Eviction::adaptive);
  const std::vector<Key> more = keys_of(4'000'000, batch, name_space);
  register_label("measured", 0);
  measured_claim_full_adaptive(client, more.data());
  say("claim_full_adaptive", batch, batch, ok_count());
  measured_publish_adaptive(client, more.data());
  say("publish_adaptive", batch, batch, ok_count());
  measured_touch_keys_adaptive(client, more.data());
  say("touch_keys_adaptive", batch, batch, client.touch_keys(more.data(), batch));
  return 0;
}
