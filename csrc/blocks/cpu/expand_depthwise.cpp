#include "blocks/expand_depthwise.h"

#include "blocks/cpu/bn_act_chunks.h"
#include "blocks/cpu/gemm_kernels.h"
#include "blocks/cpu/mixconv_made.h"
#include "blocks/cpu/pointwise_blocks.h"
#include "blocks/cpu/squeeze_excite_kernels.h"

namespace greedynas::blocks {
namespace {

using norm::from_row;
using norm::Input;
using norm::padded;
using norm::Storage;

constexpr std::int64_t kPixels = 96;  // that are expanded together, or more: products of fewer are slower
constexpr int kBeyond = 16;           // floats that products may read beyond the last row
enum Scratch { kCentred = 0, kRows = 3 };

std::int64_t square(const Pointwise& layer) { return static_cast<std::int64_t>(layer.in) * layer.in; }

GemmRows rows_of(Input x) { return {static_cast<const float*>(x.data), x.stride}; }

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

// Gradients of a chunk of images: of x, where they are added up over the blocks, and of the weight, [in, out] for each
// group.
struct ChunkGradients {
  Input add;
  float *x, *weight;
};

// Rows of z for a task, and what becomes of those of its gradient.
class ExpandedRows final : public MixconvRows {
 public:
  // gradients: nullptr in the forward pass.
  ExpandedRows(const ExpandDepthwise& layer, const MixconvBlock& block, const ChunkGradients* gradients)
      : layer_(layer), block_(block), gemm_(gemm_kernel_for(cpu::selected())) {
    const std::int64_t in = layer.expand.group_in(), out = layer.expand.group_out();
    together_ = std::min((kPixels + layer.depthwise.width - 1) / layer.depthwise.width, layer.depthwise.height);
    // As many as the kernel asks for, those that are made along with them, and whole pieces.
    ring_rows_ = (block.kernel + 1 + together_ - 1) / together_ * together_ + together_;
    row_floats_ = layer.depthwise.width * block.width;
    const std::int64_t end = block.first_channel + block.channels;
    const std::int64_t first_group = block.first_channel / out, last_group = (end - 1) / out;
    const auto for_parts = [&](const auto& body) {
      for (std::int64_t g = first_group; g <= last_group; ++g) {
        const std::int64_t first = std::max(g * out, block.first_channel);
        body(g, first, static_cast<int>(std::min((g + 1) * out, end) - first));
      }
    };
    const auto carve = [&](float* memory) {
      Pieces pieces(memory);
      ring_ = pieces.take(ring_rows_ * row_floats_);
      grads_ = pieces.take(gradients == nullptr ? 0 : together_ * row_floats_ + kBeyond);
      parts_.clear();
      for_parts([&](std::int64_t g, std::int64_t first, int count) {
        float* const packed = pieces.take(gemm_packed_floats(static_cast<int>(in), count));
        float* const turned = pieces.take(gradients == nullptr ? 0 : gemm_packed_floats(count, static_cast<int>(in)));
        parts_.push_back({g * in, first, count, first == g * out, packed, turned});
      });
      return pieces.taken();
    };
    const std::int64_t floats = carve(nullptr);
    const auto address = reinterpret_cast<std::uintptr_t>(scratch(kRows, floats + 16));
    carve(reinterpret_cast<float*>((address + 63) / 64 * 64));
    if (gradients != nullptr) gradients_ = *gradients;
    for (const Part& part : parts_) {
      const float* const weight = layer.weight + part.first * in;
      gemm_.pack(weight, 1, in, static_cast<int>(in), part.count, part.packed);
      if (gradients == nullptr) continue;
      gemm_.pack(weight, in, 1, part.count, static_cast<int>(in), part.turned);
      for (std::int64_t k = 0; k < in; ++k) std::fill_n(weight_gradient(part) + k * out, part.count, 0.0F);
    }
  }

  const float* input(std::int64_t image, std::int64_t row) override {
    if (image != image_) {
      image_ = image;
      made_ = 0;
    }
    while (made_ <= row) make();
    return ring_ + row % ring_rows_ * row_floats_;
  }
  float* grad(std::int64_t, std::int64_t row) override { return grads_ + row % together_ * row_floats_; }
  void grad_is_there(std::int64_t image, std::int64_t row) override {
    const bool last = row + 1 == layer_.depthwise.height;
    if (last || (row + 1) % together_ == 0) use(image, row / together_ * together_, row + 1);
  }

 private:
  // Channels of one group of the expansion.
  struct Part {
    std::int64_t first_in;  // channel of x
    std::int64_t first;     // channel of z
    int count;
    bool begins;  // with the group's first channel
    float *packed, *turned;
  };

  // [in, out] from the part's first channel on.
  float* weight_gradient(const Part& part) const {
    const std::int64_t in = layer_.expand.group_in(), out = layer_.expand.group_out();
    return gradients_.weight + part.first / out * out * in + part.first % out;
  }

