// Do the core's operations race? A handful of threads, each a client of one tiny region, under a sanitizer.
//
// The region lies in ordinary memory, so that ThreadSanitizer sees every access: a payload read under a
// pin and written under a claim must be ordered by the state words alone. Blocks are few, so that every
// operation meets every other: find, pin, touch, claim, publish, abandon, evict, segments given to another
// size, marks of damage, hints rebuilt, namespaces registered, the journal read, by the directory's publisher too, and hints of
// other hosts kept by the transport worker's table while all look at them. Threads die as well: one
// leaves its claims, pins, a block it was evicting and a segment it was changing where they are, goes on under
// another slot, and whoever comes by reaps the dead one while all others work. A mutex stands for the kernel locks
// that hand a dead slot to one reaper. How a death in the middle of one operation ends is shown by
// tests/crash. usage: race SECONDS SEED; prints counts, exit 1 on a wrong byte or anything left behind.

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "audit.hpp"
#include "header.hpp"
#include "holdings.hpp"
#include "registry.hpp"
#include "repair.hpp"

namespace {

using namespace pegashm;

constexpr uint32_t threads = 4;
constexpr uint32_t slots[] = {0, 1, 5, 63, 64, 70, 126, 127};  // on both words of pins
constexpr uint32_t keys_per_namespace = 12;
constexpr uint32_t segment_count = 3;
constexpr uint64_t segment_bytes = 64 * 1024;
constexpr uint64_t payload_sizes[] = {4096, 16384};
constexpr uint32_t batch = 3;
constexpr uint32_t held_max = 2;

struct Tally {
  std::atomic<uint64_t> claimed{0}, published{0}, hits{0}, evicted{0}, changed{0}, marked{0};
  std::atomic<uint64_t> deaths{0}, reaped{0}, events{0}, wrong{0};
  std::atomic<uint64_t> remote{0}, told{0}, asked{0};
};

// What all threads share.
struct Stage {
  View view;
  uint32_t namespaces[2] = {};
  std::atomic<bool> stop{false};
  std::mutex registry;  // guards namespaces' registration and the lists
  std::unique_ptr<RemoteTable> hints;  // the transport worker's, whichever thread that is just now
  std::vector<uint32_t> dead, spare;
  Tally tally;
};

Key make_key(uint64_t number, const Stage& stage) {
  Key key{};
  key.words[0] = number * 0x9E3779B97F4A7C15;
  key.words[1] = number;
  key.identity = make_identity(stage.namespaces[number / keys_per_namespace], 0, 16);
  return key;
}
uint64_t bytes_of(uint64_t number) { return payload_sizes[number % 2]; }

uint32_t register_one(const Stage& stage, uint8_t which) {
  const uint8_t fingerprint[32] = {static_cast<uint8_t>(which + 1)};
  // Two small blocks of the first are left alone by others; the second may hold five small ones, or one large and one
  // small.
  return register_namespace(stage.view, {fingerprint, "race", 4, which == 0 ? 8192u : 0u,
                                         which == 1 ? 20480u : 0u, 1, nullptr, 0});
}

void attach(const Stage& stage, uint32_t slot) {
  attach_client(stage.view, slot, {1, 1, 1, stage.namespaces[0], 0, "", 0, "race", 4});
}

// A dead slot that nobody else will reap, if there is one.
std::optional<uint32_t> take(Stage& stage, std::vector<uint32_t>& list) {
  const std::lock_guard guard(stage.registry);
  if (list.empty()) return {};
  const uint32_t slot = list.back();
  list.pop_back();
  return slot;
}
void give(Stage& stage, std::vector<uint32_t>& list, uint32_t slot) {
  const std::lock_guard guard(stage.registry);
  list.push_back(slot);
}

bool reap_one(Stage& stage) {
  const std::optional<uint32_t> slot = take(stage, stage.dead);
  if (!slot) return false;
  reap_client(stage.view, *slot);
  ++stage.tally.reaped;
  give(stage, stage.spare, *slot);
  return true;
}

class Engine {
 public:
  Engine(Stage& stage, uint64_t seed) : stage_(stage), view_(stage.view), random_(seed) { join(); }

