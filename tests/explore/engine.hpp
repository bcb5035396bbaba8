// Which interleavings are there, and does one break a promise? A depth-first walk over all of them.
//
// Threads are fibers of one process. An access to a word that several threads use (and one of them writes)
// is a step: before it any thread may be scheduled instead, and a thread that may be killed may end there;
// at it the memory model may offer several messages. Each such choice is a node of the path; when an
// execution ends, the last node with an untried option takes it and the program runs again from the start.
//
// Two reductions, both exact:
// - Words that only one thread uses, or nobody writes, are no steps. Which those are is learned: the walk
//   starts with none shared, and starts over whenever an execution proves it wrong. At the fixed point the
//   quiet accesses commute with all that any explored execution does (a singleton ample set).
// - States met before are not entered again. What a thread does next follows from what it has read, so a
//   state is: per thread a digest of all it read, its view, and the readable part of every history. The
//   number of executions below a state is kept, so that the interleavings covered are still counted.
// A scenario may bound preemptions (context switches away from a thread that could go on): Musuvathi, Qadeer,
// "Iterative context bounding for systematic testing" (PLDI 2007). The bound is printed.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <set>
#include <source_location>
#include <string>
#include <unordered_map>
#include <utility>

#include "memory.hpp"

namespace explore {

using Site = std::source_location;

enum class Phase : uint8_t { setup, running, judging };
enum class Life : uint8_t { absent, alive, finished, killed };
enum class End : uint8_t { complete, seen_before, violation, start_over };

struct Actor {
  const char* name;
  std::function<void()> body;
  bool killable = false;
};

struct Figures {
  double interleavings = 0;  // executions covered: those run and those below states met again
  uint64_t states = 0;
  uint64_t runs = 0;
  uint64_t steps = 0;
  uint32_t words = 0;  // shared words
  uint32_t depth = 0;  // most choices in one execution
  bool cut = false;  // by the limit on states
  std::string violation;
  std::string trace;
  std::set<std::string> outcomes;  // what executions reported with outcome()
};

struct Limits {
  int preemptions = -1;  // -1: no bound
  uint64_t states = 4'000'000;
  bool naive = false;  // neither reduction: every word is shared, no state is remembered
};

struct Node {
  uint32_t options;
  uint32_t taken;
  double below;
  bool kept;
  Digest digest;
};

class Engine {
 public:
  Phase phase = Phase::setup;

  // -- memory of the scenario: words in [base, base + bytes) ------------------------------------------
  void adopt(void* base, size_t bytes, std::string (*describe)(uintptr_t),
             std::string (*decode)(uintptr_t, uint64_t)) {
    base_ = reinterpret_cast<uintptr_t>(base);
    cells_.assign(bytes / 8, Cell{});
    left_out_.assign(cells_.size(), false);
    describe_ = describe;
    decode_ = decode;
  }
  // Words that decide nothing in this scenario (counters, a journal that nobody reads): written in passing.
  void leave_out(const void* from, size_t bytes) {
    const size_t first = (reinterpret_cast<uintptr_t>(from) - base_) / 8;
    for (size_t i = 0; i < bytes / 8; ++i) left_out_[first + i] = true;
  }

  // -- atomic accesses --------------------------------------------------------------------------------
  uint64_t load(const uint64_t& word, Order order, const char* verb, Site site) {
    if (phase != Phase::running) return now(word);
    if (left_out(word)) return quiet(cell(word), word);
    const int index = step(word, false);
    if (index < 0) return quiet(cell(word), word);
    const auto& history = memory.words[index].history;
    const uint8_t oldest = memory.oldest_readable(self_, index, order);
    const uint32_t options = static_cast<uint32_t>(history.size()) - oldest;
    const uint8_t place = static_cast<uint8_t>(history.size() - 1 - choose(options));
    const uint64_t value = history[place].value;
    note(word, verb, site, value, false, 0, place + 1u != history.size());
    memory.read(self_, index, place, order);
    remember(value);
    return value;
  }

