// How do payload bytes move between a file and memory? Batches of runs, by a fixed set of threads.
//
// A transfer is a list of runs (file offset, address, bytes), all read or all written with preadv/pwritev
// straight from and to the addresses given; with a descriptor opened O_DIRECT nothing is copied on the
// way. Neighbours in the file go together in one call, long runs are cut in pieces, and pieces of reads go
// before pieces of writes: somebody waits for what is read. Each run gets an errno of its own; a piece of
// several runs that fails is tried again run by run, so that one bad sector costs one run.
//
// Threads and plain calls, no io_uring: a killed process's calls end before its kernel locks are dropped,
// so who finds the lock free knows that no transfer is under way. A device that hangs holds the threads of
// its own pool and whoever waits for them; waiting_ns() tells others, and close() gives up after a while:
// the threads hold what they use. Called from any thread, by several at once. Knows nothing of regions or
// spill files; the caller vouches for the addresses until its transfer is finished.
#pragma once

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

namespace pegashm {

// One batch. The caller owns it and its arrays, and keeps them until finished.
struct DiskTransfer {
  const uint64_t* offsets = nullptr;
  const uint64_t* addresses = nullptr;
  const uint64_t* bytes = nullptr;
  int32_t* errors =
      nullptr;  // one a run, zeroed by the caller: 0 or the errno of its first failure
  uint64_t count = 0;
  int fd = -1;
  bool write = false;

  // The pool's own, under its mutex.
  uint64_t next_run = 0;
  uint64_t next_byte = 0;  // of that run
  uint64_t in_flight = 0;
  uint64_t started_ns = 0;
  bool finished = true;
  DiskTransfer* before = nullptr;
  DiskTransfer* after = nullptr;

  bool dealt() const noexcept { return next_run == count; }
};

class DiskPool {
 public:
  static constexpr uint32_t threads_max = 64;
  static constexpr uint64_t page_bytes = 4096;

  // Threads that cannot be started are done without; with none, wait() does the work.
  DiskPool(uint32_t threads, uint64_t piece_bytes)
      : shared_(std::make_shared<Shared>()), threads_(0) {
    shared_->piece_bytes = std::max(piece_bytes / page_bytes, uint64_t{1}) * page_bytes;
    for (; threads_ < std::clamp(threads, 1u, threads_max); ++threads_) {
      {
        const std::lock_guard guard(shared_->mutex);
        ++shared_->alive;
      }
      try {
        std::thread([shared = shared_] { serve(*shared); }).detach();
      } catch (...) {
        const std::lock_guard guard(shared_->mutex);
        --shared_->alive;
        break;
      }
    }
  }
  ~DiskPool() { close(0); }
  DiskPool(const DiskPool&) = delete;
  DiskPool& operator=(const DiskPool&) = delete;

  uint32_t threads() const noexcept { return threads_; }

  void start(DiskTransfer& transfer) noexcept {
    uint64_t total = 0;
    for (uint64_t i = 0; i < transfer.count; ++i) total += transfer.bytes[i];
    const std::lock_guard guard(shared_->mutex);
    transfer.next_run = transfer.next_byte = transfer.in_flight = 0;
    skip_empty(transfer);
    transfer.finished = transfer.dealt();
    if (transfer.finished) return;
    transfer.started_ns = now_ns();
    transfer.before = shared_->newest;
    transfer.after = nullptr;
    (shared_->newest ? shared_->newest->after : shared_->oldest) = &transfer;
    shared_->newest = &transfer;
    // Waking a thread costs more than dealing it a piece: only those that sleep, and have something to do.
    const uint64_t pieces = total / shared_->piece_bytes + 1;
    const uint64_t wanted =
        transfer.count > pieces ? std::max(pieces, scattered(transfer)) : pieces;
    for (uint64_t i = 0; i < std::min<uint64_t>(wanted, shared_->asleep); ++i) {
      shared_->work.notify_one();
    }
  }

  // Returns when the transfer is finished. `help`: the caller's thread does pieces of it as well, which saves
  // a small transfer the time to wake another.
  void wait(DiskTransfer& transfer, bool help) noexcept {
    std::unique_lock lock(shared_->mutex);
    Piece piece;
    while ((help || threads_ == 0) && !transfer.finished && !transfer.dealt()) {
      take(*shared_, transfer, piece);
      lock.unlock();
      perform(piece);
      lock.lock();
      settle(*shared_, piece);
    }
    shared_->done.wait(lock, [&] { return transfer.finished; });
  }

  bool finished(const DiskTransfer& transfer) noexcept {
    const std::lock_guard guard(shared_->mutex);
    return transfer.finished;
  }

  // How long the oldest unfinished transfer has been under way; 0 when there is none.
  uint64_t waiting_ns() noexcept {
    const std::lock_guard guard(shared_->mutex);
    return shared_->oldest ? now_ns() - shared_->oldest->started_ns : 0;
  }

  // Tells the threads to end once no work is left. False when some still hang in a call after the given time;
  // they end when it returns.
  bool close(uint64_t patience_ms) noexcept {
    std::unique_lock lock(shared_->mutex);
    shared_->stop = true;
    shared_->work.notify_all();
    return shared_->done.wait_for(lock, std::chrono::milliseconds(patience_ms),
                                  [this] { return shared_->alive == 0; });
  }

 private:
  static constexpr int pieces_runs_max = 64;

  // Runs that lie one behind the other in the file; `first` and `last` may be parts of a long one.
  struct Piece {
    DiskTransfer* transfer = nullptr;
    uint64_t first_run = 0;
    uint64_t offset = 0;
    int count = 0;
    iovec parts[pieces_runs_max];
    int32_t errors[pieces_runs_max];
  };

