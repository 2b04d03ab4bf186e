// log Phi of batches of paths.
#pragma once

#include <cstdint>

#include "filter/model.h"

namespace greedynas::filter {

// paths: [n, L]; log_weak: [n]. On up to `threads` threads; the result does not depend on their number. Throws
// std::invalid_argument naming the first path and layer with an operation that the layer does not have.
void score(const Model& model, const std::uint8_t* paths, std::int64_t n, int threads, float* log_weak);

// The same for packed keys [n, 2] (paths/codec.h); throws also for models of more layers than a key holds.
void score_keys(const Model& model, const std::uint64_t* keys, std::int64_t n, int threads, float* log_weak);

}  // namespace greedynas::filter