  void store(uint64_t& word, uint64_t value, Order order, const char* verb, Site site) {
    if (phase != Phase::running) return put(word, value);
    const int index = left_out(word) ? -1 : step(word, true);
    if (index < 0) {
      note(word, verb, site, quiet(cell(word), word), true, value, false);
      set_quiet(word, value);
      return;
    }
    const auto& history = memory.words[index].history;
    // In modification order: last, or before others that this thread does not know yet.
    std::array<uint8_t, 256> places;
    uint32_t options = 0;
    places[options++] = static_cast<uint8_t>(history.size());
    for (uint32_t place = static_cast<uint32_t>(history.size()) - 1;
         place > memory.seen[self_].at[index]; --place) {
      if (!history[place].attached) places[options++] = static_cast<uint8_t>(place);
    }
    const uint8_t place = places[choose(options)];
    note(word, verb, site, history[place - 1u].value, true, value, place != history.size());
    memory.insert(self_, index, place, value, false, Seen{}, order);
    remember(0x57);
  }

  template <typename Change>
  uint64_t modify(uint64_t& word, Change change, Order order, const char* verb, Site site) {
    if (phase != Phase::running) {
      const uint64_t before = now(word);
      put(word, change(before));
      return before;
    }
    const int index = left_out(word) ? -1 : step(word, true);
    if (index < 0) {
      const uint64_t before = quiet(cell(word), word);
      note(word, verb, site, before, true, change(before), false);
      set_quiet(word, change(before));
      return before;
    }
    const auto places = readable(index, order, [](uint64_t) { return true; }, true);
    const uint8_t place = places.at[choose(places.count)];
    return modify_at(word, index, place, change, order, verb, site);
  }

  bool compare_exchange(uint64_t& word, uint64_t expected, uint64_t desired, Order order,
                        const char* verb, Site site) {
    if (phase != Phase::running) {
      if (now(word) != expected) return false;
      put(word, desired);
      return true;
    }
    const int index = left_out(word) ? -1 : step(word, true);
    if (index < 0) {
      const uint64_t before = quiet(cell(word), word);
      if (before == expected) set_quiet(word, desired);
      note(word, verb, site, before, before == expected, desired, false);
      return before == expected;
    }
    auto places = readable(index, order, [&](uint64_t value) { return value == expected; }, true);
    const uint32_t fitting = places.count;
    places.add(readable(index, order, [&](uint64_t value) { return value != expected; }, false));
    const uint32_t choice = choose(places.count);
    const uint8_t place = places.at[choice];
    if (choice < fitting) {
      modify_at(word, index, place, [&](uint64_t) { return desired; }, order, verb, site);
      return true;
    }
    const uint64_t value = memory.words[index].history[place].value;
    note(word, verb, site, value, false, 0, place + 1u != memory.words[index].history.size());
    memory.read(self_, index, place, order);
    remember(value);
    return false;
  }

  // -- payload ----------------------------------------------------------------------------------------
  uint64_t plain_load(const uint64_t& word, Site site = Site::current()) {
    if (phase == Phase::setup) return word;
    PlainWord& plain = plain_word(word);
    if (phase == Phase::judging) return plain.value;
    check_race(plain, false, site);
    plain.read_at[self_] = ++memory.seen[self_].clock(self_);
    note(word, "plain load", site, plain.value, false, 0, false);
    return plain.value;
  }
  void plain_store(uint64_t& word, uint64_t value, Site site = Site::current()) {
    if (phase == Phase::setup) {
      word = value;
      return;
    }
    mortal_moment();
    PlainWord& plain = plain_word(word);
    check_race(plain, true, site);
    plain.writer = self_;
    plain.written_at = ++memory.seen[self_].clock(self_);
    note(word, "plain store", site, plain.value, true, value, false);
    plain.value = value;
  }

