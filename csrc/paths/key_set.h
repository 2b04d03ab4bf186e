// A set of 128-bit keys: open addressing with linear probing, at most half full.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
#include <vector>

#include "paths/key.h"

namespace greedynas::paths {

// Every member function locks the set, so threads may share one; a batch is one step to the others.
class KeySet {
 public:
  // keys: [n, 2] words, (high, low). fresh: [n], 1 where the key was not in the set nor earlier in the batch, else 0.
  // Returns the number of fresh ones. If memory runs out (std::bad_alloc), a part of the batch may have been taken in.
  std::int64_t insert(const std::uint64_t* keys, std::int64_t n, std::uint8_t* fresh);
  // Whether the key was not in the set.
  bool insert(PathKey key);

  // found: [n], 1 where the key is in the set, else 0.
  void contains(const std::uint64_t* keys, std::int64_t n, std::uint8_t* found) const;
  bool contains(PathKey key) const;

  std::int64_t size() const;

  // All keys in ascending order as (high, low) words, [size, 2]; returns the size. Nothing is written if there are more
  // than `capacity`, as when another thread added some after the caller asked for the size.
  std::int64_t export_keys(std::uint64_t* out, std::int64_t capacity = std::numeric_limits<std::int64_t>::max()) const;

 private:
  std::size_t place_of(PathKey key, std::uint64_t hash_of_key) const;
  bool take(PathKey key, std::uint64_t hash_of_key);
  void grow_for(std::size_t more);
  std::int64_t size_unlocked() const;

  mutable std::mutex mutex_;
  std::vector<PathKey> slots_ = std::vector<PathKey>(kSmallest);  // a power of two of them
  std::size_t used_ = 0;                                          // slots
  bool holds_zero_ = false;  // zero marks a free slot, so whether it is in the set is kept here

  static constexpr std::size_t kSmallest = 64;
};

}  // namespace greedynas::paths
