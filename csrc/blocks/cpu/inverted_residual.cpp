#include "blocks/inverted_residual.h"

#include <algorithm>

#include "blocks/cpu/gate_products.h"
#include "blocks/cpu/mixconv_vec.h"
#include "blocks/cpu/pointwise_blocks.h"
#include "blocks/expand_depthwise.h"
#include "blocks/expanded_statistics.h"

namespace greedynas::blocks {
namespace {

using norm::Input;
using norm::Prologue;
using norm::Storage;

// Scale and shift, and then this activation, as mixconv calls it.
constexpr MixconvActivation mixconv_activation(norm::Activation activation) {
  return static_cast<MixconvActivation>(static_cast<int>(activation) + 1);
}
static_assert(mixconv_activation(norm::Activation::identity) == MixconvActivation::identity &&
              mixconv_activation(norm::Activation::relu6) == MixconvActivation::relu6);

MixconvTensor image_tensor(const void* data, std::int64_t height, std::int64_t width, std::int64_t pixel) {
  return {const_cast<void*>(data), height * width * pixel, width * pixel, pixel};
}

bool gated(const InvertedResidual& block) { return block.gate.reduce_weight != nullptr; }

// A block's layers as the functions of this folder take them.
struct Layers {
  const InvertedResidual& block;
  const Input none{nullptr, 0};

  Pointwise expand() const {
    return {block.rows(), block.in, block.middle, block.threads, block.expand_groups, 0, block.storage};
  }
  Pointwise project() const {
    return {block.out_rows(), block.middle, block.out, block.threads, block.project_groups, 0, block.storage};
  }
  // With the sums for the gate.
  Pointwise project_backward() const {
    Pointwise layer = project();
    if (gated(block)) layer.gate_images = block.batch;
    return layer;
  }
  norm::Shape shape2() const { return norm::shape_of(block.storage, block.out_rows(), block.middle); }
  norm::BnAct norm3(bool residual) const {
    return {norm::shape_of(block.storage, block.out_rows(), block.out), norm::Activation::identity, residual,
            block.threads};
  }
  norm::Channels channels(int which, const float* moments) const {
    const BlockNorm& norm = block.norms[which];
    return {moments, moments + (which == 2 ? block.out : block.middle), norm.weight, norm.bias, norm.eps};
  }
  // [2, middle]
  void affine(int which, const float* moments, float* scale_shift) const {
    norm::affine(block.middle, channels(which, moments), scale_shift, scale_shift + block.middle);
  }
  norm::SqueezeExcite squeeze(const float* scale_shift) const {
    norm::Shape image = shape2();
    image.rows = block.out_pixels();
    return {image,        block.batch, norm::prologue_of(block.activation), scale_shift, scale_shift + block.middle,
            block.threads};
  }
  GateProducts gate() const { return {block.batch, block.middle, block.gate, block.threads}; }
  PointwiseInput project_input(const void* z2, const float* scale_shift, const float* gates) const {
    return {{z2, block.middle}, norm::prologue_of(block.activation), scale_shift, scale_shift + block.middle, gates,
            block.out_pixels()};
  }
  // Of x where nothing is expanded, else of z1.
  MixconvCall depthwise(const void* z1, const float* scale_shift) const {
    MixconvCall call{block.storage == Storage::bf16 ? MixconvStorage::bf16 : MixconvStorage::float32,
                     MixconvStorage::float32,
                     block.batch,
                     block.height,
                     block.width,
                     block.stride,
                     block.depthwise,
                     {}};
    call.padding = block.padding;
    if (block.expand == nullptr) {
      call.x = image_tensor(block.x.data, block.height, block.width, block.x.stride);
      return call;
    }
    call.x = image_tensor(z1, block.height, block.width, block.middle);
    call.activation = mixconv_activation(block.activation);
    call.scale = scale_shift;
    call.shift = scale_shift + block.middle;
    return call;
  }
  ExpandDepthwise expand_depthwise(const float* scale_shift) const {
    return {expand(), block.x, block.expand, depthwise(nullptr, scale_shift)};
  }
  MixconvTensor image2(const void* data) const {
    return image_tensor(data, (block.height - 1) / block.stride + 1, (block.width - 1) / block.stride + 1,
                        block.middle);
  }
};

// Of the workspaces of the layers, the largest, for both passes of each.
std::int64_t largest_workspace(const Layers& layers, bool in_caches) {
  const InvertedResidual& block = layers.block;
  const MixconvCall call = layers.depthwise(nullptr, nullptr);
  std::int64_t most =
      std::max(blocks::workspace_floats(layers.project()), norm::workspace_floats(layers.norm3(false).shape));
  if (in_caches) {
    most = std::max(
        {most, expanded_moments_floats(layers.expand()), expand_depthwise_floats(layers.expand_depthwise(nullptr))});
  } else {
    const std::size_t bytes = mixconv_workspace_bytes(call, block.threads);
    most = std::max(most, static_cast<std::int64_t>(bytes / sizeof(float) + 1));
    if (block.expand != nullptr) most = std::max(most, blocks::workspace_floats(layers.expand()));
  }
  if (!gated(block)) return most;
  return std::max({most, norm::workspace_floats(layers.squeeze(nullptr)), blocks::workspace_floats(layers.gate())});
}

struct Space {
  float *affine1, *affine2, *gates, *means, *hidden, *logits, *covariance, *rest;
  void *z1, *z2, *z3;
  std::int64_t floats;

