// Do the core's operations race? A handful of threads, each a client of one tiny region, under a sanitizer.
//
// The region lies in ordinary memory, so that ThreadSanitizer sees every access: a payload read under a
// pin and written under a claim must be ordered by the state words alone. Blocks are few, so that every
// operation meets every other. usage: race SECONDS SEED; prints counts, exit 1 on a wrong byte.

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "client.hpp"
#include "header.hpp"
#include "registry.hpp"
#include "repair.hpp"

namespace {

using namespace pegashm;

constexpr uint32_t threads = 4;
constexpr uint32_t key_count = 24;
constexpr uint64_t segment_bytes = 64 * 1024;
constexpr uint64_t payload_sizes[] = {4096, 16384};

Key make_key(uint64_t number, uint32_t namespace_id) {
  Key key{};
  key.words[0] = number * 0x9E3779B97F4A7C15;
  key.words[1] = number;
  key.identity = make_identity(namespace_id, 0, 16);
  return key;
}

struct Tally {
  std::atomic<uint64_t> claimed{0}, published{0}, hits{0}, evicted{0}, wrong{0};
};

void write_payload(const View& view, uint64_t offset, uint64_t bytes, uint64_t number) {
  auto* words = reinterpret_cast<uint64_t*>(view.payload + offset);
  for (uint64_t i = 0; i < bytes / 8; i += 64) words[i] = number ^ i;
}

bool payload_is(const View& view, uint64_t offset, uint64_t bytes, uint64_t number) {
  const auto* words = reinterpret_cast<const uint64_t*>(view.payload + offset);
  for (uint64_t i = 0; i < bytes / 8; i += 64) {
    if (words[i] != (number ^ i)) return false;
  }
  return true;
}

void store(Client& client, const View& view, const Key& key, uint64_t bytes, bool abandon, Tally& tally) {
  uint64_t handle = 0, offset = 0, size = 0;
  Outcome outcome = Outcome::ok;
  client.claim(&key, 1, bytes, &handle, &outcome);
  if (outcome != Outcome::ok) return;
  ++tally.claimed;
  client.locate(&handle, 1, &offset, &size);
  write_payload(view, offset, bytes, key.words[1]);
  if (abandon) return client.abandon(&handle, 1);
  report_part(view, handle, true);
  client.publish(&handle, 1, 1, &outcome);
  if (outcome == Outcome::ok) ++tally.published;
}

void load(Client& client, const View& view, const Key& key, Tally& tally) {
  uint64_t handle = 0, offset = 0, size = 0;
  Outcome outcome = Outcome::ok;
  client.find(&key, 1, true, false, &handle, &outcome);
  if (outcome != Outcome::ok) return;
  ++tally.hits;
  client.locate(&handle, 1, &offset, &size);
  if (size == 0 || !payload_is(view, offset, size, key.words[1])) ++tally.wrong;
  client.touch(&handle, 1);
  client.unpin(&handle, 1);
}

void evict(Client& client, const Key& key, Tally& tally) {
  uint64_t handle = 0;
  Outcome outcome = Outcome::ok;
  client.find(&key, 1, false, false, &handle, &outcome);
  if (outcome != Outcome::ok) return;
  client.evict(&handle, 1, &outcome);
  if (outcome == Outcome::ok) ++tally.evicted;
}

void run(Client& client, const View& view, uint32_t namespace_id, uint64_t seed,
         const std::atomic<bool>& stop, Tally& tally) {
  std::mt19937_64 random(seed);
  while (!stop.load()) {
    const uint64_t number = random() % key_count;
    const Key key = make_key(number, namespace_id);
    switch (random() % 8) {
      case 0:
      case 1:
      case 2: store(client, view, key, payload_sizes[number % 2], random() % 8 == 0, tally); break;
      case 3: evict(client, key, tally); break;
      default: load(client, view, key, tally);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 2;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;

  View view;
  if (!plan_geometry(segment_bytes, 4096, 2, view.geometry)) return 2;
  view.control = static_cast<uint8_t*>(std::aligned_alloc(4096, view.geometry.control_bytes));
  view.payload = static_cast<uint8_t*>(std::aligned_alloc(4096, view.geometry.payload_bytes));
  std::memset(view.control, 0, view.geometry.control_bytes);
  format(view);
  set_ready(view.header());
  view.header().segments_ready = view.geometry.segment_count;
  const uint8_t fingerprint[32] = {1};
  const uint32_t namespace_id =
      register_namespace(view, {fingerprint, "race", 4, 0, 0, 1, nullptr, 0});

  Tally tally;
  std::atomic<bool> stop{false};
  {
    std::vector<std::unique_ptr<Client>> clients;
    std::vector<std::thread> running;
    for (uint32_t i = 0; i < threads; ++i) {
      attach_client(view, i, {1, 1, 1, namespace_id, 0, "", 0, "race", 4});
      clients.push_back(std::make_unique<Client>(view, i));
    }
    for (uint32_t i = 0; i < threads; ++i) {
      running.emplace_back([&, i] {
        run(*clients[i], view, namespace_id, seed * 1000 + i, stop, tally);
      });
    }
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
    stop = true;
    for (auto& thread : running) thread.join();
  }

  // All joined: what is left must be whole, and nothing of it held.
  uint64_t held = 0;
  for (uint32_t record = 0; record < view.geometry.record_count; ++record) {
    const Block& block = view.block(record);
    const BlockTag tag = block_tag(block.state);
    if (tag == BlockTag::claimed || tag == BlockTag::evicting || is_pinned(block)) ++held;
  }
  const Repaired repaired = rebuild_hints(view);
  std::printf("claimed %llu published %llu hits %llu evicted %llu changed %llu wrong %llu held %llu lost_bits %llu\n",
              static_cast<unsigned long long>(tally.claimed), static_cast<unsigned long long>(tally.published),
              static_cast<unsigned long long>(tally.hits), static_cast<unsigned long long>(tally.evicted),
              static_cast<unsigned long long>(view.counter_value(static_cast<uint32_t>(Counter::segments_changed)).value),
              static_cast<unsigned long long>(tally.wrong), static_cast<unsigned long long>(held),
              static_cast<unsigned long long>(repaired.free_bits));
  std::free(view.control);
  std::free(view.payload);
  return tally.wrong == 0 && held == 0 && repaired.free_bits == 0 ? 0 : 1;
}