  void act() {
    switch (below(26)) {
      case 0: return die();
      case 1: reap_one(stage_); return;
      case 2: change(); return;
      case 3: rebuild_hints(view_); return;
      case 4: return read_journal();
      case 5: return enroll();
      case 6: client_->evict_oldest(payload_sizes[below(2)], 1 + below(2)); return;
      case 7:
      case 8: return evict();
      case 9: return touch();
      case 10: return late();
      case 11:
      case 12:
      case 13:
      case 14:
      case 15:
      case 16: return store();
      case 17: return let_go();
      case 18: return hear();
      case 19: return tell();
      default: return load();
    }
  }

  void let_go() {
    for (const Held& held : held_) {
      judge(held);
      client_->unpin(&held.handle, 1);
    }
    held_.clear();
  }
  uint32_t slot() const { return slot_; }

 private:
  struct Held {
    uint64_t handle, number;
  };

  uint32_t below(uint32_t bound) { return static_cast<uint32_t>(random_() % bound); }
  uint64_t any_number() { return below(2 * keys_per_namespace); }

  void join() {
    std::optional<uint32_t> slot;
    while (!(slot = take(stage_, stage_.spare))) reap_one(stage_);
    slot_ = *slot;
    attach(stage_, slot_);
    client_ = std::make_unique<Client>(view_, slot_);
  }

  // Half a word of every cache line says which key, the other which writer.
  void write(uint64_t handle, uint64_t number) {
    uint64_t offset = 0, bytes = 0;
    client_->locate(&handle, 1, &offset, &bytes);
    if (bytes != bytes_of(number)) return wrong("a claim of other size", handle, bytes);
    const uint64_t nonce = random_() << 32;
    auto* words = reinterpret_cast<uint64_t*>(view_.payload + offset);
    for (uint64_t i = 0; i < bytes / 8; i += 8) words[i] = nonce ^ number ^ i;
    const uint64_t layout = make_sum_layout(bytes / 2, 2);
    for (uint32_t part = 0; part < 2; ++part) {
      write_sum(view_, handle, part, layout, (nonce ^ number) | 1);
    }
  }

  // The bytes of a block that we have pinned.
  void judge(const Held& held) {
    uint64_t offset = 0, bytes = 0;
    client_->locate(&held.handle, 1, &offset, &bytes);
    if (bytes != bytes_of(held.number)) return wrong("a hit of other size", held.handle, bytes);
    const auto* words = reinterpret_cast<const uint64_t*>(view_.payload + offset);
    const uint64_t nonce = words[0] ^ held.number;
    if ((nonce & 0xFFFFFFFF) != 0) return wrong("the bytes of another key", held.handle, words[0]);
    for (uint64_t i = 0; i < bytes / 8; i += 8) {
      if (words[i] != (nonce ^ held.number ^ i)) return wrong("torn bytes", held.handle, i);
    }
    const SumsRead sums = read_sums(view_, held.handle);
    for (uint32_t part = 0; part < sums.part_count; ++part) {
      if (sums.sums[part] != ((nonce ^ held.number) | 1)) {
        return wrong("the checksum of other bytes", held.handle, sums.sums[part]);
      }
    }
  }

  void wrong(const char* what, uint64_t first, uint64_t second) {
    std::fprintf(stderr, "WRONG: %s (%#llx, %#llx)\n", what, static_cast<unsigned long long>(first),
                 static_cast<unsigned long long>(second));
    ++stage_.tally.wrong;
  }

  // Of one size, since a claim is.
  void pick(Key* keys, uint64_t* numbers) {
    for (uint32_t i = 0; i < batch; ++i) {
      numbers[i] = i == 0 ? any_number() : (numbers[i - 1] + 2) % (2 * keys_per_namespace);
      keys[i] = make_key(numbers[i], stage_);
    }
  }

  uint32_t claim_some(uint64_t* handles, uint64_t* numbers) {
    Key keys[batch];
    Outcome outcomes[batch];
    pick(keys, numbers);
    const uint32_t size = 1 + below(batch);
    client_->claim(keys, size, bytes_of(numbers[0]), handles, outcomes);
    for (uint32_t i = 0; i < size; ++i) {
      if (outcomes[i] != Outcome::ok) continue;
      ++stage_.tally.claimed;
      write(handles[i], numbers[i]);
    }
    return size;
  }