  // -- what a scenario says ---------------------------------------------------------------------------
  [[gnu::format(printf, 2, 3)]] void fail(const char* format, ...) {
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (message_.empty()) message_ = text;
    if (phase == Phase::running) leave(End::violation);
  }
  bool failed() const { return !message_.empty(); }
  void outcome(const std::string& text) { figures_.outcomes.insert(text); }
  // What this thread leaves outside the modelled memory (ghosts, observations): part of the state for good.
  void keep(uint64_t value) {
    if (phase == Phase::running) threads_[self_].result.mix(value);
  }
  Life life(uint32_t thread) const { return threads_[thread].life; }
  uint32_t self() const { return self_; }

  // Until that thread's process is gone; what it wrote is then in memory, as after taking its kernel lock.
  void await_gone(uint32_t thread) {
    threads_[self_].awaits = static_cast<int>(thread);
    offer();
    threads_[self_].awaits = -1;
    memory.seen[self_].join(memory.seen[thread]);
    remember(threads_[thread].life == Life::killed ? 2 : 1);
    note_text(threads_[thread].life == Life::killed ? "sees that it was killed"
                                                    : "sees that it has ended",
              thread);
  }

  // -- the walk ---------------------------------------------------------------------------------------
  // `fresh` rebuilds private objects before each execution; `judge` runs alone after each.
  Figures explore(std::vector<Actor> actors, const std::function<void()>& fresh,
                  const std::function<void()>& judge, Limits limits) {
    actors_ = std::move(actors);
    limits_ = limits;
    memory.words.clear();
    for (Cell& each : cells_) each = Cell{};
    for (;;) {
      figures_ = Figures{};
      path_.clear();
      known_.clear();
      if (walk(fresh, judge)) break;
    }
    figures_.words = static_cast<uint32_t>(memory.words.size());
    figures_.states = known_.size();
    if (!message_.empty()) show_violation(fresh, judge);
    phase = Phase::setup;
    return std::move(figures_);
  }

  // The value that whoever comes last reads: for judging.
  uint64_t now(const uint64_t& word) {
    if (phase == Phase::setup) return word;
    const Cell& found = cell(word);
    if (found.shared >= 0) return memory.words[found.shared].history.back().value;
    return found.run == run_ ? found.value : word;
  }

  Memory memory;

 private:
  struct Cell {
    uint64_t value = 0;
    uint64_t run = 0;  // the execution that `value` belongs to
    uint8_t users = 0;
    uint8_t writers = 0;
    int16_t shared = -1;  // index of its history
  };
  struct Thread {
    Life life = Life::absent;
    int awaits = -1;
    Digest past;
    Digest result;
    ucontext_t context;
    jmp_buf resume;
    bool started = false;
    std::vector<char> stack;
  };
  struct Places {
    std::array<uint8_t, 256> at;
    uint32_t count = 0;
    void add(const Places& more) {
      for (uint32_t i = 0; i < more.count; ++i) at[count++] = more.at[i];
    }
  };
  struct DigestHash {
    size_t operator()(const Digest& digest) const noexcept { return digest.low; }
  };

