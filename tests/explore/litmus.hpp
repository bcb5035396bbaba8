// Is the memory model the one it claims to be? The classic small programs, each with the exact set of
// outcomes that C++20 (RC11) allows: an outcome too many is a false alarm, one too few a bug that hides.
//
// x and y are words 0 and 1. Each is explored with both reductions and without any; all three agree.
#pragma once

#include <set>

#include "world.hpp"

namespace explore {

struct Litmus {
  const char* name;
  std::vector<std::function<void()>> threads;
  std::set<std::string> allowed;
  const char* why;
};

inline int64_t seen_values[threads_max][2];  // -1: that thread looks at less
inline uint64_t& X() { return world.extra[0]; }
inline uint64_t& Y() { return world.extra[1]; }
inline void saw(uint32_t thread, uint32_t which, uint64_t value) {
  seen_values[thread][which] = static_cast<int64_t>(value);
  engine.keep(value);
}

// What the threads saw, digits of one thread together; what is left at the end when none looked.
inline std::string told() {
  std::string text;
  for (const auto& thread : seen_values) {
    std::string digits;
    for (const int64_t value : thread) digits += value < 0 ? "" : std::to_string(value);
    if (!digits.empty()) text += (text.empty() ? "" : " ") + digits;
  }
  return text.empty()
             ? "final " + std::to_string(load_relaxed(X())) + std::to_string(load_relaxed(Y()))
             : text;
}

inline std::vector<Litmus> all_litmus() {
  return {
      {"SB rel/acq",
       {[] {
          store_release(X(), 1);
          saw(0, 0, load_acquire(Y()));
        },
        [] {
          store_release(Y(), 1);
          saw(1, 0, load_acquire(X()));
        }},
       {"0 0", "0 1", "1 0", "1 1"},
       "store buffering: both may miss the other; why pin/evict needs seq_cst"},
      {"SB seq rmw/load",
       {[] {
          or_seq(X(), 1);
          saw(0, 0, load_seq(Y()));
        },
        [] {
          or_seq(Y(), 1);
          saw(1, 0, load_seq(X()));
        }},
       {"0 1", "1 0", "1 1"},
       "the handshake of pins.hpp: one sees the other"},
      {"SB seq rmw/acq",
       {[] {
          or_seq(X(), 1);
          saw(0, 0, load_acquire(Y()));
        },
        [] {
          or_seq(Y(), 1);
          saw(1, 0, load_seq(X()));
        }},
       {"0 0", "0 1", "1 0", "1 1"},
       "seq_cst on three of four accesses is not enough"},
      {"MP rel/acq",
       {[] {
          store_relaxed(X(), 1);
          store_release(Y(), 1);
        },
        [] {
          saw(1, 0, load_acquire(Y()));
          saw(1, 1, load_relaxed(X()));
        }},
       {"00", "01", "11"},
       "message passing: no new flag with old data"},
      {"MP rlx",
       {[] {
          store_relaxed(X(), 1);
          store_relaxed(Y(), 1);
        },
        [] {
          saw(1, 0, load_acquire(Y()));
          saw(1, 1, load_relaxed(X()));
        }},
       {"00", "01", "10", "11"},
       "nothing released, nothing acquired"},
      {"CoRR",
       {[] {
          store_relaxed(X(), 1);
          store_relaxed(X(), 2);
        },
        [] {
          saw(1, 0, load_relaxed(X()));
          saw(1, 1, load_relaxed(X()));
        }},
       {"00", "01", "02", "11", "12", "22"},
       "one word is never read backwards"},
      {"2+2W rel",
       {[] {
          store_release(X(), 1);
          store_release(Y(), 2);
        },
        [] {
          store_release(Y(), 1);
          store_release(X(), 2);
        }},
       {"final 11", "final 12", "final 21", "final 22"},
       "final 11: both first stores come last; C++20 allows it, hardware we know does not"},
      {"IRIW acq",
       {[] { store_release(X(), 1); }, [] { store_release(Y(), 1); },
        [] {
          saw(2, 0, load_acquire(X()));
          saw(2, 1, load_acquire(Y()));
        },
        [] {
          saw(3, 0, load_acquire(Y()));
          saw(3, 1, load_acquire(X()));
        }},
       {"00 00", "00 01", "00 10", "00 11", "01 00", "01 01", "01 10", "01 11", "10 00", "10 01",
        "10 10", "10 11", "11 00", "11 01", "11 10", "11 11"},
       "two readers may disagree on the order of two writers"},
      {"IRIW seq",
       {[] { or_seq(X(), 1); }, [] { or_seq(Y(), 1); },
        [] {
          saw(2, 0, load_seq(X()));
          saw(2, 1, load_seq(Y()));
        },
        [] {
          saw(3, 0, load_seq(Y()));
          saw(3, 1, load_seq(X()));
        }},
       {"00 00", "00 01", "00 10", "00 11", "01 00", "01 01", "01 10", "01 11", "10 00", "10 01",
        "10 11", "11 00", "11 01", "11 10", "11 11"},
       "with seq_cst they agree: all but 10 10"},
      {"release sequence",
       {[] {
          store_relaxed(X(), 1);
          store_release(Y(), 1);
        },
        [] { add_relaxed(Y(), 1); },
        [] {
          saw(2, 0, load_acquire(Y()));
          saw(2, 1, load_relaxed(X()));
        }},
       {"00", "01", "10", "11", "21"},
       "1 then 0: the add came first; 2 then 0 is impossible, the add carries the release on"},
      {"LB rlx",
       {[] {
          saw(0, 0, load_relaxed(X()));
          store_relaxed(Y(), 1);
        },
        [] {
          saw(1, 0, load_relaxed(Y()));
          store_relaxed(X(), 1);
        }},
       {"0 0", "0 1", "1 0"},
       "KNOWN GAP: C++20 allows 1 1 for relaxed accesses; no load sees a later store here"},
      {"MP cas",
       {[] {
          store_relaxed(X(), 1);
          store_release(Y(), 1);
        },
        [] {
          saw(1, 0, load_acquire(Y()));
          saw(1, 1, cas_seq(X(), 1, 2) ? 1 : 0);
        }},
       {"00", "01", "11"},
       "a compare-exchange may fail on an old value, but not on one older than what was acquired"},
      {"rmw is atomic",
       {[] { saw(0, 0, add_relaxed(X(), 1)); }, [] { saw(1, 0, add_relaxed(X(), 1)); }},
       {"0 1", "1 0"},
       "no two read-modify-writes read one message"},
  };
}

}  // namespace explore
