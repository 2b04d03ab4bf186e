// Sorting 128-bit keys and finding equal ones.
#pragma once

#include <cstdint>

namespace greedynas::paths {

// keys: [n, 2] words, (high, low) as in PathKey; sorted in place, ascending as 128-bit numbers.
void sort_keys(std::uint64_t* keys, std::int64_t n);

// The distinct keys in ascending order and where they are; returns their number u.
// unique: [n, 2], of which u are written. first: [n], of which u are written: the index in `keys` of the first
// occurrence of each. inverse: [n], the place in `unique` of each key of `keys`.
std::int64_t unique_keys(const std::uint64_t* keys, std::int64_t n, std::uint64_t* unique, std::int64_t* first,
                         std::int64_t* inverse);

}  // namespace greedynas::paths
