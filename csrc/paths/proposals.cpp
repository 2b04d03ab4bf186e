#include "paths/proposals.h"

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "paths/key.h"
#include "paths/philox.h"

namespace greedynas::paths {
namespace {

struct Choices {
  std::array<std::uint8_t, kMaxOperations> operations{};
  std::uint32_t count = 0;
};

std::vector<Choices> choices_of(const std::uint8_t* allowed, int layers, int max_operations) {
  if (layers < 1 || layers > kMaxLayers || max_operations < 1 || max_operations > kMaxOperations) {
    throw std::invalid_argument("propose: the mask must be at most " + std::to_string(kMaxLayers) + " layers by " +
                                std::to_string(kMaxOperations) + " operations, got " + std::to_string(layers) + " by " +
                                std::to_string(max_operations));
  }
  std::vector<Choices> choices(static_cast<std::size_t>(layers));
  for (int layer = 0; layer < layers; ++layer) {
    Choices& c = choices[static_cast<std::size_t>(layer)];
    for (int operation = 0; operation < max_operations; ++operation) {
      if (allowed[layer * max_operations + operation] != 0) {
        c.operations[c.count++] = static_cast<std::uint8_t>(operation);
      }
    }
    if (c.count == 0) {
      throw std::invalid_argument("propose: layer " + std::to_string(layer) + " has no allowed operation");
    }
  }
  return choices;
}

}  // namespace

void propose(const std::uint8_t* allowed, int layers, int max_operations, std::uint64_t seed, std::uint32_t stream,
             std::uint64_t start, std::int64_t count, std::uint8_t* paths) {
  const std::vector<Choices> choices = choices_of(allowed, layers, max_operations);
  const std::array<std::uint32_t, 2> key{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};

  for (std::int64_t j = 0; j < count; ++j) {
    const std::uint64_t index = start + static_cast<std::uint64_t>(j);
    // The last counter word holds the attempt above the block of four layers, so retries never meet another draw.
    const auto block_at = [&](std::uint32_t block, std::uint32_t attempt) {
      return philox4x32_10(
          {static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), stream, (attempt << 8) | block},
          key);
    };
    PhiloxBlock words{};
    for (int layer = 0; layer < layers; ++layer) {
      const auto block = static_cast<std::uint32_t>(layer / 4);
      const auto lane = static_cast<std::size_t>(layer % 4);
      if (lane == 0) words = block_at(block, 0);
      const Choices& c = choices[static_cast<std::size_t>(layer)];
      const std::uint32_t threshold = (0U - c.count) % c.count;  // 2^32 mod count
      std::uint64_t scaled = static_cast<std::uint64_t>(words[lane]) * c.count;
      for (std::uint32_t attempt = 1; static_cast<std::uint32_t>(scaled) < threshold; ++attempt) {
        scaled = static_cast<std::uint64_t>(block_at(block, attempt)[lane]) * c.count;
      }
      paths[j * layers + layer] = c.operations[scaled >> 32];
    }
  }
}

void propose_at(const std::uint8_t* allowed, int layers, int max_operations, std::uint64_t seed, std::uint32_t stream,
                const std::uint64_t* numbers, std::int64_t count, std::uint8_t* paths) {
  for (std::int64_t j = 0; j < count; ++j) {
    propose(allowed, layers, max_operations, seed, stream, numbers[j], 1, paths + j * layers);
  }
}

}  // namespace greedynas::paths