  Cell& cell(const uint64_t& word) {
    return cells_[(reinterpret_cast<uintptr_t>(&word) - base_) / 8];
  }
  uint64_t& quiet(Cell& found, const uint64_t& word) {
    if (found.run != run_) {
      found.run = run_;
      found.value = word;
    }
    return found.value;
  }
  void put(uint64_t& word, uint64_t value) {
    if (phase == Phase::setup) {
      word = value;
    } else if (Cell& found = cell(word); found.shared >= 0) {
      auto& history = memory.words[found.shared].history;
      history.push_back({value, false, Seen{}});
    } else {
      quiet(found, word) = value;
    }
  }
  bool left_out(const uint64_t& word) const {
    return left_out_[(reinterpret_cast<uintptr_t>(&word) - base_) / 8];
  }
  // What quiet words hold belongs to the state too, for the judge: a sum that does not depend on the order.
  void set_quiet(uint64_t& word, uint64_t value) {
    uint64_t& now = quiet(cell(word), word);
    if (!left_out(word)) {
      for (const uint64_t each : {now, value}) {
        Digest one;
        one.mix(reinterpret_cast<uintptr_t>(&word) - base_);
        one.mix(each);
        quiet_sum_.low ^= one.low;
        quiet_sum_.high ^= one.high;
      }
    }
    now = value;
  }
  PlainWord& plain_word(const uint64_t& word) {
    const auto address = reinterpret_cast<uintptr_t>(&word);
    for (PlainWord& each : memory.plain) {
      if (each.address == address) return each;
    }
    memory.plain.push_back({address, word, 0, 0, {}});
    return memory.plain.back();
  }
  void check_race(const PlainWord& plain, bool writes, Site site) {
    Seen& mine = memory.seen[self_];
    for (uint32_t other = 0; other < threads_max; ++other) {
      const bool write_unseen = plain.writer == other && plain.written_at > mine.clock(other);
      const bool read_unseen = writes && plain.read_at[other] > mine.clock(other);
      if (other == self_ || (!write_unseen && !read_unseen)) continue;
      note(*reinterpret_cast<uint64_t*>(plain.address), writes ? "plain store" : "plain load", site,
           plain.value, false, 0, false);
      fail(
          "%s and %s use %s at once: %s is not ordered after the other's %s, so a byte may be "
          "wrong",
          actors_[self_].name, actors_[other].name, describe_(plain.address).c_str(),
          writes ? "the store" : "the load", write_unseen ? "store" : "load");
    }
  }

  // A step if the word is shared: others may run first. Returns the index of its history, -1: quiet.
  int step(const uint64_t& word, bool writes) {
    Cell& found = cell(word);
    if (found.shared < 0) {
      found.users |= static_cast<uint8_t>(1u << self_);
      if (writes) found.writers |= static_cast<uint8_t>(1u << self_);
      const bool several = (found.users & (found.users - 1)) != 0;
      if ((several && found.writers != 0) || limits_.naive) {
        if (memory.words.size() == words_max) {
          std::fprintf(stderr, "more than %u shared words: make the scenario smaller\n", words_max);
          std::fflush(nullptr);
          std::_Exit(2);  // not from a fiber: exit() would run destructors on its stack
        }
        found.shared = static_cast<int16_t>(memory.words.size());
        memory.words.push_back({reinterpret_cast<uintptr_t>(&word), 0, {}});
        leave(End::start_over);
      }
      if (writes) mortal_moment();
      return -1;
    }
    offer();
    return found.shared;
  }

  template <typename Wanted>
  Places readable(uint32_t index, Order order, Wanted wanted, bool to_modify) {
    Places places;
    const auto& history = memory.words[index].history;
    const uint32_t oldest = memory.oldest_readable(self_, index, order);
    for (uint32_t place = static_cast<uint32_t>(history.size()); place-- > oldest;) {
      if (wanted(history[place].value) && !(to_modify && memory.taken(index, place))) {
        places.at[places.count++] = static_cast<uint8_t>(place);
      }
    }
    return places;
  }

  template <typename Change>
  uint64_t modify_at(uint64_t& word, uint32_t index, uint8_t place, Change change, Order order,
                     const char* verb, Site site) {
    const uint64_t before = memory.words[index].history[place].value;
    const Seen carried = memory.words[index].history[place].view;
    note(word, verb, site, before, true, change(before),
         place + 1u != memory.words[index].history.size());
    memory.read(self_, index, place, order);
    memory.insert(self_, index, static_cast<uint8_t>(place + 1), change(before), true, carried,
                  order);
    remember(before);
    return before;
  }

  void remember(uint64_t value) { threads_[self_].past.mix(value); }

  // -- choices ----------------------------------------------------------------------------------------
  enum class Choice : uint8_t { message, thread, death };