  Space(const InvertedResidual& block, bool keeps, float* workspace) {
    const Layers layers{block};
    const bool in_caches = block.expands_in_caches[keeps ? 1 : 0];
    Pieces pieces(workspace);
    affine1 = pieces.take(2 * block.middle);
    affine2 = pieces.take(2 * block.middle);
    gates = gated(block) ? pieces.take(block.batch * block.middle) : nullptr;
    const bool gate_here = gated(block) && !keeps;
    means = gate_here ? pieces.take(block.batch * block.middle) : nullptr;
    logits = gate_here ? pieces.take(block.batch * block.middle) : nullptr;
    hidden = gate_here ? pieces.take(block.batch * block.gate.width) : nullptr;
    const bool z1_here = !keeps && block.expand != nullptr && !in_caches;
    z1 = z1_here ? pieces.take(norm::floats_for(block.storage, block.rows() * block.middle)) : nullptr;
    z2 = keeps ? nullptr : pieces.take(norm::floats_for(block.storage, block.out_rows() * block.middle));
    z3 = keeps ? nullptr : pieces.take(norm::floats_for(block.storage, block.out_rows() * block.out));
    const bool covariance_here = !keeps && in_caches;
    covariance = covariance_here ? pieces.take(covariance_floats(layers.expand())) : nullptr;
    rest = pieces.take(largest_workspace(layers, in_caches));
    floats = pieces.taken();
  }
};

struct BackwardSpace {
  float *affine1, *affine2, *gates, *gate_sums, *grad_means, *grad_affine1, *grad_affine2, *statistics;
  void* grad_z2;  // with a gate, as the projection gives it: the depthwise convolution carries it through the gate
  void* grad_z1;
  float* rest;
  std::int64_t floats;

  BackwardSpace(const InvertedResidual& block, float* workspace) {
    const Layers layers{block};
    const std::int64_t images = gated(block) ? block.batch * block.middle : 0;
    const bool in_caches = block.expands_in_caches[1];
    Pieces pieces(workspace);
    affine1 = pieces.take(2 * block.middle);
    affine2 = pieces.take(2 * block.middle);
    grad_affine1 = pieces.take(2 * block.middle);
    grad_affine2 = pieces.take(2 * block.middle);
    statistics = pieces.take(2 * block.middle);
    gates = pieces.take(images);
    gate_sums = pieces.take(norm::kGateSums * images);
    grad_means = pieces.take(images);
    const bool has_grad_z1 = block.expand != nullptr && !in_caches;
    grad_z1 = pieces.take(has_grad_z1 ? norm::floats_for(block.storage, block.rows() * block.middle) : 0);
    grad_z2 = pieces.take(norm::floats_for(block.storage, block.out_rows() * block.middle));
    rest = pieces.take(
        std::max(largest_workspace(layers, in_caches), blocks::workspace_floats(layers.project_backward())));
    floats = pieces.taken();
  }
};

void add(const float* more, int count, float* to) {
  for (int i = 0; i < count; ++i) to[i] += more[i];
}
void add(const Bf16Bits* more, int count, Bf16Bits* to) {
  for (int i = 0; i < count; ++i) to[i] = bf16_of(number_of(to[i]) + number_of(more[i]));
}

// to [rows, channels] += from.
template <class Element>
void add_to(Input from, std::int64_t rows, int channels, int threads, Element* to) {
  cpu::team_for(rows, std::max(1, (1 << 14) / channels), threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      add(rows_of<Element>(from).from(row).data, channels, to + row * channels);
    }
  });
}

