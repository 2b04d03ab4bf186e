#include "paths/sort.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "paths/key.h"

namespace greedynas::paths {
namespace {

struct Entry {
  PathKey key;
  std::int64_t index = 0;

  friend constexpr auto operator<=>(const Entry&, const Entry&) = default;
};

const PathKey& key_of(const PathKey& key) { return key; }
const PathKey& key_of(const Entry& entry) { return entry.key; }

unsigned digit(const PathKey& key, int number) {
  return static_cast<unsigned>((number < 8 ? key.high >> (56 - 8 * number) : key.low >> (120 - 8 * number)) & 255);
}

// Sorts begin .. end, whose digits before `number` are all equal, by distribution over 256 buckets from the most
// significant digit down; std::sort where few are left. `spare` has room for end - begin. Paths of 13 operations leave
// about a sixtieth in a bucket, so a million takes three rounds.
template <typename T>
void sort_by_digits(T* begin, T* end, T* spare, int number) {
  constexpr std::ptrdiff_t kFew = 512;
  std::array<std::ptrdiff_t, 257> start{};
  for (;; ++number) {
    if (end - begin <= kFew || number == 16) {
      std::sort(begin, end);
      return;
    }
    start.fill(0);
    for (const T* item = begin; item != end; ++item) ++start[digit(key_of(*item), number) + 1];
    if (start[digit(key_of(*begin), number) + 1] != end - begin) break;  // else the digit tells nothing
  }
  for (std::size_t bucket = 1; bucket < start.size(); ++bucket) start[bucket] += start[bucket - 1];
  std::array<std::ptrdiff_t, 257> next = start;
  for (const T* item = begin; item != end; ++item) spare[next[digit(key_of(*item), number)]++] = *item;
  std::copy(spare, spare + (end - begin), begin);
  for (std::size_t bucket = 0; bucket < 256; ++bucket) {
    sort_by_digits(begin + start[bucket], begin + start[bucket + 1], spare, number + 1);
  }
}

template <typename T>
void sort_all(std::vector<T>& items) {
  std::vector<T> spare(items.size());
  sort_by_digits(items.data(), items.data() + items.size(), spare.data(), 0);
}

}  // namespace

void sort_keys(std::uint64_t* keys, std::int64_t n) {
  std::vector<PathKey> items(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < items.size(); ++i) items[i] = {keys[2 * i], keys[2 * i + 1]};
  sort_all(items);
  for (std::size_t i = 0; i < items.size(); ++i) {
    keys[2 * i] = items[i].high;
    keys[2 * i + 1] = items[i].low;
  }
}

std::int64_t unique_keys(const std::uint64_t* keys, std::int64_t n, std::uint64_t* unique, std::int64_t* first,
                         std::int64_t* inverse) {
  std::vector<Entry> entries(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) {
    entries[static_cast<std::size_t>(i)] = {{keys[2 * i], keys[2 * i + 1]}, i};
  }
  sort_all(entries);
  std::int64_t count = 0;
  const Entry* last = nullptr;
  for (const Entry& entry : entries) {  // equal keys stand in the order of their index
    if (last == nullptr || entry.key != last->key) {
      unique[2 * count] = entry.key.high;
      unique[2 * count + 1] = entry.key.low;
      first[count++] = entry.index;
    }
    inverse[entry.index] = count - 1;
    last = &entry;
  }
  return count;
}

}  // namespace greedynas::paths