  std::int64_t first_pixel(std::int64_t image, std::int64_t row) const {
    return (image * layer_.depthwise.height + row) * layer_.depthwise.width;
  }

  void make() {
    const std::int64_t rows = std::min(together_, layer_.depthwise.height - made_);
    const Input x = from_row(layer_.x, first_pixel(image_, made_), Storage::float32);
    float* const to = ring_ + made_ % ring_rows_ * row_floats_;
    GemmAhead ahead;
    for (const Part& part : parts_) {
      gemm_.multiply(rows_of(x).after(part.first_in), rows * layer_.depthwise.width, layer_.expand.group_in(),
                     part.packed, part.count, {nullptr, 0}, to + (part.first - block_.first_channel), block_.width,
                     ahead);
    }
    made_ += rows;
  }

  void use(std::int64_t image, std::int64_t begin, std::int64_t end) {
    const Pointwise& expand = layer_.expand;
    const std::int64_t pixel = first_pixel(image, begin), pixels = (end - begin) * layer_.depthwise.width;
    const GemmRows x = rows_of(from_row(layer_.x, pixel, Storage::float32));
    const GemmRows add = GemmRows{static_cast<const float*>(gradients_.add.data), gradients_.add.stride}.from(pixel);
    float* const to = gradients_.x + pixel * expand.in;
    const int in = expand.group_in();
    GemmAhead ahead;
    for (const Part& part : parts_) {
      const GemmRows grads{grads_ + (part.first - block_.first_channel), block_.width};
      gemm_.accumulate(x.after(part.first_in), grads, pixels, in, part.count, weight_gradient(part), expand.group_out(),
                       ahead);
      const GemmRows sum = part.begins ? add : GemmRows{to, expand.in};
      gemm_.multiply(grads, pixels, part.count, part.turned, in, sum.after(part.first_in), to + part.first_in,
                     expand.in, ahead);
    }
  }

  const ExpandDepthwise& layer_;
  const MixconvBlock& block_;
  const GemmKernel& gemm_;
  ChunkGradients gradients_{};
  std::vector<Part> parts_;
  float *ring_, *grads_;
  std::int64_t together_, ring_rows_, row_floats_, image_ = -1, made_ = 0;
};

class Forward final : public MixconvMaker {
 public:
  explicit Forward(const ExpandDepthwise& layer) : layer_(layer) {}
  std::unique_ptr<MixconvRows> rows(std::int64_t, const MixconvBlock& block) const override {
    return std::make_unique<ExpandedRows>(layer_, block, nullptr);
  }

 private:
  const ExpandDepthwise& layer_;
};

class Backward final : public MixconvMaker {
 public:
  // weights: gradients of the weight of the chunks.
  Backward(const ExpandDepthwise& layer, const ExpandDepthwiseBackward& backward, float* weights)
      : layer_(layer), backward_(backward), weights_(weights) {}
  std::unique_ptr<MixconvRows> rows(std::int64_t chunk, const MixconvBlock& block) const override {
    const ChunkGradients gradients{backward_.add, backward_.x, weights_ + chunk * weight_floats(layer_.expand)};
    return std::make_unique<ExpandedRows>(layer_, block, &gradients);
  }

 private:
  const ExpandDepthwise& layer_;
  const ExpandDepthwiseBackward& backward_;
  float* weights_;
};

struct Space {
  float *mixconv, *norm_grad, *coefficients, *weights, *weight, *scaled, *forms, *packed, *constants;
  std::int64_t packed_group, floats;