// The expansion and the depthwise convolution.
void expand_and_convolve(const Layers& layers, const InvertedResidualTensors& tensors, const Space& space, void* z2) {
  const InvertedResidual& block = layers.block;
  const bool keeps = tensors.z2 != nullptr;
  void* const z1 = keeps ? tensors.z1 : space.z1;
  float* const covariance = keeps ? tensors.covariance : space.covariance;
  float* const moments1 = tensors.moments[0];
  float* const mean1 = block.batch_statistics ? moments1 : nullptr;
  float* const variance1 = mean1 == nullptr ? nullptr : mean1 + block.middle;
  float* const mean2 = block.batch_statistics ? tensors.moments[1] : nullptr;
  float* const variance2 = mean2 == nullptr ? nullptr : mean2 + block.middle;
  if (block.expands_in_caches[keeps ? 1 : 0]) {
    if (mean1 != nullptr) {
      expanded_moments(layers.expand(), block.x, block.expand, space.rest, mean1, variance1, covariance);
    }
    layers.affine(0, moments1, space.affine1);
    expand_depthwise(layers.expand_depthwise(space.affine1), space.rest, static_cast<float*>(z2), mean2, variance2);
    return;
  }
  if (block.expand != nullptr) {
    pointwise(layers.expand(), {block.x, Prologue::none, nullptr, nullptr, nullptr, 0}, block.expand, space.rest, z1,
              mean1, variance1);
    layers.affine(0, moments1, space.affine1);
  }
  mixconv_forward(layers.depthwise(z1, space.affine1), layers.image2(z2), nullptr, {mean2, variance2}, space.rest,
                  block.threads);
}

}  // namespace

std::int64_t workspace_floats(const InvertedResidual& block, bool keeps) { return Space(block, keeps, nullptr).floats; }

std::int64_t backward_workspace_floats(const InvertedResidual& block) { return BackwardSpace(block, nullptr).floats; }

void forward(const InvertedResidual& block, const InvertedResidualTensors& tensors, float* workspace, void* y) {
  const Layers layers{block};
  const bool keeps = tensors.z2 != nullptr;
  const Space space(block, keeps, workspace);
  void *const z2 = keeps ? tensors.z2 : space.z2, *const z3 = keeps ? tensors.z3 : space.z3;
  expand_and_convolve(layers, tensors, space, z2);
  layers.affine(1, tensors.moments[1], space.affine2);
  if (space.gates != nullptr) {
    float* const means = keeps ? tensors.means : space.means;
    norm::squeeze(layers.squeeze(space.affine2), {z2, block.middle}, space.rest, means);
    gate_products(layers.gate(), means, space.rest, keeps ? tensors.hidden : space.hidden,
                  keeps ? tensors.logits : space.logits, space.gates);
  }
  float* const moments3 = tensors.moments[2];
  float* const mean3 = block.batch_statistics ? moments3 : nullptr;
  pointwise(layers.project(), layers.project_input(z2, space.affine2, space.gates), block.project, space.rest, z3,
            mean3, mean3 == nullptr ? nullptr : mean3 + block.out);
  norm::forward(layers.norm3(block.residual), {z3, block.out}, layers.channels(2, moments3), block.x, space.rest, y);
}