  void store() {
    uint64_t handles[batch], numbers[batch];
    Outcome outcomes[batch];
    const uint32_t size = claim_some(handles, numbers);
    if (below(8) == 0) return client_->abandon(handles, size);
    const bool failed = below(16) == 0;
    for (uint32_t i = 0; i < size; ++i) {
      if (handles[i] != 0) report_part(view_, handles[i], !failed);
    }
    client_->publish(handles, size, 1, outcomes);
    for (uint32_t i = 0; i < size; ++i) {
      if (outcomes[i] == Outcome::ok) ++stage_.tally.published;
    }
  }

  void load() {
    Key keys[batch];
    uint64_t numbers[batch], handles[batch];
    Outcome outcomes[batch];
    pick(keys, numbers);
    const uint32_t judged = client_->find(keys, batch, true, below(2) == 0, handles, outcomes);
    for (uint32_t i = 0; i < judged; ++i) {
      if (outcomes[i] == Outcome::remote) {
        ++stage_.tally.remote;
        if (numbers[i] >= keys_per_namespace) wrong("a hint that nobody gave", numbers[i], 0);
      }
      if (outcomes[i] != Outcome::ok) continue;
      ++stage_.tally.hits;
      const Held held{handles[i], numbers[i]};
      judge(held);
      client_->touch(&held.handle, 1);
      known_ = held.handle;
      if (below(24) == 0 && mark_damaged(view_, held.handle)) ++stage_.tally.marked;
      if (held_.size() < held_max && below(4) == 0) {
        held_.push_back(held);
      } else {
        client_->unpin(&held.handle, 1);
      }
    }
  }

  void evict() {
    const Key key = make_key(any_number(), stage_);
    uint64_t handle = 0;
    Outcome outcome = Outcome::ok;
    client_->find(&key, 1, false, false, &handle, &outcome);
    if (outcome != Outcome::ok) return;
    known_ = handle;
    client_->evict(&handle, 1, &outcome);
    if (outcome == Outcome::ok) ++stage_.tally.evicted;
  }

  void touch() {
    Key keys[batch];
    uint64_t numbers[batch];
    pick(keys, numbers);
    client_->touch_keys(keys, batch);
  }

  // By a handle whose life may be over long since.
  void late() {
    if (known_ == 0) return;
    Outcome outcome = Outcome::missing;
    if (below(2) == 0) mark_damaged(view_, known_);
    if (below(2) == 0) report_part(view_, known_, true);
    client_->pin(&known_, 1, &outcome);
    if (outcome == Outcome::ok) client_->unpin(&known_, 1);
    client_->evict(&known_, 1, &outcome);
  }

  void change() {
    const uint64_t stride = stride_of(view_.geometry, payload_sizes[below(2)]);
    if (change_segment(view_, slot_, below(segment_count), stride, stage_.namespaces[below(2)])) {
      ++stage_.tally.changed;
    }
  }

  void enroll() {
    const std::lock_guard guard(stage_.registry);
    const uint8_t which = static_cast<uint8_t>(below(2));
    if (register_one(stage_, which) != stage_.namespaces[which]) wrong("a namespace moved", which, 0);
    enter_namespace(view_, slot_, stage_.namespaces[which]);
  }

  // What the transport worker does with what other hosts say: they hold keys of the first namespace only.
  void hear() {
    uint64_t seed = 0;
    if (!seed_of(view_, stage_.namespaces[0], seed)) return wrong("no namespace", 0, 0);
    uint64_t hashes[batch];
    for (uint64_t& hash : hashes) hash = remote_hash(seed, make_key(below(keys_per_namespace), stage_));
    const uint32_t host = static_cast<uint32_t>(below(3)) * 100;
    const uint8_t ops[batch] = {1, 3, 2};
    const uint8_t id[16] = {};
    uint16_t hosts[batch * RemoteTable::copies_max];
    uint8_t tiers[batch * RemoteTable::copies_max];
    switch (below(8)) {
      case 0: stage_.hints->remove(host, hashes, batch, tier_any); return;
      case 1: stage_.hints->retire(host); return;
      case 2: stage_.hints->drop(); return;
      case 3: stage_.hints->describe(host, {id, id, 1, 2, 3, "race", 4}); return;
      case 4: stage_.hints->find(hashes, batch, hosts, tiers); return;
      case 5: stage_.hints->apply(host, ops, hashes, batch); return;
      default:
        stage_.hints->add(host, hashes, batch, tier_memory);
        stage_.hints->set_usable(host, below(4) != 0);
    }
  }

