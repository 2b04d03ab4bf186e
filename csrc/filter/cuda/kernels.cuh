// Launches of the filter's kernels; each is described where it is defined.
#pragma once

#include "filter/cuda/layout.cuh"

namespace greedynas::filter::cuda {

// Both directions' last hidden states of part.count paths, states: [2, part.count, H].
void launch_float32_states(const Weights& weights, const Part& part, float* states, const int* stop, Stream stream);
void launch_bf16_states(const Weights& weights, const Part& part, float* states, const int* stop, Stream stream);

// From the states to log_weak [part.count], not offset by part.first.
void launch_head(const Weights& weights, const Part& part, const float* states, float* log_weak, const int* stop,
                 Stream stream);

}  // namespace greedynas::filter::cuda
