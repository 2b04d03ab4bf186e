// One proposal, written once for the CPU and for CUDA (nvcc --expt-relaxed-constexpr), see paths/proposals.h.
#pragma once

#include <array>
#include <cstdint>

#include "paths/key.h"
#include "paths/philox.h"

namespace greedynas::paths {

// The allowed operations of one layer, ascending; `count` is at least 1.
struct Choices {
  std::array<std::uint8_t, kMaxOperations> operations{};
  std::uint32_t count = 0;
};

struct ProposalSource {
  std::uint64_t seed = 0;
  std::uint32_t stream = 0;
  std::uint64_t start = 0;  // number of proposal 0
};

// Word `lane` without an indexed load, which would put the block into memory on a GPU.
constexpr std::uint32_t word_of(const PhiloxBlock& block, int lane) {
  return lane == 0 ? block[0] : lane == 1 ? block[1] : lane == 2 ? block[2] : block[3];
}

// Four words for layers 4 * block .. 4 * block + 3 of proposal `index`. The last counter word holds the attempt above
// the block of four layers, so retries never meet another draw.
constexpr PhiloxBlock proposal_words(const ProposalSource& source, std::uint64_t index, std::uint32_t block,
                                     std::uint32_t attempt) {
  return philox4x32_10({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), source.stream,
                        (attempt << 8) | block},
                       {static_cast<std::uint32_t>(source.seed), static_cast<std::uint32_t>(source.seed >> 32)});
}

// Writes proposal `source.start + j` to path[0 .. layers - 1].
constexpr void propose_one(const Choices* choices, int layers, const ProposalSource& source, std::uint64_t j,
                           std::uint8_t* path) {
  const std::uint64_t index = source.start + j;
  PhiloxBlock words{};
  for (int layer = 0; layer < layers; ++layer) {
    const std::uint32_t block = static_cast<std::uint32_t>(layer) / 4;
    const int lane = layer % 4;
    if (lane == 0) words = proposal_words(source, index, block, 0);
    const std::uint32_t count = choices[layer].count;
    const std::uint32_t threshold = (0U - count) % count;  // 2^32 mod count
    std::uint64_t scaled = static_cast<std::uint64_t>(word_of(words, lane)) * count;
    for (std::uint32_t attempt = 1; static_cast<std::uint32_t>(scaled) < threshold; ++attempt) {
      scaled = static_cast<std::uint64_t>(word_of(proposal_words(source, index, block, attempt), lane)) * count;
    }
    path[layer] = choices[layer].operations[scaled >> 32];
  }
}

}  // namespace greedynas::paths