  Space(const ExpandDepthwise& layer, float* workspace) {
    const Pointwise& expand = layer.expand;
    const std::int64_t group_square = static_cast<std::int64_t>(expand.group_in()) * expand.group_in();
    Pieces pieces(workspace);
    const std::size_t bytes = mixconv_made_workspace_bytes(layer.depthwise, expand.threads);
    mixconv = pieces.take(static_cast<std::int64_t>(bytes / sizeof(float) + 1));
    norm_grad = pieces.take(2 * expand.out);
    coefficients = pieces.take(norm::kCoefficients * padded(expand.out));
    weights = pieces.take(mixconv_made_chunks(layer.depthwise) * weight_floats(expand));
    weight = pieces.take(weight_floats(expand) + kBeyond);
    scaled = pieces.take(weight_floats(expand));
    forms = pieces.take(group_square);
    packed_group = gemm_packed_floats(expand.group_in(), expand.group_in());
    packed = pieces.take(expand.groups * packed_group);
    constants = pieces.take(expand.in);
    floats = pieces.taken();
  }
};

// What comes through the moments of z: offset + slope (z - mean) for each channel is added to its gradient, where
// z - mean = weight (x - mean of x). So the gradient of the weight gets a product of the weight and the covariance, and
// that of x a product of x and a quadratic form of the weight.
void add_statistics(const ExpandDepthwise& layer, const ExpandDepthwiseBackward& backward, const Space& space) {
  const Pointwise& expand = layer.expand;
  const GemmKernel& gemm = gemm_kernel_for(cpu::selected());
  const std::int64_t in = expand.group_in(), out = expand.group_out();
  const norm::Coefficients c = norm::known_coefficients(
      expand.rows, expand.out, *backward.norm, {backward.norm_weight, backward.norm_bias, true}, space.coefficients);
  const float* const means = backward.covariance + square(expand);
  std::copy_n(layer.weight, weight_floats(expand), space.weight);
  float* const products = space.scaled;
  times_covariance(expand, space.weight, backward.covariance, space.packed, products);
  const auto rows = static_cast<float>(expand.rows);
  for (std::int64_t n = 0; n < expand.out; ++n) {
    const float* const own_means = means + n / out * in;
    for (std::int64_t k = n * in; k < (n + 1) * in; ++k) {
      backward.weight[k] += rows * (c.offset[n] * own_means[k - n * in] + c.slope[n] * products[k]);
    }
  }
  for (std::int64_t n = 0; n < expand.out; ++n) {
    for (std::int64_t k = n * in; k < (n + 1) * in; ++k) space.scaled[k] = c.slope[n] * space.weight[k];
  }
  for (std::int64_t g = 0; g < expand.groups; ++g) {
    const float* const weight = space.weight + g * out * in;
    std::fill_n(space.forms, in * in, 0.0F);
    GemmAhead nothing;
    gemm.accumulate({space.scaled + g * out * in, in}, {weight, in}, out, static_cast<int>(in), static_cast<int>(in),
                    space.forms, in, nothing);
    gemm.pack(space.forms, in, 1, static_cast<int>(in), static_cast<int>(in), space.packed + g * space.packed_group);
    for (std::int64_t k = 0; k < in; ++k) {
      double sum = 0.0;
      for (std::int64_t n = 0; n < out; ++n) {
        sum += static_cast<double>(c.offset[g * out + n]) * static_cast<double>(weight[n * in + k]);
      }
      for (std::int64_t m = 0; m < in; ++m) {
        sum -= static_cast<double>(means[g * in + m]) * static_cast<double>(space.forms[m * in + k]);
      }
      space.constants[g * in + k] = static_cast<float>(sum);
    }
  }
  const std::int64_t block = block_rows(expand.in, expand.in), blocks = (expand.rows + block - 1) / block;
  cpu::team_for(blocks, 1, expand.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin * block; row < std::min(end * block, expand.rows); row += block) {
      const std::int64_t count = std::min(block, expand.rows - row);
      float* const to = backward.x + row * expand.in;
      GemmAhead ahead;
      for (std::int64_t g = 0; g < expand.groups; ++g) {
        gemm.multiply(rows_of(from_row(layer.x, row, Storage::float32)).after(g * in), count, static_cast<int>(in),
                      space.packed + g * space.packed_group, static_cast<int>(in), {to + g * in, expand.in},
                      to + g * in, expand.in, ahead);
      }
      for (std::int64_t i = 0; i < count; ++i) {
        for (int k = 0; k < expand.in; ++k) to[i * expand.in + k] += space.constants[k];
      }
    }
  });
}

}  // namespace

std::int64_t expand_depthwise_floats(const ExpandDepthwise& layer) { return Space(layer, nullptr).floats; }

void expand_depthwise(const ExpandDepthwise& layer, float* workspace, float* y, float* mean, float* variance) {
  const MixconvCall& call = layer.depthwise;
  const std::int64_t out = layer.expand.out, row = call.out_width() * out;
  mixconv_forward_made(call, Forward(layer), {y, call.out_height() * row, row, out}, {mean, variance},
                       Space(layer, workspace).mixconv, layer.expand.threads);
}

void expand_depthwise_backward(const ExpandDepthwise& layer, const ExpandDepthwiseBackward& backward,
                               float* workspace) {
  const Pointwise& expand = layer.expand;
  const Space space(layer, workspace);
  MixconvBackward depthwise = backward.depthwise;
  depthwise.x_grad = {};
  depthwise.norm_grad = space.norm_grad;
  mixconv_backward_made(layer.depthwise, depthwise, Backward(layer, backward, space.weights), space.mixconv,
                        expand.threads);
  add_turned_weights(expand, mixconv_made_chunks(layer.depthwise), space.weights, backward.weight);
  norm::known_from_affine(expand.out, *backward.norm, space.norm_grad, space.norm_grad + expand.out,
                          backward.norm_weight, backward.norm_bias);
  if (backward.covariance != nullptr) add_statistics(layer, backward, space);
}

}  // namespace greedynas::blocks
