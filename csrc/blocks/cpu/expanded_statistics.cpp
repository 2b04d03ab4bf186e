#include "blocks/expanded_statistics.h"

#include "blocks/cpu/bn_act_chunks.h"
#include "blocks/cpu/gemm_kernels.h"
#include "blocks/cpu/pointwise_blocks.h"
#include "blocks/cpu/squeeze_excite_kernels.h"

namespace greedynas::blocks {
namespace {

using norm::from_row;
using norm::Input;
using norm::padded;
using norm::Storage;

enum Scratch { kCentred = 0 };

std::int64_t square(const Pointwise& layer) { return static_cast<std::int64_t>(layer.in) * layer.in; }

// weight times the covariances within each group, [out, group_in]; `packed`: room for one of these.
void times_covariance(const Pointwise& layer, const float* weight, const float* covariance, float* packed,
                      float* products) {
  const GemmKernel& gemm = gemm_kernel_for(cpu::selected());
  const int in = layer.group_in(), out = layer.group_out();
  for (std::int64_t g = 0; g < layer.groups; ++g) {
    gemm.pack(covariance + g * in * (layer.in + 1), layer.in, 1, in, in, packed);
    GemmAhead nothing;
    gemm.multiply({weight + g * out * in, in}, out, in, packed, in, {nullptr, 0}, products + g * out * in, in, nothing);
  }
}

struct MomentsSpace {
  float *moments, *variance, *ones, *minus_mean, *sums, *packed, *products;
  std::int64_t floats;

  MomentsSpace(const Pointwise& layer, std::int64_t parts, float* workspace) {
    Pieces pieces(workspace);
    moments = pieces.take(norm::workspace_floats(norm::Shape{Storage::float32, layer.rows, layer.in, false}));
    variance = pieces.take(layer.in);
    ones = pieces.take(padded(layer.in));
    minus_mean = pieces.take(layer.in);
    sums = pieces.take(parts * square(layer));
    packed = pieces.take(gemm_packed_floats(layer.group_in(), layer.group_in()));
    products = pieces.take(weight_floats(layer));
    floats = pieces.taken();
  }
};

// Ranges of rows whose sums are kept apart.
std::int64_t part_count(const Pointwise& layer) { return std::clamp<std::int64_t>(layer.rows / 1024, 1, 8); }

// The sums over rows of products of centred channels of x, added up in sums [in, in].
void add_covariance(const Pointwise& layer, Input x, const MomentsSpace& space, std::int64_t begin, std::int64_t end,
                    float* sums) {
  const norm::SqueezeKernel& centre = norm::squeeze_kernel_for(cpu::selected(), layer.in);
  const GemmKernel& gemm = gemm_kernel_for(cpu::selected());
  float* const centred = scratch(kCentred, kMaxBlockRows * layer.in + kBeyond);
  const std::int64_t block = block_rows(layer.in, layer.in);
  for (std::int64_t row = begin; row < end; row += block) {
    const std::int64_t rows = std::min(block, end - row);
    const norm::SqueezeExcite part{
        {Storage::float32, rows, layer.in, false}, 1, norm::Prologue::affine, space.ones, space.minus_mean, 1};
    centre.excite(part, part.image, from_row(x, row, Storage::float32), space.ones, centred);
    GemmAhead ahead;
    add_rows(x, row + rows, std::min(block, end - row - rows), layer.in, ahead);
    gemm.accumulate({centred, layer.in}, {centred, layer.in}, rows, layer.in, layer.in, sums, layer.in, ahead);
  }
}

}  // namespace

std::int64_t expanded_moments_floats(const Pointwise& layer) {
  return MomentsSpace(layer, part_count(layer), nullptr).floats;
}

std::int64_t covariance_floats(const Pointwise& layer) { return square(layer) + layer.in; }

void expanded_moments(const Pointwise& layer, Input x, const float* weight, float* workspace, float* mean,
                      float* variance, float* covariance) {
  const std::int64_t parts = part_count(layer), size = square(layer);
  const MomentsSpace space(layer, parts, workspace);
  float* const means = covariance + size;
  norm::moments({Storage::float32, layer.rows, layer.in, false}, x, layer.threads, space.moments, means,
                space.variance);
  std::fill_n(space.ones, padded(layer.in), 1.0F);
  for (int k = 0; k < layer.in; ++k) space.minus_mean[k] = -means[k];
  std::fill_n(space.sums, parts * size, 0.0F);
  cpu::team_for(parts, 1, layer.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t part = begin; part < end; ++part) {
      add_covariance(layer, x, space, layer.rows * part / parts, layer.rows * (part + 1) / parts,
                     space.sums + part * size);
    }
  });
  for (std::int64_t i = 0; i < size; ++i) {
    double sum = 0.0;
    for (std::int64_t part = 0; part < parts; ++part) sum += static_cast<double>(space.sums[part * size + i]);
    covariance[i] = static_cast<float>(sum / static_cast<double>(layer.rows));
  }
  times_covariance(layer, weight, covariance, space.packed, space.products);
  const std::int64_t in = layer.group_in();
  for (std::int64_t n = 0; n < layer.out; ++n) {
    const float* const own_means = means + n / layer.group_out() * in;
    double total = 0.0;
    double form = 0.0;
    for (std::int64_t k = 0; k < in; ++k) {
      const auto w = static_cast<double>(weight[n * in + k]);
      total += w * static_cast<double>(own_means[k]);
      form += w * static_cast<double>(space.products[n * in + k]);
    }
    mean[n] = static_cast<float>(total);
    variance[n] = static_cast<float>(std::max(form, 0.0));  // rounding may leave a little less than nothing
  }
}