  uint32_t choose(uint32_t options, Choice choice = Choice::message) {
    if (options <= 1) return 0;
    if (depth_ < path_.size()) {
      Node& node = path_[depth_++];
      if (node.options != options) {
        std::fprintf(stderr, "an execution did not repeat itself (%u options, were %u)\n", options,
                     node.options);
        std::fflush(nullptr);
        std::_Exit(2);
      }
      return node.taken;
    }
    Node node{options, 0, 0, false, {}};
    // The scheduling just before has looked already, unless it had no choice.
    if (!limits_.naive && (choice != Choice::message || !looked_)) {
      node.digest = digest();
      // Whose turn it is matters in the middle of a step, and where the bound makes it cheaper to stay.
      if (choice != Choice::thread)
        node.digest.mix(0x5EED00 + self_ * 4u + static_cast<uint32_t>(choice));
      if (limits_.preemptions >= 0)
        node.digest.mix(0xB0000 + self_ * 256u + static_cast<uint32_t>(preemptions_));
      const auto found = known_.find(node.digest);
      if (found != known_.end()) {
        if (!path_.empty()) path_.back().below += found->second;
        leave(End::seen_before);
      }
      node.kept = true;
    }
    path_.push_back(node);
    ++depth_;
    if (depth_ > figures_.depth) figures_.depth = static_cast<uint32_t>(depth_);
    return 0;
  }

  bool can_run(uint32_t thread) const {
    const Thread& each = threads_[thread];
    return each.life == Life::alive &&
           (each.awaits < 0 || threads_[each.awaits].life == Life::finished ||
            threads_[each.awaits].life == Life::killed);
  }

  // Before a step, at the end of a thread, or while it waits: who goes on?
  void offer() {
    const uint32_t me = self_;
    ++figures_.steps;
    for (;;) {
      std::array<uint8_t, 2 * threads_max> options;
      uint32_t count = 0;
      const bool go_on = can_run(me);
      if (go_on) options[count++] = static_cast<uint8_t>(me);
      const bool bounded = limits_.preemptions >= 0 && go_on && preemptions_ >= limits_.preemptions;
      for (uint32_t thread = 0; thread < actors_.size() && !bounded; ++thread) {
        if (thread != me && can_run(thread)) options[count++] = static_cast<uint8_t>(thread);
      }
      if (!killed_) {
        for (uint32_t thread = 0; thread < actors_.size(); ++thread) {
          if (actors_[thread].killable && threads_[thread].life == Life::alive) {
            options[count++] = static_cast<uint8_t>(0x80 | thread);
          }
        }
      }
      if (count == 0) {
        for (uint32_t thread = 0; thread < actors_.size(); ++thread) {
          if (threads_[thread].life == Life::alive) fail("%s waits for ever", actors_[thread].name);
        }
        leave(End::complete);
      }
      looked_ = count > 1;
      const uint8_t option = options[choose(count, Choice::thread)];
      if ((option & 0x80) != 0) {
        kill(option & 0x7F);
        continue;  // and who goes on now?
      }
      if (option == me) return;
      if (go_on) ++preemptions_;
      switch_to(option);
      return;
    }
  }

  void kill(uint32_t thread) {
    threads_[thread].life = Life::killed;
    killed_ = true;
    note_text("KILLED", thread);
  }

  // A quiet write of a thread that may be killed: what it leaves behind differs before and after.
  void mortal_moment() {
    if (killed_ || !actors_[self_].killable) return;
    remember(0xD1E);
    looked_ = true;
    if (choose(2, Choice::death) == 0) return;
    kill(self_);
    offer();
    leave(End::complete);
  }

