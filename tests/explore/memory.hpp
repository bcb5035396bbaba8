// What may a load return? Words with a history each, and a view of them for each thread.
//
// An operational form of C++20's memory model for the accesses that the core makes (atomic loads, stores
// and read-modify-writes; no standalone fences, no seq_cst stores), after the view machines of Kang, Hur,
// Lahav, Vafeiadis, Dreyer, "A promising semantics for relaxed-memory concurrency" (POPL 2017), without
// promises, and with the seq_cst of RC11 (Lahav et al., PLDI 2017):
// - A word keeps all its messages in modification order. A thread's view says, per word, the oldest message
//   it may still read; reading or writing moves it forward. Loads choose among what is left.
// - A release store carries its thread's view, an acquire load takes it over. A read-modify-write reads a
//   message and stands right behind it; its message carries on the view of what it read (release sequence).
// - A store may stand anywhere behind the thread's view, but not between a read-modify-write and what that
//   read. A failing compare-exchange is a load, which may be old as well.
// - A seq_cst access never reads, nor is placed, before a seq_cst write of the same word that was executed
//   earlier: the order of execution is RC11's order of seq_cst accesses. Nothing else is ordered by it; in
//   particular it is no fence.
// - Plain (payload) words are checked by vector clocks: two accesses, one of them a write, that are not
//   ordered by acquire/release are a violation by themselves.
// Weaker than the real thing nowhere but here: loads never see stores that come later in the execution
// (load buffering), and an execution whose seq_cst order contradicts its relaxed reads-from is not built.
// x86 and ARMv8 show neither for code compiled from acquire, release and seq_cst accesses; a relaxed load
// followed by a relaxed store could on ARM, and the core has no such pair that decides anything.
// Stronger than hardware nowhere: x86 (TSO) and ARMv8 (multi-copy atomic) allow a subset of this.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

namespace explore {

inline constexpr uint32_t threads_max = 4;
inline constexpr uint32_t words_max =
    124;  // words that several threads use; the rest needs no history
inline constexpr uint32_t view_size = words_max + threads_max;

// Per word the place of the oldest readable message; per thread how many plain accesses of it are known.
struct Seen {
  std::array<uint8_t, view_size> at{};

  void join(const Seen& other) noexcept {
    for (uint32_t i = 0; i < view_size; ++i) at[i] = at[i] < other.at[i] ? other.at[i] : at[i];
  }
  uint8_t& word(uint32_t index) noexcept { return at[index]; }
  uint8_t& clock(uint32_t thread) noexcept { return at[words_max + thread]; }
};

enum class Order : uint8_t { relaxed, acquire, release, acq_rel, seq };

constexpr bool acquires(Order order) noexcept {
  return order == Order::acquire || order == Order::acq_rel || order == Order::seq;
}
constexpr bool releases(Order order) noexcept {
  return order == Order::release || order == Order::acq_rel || order == Order::seq;
}

struct Message {
  uint64_t value;
  bool attached;  // written by a read-modify-write: nothing comes between it and its predecessor
  Seen view;
};

struct Word {
  uintptr_t address;
  uint8_t seq_floor = 0;  // newest seq_cst write
  std::vector<Message> history;
};

struct PlainWord {
  uintptr_t address;
  uint64_t value;
  uint8_t writer;
  uint8_t written_at;  // clock of the writer, 0 = before all threads
  std::array<uint8_t, threads_max> read_at;
};

// All words with a history, and the views of all threads.
class Memory {
 public:
  std::vector<Word> words;
  std::vector<PlainWord> plain;
  std::array<Seen, threads_max> seen{};

  // Back to the start of an execution; `initial(address)` is what memory held before it.
  template <typename Initial>
  void reset(Initial initial) {
    for (Word& word : words) {
      word.history.clear();
      word.history.push_back({initial(word.address), false, Seen{}});
      word.seq_floor = 0;
    }
    plain.clear();
    seen = {};
  }

  // Places of the messages that a load may return are [oldest_readable, size).
  uint8_t oldest_readable(uint32_t thread, uint32_t index, Order order) const noexcept {
    const uint8_t own = seen[thread].at[index];
    const uint8_t floor = order == Order::seq ? words[index].seq_floor : 0;
    return own < floor ? floor : own;
  }

  void read(uint32_t thread, uint32_t index, uint8_t place, Order order) noexcept {
    Seen& mine = seen[thread];
    if (acquires(order)) mine.join(words[index].history[place].view);
    if (mine.word(index) < place) mine.word(index) = place;
  }

  // Puts a message at `place`; those behind move up. `carried`: the view that a release sequence brings.
  void insert(uint32_t thread, uint32_t index, uint8_t place, uint64_t value, bool attached,
              const Seen& carried, Order order) {
    Word& word = words[index];
    if (place < word.history.size()) make_room(index, place);
    Seen& mine = seen[thread];
    mine.word(index) = place;
    Seen view = carried;
    if (releases(order)) view.join(mine);
    word.history.insert(word.history.begin() + place, {value, attached, view});
    if (order == Order::seq) word.seq_floor = place;
  }

  bool taken(uint32_t index, uint32_t place) const noexcept {
    const auto& history = words[index].history;
    return place + 1 < history.size() && history[place + 1].attached;
  }

 private:
  void make_room(uint32_t index, uint8_t place) noexcept {
    const auto shift = [&](Seen& view) { view.word(index) += view.word(index) >= place ? 1 : 0; };
    for (Seen& view : seen) shift(view);
    for (Word& word : words) {
      for (Message& message : word.history) shift(message.view);
    }
    Word& word = words[index];
    word.seq_floor += word.seq_floor >= place ? 1 : 0;
  }
};

// 128 bits that stand for a state; two states of one digest would be taken for one (about 2^-70 here).
struct Digest {
  uint64_t low = 0x243F6A8885A308D3;
  uint64_t high = 0x13198A2E03707344;

  void mix(uint64_t value) noexcept {
    low = (low ^ value) * 0x9E3779B97F4A7C15;
    low ^= low >> 29;
    high = (high + value) * 0xC2B2AE3D27D4EB4F;
    high ^= high >> 31;
    high += low;
  }
  bool operator==(const Digest&) const noexcept = default;
};

}  // namespace explore
