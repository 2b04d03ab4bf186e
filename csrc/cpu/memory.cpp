#include "cpu/memory.h"

#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

namespace greedynas::cpu {
namespace {

constexpr std::int64_t kLine = 64;
constexpr std::int64_t kLarge = std::int64_t{64} << 10;  // smaller ones are left to malloc, which keeps them itself

// An array's size stands before it, on a line of its own.
std::int64_t& bytes_of(void* memory) { return *reinterpret_cast<std::int64_t*>(static_cast<char*>(memory) - kLine); }

void* allocate(std::int64_t bytes) {
  const auto whole = static_cast<std::size_t>(kLine + bytes);
  void* const memory = static_cast<char*>(::operator new(whole, std::align_val_t{kLine})) + kLine;
  bytes_of(memory) = bytes;
  return memory;
}

void free_array(void* memory) noexcept {
  ::operator delete(static_cast<char*>(memory) - kLine, std::align_val_t{kLine});
}

// Arrays kept and taken together are at most twice the most that was taken at one time, and half of an array may be
// left unused: with tighter bounds steps drop arrays that they need again, also where all steps are equal (measured
// with 1.5 instead of 2).
class Pool {
 public:
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

  void* take(std::int64_t bytes) {
    const std::lock_guard lock(mutex_);
    void* memory = kept_that_fits(bytes);
    if (memory == nullptr) memory = make(bytes);
    use_.taken += bytes_of(memory);
    most_taken_ = std::max(most_taken_, use_.taken);
    return memory;
  }

  void give_back(void* memory) noexcept {
    const std::lock_guard lock(mutex_);
    use_.taken -= bytes_of(memory);
    use_.kept += bytes_of(memory);
    kept_.push_back(memory);  // there is room: see make
  }

  void release() {
    const std::lock_guard lock(mutex_);
    keep_at_most(0);
    most_taken_ = use_.taken;
  }

  MemoryUse use() {
    const std::lock_guard lock(mutex_);
    return use_;
  }

 private:
  // The smallest one.
  void* kept_that_fits(std::int64_t bytes) {
    auto best = kept_.end();
    for (auto i = kept_.begin(); i != kept_.end(); ++i) {
      const std::int64_t found = bytes_of(*i);
      if (found >= bytes && found <= 2 * bytes && (best == kept_.end() || found < bytes_of(*best))) best = i;
    }
    if (best == kept_.end()) return nullptr;
    void* const memory = *best;
    kept_.erase(best);
    use_.kept -= bytes_of(memory);
    return memory;
  }

  void* make(std::int64_t bytes) {
    keep_at_most(2 * most_taken_ - use_.taken - bytes);
    kept_.reserve(arrays_ + 1);
    void* memory = nullptr;
    try {
      memory = allocate(bytes);
    } catch (const std::bad_alloc&) {
      if (kept_.empty()) throw;
      keep_at_most(0);
      memory = allocate(bytes);
    }
    ++arrays_;
    return memory;
  }

  void keep_at_most(std::int64_t bytes) {
    auto first = kept_.begin();
    for (; first != kept_.end() && use_.kept > bytes; ++first) {
      use_.kept -= bytes_of(*first);
      free_array(*first);
      --arrays_;
    }
    kept_.erase(kept_.begin(), first);
  }

  std::mutex mutex_;
  std::vector<void*> kept_;  // those given back first come first
  std::size_t arrays_ = 0;   // kept and taken
  MemoryUse use_{0, 0};
  std::int64_t most_taken_ = 0;
};

Pool& pool();

// A child must not inherit a lock that nobody opens.
Pool* make_pool() {
  pthread_atfork([] { pool().lock(); }, [] { pool().unlock(); }, [] { pool().unlock(); });
  return new Pool;
}

// Never destroyed: arrays may be given back while the process ends.
Pool& pool() {
  static Pool* const pool = make_pool();
  return *pool;
}

}  // namespace

void* take_memory(std::int64_t bytes) { return bytes < kLarge ? allocate(bytes) : pool().take(bytes); }

void give_back_memory(void* memory) noexcept {
  if (bytes_of(memory) < kLarge) {
    free_array(memory);
  } else {
    pool().give_back(memory);
  }
}

MemoryUse memory_use() { return pool().use(); }

void release_memory() { pool().release(); }

}  // namespace greedynas::cpu
