// Crossover and mutation of paths, each row a pure function of (arguments, its index).
//
// The random numbers are Philox blocks, as for proposals: key (seed), counter words (index low, index high, stream, w).
// The last word w keeps the uses of one (seed, stream, index) apart: its bits 8 and above count attempts (see
// proposals.h), bits 6 and 7 say what for (0 proposals, 1 crossover, 2 mutation), bits 0 to 5 are the block.
// Crossover: block 0; word 0 decides whether the pair is crossed, bit l of word 1 whether layer l changes sides.
// Mutation of layer l: word l % 4 of block l / 4 decides whether it changes, of block 8 + l / 4 to what.
//
// A probability is rounded to a multiple of 2^-32; 0 and 1 are exact.
#pragma once

#include <cstdint>

namespace greedynas::paths {

// Uniform crossover. parents: [pairs, 2, layers]; children: [2 * pairs, layers], rows 2 j and 2 j + 1 from pair j,
// whose index is start + j. With `probability` each layer of the first child comes from either parent, half and half,
// and the second child gets the other one's; else the children are copies. Throws std::invalid_argument for layers
// outside 1..kMaxLayers or a probability outside 0..1.
void crossover(const std::uint8_t* parents, std::int64_t pairs, int layers, double probability, std::uint64_t seed,
               std::uint32_t stream, std::uint64_t start, std::uint8_t* children);

// paths, mutated: [n, layers]; row j has index start + j. allowed: [layers, max_operations] bytes, non-zero where an
// operation may stand. Each layer by itself changes with `probability` to another allowed operation, all equally likely
// (without modulo bias); a layer with a single allowed operation never does.
// Throws std::invalid_argument for sizes that a key cannot hold, a probability outside 0..1, and for an operation in
// `paths` that is not allowed, naming the first such path and layer; `mutated` may then be partly written.
void mutate(const std::uint8_t* paths, std::int64_t n, const std::uint8_t* allowed, int layers, int max_operations,
            double probability, std::uint64_t seed, std::uint32_t stream, std::uint64_t start, std::uint8_t* mutated);

}  // namespace greedynas::paths
