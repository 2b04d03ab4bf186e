// The filter network as inference needs it: weights in the layout of a kernel, checked, immutable.
//
// The network (Sec. 4.1): operation embeddings, a bidirectional LSTM of H units a direction, two fully connected layers
// with a ReLU. An input of the LSTM is one of L x N embeddings, so W_ih x + b_ih + b_hh is a row of a table and a step
// is that row plus W_hh h. Legend: L layers, N operations in the widest layer, H hidden units.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/isa.h"

namespace greedynas::filter {

inline constexpr int kMaxFilterLayers = 64;
inline constexpr int kMaxHidden = 256;
// Larger weights could overflow float32 between the layers and end as NaN.
inline constexpr float kMaxWeight = 1e15F;

enum Direction : int { kForward = 0, kBackward = 1 };

// What is rounded to bfloat16 under `bf16`: W_hh, and the hidden state where it meets W_hh. All else is float32.
enum class Precision { float32, bf16 };

struct Shape {
  int layers = 0;      // 1 .. kMaxFilterLayers
  int operations = 0;  // of the widest layer, 1 .. 32
  int hidden = 0;      // a multiple of 16 up to kMaxHidden
};

// Row-major float32 as torch has them; gates in torch's order (input, forget, cell, output).
struct Parameters {
  const float* tables;      // [2, L, N, 4H]: W_ih x + b_ih + b_hh of each operation's embedding x, a direction
  const float* recurrent;   // [2, 4H, H]: W_hh
  const float* fc1_weight;  // [H, 2H], inputs: forward then backward hidden state
  const float* fc1_bias;    // [H]
  const float* fc2_weight;  // [2, H], outputs: good, weak
  const float* fc2_bias;    // [2]
};

// The states after the first `depth` steps of a direction, for each combination of operations there: equal beginnings
// have equal states, so they are computed once.
struct PrefixStates {
  int depth;
  const float* hidden;  // [states, H]
  const float* cell;    // [states, H]
};
struct Prefixes {
  PrefixStates direction[2];
};

// Weights as the CPU kernels read them. Plain data, because files compiled for one instruction set must not
// instantiate anything of the standard library.
struct Packed {
  Shape shape;
  Precision precision;
  const int* num_ops;       // [L]
  const float* table[2];    // [L, N, 4H] a direction
  float* recurrent[2];      // in the layout of the kernel, 4H x H rounded up to a multiple of 32
  const float* fc1_weight;  // [2H, H]: transposed
  const float* fc1_bias;    // [H]
  const float* fc2_weight;  // [H]: good minus weak
  float fc2_bias;
};

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};
using Floats = std::unique_ptr<float[], FreeDeleter>;

// At least `count` floats, aligned to 64 bytes.
Floats allocate_floats(std::int64_t count);

struct Kernel;  // cpu/kernels.h

class Model {
 public:
  // Copies the parameters into the layout of the kernel for `isa`. Throws std::invalid_argument for sizes out of range,
  // a layer with no operation or more than shape.operations, and a weight that is not finite or above kMaxWeight.
  Model(const Shape& shape, std::vector<int> num_ops, Precision precision, cpu::Isa isa, const Parameters& parameters);
  Model(const Shape& shape, std::vector<int> num_ops, Precision precision, const Kernel& kernel,
        const Parameters& parameters);

  const Shape& shape() const { return packed_.shape; }
  const std::vector<int>& num_ops() const { return num_ops_; }
  Precision precision() const { return packed_.precision; }
  const Kernel& kernel() const { return kernel_; }
  const Packed& packed() const { return packed_; }

  // The shared beginnings of both directions, or nullptr while too few paths were scored for them to pay.
  // `more` paths are about to be scored. The result lives as long as the model.
  const Prefixes* prefixes(std::int64_t more) const;

 private:
  float* store(std::int64_t count);
  PrefixStates compute_prefix(Direction direction) const;

  const Kernel& kernel_;
  std::vector<int> num_ops_;
  mutable std::vector<Floats> storage_;  // what packed_ and prefixes_ point to
  Packed packed_{};
  mutable std::mutex prefix_mutex_;
  mutable std::int64_t scored_ = 0;
  mutable std::unique_ptr<Prefixes> prefixes_;
};

}  // namespace greedynas::filter
