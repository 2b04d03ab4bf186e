#include "paths/variation.h"

#include <array>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "paths/key.h"
#include "paths/philox.h"

namespace greedynas::paths {
namespace {

constexpr std::uint32_t kCrossover = 1U << 6;
constexpr std::uint32_t kMutation = 2U << 6;
constexpr int kChoiceBlocks = 8;  // the first block that says to what a layer changes

// All draws of one index.
class Draws {
 public:
  Draws(std::uint64_t seed, std::uint32_t stream, std::uint64_t index, std::uint32_t purpose)
      : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)},
        index_(index),
        stream_(stream),
        purpose_(purpose) {}

  PhiloxBlock block(int number, std::uint32_t attempt = 0) const {
    return philox4x32_10({static_cast<std::uint32_t>(index_), static_cast<std::uint32_t>(index_ >> 32), stream_,
                          attempt << 8 | purpose_ | static_cast<std::uint32_t>(number)},
                         key_);
  }

  // Uniform over 0 .. count - 1 (Lemire, "Fast random integer generation in an interval", 2019).
  std::uint32_t below(std::uint32_t count, int block_number, std::size_t lane) const {
    const std::uint32_t threshold = (0U - count) % count;  // 2^32 mod count
    std::uint64_t scaled = 0;
    std::uint32_t attempt = 0;
    do {
      scaled = static_cast<std::uint64_t>(block(block_number, attempt++)[lane]) * count;
    } while (static_cast<std::uint32_t>(scaled) < threshold);
    return static_cast<std::uint32_t>(scaled >> 32);
  }

 private:
  std::array<std::uint32_t, 2> key_;
  std::uint64_t index_;
  std::uint32_t stream_;
  std::uint32_t purpose_;
};

std::invalid_argument error(const char* function, const std::string& what) {
  return std::invalid_argument(std::string(function) + ": " + what);
}

// A 32-bit word is below the result with this probability.
std::uint64_t chance(const char* function, double probability) {
  if (!(probability >= 0 && probability <= 1)) {
    throw error(function, "probability must be 0 to 1, got " + std::to_string(probability));
  }
  return static_cast<std::uint64_t>(std::llround(std::ldexp(probability, 32)));
}

void check_layers(const char* function, int layers) {
  if (layers < 1 || layers > kMaxLayers) {
    throw error(function, "a path has 1 to " + std::to_string(kMaxLayers) + " layers, got " + std::to_string(layers));
  }
}

struct Layer {
  static constexpr std::uint8_t kNone = 255;
  std::array<std::uint8_t, kMaxOperations> operations{};  // the allowed ones
  std::array<std::uint8_t, kMaxOperations> places{};      // of an operation in `operations`, or kNone
  std::uint32_t count = 0;
};

std::vector<Layer> layers_of(const std::uint8_t* allowed, int layers, int max_operations) {
  check_layers("mutate", layers);
  if (max_operations < 1 || max_operations > kMaxOperations) {
    throw error("mutate", "the mask must have 1 to " + std::to_string(kMaxOperations) + " operations, got " +
                              std::to_string(max_operations));
  }
  std::vector<Layer> result(static_cast<std::size_t>(layers));
  for (Layer& layer : result) {
    layer.places.fill(Layer::kNone);
    for (std::size_t operation = 0; operation < static_cast<std::size_t>(max_operations); ++operation) {
      if (*allowed++ == 0) continue;
      layer.places[operation] = static_cast<std::uint8_t>(layer.count);
      layer.operations[layer.count++] = static_cast<std::uint8_t>(operation);
    }
  }
  return result;
}

}  // namespace

void crossover(const std::uint8_t* parents, std::int64_t pairs, int layers, double probability, std::uint64_t seed,
               std::uint32_t stream, std::uint64_t start, std::uint8_t* children) {
  check_layers("crossover", layers);
  const std::uint64_t crossed = chance("crossover", probability);
  for (std::int64_t j = 0; j < pairs; ++j) {
    const PhiloxBlock words = Draws(seed, stream, start + static_cast<std::uint64_t>(j), kCrossover).block(0);
    const std::uint32_t swapped = words[0] < crossed ? words[1] : 0;
    const std::uint8_t* first = parents + 2 * j * layers;
    std::uint8_t* child = children + 2 * j * layers;
    for (int layer = 0; layer < layers; ++layer) {
      const int from = (swapped >> layer & 1) != 0 ? layers : 0;
      child[layer] = first[layer + from];
      child[layer + layers] = first[layer + layers - from];
    }
  }
}

void mutate(const std::uint8_t* paths, std::int64_t n, const std::uint8_t* allowed, int layers, int max_operations,
            double probability, std::uint64_t seed, std::uint32_t stream, std::uint64_t start, std::uint8_t* mutated) {
  const std::vector<Layer> choices = layers_of(allowed, layers, max_operations);
  const std::uint64_t changed = chance("mutate", probability);
  for (std::int64_t j = 0; j < n; ++j) {
    const Draws draws(seed, stream, start + static_cast<std::uint64_t>(j), kMutation);
    PhiloxBlock words{};
    for (int layer = 0; layer < layers; ++layer) {
      const std::size_t lane = static_cast<std::size_t>(layer % 4);
      if (lane == 0) words = draws.block(layer / 4);
      const Layer& c = choices[static_cast<std::size_t>(layer)];
      std::uint8_t operation = paths[j * layers + layer];
      if (operation >= kMaxOperations || c.places[operation] == Layer::kNone) {
        throw error("mutate", "path " + std::to_string(j) + " has operation " + std::to_string(operation) +
                                  " at layer " + std::to_string(layer) + ", which is not allowed");
      }
      if (words[lane] < changed && c.count > 1) {
        const std::uint32_t other = draws.below(c.count - 1, kChoiceBlocks + layer / 4, lane);
        operation = c.operations[other < c.places[operation] ? other : other + 1];
      }
      mutated[j * layers + layer] = operation;
    }
  }
}

}  // namespace greedynas::paths
