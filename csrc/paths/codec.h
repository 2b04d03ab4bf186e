// Batched packing of paths into 128-bit keys and back, with the instruction set of cpu/isa.h, large batches on several
// threads. Nothing outside the arrays is read or written.
#pragma once

#include <cstdint>

namespace greedynas::paths {

// paths: [n, layers] operation indices, row-major. keys: [n, 2] words, (high, low) as in PathKey.
// Throws std::invalid_argument naming the first path and layer whose index does not fit in 5 bits, or a number of
// layers outside 1..kMaxLayers; `keys` may then be partly written.
void pack(const std::uint8_t* paths, std::int64_t n, int layers, std::uint64_t* keys);

// The inverse. Throws std::invalid_argument for a number of layers outside 1..kMaxLayers, and for a key whose bits
// below the last layer are not zero: it was packed from longer paths; `paths` may then be partly written.
void unpack(const std::uint64_t* keys, std::int64_t n, int layers, std::uint8_t* paths);

}  // namespace greedynas::paths
