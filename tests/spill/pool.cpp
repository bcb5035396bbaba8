// Does DiskPool move every byte to its place, with several callers at once, under a sanitizer? `pool SECONDS SEED FILE`.
//
// Each caller owns a part of the file and of memory. It writes runs of random sizes, some neighbours, some empty, some beyond
// any piece, reads them back elsewhere and compares; now and then through a descriptor that fails, where every
// run must say so. Transfers are started several at a time, waited for helping or not; pools come and go meanwhile.
#include <fcntl.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "disk.hpp"

using namespace pegashm;

namespace {

constexpr uint64_t page = 4096, pages_each = 512;

struct Batch {
  std::vector<uint64_t> offsets, addresses, bytes;
  std::vector<int32_t> errors;
  DiskTransfer transfer;

  void fill(int fd, bool write) {
    errors.assign(offsets.size(), 0);
    transfer.offsets = offsets.data();
    transfer.addresses = addresses.data();
    transfer.bytes = bytes.data();
    transfer.errors = errors.data();
    transfer.count = offsets.size();
    transfer.fd = fd;
    transfer.write = write;
  }
};

void fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

void caller(DiskPool& pool, int fd, int broken, uint64_t number, uint64_t seed,
            const std::atomic<bool>& stop, std::atomic<uint64_t>& rounds) {
  std::mt19937_64 chance(seed + number);
  const uint64_t start = number * pages_each * page;
  std::vector<uint8_t> from(pages_each * page), to(pages_each * page);
  while (!stop.load()) {
    for (auto& byte : from) byte = static_cast<uint8_t>(chance());
    std::memset(to.data(), 0, to.size());
    Batch writes[2], reads[2];
    uint64_t at = 0;
    for (int half = 0; half < 2; ++half) {
      while (at < pages_each / 2 * static_cast<uint64_t>(half + 1)) {
        const uint64_t left = pages_each / 2 * static_cast<uint64_t>(half + 1) - at;
        const uint64_t count = std::min<uint64_t>(left, chance() % 4 ? chance() % 4 : 90);
        writes[half].offsets.push_back(start + at * page);
        writes[half].addresses.push_back(reinterpret_cast<uint64_t>(from.data() + at * page));
        writes[half].bytes.push_back(count * page);
        at += count;
      }
      reads[half].offsets = writes[half].offsets;
      reads[half].bytes = writes[half].bytes;
      for (const uint64_t address : writes[half].addresses) {
        reads[half].addresses.push_back(address - reinterpret_cast<uint64_t>(from.data()) +
                                        reinterpret_cast<uint64_t>(to.data()));
      }
    }
    for (auto* both : {writes, reads}) {
      for (int half = 0; half < 2; ++half) {
        both[half].fill(fd, both == writes);
        pool.start(both[half].transfer);
      }
      for (int half = 0; half < 2; ++half) {
        pool.wait(both[half].transfer, chance() % 2);
        if (!pool.finished(both[half].transfer)) fail("waited for, and not finished");
        for (const int32_t error : both[half].errors)
          if (error) fail("an error where there is none");
      }
    }
    if (from != to) fail("other bytes than were written");
    reads[0].fill(broken, false);
    pool.start(reads[0].transfer);
    pool.wait(reads[0].transfer, chance() % 2);
    for (size_t i = 0; i < reads[0].bytes.size(); ++i)
      if ((reads[0].errors[i] != 0) != (reads[0].bytes[i] != 0)) fail("a failure that was not told");
    ++rounds;
  }
}

}  // namespace

int main(int, char** argv) {
  const int fd = open(argv[3], O_RDWR | O_CREAT, 0600);
  const int broken = open(argv[3], O_WRONLY);
  const uint64_t seed = std::strtoull(argv[2], nullptr, 10);
  std::atomic<uint64_t> rounds{0};
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(argv[1]));
  for (uint64_t life = 0; std::chrono::steady_clock::now() < end; ++life) {
    DiskPool pool(1 + static_cast<uint32_t>(life % 4), page << life % 5);
    std::atomic<bool> stop{false};
    std::vector<std::thread> callers;
    for (uint64_t n = 0; n < 3; ++n) {
      callers.emplace_back([&, n] { caller(pool, fd, broken, n, seed + life * 10, stop, rounds); });
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(400));
    stop = true;
    for (auto& each : callers) each.join();
    if (pool.waiting_ns()) fail("work left");
    if (!pool.close(20000)) fail("threads left");
  }
  std::printf("%llu rounds\n", static_cast<unsigned long long>(rounds.load()));
}
