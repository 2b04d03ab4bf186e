// SGD with momentum over the blocks of a parameter bank that a step uses: one pass, in which the gradients are also
// scaled, set to zero, and a moving average of the parameters follows.
//
// All buffers are float32 and laid out alike. What lies outside the blocks is neither read nor written. With
//   g = gradient * gradient_scale + weight_decay * parameter    (weight decay in [start, decay_end) alone)
//   momentum' = momentum * m + g                                (m: its buffer; a buffer of zeros gives the first step)
//   d = momentum', or g + momentum * momentum' for Nesterov's form
// it sets parameter -= lr * d, m = momentum' and ema = ema_decay * ema + (1 - ema_decay) * parameter: the arithmetic of
// torch.optim.SGD without dampening. Every product and sum is rounded to float32 on its own, so the results are the
// same bits on every instruction set and any number of threads.
#pragma once

#include <cstdint>

namespace greedynas::optim {

// In elements, start <= decay_end <= end; blocks do not overlap, empty ones are skipped.
struct Block {
  std::int64_t start, decay_end, end;
};

struct Blocks {
  const Block* data;
  std::int64_t count;
};

// No momentum or no average: nullptr.
struct Buffers {
  float *parameters, *gradients, *momentum, *ema;
};

struct Sgd {
  double lr, momentum, weight_decay, ema_decay;
  double gradient_scale;
  bool nesterov;        // needs momentum
  bool zero_gradients;  // leave zeros where the gradients were
};

void update(Blocks blocks, const Buffers& buffers, const Sgd& rule, int threads);

// The squares of all gradients in the blocks, added up in float64 in an order that depends on the blocks alone. Finite
// if and only if all of them are: a square of a float32 does not overflow in float64, nor do the sums.
double sum_of_squares(Blocks blocks, const float* gradients, int threads);

}  // namespace greedynas::optim