  // What the publisher reads.
  void tell() {
    uint8_t ops[64];
    uint64_t hashes[64];
    const uint64_t head = load_acquire(view_.header().journal_head);
    stage_.tally.told += read_events(view_, head - std::min<uint64_t>(head, 32), head, 64, ops, hashes).count;
    const uint32_t first = static_cast<uint32_t>(below(view_.geometry.record_count));
    read_holdings(view_, first, std::min(first + 64, view_.geometry.record_count), hashes, ops);
  }

  void read_journal() {
    const uint64_t head = load_acquire(view_.header().journal_head);
    for (uint64_t sequence = head - std::min<uint64_t>(head, 16); sequence < head;) {
      JournalEntry event;
      if (!read_event(view_, ++sequence, event)) continue;
      ++stage_.tally.events;
      if (event.key[0] != event.key[1] * 0x9E3779B97F4A7C15) wrong("a torn event", sequence, event.key[0]);
    }
  }

  // All that a process may be in the middle of, left as it is; the pins held and not given back too.
  void die() {
    uint64_t handles[batch], numbers[batch];
    if (below(2) == 0) {
      const uint32_t size = claim_some(handles, numbers);
      for (uint32_t i = 0; i < size; ++i) {
        if (handles[i] != 0 && below(2) == 0) report_part(view_, handles[i], true);
      }
    }
    if (below(2) == 0) {
      const Key key = make_key(any_number(), stage_);
      Outcome outcome = Outcome::ok;
      client_->find(&key, 1, false, false, handles, &outcome);
      if (outcome == Outcome::ok) begin_evict(view_, slot_, handles[0]);
    }
    if (below(2) == 0) {
      Segment& segment = view_.segment(below(segment_count));
      const uint64_t state = load_acquire(segment.state);
      if (segment_tag(state) != SegmentTag::changing) {
        cas_seq(segment.state, state,
                segment_state(SegmentTag::changing, slot_, segment_epoch(state) + 1,
                              segment_stride(state)));
      }
    }
    for (const Held& held : held_) judge(held);
    held_.clear();
    ++stage_.tally.deaths;
    give(stage_, stage_.dead, slot_);
    join();
  }

