// Can any bytes in a region crash, hang or lead astray the core? One run: a state, damage, work, repair.
//
// LLVMFuzzerTestOneInput is a run. Compiled with -fsanitize=fuzzer (clang) that library feeds it, guided by
// coverage; compiled without (-DPEGASHM_FUZZ_MAIN, any compiler) the loop below does, with inputs from a seed:
//
//   fuzz SEED COUNT       that many inputs; prints figures; the same again for the same two numbers
//   fuzz --replay FILE    one input again, as saved by either engine
//   fuzz --minimise FILE  make it smaller while it still fails; written to FILE.min
//
// What fails is saved as fuzz-crash-SEED-NUMBER in the current directory before the process dies. A run that
// takes ten seconds is a hang: it ends with SIGABRT, saved likewise.

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <random>
#include <string>

#include "actors.hpp"
#include "settle.hpp"

namespace fuzz {

struct Figures {
  uint64_t regions = 0, refused = 0, acts = 0, settled = 0;
};
Figures figures;

[[noreturn]] void fail(const char* what, uint64_t first, uint64_t second) {
  std::fprintf(stderr, "FUZZ FAILED: %s (%#llx, %#llx)\n", what,
               static_cast<unsigned long long>(first), static_cast<unsigned long long>(second));
  std::abort();
}

// As Region.__init__ judges: the header, then the sizes of the payload files.
bool open(const Place& place, View& view) {
  Geometry geometry{};
  const View raw = place.view();
  if (check(raw.header(), place.geometry().control_bytes, geometry) != HeaderFault::none) return false;
  if (geometry.payload_bytes > place.geometry().payload_bytes) return false;
  if (geometry.control_bytes > place.geometry().control_bytes) fail("a region larger than its file", 0, 0);
  view = {raw.control, raw.payload, geometry};
  if (std::memcmp(&geometry, &place.geometry(), sizeof geometry) != 0) place.loosen();
  return true;
}

void run(const uint8_t* data, size_t size) {
  static const Place place;
  Choices choices(data, size);
  ++figures.regions;
  place.restore(choices.below(Place::states));
  const Vandal vandal(place);
  const uint32_t strikes = choices.below(8);
  for (uint32_t i = 0; i < strikes; ++i) vandal.strike(choices);
  View view;
  if (!open(place, view)) {
    ++figures.refused;
    return;
  }
  uint8_t written_once[offsetof(Header, segments_ready)];
  std::memcpy(written_once, view.control, sizeof written_once);
  {
    Actors actors(view, place, 0);
    for (uint32_t i = 0; i < 24 && choices.left(); ++i) {
      actors.act(choices);
      ++figures.acts;
    }
  }
  if (std::memcmp(written_once, view.control, sizeof written_once) != 0) {
    fail("what the creator wrote has changed", 0, 0);
  }
  settle(view);
  ++figures.settled;
}

}  // namespace fuzz

// The figures, at the end of a run of whichever engine.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  return std::atexit([] {
    std::printf("regions %llu refused %llu operations %llu repaired %llu\n",
                static_cast<unsigned long long>(fuzz::figures.regions),
                static_cast<unsigned long long>(fuzz::figures.refused),
                static_cast<unsigned long long>(fuzz::figures.acts),
                static_cast<unsigned long long>(fuzz::figures.settled));
  });
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::run(data, size);
  return 0;
}

#ifdef PEGASHM_FUZZ_MAIN

// A finding of either sanitizer ends in SIGABRT, so that one handler saves every failing input.
extern "C" const char* __asan_default_options() { return "abort_on_error=1:detect_leaks=0"; }
extern "C" const char* __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }

namespace {

constexpr size_t input_bytes_max = 320;
uint8_t input[input_bytes_max];
size_t input_size = 0;
unsigned long long seed = 0;
volatile unsigned long long number = 0;
bool saved = false;

// Called while dying: nothing that allocates.
void save() {
  if (saved) return;
  saved = true;
  char path[96], line[300];
  std::snprintf(path, sizeof path, "fuzz-crash-%llu-%llu", seed, static_cast<unsigned long long>(number));
  if (FILE* const file = std::fopen(path, "wb")) {
    std::fwrite(input, 1, input_size, file);
    std::fclose(file);
  }
  const int length = std::snprintf(
      line, sizeof line,
      "input %llu of seed %llu failed, saved as %s: `fuzz --replay %s` does it again, `fuzz --minimise %s` makes it smaller\n",
      static_cast<unsigned long long>(number), seed, path, path, path);
  if (write(2, line, static_cast<size_t>(length)) < 0) return;
}
void on_abort(int) {
  save();
  std::signal(SIGABRT, SIG_DFL);
  std::abort();
}
void on_tick(int) {
  static unsigned long long before = ~0ull;
  if (before == number) {
    static const char text[] = "FUZZ FAILED: hang\n";
    if (write(2, text, sizeof text - 1) >= 0) on_abort(0);
  }
  before = number;
  alarm(10);
}

void loop(unsigned long long count) {
  std::signal(SIGABRT, on_abort);
  std::signal(SIGALRM, on_tick);
  alarm(10);
  std::printf("seed %llu\n", seed);
  LLVMFuzzerInitialize(nullptr, nullptr);
  for (unsigned long long i = 0; i < count; ++i) {
    number = i;
    std::mt19937_64 random(seed << 32 ^ i);  // an input depends on nothing before it
    input_size = 32 + random() % (input_bytes_max - 32);
    for (size_t at = 0; at < input_size; ++at) input[at] = static_cast<uint8_t>(random());
    LLVMFuzzerTestOneInput(input, input_size);
  }
}

std::string read_file(const char* path) {
  std::string bytes;
  FILE* const file = std::fopen(path, "rb");
  if (file == nullptr) {
    std::perror(path);
    std::exit(2);
  }
  for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) bytes += static_cast<char>(c);
  std::fclose(file);
  return bytes;
}
int replay(const std::string& bytes) {
  return LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
}
bool fails(const std::string& bytes) {
  const pid_t child = fork();
  if (child == 0) {
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(0);
    alarm(20);
    replay(bytes);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status != 0;
}
int minimise(const char* path) {
  std::string bytes = read_file(path);
  if (!fails(bytes)) {
    std::printf("%s does not fail\n", path);
    return 2;
  }
  for (bool smaller = true; smaller;) {
    smaller = false;
    for (size_t size = bytes.size(); size != 0; size /= 2) {
      for (size_t at = 0; at + size <= bytes.size();) {
        std::string shorter = bytes, zeroed = bytes;
        shorter.erase(at, size);
        zeroed.replace(at, size, std::string(size, '\0'));
        if (fails(shorter)) {
          bytes = shorter;
          smaller = true;
        } else {
          if (zeroed != bytes && fails(zeroed)) bytes = zeroed, smaller = true;
          at += size;
        }
      }
    }
  }
  const std::string target = std::string(path) + ".min";
  FILE* const file = std::fopen(target.c_str(), "wb");
  std::fwrite(bytes.data(), 1, bytes.size(), file);
  std::fclose(file);
  std::printf("%zu bytes: %s\n", bytes.size(), target.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc == 3 ? argv[1] : "";
  if (what == "--replay") return replay(read_file(argv[2]));
  if (what == "--minimise") return minimise(argv[2]);
  if (argc != 3) {
    std::fprintf(stderr, "usage: fuzz SEED COUNT | --replay FILE | --minimise FILE\n");
    return 2;
  }
  seed = std::strtoull(argv[1], nullptr, 10);
  loop(std::strtoull(argv[2], nullptr, 10));
  return 0;
}

#endif