  struct Shared {
    std::mutex mutex;
    std::condition_variable work;
    std::condition_variable done;
    DiskTransfer* oldest =
        nullptr;  // unfinished transfers, in the order in which they were started
    DiskTransfer* newest = nullptr;
    uint64_t piece_bytes = 0;
    uint32_t alive = 0;
    uint32_t asleep = 0;
    bool stop = false;
  };

  static uint64_t now_ns() noexcept {
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                     std::chrono::steady_clock::now().time_since_epoch())
                                     .count());
  }

  static void skip_empty(DiskTransfer& transfer) noexcept {
    while (!transfer.dealt() && transfer.bytes[transfer.next_run] == 0) ++transfer.next_run;
  }

  // Places in the file that no neighbour leads to: each is a piece of its own.
  static uint64_t scattered(const DiskTransfer& transfer) noexcept {
    uint64_t places = 1;
    for (uint64_t i = 1; i < transfer.count; ++i) {
      places += transfer.offsets[i] != transfer.offsets[i - 1] + transfer.bytes[i - 1];
    }
    return places;
  }

  static void serve(Shared& shared) noexcept {
    Piece piece;
    std::unique_lock lock(shared.mutex);
    for (;;) {
      DiskTransfer* transfer = next_in_line(shared);
      if (transfer) {
        take(shared, *transfer, piece);
        lock.unlock();
        perform(piece);
        lock.lock();
        settle(shared, piece);
      } else if (shared.stop) {
        break;
      } else {
        ++shared.asleep;
        shared.work.wait(lock);
        --shared.asleep;
      }
    }
    --shared.alive;
    shared.done.notify_all();
  }

  static DiskTransfer* next_in_line(const Shared& shared) noexcept {
    DiskTransfer* write = nullptr;
    for (DiskTransfer* each = shared.oldest; each; each = each->after) {
      if (each->dealt()) continue;
      if (!each->write) return each;
      if (!write) write = each;
    }
    return write;
  }

  static void take(const Shared& shared, DiskTransfer& transfer, Piece& piece) noexcept {
    piece.transfer = &transfer;
    piece.first_run = transfer.next_run;
    piece.offset = transfer.offsets[transfer.next_run] + transfer.next_byte;
    piece.count = 0;
    uint64_t total = 0;
    // A run that is long is dealt in pieces; short neighbours are gathered while they fit whole.
    while (!transfer.dealt() && piece.count < pieces_runs_max) {
      const uint64_t run = transfer.next_run;
      const uint64_t left = transfer.bytes[run] - transfer.next_byte;
      const bool neighbour = run == piece.first_run + static_cast<uint64_t>(piece.count) &&
                             transfer.offsets[run] + transfer.next_byte == piece.offset + total;
      if (piece.count != 0 && (!neighbour || total + left > shared.piece_bytes)) break;
      const uint64_t bytes = std::min(left, shared.piece_bytes);
      auto* const address = reinterpret_cast<uint8_t*>(transfer.addresses[run]);
      piece.parts[piece.count] = {address + transfer.next_byte, bytes};
      piece.errors[piece.count++] = 0;
      total += bytes;
      if (bytes < left) {
        transfer.next_byte += bytes;
        break;
      }
      transfer.next_byte = 0;
      ++transfer.next_run;
      skip_empty(transfer);
    }
    ++transfer.in_flight;
  }

  static void perform(Piece& piece) noexcept {
    const DiskTransfer& transfer = *piece.transfer;
    iovec parts[pieces_runs_max];
    std::copy_n(piece.parts, piece.count, parts);
    const int32_t error =
        move(transfer.fd, transfer.write, piece.offset, parts, parts + piece.count);
    if (error == 0) return;
    if (piece.count == 1) {
      piece.errors[0] = error;
      return;
    }
    uint64_t offset = piece.offset;
    for (int i = 0; i < piece.count; ++i) {
      iovec part = piece.parts[i];
      piece.errors[i] = move(transfer.fd, transfer.write, offset, &part, &part + 1);
      offset += piece.parts[i].iov_len;
    }
  }

  // All bytes of [part, end), or an errno. A call that moves nothing (end of the file) is EIO, so this ends.
  static int32_t move(int fd, bool write, uint64_t offset, iovec* part, iovec* end) noexcept {
    while (part != end) {
      const int count = static_cast<int>(end - part);
      const auto at = static_cast<off_t>(offset);
      const ssize_t moved = write ? pwritev(fd, part, count, at) : preadv(fd, part, count, at);
      if (moved < 0 && errno == EINTR) continue;
      if (moved < 0) return errno;
      if (moved == 0) return EIO;
      uint64_t left = static_cast<uint64_t>(moved);
      offset += left;
      while (part != end && left >= part->iov_len) left -= (part++)->iov_len;
      if (left) {
        part->iov_base = static_cast<uint8_t*>(part->iov_base) + left;
        part->iov_len -= left;
      }
    }
    return 0;
  }

  static void settle(Shared& shared, const Piece& piece) noexcept {
    DiskTransfer& transfer = *piece.transfer;
    for (int i = 0; i < piece.count; ++i) {
      int32_t& error = transfer.errors[piece.first_run + static_cast<uint64_t>(i)];
      if (error == 0) error = piece.errors[i];
    }
    --transfer.in_flight;
    if (!transfer.dealt() || transfer.in_flight) return;
    (transfer.before ? transfer.before->after : shared.oldest) = transfer.after;
    (transfer.after ? transfer.after->before : shared.newest) = transfer.before;
    transfer.finished = true;
    shared.done.notify_all();
  }

  std::shared_ptr<Shared> shared_;
  uint32_t threads_;
};

}  // namespace pegashm
