#include "paths/codec.h"

#include <stdexcept>
#include <string>

#include "paths/key.h"

namespace greedynas::paths {
namespace {

void check_layers(const char* function, int layers) {
  if (layers < 1 || layers > kMaxLayers) {
    throw std::invalid_argument(std::string(function) + ": a key holds 1 to " + std::to_string(kMaxLayers) +
                                " layers, got " + std::to_string(layers));
  }
}

}  // namespace

void pack(const std::uint8_t* paths, std::int64_t n, int layers, std::uint64_t* keys) {
  check_layers("pack", layers);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint8_t* path = paths + i * layers;
    PathKey key;
    for (int layer = 0; layer < layers; ++layer) {
      if (path[layer] >= kMaxOperations) {
        throw std::invalid_argument("pack: path " + std::to_string(i) + " has operation " +
                                    std::to_string(path[layer]) + " at layer " + std::to_string(layer) +
                                    ", a key holds 0 to " + std::to_string(kMaxOperations - 1));
      }
      key = with_operation(key, layer, path[layer]);
    }
    keys[2 * i] = key.high;
    keys[2 * i + 1] = key.low;
  }
}

void unpack(const std::uint64_t* keys, std::int64_t n, int layers, std::uint8_t* paths) {
  check_layers("unpack", layers);
  for (std::int64_t i = 0; i < n; ++i) {
    const PathKey key{keys[2 * i], keys[2 * i + 1]};
    PathKey repacked;
    for (int layer = 0; layer < layers; ++layer) {
      const std::uint8_t operation = operation_at(key, layer);
      paths[i * layers + layer] = operation;
      repacked = with_operation(repacked, layer, operation);
    }
    if (repacked != key) {
      throw std::invalid_argument("unpack: key " + std::to_string(i) + " holds more than " + std::to_string(layers) +
                                  " layers");
    }
  }
}

}  // namespace greedynas::paths
