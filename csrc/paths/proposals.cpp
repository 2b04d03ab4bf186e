#include "paths/proposals.h"

#include <stdexcept>
#include <string>

namespace greedynas::paths {

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

void propose(const std::uint8_t* allowed, int layers, int max_operations, std::uint64_t seed, std::uint32_t stream,
             std::uint64_t start, std::int64_t count, std::uint8_t* paths) {
  const std::vector<Choices> choices = choices_of(allowed, layers, max_operations);
  const ProposalSource source{seed, stream, start};
  for (std::int64_t j = 0; j < count; ++j) {
    propose_one(choices.data(), layers, source, static_cast<std::uint64_t>(j), paths + j * layers);
  }
}

void propose_at(const std::uint8_t* allowed, int layers, int max_operations, std::uint64_t seed, std::uint32_t stream,
                const std::uint64_t* numbers, std::int64_t count, std::uint8_t* paths) {
  const std::vector<Choices> choices = choices_of(allowed, layers, max_operations);
  const ProposalSource source{seed, stream, 0};
  for (std::int64_t j = 0; j < count; ++j) {
    propose_one(choices.data(), layers, source, numbers[j], paths + j * layers);
  }
}

}  // namespace greedynas::paths