  Digest digest() {
    Digest sum = quiet_sum_;
    Seen floor;
    floor.at.fill(0xFF);
    for (uint32_t thread = 0; thread < actors_.size(); ++thread) {
      const Thread& each = threads_[thread];
      sum.mix(static_cast<uint64_t>(each.life));
      // What a finished thread read no longer matters, but for what the judge will ask of it.
      sum.mix(each.result.low);
      if (each.life == Life::finished && !awaited(thread)) continue;
      sum.mix(each.past.low);
      sum.mix(each.past.high);
      for (uint32_t i = 0; i < words_max; ++i) {
        floor.at[i] = std::min(floor.at[i], memory.seen[thread].at[i]);
      }
    }
    for (uint32_t i = words_max; i < view_size; ++i) floor.at[i] = 0;
    for (uint32_t thread = 0; thread < actors_.size(); ++thread) {
      if (threads_[thread].life != Life::finished || awaited(thread)) {
        mix_view(sum, memory.seen[thread], floor);
      }
    }
    for (uint32_t index = 0; index < memory.words.size(); ++index) {
      const Word& word = memory.words[index];
      const uint32_t from =
          std::min<uint32_t>(floor.at[index], static_cast<uint32_t>(word.history.size()) - 1);
      sum.mix(word.history.size() - from);
      sum.mix(word.seq_floor > from ? word.seq_floor - from : 0u);
      for (uint32_t place = from; place < word.history.size(); ++place) {
        const Message& message = word.history[place];
        sum.mix(message.value);
        sum.mix(place != from && message.attached ? 1 : 0);
        mix_view(sum, message.view, floor);
      }
    }
    for (const PlainWord& each : memory.plain) {
      sum.mix(each.address - base_);
      sum.mix(each.value);
      sum.mix(uint64_t{each.writer} << 8 | each.written_at);
      for (const uint8_t at : each.read_at) sum.mix(at);
    }
    return sum;
  }
  bool awaited(uint32_t thread) const {
    for (uint32_t other = 0; other < actors_.size(); ++other) {
      if (threads_[other].life == Life::alive && actors_[thread].killable) return true;
    }
    return false;
  }
  static void mix_view(Digest& sum, const Seen& view, const Seen& floor) {
    Seen above;
    for (uint32_t i = 0; i < view_size; ++i) {
      above.at[i] = static_cast<uint8_t>(view.at[i] > floor.at[i] ? view.at[i] - floor.at[i] : 0);
    }
    for (uint32_t i = 0; i < view_size; i += 8) {
      uint64_t eight;
      std::memcpy(&eight, above.at.data() + i, 8);
      if (eight != 0) {
        sum.mix(i);
        sum.mix(eight);
      }
    }
    sum.mix(0xE0);
  }

  // -- fibers -----------------------------------------------------------------------------------------
  // Contexts are made by ucontext and switched by setjmp, which asks the kernel nothing.
  static void enter(unsigned thread);

  void switch_to(uint32_t thread) {
    if (_setjmp(threads_[self_].resume) == 0) jump(thread);
  }
  [[noreturn]] void jump(uint32_t thread) {
    self_ = static_cast<uint8_t>(thread);
    if (!threads_[thread].started) {
      threads_[thread].started = true;
      setcontext(&threads_[thread].context);
    }
    _longjmp(threads_[thread].resume, 1);
  }
  [[noreturn]] void leave(End end) {
    end_ = end;
    _longjmp(home_, 1);
  }
  void finish() {
    threads_[self_].life = Life::finished;
    offer();
    leave(End::complete);
  }

  void run_once(const std::function<void()>& fresh, const std::function<void()>& judge) {
    phase = Phase::setup;
    fresh();
    ++run_;
    ++figures_.runs;
    memory.reset([](uintptr_t address) { return *reinterpret_cast<const uint64_t*>(address); });
    quiet_sum_ = Digest{};
    depth_ = 0;
    preemptions_ = 0;
    killed_ = false;
    looked_ = false;
    for (uint32_t thread = 0; thread < threads_max; ++thread) {
      Thread& each = threads_[thread];
      each.life = thread < actors_.size() ? Life::alive : Life::absent;
      each.awaits = -1;
      each.past = Digest{};
      each.result = Digest{};
      each.started = false;
      if (each.life == Life::absent) continue;
      if (each.stack.empty()) each.stack.resize(256 * 1024);
      getcontext(&each.context);
      each.context.uc_stack.ss_sp = each.stack.data();
      each.context.uc_stack.ss_size = each.stack.size();
      each.context.uc_link = nullptr;
      makecontext(&each.context, reinterpret_cast<void (*)()>(&Engine::enter), 1, thread);
    }
    phase = Phase::running;
    if (_setjmp(home_) == 0) begin();
    if (end_ == End::complete) {
      phase = Phase::judging;
      judge();
      if (!message_.empty()) end_ = End::violation;
    }
  }
  // Who starts is a choice too; made from no thread's point of view, so it is no preemption.
  [[noreturn]] void begin() {
    looked_ = true;
    self_ = 0;
    jump(choose(static_cast<uint32_t>(actors_.size()), Choice::thread));
  }