namespace {

struct GradientSpace {
  float *coefficients, *weight, *scaled, *forms, *packed, *constants;
  std::int64_t packed_group, floats;

  GradientSpace(const Pointwise& layer, float* workspace) {
    const std::int64_t group_square = static_cast<std::int64_t>(layer.group_in()) * layer.group_in();
    Pieces pieces(workspace);
    coefficients = pieces.take(norm::kCoefficients * padded(layer.out));
    weight = pieces.take(weight_floats(layer) + kBeyond);
    scaled = pieces.take(weight_floats(layer));
    forms = pieces.take(group_square);
    packed_group = gemm_packed_floats(layer.group_in(), layer.group_in());
    packed = pieces.take(layer.groups * packed_group);
    constants = pieces.take(layer.in);
    floats = pieces.taken();
  }
};

}  // namespace

std::int64_t statistics_gradient_floats(const Pointwise& layer) { return GradientSpace(layer, nullptr).floats; }

// Through the moments offset + slope (z - mean) of each channel is added to its gradient, where z - mean =
// weight (x - mean of x). So the gradient of the weight gets a product of the weight and the covariance, and that of x
// a product of x and a quadratic form of the weight.
void add_statistics_gradient(const Pointwise& layer, Input x, const float* weight, const float* covariance,
                             const norm::Channels& norm, const norm::KnownGradients& known, float* workspace,
                             float* grad_x, float* grad_weight) {
  const GradientSpace space(layer, workspace);
  const GemmKernel& gemm = gemm_kernel_for(cpu::selected());
  const int in = layer.group_in(), out = layer.group_out();
  const std::int64_t group = weight_floats(layer) / layer.groups;
  const norm::Coefficients c = norm::known_coefficients(layer.rows, layer.out, norm, known, space.coefficients);
  const float* const means = covariance + square(layer);
  std::copy_n(weight, weight_floats(layer), space.weight);  // products may read beyond its end
  float* const products = space.scaled;
  times_covariance(layer, weight, covariance, space.packed, products);
  const auto rows = static_cast<float>(layer.rows);
  for (std::int64_t n = 0; n < layer.out; ++n) {
    const float* const own_means = means + n / out * in;
    for (std::int64_t k = 0; k < in; ++k) {
      grad_weight[n * in + k] += rows * (c.offset[n] * own_means[k] + c.slope[n] * products[n * in + k]);
    }
  }
  for (std::int64_t n = 0; n < layer.out; ++n) {
    for (std::int64_t k = n * in; k < (n + 1) * in; ++k) space.scaled[k] = c.slope[n] * weight[k];
  }
  for (std::int64_t g = 0; g < layer.groups; ++g) {
    std::fill_n(space.forms, static_cast<std::int64_t>(in) * in, 0.0F);
    GemmAhead nothing;
    gemm.accumulate({space.scaled + g * group, in}, {space.weight + g * group, in}, out, in, in, space.forms, in,
                    nothing);
    gemm.pack(space.forms, in, 1, in, in, space.packed + g * space.packed_group);
    for (std::int64_t k = 0; k < in; ++k) {
      double sum = 0.0;
      for (std::int64_t n = 0; n < out; ++n) {
        sum += static_cast<double>(c.offset[g * out + n]) * static_cast<double>(weight[g * group + n * in + k]);
      }
      for (std::int64_t m = 0; m < in; ++m) {
        sum -= static_cast<double>(means[g * in + m]) * static_cast<double>(space.forms[m * in + k]);
      }
      space.constants[g * in + k] = static_cast<float>(sum);
    }
  }
  const std::int64_t block = block_rows(layer.in, layer.in), blocks = (layer.rows + block - 1) / block;
  cpu::team_for(blocks, 1, layer.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin * block; row < std::min(end * block, layer.rows); row += block) {
      const std::int64_t count = std::min(block, layer.rows - row);
      const GemmRows own_x = rows_of(from_row(x, row, Storage::float32));
      float* const to = grad_x + row * layer.in;
      GemmAhead ahead;
      for (int g = 0; g < layer.groups; ++g) {
        float* const own = to + g * in;
        gemm.multiply(own_x.after(g * in), count, in, space.packed + g * space.packed_group, in, {own, layer.in}, own,
                      layer.in, ahead);
      }
      for (std::int64_t i = 0; i < count; ++i) {
        for (int k = 0; k < layer.in; ++k) to[i * layer.in + k] += space.constants[k];
      }
    }
  });
}

}  // namespace greedynas::blocks
