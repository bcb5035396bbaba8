// What if the bytes change while the core works on them? One thread damages a region under two that use it.
//
// Every check of a shared value must then be made on the copy that is used afterwards: a value read twice, checked
// the first time and trusted the second, is an access out of bounds here. For the address sanitizer; the
// interleaving is the machine's, so a seed gives the same damage and the same calls, not the same run.
// usage: during SECONDS SEED; prints counts. A hang of ten seconds ends with SIGABRT.

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <random>
#include <thread>

#include "actors.hpp"
#include "settle.hpp"

extern "C" const char* __asan_default_options() { return "abort_on_error=1:detect_leaks=0"; }
extern "C" const char* __ubsan_default_options() {
  return "abort_on_error=1:print_stacktrace=1";
}

namespace fuzz {

[[noreturn]] void fail(const char* what, uint64_t first, uint64_t second) {
  std::fprintf(stderr, "FUZZ FAILED: %s (%#llx, %#llx)\n", what,
               static_cast<unsigned long long>(first), static_cast<unsigned long long>(second));
  std::abort();
}

std::atomic<bool> stop{false};
std::atomic<uint64_t> acts[2], strikes{0}, opened{0}, refused{0};
uint64_t acts_before[2];

// Both users must get on: one that does not is stuck in a loop.
void on_tick(int) {
  for (uint32_t i = 0; i < 2; ++i) {
    const uint64_t now = acts[i].load();
    if (now == acts_before[i] && !stop.load()) std::abort();
    acts_before[i] = now;
  }
  alarm(10);
}

class Inputs {
 public:
  explicit Inputs(uint64_t seed) : random_(seed) {}
  Choices next() {
    for (uint8_t& byte : bytes_) byte = static_cast<uint8_t>(random_());
    return {bytes_, sizeof bytes_};
  }

 private:
  std::mt19937_64 random_;
  uint8_t bytes_[256];
};

void use(const Place& place, uint32_t number, uint64_t seed) {
  Inputs inputs(seed * 10 + number);
  while (!stop.load()) {
    Actors actors(place.view(), place, number + 1);
    for (uint32_t i = 0; i < 200 && !stop.load(); ++i) {
      Choices choices = inputs.next();
      actors.act(choices);
      acts[number].fetch_add(1);
    }
    // Somebody else opens it: judged by one copy, so what is accepted fits whatever happens next.
    Geometry geometry{};
    const uint64_t file_bytes = place.geometry().control_bytes;
    if (check(place.view().header(), file_bytes, geometry) != HeaderFault::none) {
      refused.fetch_add(1);
    } else {
      opened.fetch_add(1);
      if (geometry.control_bytes > file_bytes) fail("a region larger than its file", 0, 0);
    }
  }
}

void damage(const Place& place, uint64_t seed) {
  Inputs inputs(seed * 10 + 9);
  const Vandal vandal(place);
  while (!stop.load()) {
    for (uint32_t i = 0; i < 64; ++i) {
      Choices choices = inputs.next();
      vandal.strike(choices);
      strikes.fetch_add(1);
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    Choices choices = inputs.next();
    place.restore(choices.below(Place::states));
  }
}

}  // namespace fuzz

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 2;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const fuzz::Place place;
  place.restore(1);
  std::signal(SIGALRM, fuzz::on_tick);
  alarm(10);
  std::thread first([&] { fuzz::use(place, 0, seed); });
  std::thread second([&] { fuzz::use(place, 1, seed); });
  std::thread vandal([&] { fuzz::damage(place, seed); });
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  fuzz::stop = true;
  vandal.join();
  first.join();
  second.join();
  const pegashm::View view = place.view();
  fuzz::settle(view);
  std::printf("strikes %llu operations %llu opened %llu refused %llu\n",
              static_cast<unsigned long long>(fuzz::strikes),
              static_cast<unsigned long long>(fuzz::acts[0] + fuzz::acts[1]),
              static_cast<unsigned long long>(fuzz::opened),
              static_cast<unsigned long long>(fuzz::refused));
  return 0;
}