  // False: a word proved shared, start over.
  bool walk(const std::function<void()>& fresh, const std::function<void()>& judge) {
    for (;;) {
      run_once(fresh, judge);
      if (end_ == End::start_over) return false;
      if (end_ == End::violation) return true;
      if (end_ == End::complete) {
        if (path_.empty()) {
          figures_.interleavings = 1;
        } else {
          path_.back().below += 1;
        }
      }
      for (;;) {
        if (path_.empty()) return true;
        Node& node = path_.back();
        if (++node.taken < node.options) break;
        const Node done = node;
        path_.pop_back();
        if (done.kept) known_.emplace(done.digest, done.below);
        (path_.empty() ? figures_.interleavings : path_.back().below) += done.below;
      }
      if (known_.size() > limits_.states) {
        figures_.cut = true;
        for (const Node& node : path_) figures_.interleavings += node.below;
        return true;
      }
    }
  }

  // Runs the violating execution again and writes down each step of it.
  void show_violation(const std::function<void()>& fresh, const std::function<void()>& judge) {
    figures_.violation = message_;
    message_.clear();
    tracing_ = true;
    run_once(fresh, judge);
    tracing_ = false;
    message_.clear();
  }

  void note(const uint64_t& word, const char* verb, Site site, uint64_t value, bool writes,
            uint64_t next, bool old) {
    if (!tracing_) return;
    const auto address = reinterpret_cast<uintptr_t>(&word);
    std::string function = site.function_name();
    function = function.substr(0, function.find('('));
    for (const char mark : {' ', ':'}) {
      const size_t at = function.rfind(mark);
      if (at != std::string::npos) function = function.substr(at + 1);
    }
    std::string file = site.file_name();
    file = file.substr(file.rfind('/') + 1);
    char line[400];
    std::snprintf(
        line, sizeof line, "  %-10s %-18s %-14s %-14s %-24s %s%s%s%s\n", actors_[self_].name,
        function.c_str(), (file + ":" + std::to_string(site.line())).c_str(), verb,
        describe_(address).c_str(), decode_(address, value).c_str(), writes ? " -> " : "",
        writes ? decode_(address, next).c_str() : "",
        old ? (writes ? "  (placed before a newer one)" : "  (OLD: a newer value exists)") : "");
    figures_.trace += line;
  }
  void note_text(const char* text, uint32_t about) {
    if (!tracing_) return;
    figures_.trace +=
        "  " + std::string(actors_[self_].name) + ": " + actors_[about].name + " " + text + "\n";
  }

  uintptr_t base_ = 0;
  std::vector<Cell> cells_;
  std::vector<bool> left_out_;
  Digest quiet_sum_;
  std::string (*describe_)(uintptr_t) = nullptr;
  std::string (*decode_)(uintptr_t, uint64_t) = nullptr;
  std::vector<Actor> actors_;
  Limits limits_;
  Figures figures_;
  std::array<Thread, threads_max> threads_;
  std::vector<Node> path_;
  std::unordered_map<Digest, double, DigestHash> known_;
  std::string message_;
  size_t depth_ = 0;
  uint64_t run_ = 0;
  int preemptions_ = 0;
  uint8_t self_ = 0;
  bool killed_ = false;
  bool looked_ = false;
  bool tracing_ = false;
  End end_ = End::complete;
  jmp_buf home_;
};

inline Engine engine;

inline void Engine::enter(unsigned thread) {
  engine.actors_[thread].body();
  engine.finish();
}

}  // namespace explore
