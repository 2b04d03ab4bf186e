#include "blocks/bn_act.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "blocks/cpu/bn_act_chunks.h"
#include "blocks/cpu/bn_act_kernels.h"

namespace greedynas::norm {
namespace {

// The workspace: two accumulators a chunk, then the coefficients.
struct Workspace {
  float* data;
  std::int64_t width, chunks;

  Workspace(float* workspace, const Shape& shape)
      : data(workspace), width(padded(shape.channels)), chunks(chunk_count(shape)) {}
  float* accumulator(std::int64_t chunk, int which) const { return data + (2 * chunk + which) * width; }
  float* coefficient(int which) const { return data + (2 * chunks + which) * width; }
};

float element(const void* data, std::int64_t index, Storage storage) {
  if (storage == Storage::float32) return static_cast<const float*>(data)[index];
  const std::uint32_t bits = static_cast<std::uint32_t>(static_cast<const std::uint16_t*>(data)[index]) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

double inverse_deviation(const Channels& channels, int c) {
  return 1.0 / std::sqrt(static_cast<double>(channels.variance[c]) + static_cast<double>(channels.eps));
}

// Scale and bias; slope and offset stay unset.
Coefficients coefficients(const Shape& shape, const Channels& channels, const Workspace& space) {
  float* const scale = space.coefficient(0);
  float* const bias = space.coefficient(1);
  for (int c = 0; c < shape.channels; ++c) {
    const double weight = channels.weight == nullptr ? 1.0 : static_cast<double>(channels.weight[c]);
    scale[c] = static_cast<float>(inverse_deviation(channels, c) * weight);
    bias[c] = channels.bias == nullptr ? 0.0F : channels.bias[c];
  }
  return {channels.mean, scale, bias, space.coefficient(2), space.coefficient(3)};
}

// Over all rows: of the gradient of z, and of that times (x - mean).
struct Sums {
  double grad, product;
};

// Slope and offset of channel c, which carry the gradient through the moments times `scale`, and its parameters'.
void set_gradient(const Shape& shape, double scale, const Channels& channels, int c, Sums sums, const Workspace& space,
                  const Gradients& gradients) {
  const double share = 1.0 / static_cast<double>(shape.rows);
  const double inverse = inverse_deviation(channels, c);
  // Zeros, not products with a zero scale, for constant moments: the sums may not be finite.
  space.coefficient(2)[c] = scale == 0.0 ? 0.0F : static_cast<float>(-share * scale * inverse * inverse * sums.product);
  space.coefficient(3)[c] = scale == 0.0 ? 0.0F : static_cast<float>(-share * scale * sums.grad);
  if (gradients.weight != nullptr) gradients.weight[c] = static_cast<float>(inverse * sums.product);
  if (gradients.bias != nullptr) gradients.bias[c] = static_cast<float>(sums.grad);
}

// Joins the sums of the chunks: gradients of bias and weight, slope and offset of the gradient of x.
void finish_sums(const BnAct& layer, bool batch_statistics, const Channels& channels, const Workspace& space,
                 const Gradients& gradients) {
  for (int c = 0; c < layer.shape.channels; ++c) {
    double sum = 0.0;
    double product = 0.0;
    for (std::int64_t chunk = 0; chunk < space.chunks; ++chunk) {
      sum += static_cast<double>(space.accumulator(chunk, 0)[c]);
      product += static_cast<double>(space.accumulator(chunk, 1)[c]);
    }
    const double scale = static_cast<double>(space.coefficient(0)[c]);
    set_gradient(layer.shape, batch_statistics ? scale : 0.0, channels, c, {sum, product}, space, gradients);
  }
}

// grad_x = scale * grad_z + (x - mean) * slope + offset where grad_z is.
void add_in_place(const Kernel& kernel, const BnAct& layer, Input x, const Coefficients& c, void* grad) {
  const Shape& shape = layer.shape;
  if (shape.channels % 16 == 0) {
    kernel.backward(layer, {grad, shape.channels}, x, c, x, grad, nullptr);
    return;
  }
  // The last vector of a row may overlap the one before it, and would find what that has written.
  constexpr std::int64_t kRows = 16;
  std::vector<char> copy(static_cast<std::size_t>(kRows * shape.channels * bytes_of(shape.storage)));
  BnAct few = layer;
  for (std::int64_t row = 0; row < shape.rows; row += kRows) {
    few.shape.rows = std::min(kRows, shape.rows - row);
    void* const rows = from_row(grad, row, shape);
    std::memcpy(copy.data(), rows, static_cast<std::size_t>(few.shape.rows * shape.channels * bytes_of(shape.storage)));
    kernel.backward(few, {copy.data(), shape.channels}, from_row(x, row, shape.storage), c, x, rows, nullptr);
  }
}

}  // namespace

std::int64_t workspace_floats(const Shape& shape) {
  return (2 * chunk_count(shape) + kCoefficients) * padded(shape.channels);
}

void moments(const Shape& shape, Input x, int threads, float* workspace, float* mean, float* variance) {
  const Kernel& kernel = kernel_for(cpu::selected(), shape.channels);
  const Workspace space(workspace, shape);
  for_chunks(shape, threads, Order::forwards, [&](std::int64_t chunk, std::int64_t row, const Shape& part) {
    kernel.moments(part, from_row(x, row, shape.storage), x.data, space.accumulator(chunk, 0),
                   space.accumulator(chunk, 1));
  });
  const std::int64_t full = chunk_rows(shape);
  join_moments(
      space.chunks, shape.channels, mean, variance,
      [&](std::int64_t chunk) { return std::min(full, shape.rows - chunk * full); },
      [&](std::int64_t chunk, int c) -> PartMoments {
        const auto first = static_cast<double>(element(x.data, c, shape.storage));
        return {first + static_cast<double>(space.accumulator(chunk, 0)[c]),
                static_cast<double>(space.accumulator(chunk, 1)[c])};
      });
}

void update_running(const Shape& shape, const float* mean, const float* variance, double share, float* running_mean,
                    float* running_var) {
  const double unbiased = static_cast<double>(shape.rows) / static_cast<double>(shape.rows - 1);
  const auto update = [share](float& running, double value) {
    running = static_cast<float>((1.0 - share) * static_cast<double>(running) + share * value);
  };
  for (int c = 0; c < shape.channels; ++c) {
    update(running_mean[c], static_cast<double>(mean[c]));
    update(running_var[c], static_cast<double>(variance[c]) * unbiased);
  }
}

void affine(int num_channels, const Channels& channels, float* scale, float* shift) {
  for (int c = 0; c < num_channels; ++c) {
    const double weight = channels.weight == nullptr ? 1.0 : static_cast<double>(channels.weight[c]);
    const double bias = channels.bias == nullptr ? 0.0 : static_cast<double>(channels.bias[c]);
    const double factor = inverse_deviation(channels, c) * weight;
    scale[c] = static_cast<float>(factor);
    shift[c] = static_cast<float>(bias - factor * static_cast<double>(channels.mean[c]));
  }
}

void through_moments(const Shape& shape, bool batch_statistics, Input x, const Channels& channels,
                     const float* grad_scale, const float* grad_shift, int threads, float* workspace, void* grad,
                     float* grad_weight, float* grad_bias) {
  const Kernel& kernel = kernel_for(cpu::selected(), shape.channels);
  const Workspace space(workspace, shape);
  Coefficients c = coefficients(shape, channels, space);
  for (int i = 0; i < shape.channels; ++i) {
    const auto sum = static_cast<double>(grad_shift[i]);
    const double product = static_cast<double>(grad_scale[i]) - sum * static_cast<double>(channels.mean[i]);
    const double scale = static_cast<double>(space.coefficient(0)[i]);
    set_gradient(shape, batch_statistics ? scale : 0.0, channels, i, {sum, product}, space,
                 {nullptr, nullptr, grad_weight, grad_bias});
    space.coefficient(0)[i] = 1.0F;  // `grad` has been scaled already
  }
  if (!batch_statistics) return;
  for_chunks(shape, threads, Order::forwards, [&](std::int64_t, std::int64_t row, const Shape& part) {
    const BnAct layer{part, Activation::identity, false, threads};
    add_in_place(kernel, layer, from_row(x, row, shape.storage), c, from_row(grad, row, shape));
  });
}

void forward(const BnAct& layer, Input x, const Channels& channels, Input residual, float* workspace, void* y) {
  const Shape& shape = layer.shape;
  const Kernel& kernel = kernel_for(cpu::selected(), shape.channels);
  const Coefficients c = coefficients(shape, channels, Workspace(workspace, shape));
  if (!layer.residual) residual = x;  // not read, but pointers are computed from it
  for_chunks(shape, layer.threads, Order::backwards, [&](std::int64_t, std::int64_t row, const Shape& part) {
    BnAct rows = layer;
    rows.shape = part;
    kernel.forward(rows, from_row(x, row, shape.storage), c, from_row(residual, row, shape.storage),
                   from_row(y, row, shape));
  });
}

void backward(const BnAct& layer, bool batch_statistics, Input grad, Input x, const Channels& channels, Input residual,
              float* workspace, const Gradients& gradients) {
  const Shape& shape = layer.shape;
  const Kernel& kernel = kernel_for(cpu::selected(), shape.channels);
  const Workspace space(workspace, shape);
  const Coefficients c = coefficients(shape, channels, space);
  if (!layer.residual) residual = x;  // not read, but pointers are computed from it
  const auto inputs_from = [&](std::int64_t row, Input input) { return from_row(input, row, shape.storage); };
  if (batch_statistics || gradients.weight != nullptr || gradients.bias != nullptr) {
    for_chunks(shape, layer.threads, Order::forwards, [&](std::int64_t chunk, std::int64_t row, const Shape& rows) {
      BnAct some = layer;
      some.shape = rows;
      kernel.backward_sums(some, inputs_from(row, grad), inputs_from(row, x), c, inputs_from(row, residual),
                           space.accumulator(chunk, 0), space.accumulator(chunk, 1));
    });
    finish_sums(layer, batch_statistics, channels, space, gradients);
  } else {
    std::fill_n(space.coefficient(2), 2 * space.width, 0.0F);
  }
  if (gradients.x == nullptr) return;
  for_chunks(shape, layer.threads, Order::backwards, [&](std::int64_t, std::int64_t row, const Shape& rows) {
    BnAct some = layer;
    some.shape = rows;
    kernel.backward(some, inputs_from(row, grad), inputs_from(row, x), c, inputs_from(row, residual),
                    from_row(gradients.x, row, shape), from_row(gradients.residual, row, shape));
  });
}

Coefficients known_coefficients(std::int64_t rows, int num_channels, const Channels& channels,
                                const KnownGradients& known, float* memory) {
  const std::int64_t width = padded(num_channels);
  float *const scale = memory, *const bias = scale + width, *const slope = bias + width, *const offset = slope + width;
  for (int c = 0; c < num_channels; ++c) {
    const double inverse = inverse_deviation(channels, c);
    const double factor = inverse * (channels.weight == nullptr ? 1.0 : static_cast<double>(channels.weight[c]));
    const double share = -factor / static_cast<double>(rows);
    const bool constant = known.weight == nullptr;
    scale[c] = known.scaled ? 1.0F : static_cast<float>(factor);
    bias[c] = 0.0F;  // matters to activations alone
    slope[c] = constant ? 0.0F : static_cast<float>(share * inverse * static_cast<double>(known.weight[c]));
    offset[c] = constant ? 0.0F : static_cast<float>(share * static_cast<double>(known.bias[c]));
  }
  return {channels.mean, scale, bias, slope, offset};
}

void statistics_gradient(std::int64_t rows, int num_channels, const Channels& channels, const KnownGradients& known,
                         float* sum, float* square) {
  for (int c = 0; c < num_channels; ++c) {
    const double inverse = inverse_deviation(channels, c);
    const double factor = inverse * (channels.weight == nullptr ? 1.0 : static_cast<double>(channels.weight[c]));
    const double share = -factor / static_cast<double>(rows);
    const double slope = share * inverse * static_cast<double>(known.weight[c]);
    sum[c] =
        static_cast<float>(share * static_cast<double>(known.bias[c]) - slope * static_cast<double>(channels.mean[c]));
    square[c] = static_cast<float>(0.5 * slope);
  }
}

void known_from_affine(int num_channels, const Channels& channels, const float* grad_scale, const float* grad_shift,
                       float* grad_weight, float* grad_bias) {
  for (int c = 0; c < num_channels; ++c) {
    const double sum = static_cast<double>(grad_shift[c]);
    const double product = static_cast<double>(grad_scale[c]) - sum * static_cast<double>(channels.mean[c]);
    grad_weight[c] = static_cast<float>(inverse_deviation(channels, c) * product);
    grad_bias[c] = static_cast<float>(sum);
  }
}

}  // namespace greedynas::norm
