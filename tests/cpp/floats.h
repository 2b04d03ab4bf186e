// Arrays of floats that tests of layers are made of.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

using Floats = std::vector<float>;

inline Floats random_floats(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Floats values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}
