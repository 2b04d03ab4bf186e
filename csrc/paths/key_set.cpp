#include "paths/key_set.h"

#include <algorithm>
#include <array>
#include <utility>

#include "paths/sort.h"

namespace greedynas::paths {
namespace {

constexpr PathKey kFree{};
// Keys whose slots are asked for from memory before the first of them is looked at.
constexpr std::int64_t kAhead = 16;

template <typename Visit>
void visit_ahead(const std::uint64_t* keys, std::int64_t n, const std::vector<PathKey>& slots, std::int64_t begin,
                 const Visit& visit) {
  std::array<std::uint64_t, kAhead> hashes;
  const std::int64_t end = std::min(begin + kAhead, n);
  for (std::int64_t i = begin; i < end; ++i) {
    const std::uint64_t h = hash(PathKey{keys[2 * i], keys[2 * i + 1]});
    hashes[static_cast<std::size_t>(i - begin)] = h;
    __builtin_prefetch(&slots[h & (slots.size() - 1)]);
  }
  for (std::int64_t i = begin; i < end; ++i) {
    visit(i, PathKey{keys[2 * i], keys[2 * i + 1]}, hashes[static_cast<std::size_t>(i - begin)]);
  }
}

}  // namespace

// The slot of a key, or the free one where it would stand.
std::size_t KeySet::place_of(PathKey key, std::uint64_t hash_of_key) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t place = static_cast<std::size_t>(hash_of_key) & mask;
  while (slots_[place] != kFree && slots_[place] != key) place = (place + 1) & mask;
  return place;
}

// Needs room for one more.
bool KeySet::take(PathKey key, std::uint64_t hash_of_key) {
  if (key == kFree) return !std::exchange(holds_zero_, true);
  PathKey& slot = slots_[place_of(key, hash_of_key)];
  if (slot == key) return false;
  slot = key;
  ++used_;
  return true;
}

void KeySet::grow_for(std::size_t more) {
  std::size_t capacity = slots_.size();
  while (2 * (used_ + more) > capacity) capacity *= 2;
  if (capacity == slots_.size()) return;
  std::vector<PathKey> old(capacity);
  old.swap(slots_);
  for (const PathKey key : old) {
    if (key != kFree) slots_[place_of(key, hash(key))] = key;
  }
}

std::int64_t KeySet::size_unlocked() const { return static_cast<std::int64_t>(used_) + (holds_zero_ ? 1 : 0); }

std::int64_t KeySet::insert(const std::uint64_t* keys, std::int64_t n, std::uint8_t* fresh) {
  const std::lock_guard lock(mutex_);
  std::int64_t count = 0;
  for (std::int64_t begin = 0; begin < n; begin += kAhead) {
    grow_for(kAhead);
    visit_ahead(keys, n, slots_, begin, [&](std::int64_t i, PathKey key, std::uint64_t h) {
      const bool taken = take(key, h);
      fresh[i] = taken;
      count += taken;
    });
  }
  return count;
}

bool KeySet::insert(PathKey key) {
  const std::lock_guard lock(mutex_);
  grow_for(1);
  return take(key, hash(key));
}

void KeySet::contains(const std::uint64_t* keys, std::int64_t n, std::uint8_t* found) const {
  const std::lock_guard lock(mutex_);
  for (std::int64_t begin = 0; begin < n; begin += kAhead) {
    visit_ahead(keys, n, slots_, begin, [&](std::int64_t i, PathKey key, std::uint64_t h) {
      found[i] = key == kFree ? holds_zero_ : slots_[place_of(key, h)] == key;
    });
  }
}

bool KeySet::contains(PathKey key) const {
  const std::lock_guard lock(mutex_);
  return key == kFree ? holds_zero_ : slots_[place_of(key, hash(key))] == key;
}

std::int64_t KeySet::size() const {
  const std::lock_guard lock(mutex_);
  return size_unlocked();
}

std::int64_t KeySet::export_keys(std::uint64_t* out, std::int64_t capacity) const {
  std::int64_t count = 0;
  {
    const std::lock_guard lock(mutex_);
    if (size_unlocked() > capacity) return size_unlocked();
    const auto put = [&](PathKey key) {
      out[2 * count] = key.high;
      out[2 * count + 1] = key.low;
      ++count;
    };
    if (holds_zero_) put(kFree);
    for (const PathKey key : slots_) {
      if (key != kFree) put(key);
    }
  }
  sort_keys(out, count);
  return count;
}

}  // namespace greedynas::paths