void backward(const InvertedResidual& block, const InvertedResidualTensors& tensors, Input grad, float* workspace,
              const InvertedResidualGradients& gradients) {
  const Layers layers{block};
  const BackwardSpace space(block, workspace);
  const float* const* const moments = tensors.moments;
  const auto known = [&](int which, bool scaled) {
    const BlockNormGradients norm = block.batch_statistics ? gradients.norms[which] : BlockNormGradients{};
    return norm::KnownGradients{norm.weight, norm.bias, scaled};
  };
  const norm::Channels channels3 = layers.channels(2, moments[2]);
  norm::backward(layers.norm3(false), false, grad, {tensors.z3, block.out}, channels3, layers.none, space.rest,
                 {nullptr, nullptr, gradients.norms[2].weight, gradients.norms[2].bias});

  layers.affine(1, moments[1], space.affine2);
  const bool has_gate = gated(block);
  if (has_gate) gates_of(layers.gate(), tensors.logits, space.gates);
  float *const grad_scale2 = space.grad_affine2, *const grad_shift2 = grad_scale2 + block.middle;
  pointwise_backward(
      layers.project_backward(), {grad, {tensors.z3, block.out}, &channels3, known(2, false)},
      layers.project_input(tensors.z2, space.affine2, has_gate ? space.gates : nullptr), block.project, layers.none,
      space.rest, {space.grad_z2, grad_scale2, grad_shift2, gradients.project, has_gate ? space.gate_sums : nullptr});
  MixconvGate gate;
  if (has_gate) {
    const norm::SqueezeExcite squeeze = layers.squeeze(space.affine2);
    const std::int64_t images = block.batch * block.middle;
    const float* const grad_gates = space.gate_sums + norm::kGateProduct * images;
    gate_products_backward(layers.gate(), grad_gates, tensors.means, tensors.hidden, tensors.logits, space.rest,
                           {space.grad_means, gradients.reduce_weight, gradients.reduce_bias, gradients.expand_weight,
                            gradients.expand_bias});
    norm::affine_gradients(squeeze, space.gate_sums, space.gates, space.grad_means, grad_scale2, grad_shift2);
    const auto share = static_cast<float>(1.0 / static_cast<double>(block.out_pixels()));
    for (std::int64_t i = 0; i < images; ++i) space.grad_means[i] *= share;
    gate = {space.gates, space.grad_means, squeeze.scale, squeeze.shift, mixconv_activation(block.activation)};
  }

  const norm::Channels channels2 = layers.channels(1, moments[1]);
  norm::known_from_affine(block.middle, channels2, grad_scale2, grad_shift2, gradients.norms[1].weight,
                          gradients.norms[1].bias);
  // What comes through the gate and the moments of z2 is added where the depthwise convolution reads the gradient.
  if (block.batch_statistics) {
    norm::statistics_gradient(block.out_rows(), block.middle, channels2, known(1, false), space.statistics,
                              space.statistics + block.middle);
  }
  const bool expands = block.expand != nullptr;
  if (expands) layers.affine(0, moments[0], space.affine1);
  const norm::Channels channels1 = layers.channels(0, moments[0]);
  const Input add = block.residual ? grad : layers.none;
  const MixconvTensor grad_x = image_tensor(gradients.x, block.height, block.width, block.middle);
  const MixconvTensor grad_z1 = image_tensor(space.grad_z1, block.height, block.width, block.middle);
  const MixconvBackward depthwise{layers.image2(space.grad_z2),
                                  block.batch_statistics ? space.statistics : nullptr,
                                  layers.image2(tensors.z2),
                                  expands ? grad_z1 : grad_x,
                                  expands ? space.grad_affine1 : nullptr,
                                  gate};
  if (block.expands_in_caches[1]) {
    const float* const covariance = block.batch_statistics ? tensors.covariance : nullptr;
    expand_depthwise_backward(layers.expand_depthwise(space.affine1),
                              {depthwise, &channels1, covariance, add, static_cast<float*>(gradients.x),
                               gradients.expand, gradients.norms[0].weight, gradients.norms[0].bias},
                              space.rest);
    return;
  }
  mixconv_backward(layers.depthwise(tensors.z1, space.affine1), depthwise, space.rest, block.threads);
  if (!expands) {
    if (!block.residual) return;
    const std::int64_t rows = block.rows();
    if (block.storage == Storage::bf16) {
      add_to(grad, rows, block.in, block.threads, static_cast<Bf16Bits*>(gradients.x));
    } else {
      add_to(grad, rows, block.in, block.threads, static_cast<float*>(gradients.x));
    }
    return;
  }

  norm::known_from_affine(block.middle, channels1, space.grad_affine1, space.grad_affine1 + block.middle,
                          gradients.norms[0].weight, gradients.norms[0].bias);
  pointwise_backward(layers.expand(),
                     {{space.grad_z1, block.middle}, {tensors.z1, block.middle}, &channels1, known(0, true)},
                     {block.x, Prologue::none, nullptr, nullptr, nullptr, 0}, block.expand, add, space.rest,
                     {gradients.x, nullptr, nullptr, gradients.expand});
}

}  // namespace greedynas::blocks