  Stage& stage_;
  const View& view_;
  std::mt19937_64 random_;
  uint32_t slot_ = 0;
  std::unique_ptr<Client> client_;
  std::vector<Held> held_;
  uint64_t known_ = 0;
};

void prepare(Stage& stage) {
  View& view = stage.view;
  if (!plan_geometry(segment_bytes, 4096, segment_count, view.geometry, 0, 64, 16)) std::exit(2);
  view.control = static_cast<uint8_t*>(std::aligned_alloc(4096, view.geometry.control_bytes));
  view.payload = static_cast<uint8_t*>(std::aligned_alloc(4096, view.geometry.payload_bytes));
  std::memset(view.control, 0, view.geometry.control_bytes);
  format(view);
  set_ready(view.header());
  view.header().segments_ready = view.geometry.segment_count;
  for (uint8_t which = 0; which < 2; ++which) stage.namespaces[which] = register_one(stage, which);
  stage.hints = std::make_unique<RemoteTable>(view);
  stage.hints->clear();
  stage.spare.assign(std::begin(slots), std::end(slots));
}

// Apart from the rest: an exchange of words that all use orders the threads, and would hide from thread sanitizers what is
// missing elsewhere. No request may be lost, whatever the ticks of others.
void ask_together(Stage& stage) {
  constexpr uint32_t asks = 3000;
  std::vector<std::thread> running;
  for (uint32_t i = 0; i < threads; ++i) {
    running.emplace_back([&stage, i] {
      for (uint32_t n = 0; n < asks; ++n) {
        const Key keys[2] = {make_key((n + i) % keys_per_namespace, stage), make_key(n % 7, stage)};
        count_asked(stage.view, keys, 2, 1000 + n / (asks / 2));
        count_served(stage.view, 1, 1000 + n / (asks / 2));
        ++stage.tally.asked;
      }
    });
  }
  for (auto& thread : running) thread.join();
  ReuseWindow window;
  read_reuse(stage.view, 1001, 2, window);
  uint32_t registers = 0;
  for (const uint32_t count : window.ranks) registers += count;
  if (window.asked == 2 * window.served && window.served == uint64_t{asks} * threads &&
      registers == stage.view.geometry.reuse_register_count) {
    return;
  }
  std::fprintf(stderr, "WRONG: %llu asked for, %llu served\n",
               static_cast<unsigned long long>(window.asked),
               static_cast<unsigned long long>(window.served));
  ++stage.tally.wrong;
}

// Everybody has joined and reaped: how much is left that no invariant allows, and what cannot be used again.
uint64_t left_over(const Stage& stage, uint32_t slot, const uint8_t* alive) {
  const View& view = stage.view;
  static Finding findings[256];
  Audit audit(view, alive, false, findings, 256);
  audit.segments(0, view.geometry.segment_count);
  audit.buckets(0, view.geometry.bucket_count);
  audit.tables();
  uint64_t left = audit.found();
  for (uint64_t i = 0; i < std::min<uint64_t>(left, 256); ++i) {
    std::fprintf(stderr, "LEFT: invariant %u at %llu\n", findings[i].invariant,
                 static_cast<unsigned long long>(findings[i].where));
  }
  Client client(view, slot);
  for (uint32_t record = 0; record < view.geometry.record_count; ++record) {
    const Block& block = view.block(record);
    const uint64_t state = load_acquire(block.state);
    if (block_tag(state) == BlockTag::free && !is_pinned(block)) continue;
    const uint64_t handle = make_handle(record, block_generation(state));
    Outcome outcome = Outcome::missing;
    client.evict(&handle, 1, &outcome);
    if (outcome == Outcome::ok) continue;
    std::fprintf(stderr, "LEFT: record %u in state %#llx\n", record,
                 static_cast<unsigned long long>(state));
    ++left;
  }
  const uint64_t stride = view.geometry.block_bytes_min;
  const uint64_t capacity = view.geometry.payload_bytes / stride;
  for (uint64_t number = 0; number < capacity; ++number) {
    Key key{};
    key.words[0] = (number + 1000) * 0x9E3779B97F4A7C15;
    key.words[1] = number + 1000;
    key.identity = make_identity(stage.namespaces[0], 0, 16);
    uint64_t handle = 0;
    Outcome outcome = Outcome::missing;
    client.claim(&key, 1, stride, &handle, &outcome);
    if (outcome == Outcome::ok) continue;
    std::fprintf(stderr, "LEFT: room for %llu of %llu blocks\n",
                 static_cast<unsigned long long>(number), static_cast<unsigned long long>(capacity));
    return left + capacity - number;
  }
  return left;
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 2;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;

  Stage stage;
  prepare(stage);
  std::vector<std::unique_ptr<Engine>> engines;
  for (uint32_t i = 0; i < threads; ++i) {
    engines.push_back(std::make_unique<Engine>(stage, seed * 1000 + i));
  }
  std::vector<std::thread> running;
  for (const auto& engine : engines) {
    running.emplace_back([&stage, &engine] {
      while (!stage.stop.load()) engine->act();
      engine->let_go();
    });
  }
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  stage.stop = true;
  for (auto& thread : running) thread.join();
  ask_together(stage);

  uint8_t alive[client_count] = {};
  for (const auto& engine : engines) alive[engine->slot()] = 1;
  while (reap_one(stage)) continue;
  const uint64_t left = left_over(stage, engines[0]->slot(), alive);

  const Tally& tally = stage.tally;
  const struct {
    const char* name;
    uint64_t value;
  } figures[] = {
      {"claimed", tally.claimed}, {"published", tally.published}, {"hits", tally.hits},
      {"evicted", tally.evicted}, {"changed", tally.changed},     {"marked", tally.marked},
      {"deaths", tally.deaths},   {"reaped", tally.reaped},       {"events", tally.events},
      {"remote", tally.remote},   {"told", tally.told},       {"asked", tally.asked},
      {"wrong", tally.wrong},     {"left", left},
  };
  for (const auto& figure : figures) {
    std::printf("%s %llu ", figure.name, static_cast<unsigned long long>(figure.value));
  }
  std::printf("\n");
  engines.clear();
  std::free(stage.view.control);
  std::free(stage.view.payload);
  return tally.wrong == 0 && left == 0 ? 0 : 1;
}
