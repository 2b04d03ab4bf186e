#include "blocks/cpu/gate_products.h"

#include <algorithm>
#include <cmath>

#include "blocks/cpu/gemm_kernels.h"
#include "blocks/cpu/pointwise_blocks.h"
#include "cpu/team.h"

namespace greedynas::blocks {
namespace {

using norm::Activation;

constexpr int kBeyond = 16;  // floats that products may read beyond the last row

float sigmoid(float z) { return 1.0F / (1.0F + std::exp(-z)); }

float activated(Activation activation, float z) {
  switch (activation) {
    case Activation::relu:
      return std::max(z, 0.0F);
    case Activation::hard_swish:
      return z * std::clamp(z + 3.0F, 0.0F, 6.0F) / 6.0F;
    case Activation::silu:
      return z * sigmoid(z);
    case Activation::relu6:
      return std::clamp(z, 0.0F, 6.0F);
    case Activation::identity:
      break;
  }
  return z;
}

float slope(Activation activation, float z) {
  switch (activation) {
    case Activation::relu:
      return z > 0.0F ? 1.0F : 0.0F;
    case Activation::hard_swish:
      return z <= -3.0F ? 0.0F : z >= 3.0F ? 1.0F : z / 3.0F + 0.5F;
    case Activation::silu: {
      const float s = sigmoid(z);
      return s * (1.0F + z * (1.0F - s));
    }
    case Activation::relu6:
      return z > 0.0F && z < 6.0F ? 1.0F : 0.0F;
    case Activation::identity:
      break;
  }
  return 1.0F;
}

float gate(bool is_sigmoid, float z) { return is_sigmoid ? sigmoid(z) : std::clamp(z + 3.0F, 0.0F, 6.0F) / 6.0F; }

float gate_slope(bool is_sigmoid, float z) {
  if (!is_sigmoid) return z > -3.0F && z < 3.0F ? 1.0F / 6.0F : 0.0F;
  const float s = sigmoid(z);
  return s * (1.0F - s);
}

struct Space {
  float *packed, *hidden, *channels, *more_channels;
  std::int64_t floats;

  Space(const GateProducts& layer, float* workspace) {
    Pieces pieces(workspace);
    const auto images = static_cast<int>(layer.images);
    packed = pieces.take(
        std::max({gemm_packed_floats(layer.channels, images), gemm_packed_floats(layer.gate.width, images),
                  gemm_packed_floats(images, layer.channels), gemm_packed_floats(images, layer.gate.width)}));
    hidden = pieces.take(layer.gate.width * layer.images + kBeyond);
    channels = pieces.take(layer.channels * layer.images + kBeyond);
    more_channels = pieces.take(std::max(layer.channels, layer.gate.width) * layer.images);
    floats = pieces.taken();
  }
};

// The products, their results divided into ranges of rows among the threads.
class Products {
 public:
  explicit Products(int threads) : threads_(threads), gemm_(gemm_kernel_for(cpu::selected())) {}

  // c [rows, columns] = a [rows, depth] times b, whose element [k, n] is b[k * row_stride + n * column_stride].
  void multiply(const float* a, int rows, int depth, const float* b, std::int64_t row_stride,
                std::int64_t column_stride, int columns, float* packed, float* c) const {
    gemm_.pack(b, row_stride, column_stride, depth, columns, packed);
    for_rows(rows, [&](int first, int some) {
      GemmAhead nothing;
      gemm_.multiply(GemmRows{a, depth}.from(first), some, depth, packed, columns, {nullptr, 0},
                     c + static_cast<std::int64_t>(first) * columns, columns, nothing);
    });
  }

  // c [out, in] = the sum over rows of g [rows, out] times x [rows, in].
  void sum(const float* g, const float* x, int rows, int out, int in, float* c) const {
    for_rows(out, [&](int first, int some) {
      GemmAhead nothing;
      float* const to = c + static_cast<std::int64_t>(first) * in;
      std::fill_n(to, static_cast<std::int64_t>(some) * in, 0.0F);
      gemm_.accumulate(GemmRows{g, out}.after(first), {x, in}, rows, some, in, to, in, nothing);
    });
  }

 private:
  template <class Body>
  void for_rows(int rows, const Body& body) const {
    constexpr int kRows = 2 * static_cast<int>(kTileRows);
    cpu::team_for((rows + kRows - 1) / kRows, 1, threads_, [&](std::int64_t begin, std::int64_t end) {
      const int first = static_cast<int>(begin) * kRows;
      body(first, std::min(rows, static_cast<int>(end) * kRows) - first);
    });
  }

