// Uniform paths over the allowed operations of each layer, each a pure function of (seed, stream, mask, index).
#pragma once

#include <cstdint>
#include <vector>

#include "paths/propose_one.h"

namespace greedynas::paths {

// The allowed operations of each layer; throws as `propose` does.
std::vector<Choices> choices_of(const std::uint8_t* allowed, int layers, int max_operations);

// allowed: [layers, max_operations] bytes, non-zero where an operation may be drawn, row-major.
// paths: [count, layers] output; row j is proposal `start + j`. No modulo bias: a draw that would cause one is taken
// again from the next counter (Lemire, "Fast random integer generation in an interval", 2019).
// Throws std::invalid_argument for a layer without an allowed operation or sizes that a key cannot hold.
void propose(const std::uint8_t* allowed, int layers, int max_operations, std::uint64_t seed, std::uint32_t stream,
             std::uint64_t start, std::int64_t count, std::uint8_t* paths);

// Proposals of any numbers: row j of paths is proposal numbers[j].
void propose_at(const std::uint8_t* allowed, int layers, int max_operations, std::uint64_t seed, std::uint32_t stream,
                const std::uint64_t* numbers, std::int64_t count, std::uint8_t* paths);

}  // namespace greedynas::paths
