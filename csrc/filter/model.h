// The filter network as inference needs it: weights in the layouts of the kernels, checked, immutable.
//
// The network (Sec. 4.1): operation embeddings, a bidirectional LSTM of H units a direction, two fully connected layers
// with a ReLU. An input of the LSTM is one of L x N embeddings, so W_ih x + b_ih + b_hh is a row of a table and a step
// is that row plus W_hh h. Legend: L layers, N operations in the widest layer, H hidden units.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/isa.h"

namespace greedynas::filter {

inline constexpr int kMaxFilterLayers = 64;
inline constexpr int kMaxHidden = 256;

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

// Throws std::invalid_argument unless the sizes are in range and each layer has 1 .. shape.operations operations.
void check_shape(const Shape& shape, const std::vector<int>& num_ops);

class Model {
 public:
  // Copies the parameters into the kernels' layouts. Throws std::invalid_argument for a bad shape and for a weight
  // that is NaN or infinite.
  Model(const Shape& shape, std::vector<int> num_ops, Precision precision, const Parameters& parameters);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const Shape& shape() const { return shape_; }
  const std::vector<int>& num_ops() const { return num_ops_; }
  Precision precision() const { return precision_; }

 private:
  friend class Scorer;
  Shape shape_;
  std::vector<int> num_ops_;
  Precision precision_;
};

}  // namespace greedynas::filter