  int threads_;
  const GemmKernel& gemm_;
};

// to [columns, rows] = from [rows, columns] transposed, plus bias [rows].
void transpose(const float* from, int rows, int columns, const float* bias, float* to) {
  for (int r = 0; r < rows; ++r) {
    const float more = bias == nullptr ? 0.0F : bias[r];
    for (int c = 0; c < columns; ++c) {
      to[static_cast<std::int64_t>(c) * rows + r] = from[static_cast<std::int64_t>(r) * columns + c] + more;
    }
  }
}

void sum_rows(const float* values, int rows, int columns, float* sums) {
  for (int r = 0; r < rows; ++r) {
    double sum = 0.0;
    for (int c = 0; c < columns; ++c) sum += static_cast<double>(values[static_cast<std::int64_t>(r) * columns + c]);
    sums[r] = static_cast<float>(sum);
  }
}

}  // namespace

std::int64_t workspace_floats(const GateProducts& layer) { return Space(layer, nullptr).floats; }

void gate_products(const GateProducts& layer, const float* means, float* workspace, float* hidden, float* logits,
                   float* gates) {
  const Space space(layer, workspace);
  const Products products(layer.threads);
  const BlockGate& g = layer.gate;
  const auto images = static_cast<int>(layer.images);
  products.multiply(g.reduce_weight, g.width, layer.channels, means, 1, layer.channels, images, space.packed,
                    space.hidden);
  transpose(space.hidden, g.width, images, g.reduce_bias, hidden);
  for (int r = 0; r < g.width; ++r) {
    float* const row = space.hidden + static_cast<std::int64_t>(r) * images;
    for (int n = 0; n < images; ++n) row[n] = activated(g.activation, row[n] + g.reduce_bias[r]);
  }
  products.multiply(g.expand_weight, layer.channels, g.width, space.hidden, images, 1, images, space.packed,
                    space.channels);
  transpose(space.channels, layer.channels, images, g.expand_bias, logits);
  gates_of(layer, logits, gates);
}

void gates_of(const GateProducts& layer, const float* logits, float* gates) {
  const std::int64_t count = layer.images * layer.channels;
  for (std::int64_t i = 0; i < count; ++i) gates[i] = gate(layer.gate.sigmoid, logits[i]);
}

void gate_products_backward(const GateProducts& layer, const float* grad_gates, const float* means, const float* hidden,
                            const float* logits, float* workspace, const GateGradients& gradients) {
  const Space space(layer, workspace);
  const Products products(layer.threads);
  const BlockGate& g = layer.gate;
  const auto images = static_cast<int>(layer.images);
  const int channels = layer.channels;
  float* const grad_logits = space.channels;  // [channels, images]
  for (int n = 0; n < images; ++n) {
    const std::int64_t row = static_cast<std::int64_t>(n) * channels;
    for (int c = 0; c < channels; ++c) {
      grad_logits[static_cast<std::int64_t>(c) * images + n] =
          grad_gates[row + c] * gate_slope(g.sigmoid, logits[row + c]);
    }
  }
  sum_rows(grad_logits, channels, images, gradients.expand_bias);
  float* const active = space.more_channels;  // [images, width], at first
  for (std::int64_t i = 0; i < layer.images * g.width; ++i) active[i] = activated(g.activation, hidden[i]);
  products.multiply(grad_logits, channels, images, active, g.width, 1, g.width, space.packed, gradients.expand_weight);
  float* const grad_hidden = space.hidden;  // [width, images]
  products.sum(g.expand_weight, grad_logits, channels, g.width, images, grad_hidden);
  for (int r = 0; r < g.width; ++r) {
    float* const row = grad_hidden + static_cast<std::int64_t>(r) * images;
    for (int n = 0; n < images; ++n) row[n] *= slope(g.activation, hidden[static_cast<std::int64_t>(n) * g.width + r]);
  }
  sum_rows(grad_hidden, g.width, images, gradients.reduce_bias);
  products.multiply(grad_hidden, g.width, images, means, channels, 1, channels, space.packed, gradients.reduce_weight);
  products.sum(g.reduce_weight, grad_hidden, g.width, channels, images, space.more_channels);
  transpose(space.more_channels, channels, images, nullptr, gradients.means);
}

}  // namespace greedynas::blocks
