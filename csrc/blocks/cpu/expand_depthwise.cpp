#include "blocks/expand_depthwise.h"

#include "blocks/cpu/bn_act_chunks.h"
#include "blocks/cpu/gemm_kernels.h"
#include "blocks/cpu/mixconv_made.h"
#include "blocks/cpu/pointwise_blocks.h"
#include "blocks/expanded_statistics.h"

namespace greedynas::blocks {
namespace {

using norm::from_row;
using norm::Input;
using norm::Storage;

constexpr std::int64_t kPixels = 96;  // that are expanded together, or more: products of fewer are slower
enum Scratch { kRows = 3 };

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
    const GemmRows add = rows_of(gradients_.add).from(pixel);
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
  float *mixconv, *norm_grad, *weights, *statistics;
  std::int64_t floats;

  Space(const ExpandDepthwise& layer, float* workspace) {
    const Pointwise& expand = layer.expand;
    Pieces pieces(workspace);
    const std::size_t bytes = mixconv_made_workspace_bytes(layer.depthwise, expand.threads);
    mixconv = pieces.take(static_cast<std::int64_t>(bytes / sizeof(float) + 1));
    norm_grad = pieces.take(2 * expand.out);
    weights = pieces.take(mixconv_made_chunks(layer.depthwise) * weight_floats(expand));
    statistics = pieces.take(statistics_gradient_floats(expand));
    floats = pieces.taken();
  }
};

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
  if (backward.covariance == nullptr) return;
  add_statistics_gradient(expand, layer.x, layer.weight, backward.covariance, *backward.norm,
                          {backward.norm_weight, backward.norm_bias, true}, space.statistics, backward.x,
                          backward.weight);
}

}  // namespace greedynas::blocks
