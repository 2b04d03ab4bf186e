#include "blocks/conv_norm_act.h"

#include <algorithm>

#include "blocks/cpu/mixconv_vec.h"
#include "blocks/cpu/pointwise_blocks.h"
#include "cpu/team.h"

namespace greedynas::blocks {
namespace {

using norm::Prologue;
using norm::Storage;

struct Layers {
  const ConvNormAct& layer;

  int taps() const { return layer.kernel * layer.kernel * layer.in; }
  // In bf16 it ends with a zero where that makes the number even: products are those of pairs.
  int window() const { return layer.storage == Storage::bf16 ? taps() + taps() % 2 : taps(); }
  bool pads() const { return window() != taps(); }
  std::int64_t image_numbers() const { return layer.images * layer.height * layer.width * layer.in; }
  Pointwise convolution() const { return {layer.rows(), window(), layer.out, layer.threads, 1, 0, layer.storage}; }
  PointwiseInput input(const void* windows) const {
    return {{windows, window()}, Prologue::none, nullptr, nullptr, nullptr, 0};
  }
  norm::BnAct norm() const {
    return {norm::shape_of(layer.storage, layer.rows(), layer.out), layer.activation, false, layer.threads};
  }
  norm::Channels channels(const float* moments) const {
    return {moments, moments + layer.out, layer.norm.weight, layer.norm.bias, layer.norm.eps};
  }
};

struct Space {
  void *windows, *grad_z;
  Bf16Bits* images;             // for bf16
  float *weight, *grad_weight;  // [out, window], where windows are padded
  float* rest;
  std::int64_t floats;

  Space(const Layers& layers, float* workspace) {
    const ConvNormAct& layer = layers.layer;
    const bool bf16 = layer.storage == Storage::bf16;
    const std::int64_t padded_weight = layers.pads() ? std::int64_t{layer.out} * layers.window() : 0;
    Pieces pieces(workspace);
    windows = pieces.take(norm::floats_for(layer.storage, layer.rows() * layers.window()));
    grad_z = pieces.take(norm::floats_for(layer.storage, layer.rows() * layer.out));
    images =
        reinterpret_cast<Bf16Bits*>(pieces.take(bf16 ? norm::floats_for(layer.storage, layers.image_numbers()) : 0));
    weight = pieces.take(padded_weight);
    grad_weight = pieces.take(padded_weight);
    rest = pieces.take(std::max(workspace_floats(layers.convolution()), norm::workspace_floats(layers.norm().shape)));
    floats = pieces.taken();
  }
};

// A row of a window, `run` numbers. Rows of the usual 3 x 3 windows, of grey and of coloured images, without a loop.
template <class Element>
void copy_run(const Element* from, std::int64_t run, Element* to) {
  if (run == 3) {
    std::copy_n(from, 3, to);
  } else if (run == 9) {
    std::copy_n(from, 9, to);
  } else {
    std::copy_n(from, run, to);
  }
}

// The windows of one row of pixels of y.
template <class Element>
void take_windows(const Layers& layers, const Element* image, std::int64_t y, Element* windows) {
  const ConvNormAct& layer = layers.layer;
  const std::int64_t run = std::int64_t{layer.kernel} * layer.in, pad = layer.kernel / 2;
  const std::int64_t window = layers.window();
  for (std::int64_t ky = 0; ky < layer.kernel; ++ky) {
    const std::int64_t row = y * layer.stride + ky - pad;
    const bool outside = row < 0 || row >= layer.height;
    const Element* const from = image + (outside ? 0 : row * layer.width * layer.in);
    for (std::int64_t x = 0; x < layer.out_width(); ++x) {
      Element* const to = windows + x * window + ky * run;
      const std::int64_t first = x * layer.stride - pad, last = first + layer.kernel;
      if (outside) {
        std::fill_n(to, run, Element{});
      } else if (first >= 0 && last <= layer.width) {
        copy_run(from + first * layer.in, run, to);
      } else {
        const std::int64_t begin = std::max<std::int64_t>(first, 0), end = std::min(last, layer.width);
        std::fill_n(to, run, Element{});
        std::copy(from + begin * layer.in, from + end * layer.in, to + (begin - first) * layer.in);
      }
    }
  }
  for (std::int64_t x = 0; layers.pads() && x < layer.out_width(); ++x) windows[(x + 1) * window - 1] = Element{};
}

template <class Element>
void take_windows(const Layers& layers, const Element* images, Element* windows) {
  const ConvNormAct& layer = layers.layer;
  const std::int64_t height = layer.out_height(), size = layer.out_width() * layers.window();
  const std::int64_t grain = std::max<std::int64_t>(1, (1 << 14) / size);
  cpu::team_for(layer.images * height, grain, layer.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const Element* const image = images + row / height * layer.height * layer.width * layer.in;
      take_windows(layers, image, row % height, windows + row * size);
    }
  });
}

void take_windows(const Layers& layers, const float* images, const Space& space) {
  if (layers.layer.storage == Storage::float32) {
    take_windows(layers, images, static_cast<float*>(space.windows));
    return;
  }
  cpu::team_for(layers.image_numbers(), 1 << 14, layers.layer.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) space.images[i] = bf16_of(images[i]);
  });
  take_windows(layers, static_cast<const Bf16Bits*>(space.images), static_cast<Bf16Bits*>(space.windows));
}

// The weight as windows are.
const float* weight_of(const Layers& layers, const Space& space) {
  const float* const weight = layers.layer.weight;
  if (!layers.pads()) return weight;
  const int taps = layers.taps(), window = layers.window();
  for (int out = 0; out < layers.layer.out; ++out) {
    std::copy_n(weight + out * taps, taps, space.weight + out * window);
    space.weight[(out + 1) * window - 1] = 0.0F;
  }
  return space.weight;
}

}  // namespace

std::int64_t workspace_floats(const ConvNormAct& layer) { return Space(Layers{layer}, nullptr).floats; }

void forward(const ConvNormAct& layer, const float* x, float* moments, void* z, float* workspace, void* y) {
  const Layers layers{layer};
  const Space space(layers, workspace);
  take_windows(layers, x, space);
  pointwise(layers.convolution(), layers.input(space.windows), weight_of(layers, space), space.rest, z, moments,
            moments + layer.out);
  norm::forward(layers.norm(), {z, layer.out}, layers.channels(moments), {nullptr, 0}, space.rest, y);
}

void backward(const ConvNormAct& layer, const float* x, const float* moments, const void* z, norm::Input grad,
              float* workspace, float* grad_weight, const BlockNormGradients& grad_norm) {
  const Layers layers{layer};
  const Space space(layers, workspace);
  norm::backward(layers.norm(), true, grad, {z, layer.out}, layers.channels(moments), {nullptr, 0}, space.rest,
                 {space.grad_z, nullptr, grad_norm.weight, grad_norm.bias});
  take_windows(layers, x, space);
  pointwise_backward(layers.convolution(), {{space.grad_z, layer.out}, {nullptr, 0}, nullptr, {}},
                     layers.input(space.windows), weight_of(layers, space), {nullptr, 0}, space.rest,
                     {nullptr, nullptr, nullptr, layers.pads() ? space.grad_weight : grad_weight});
  const int taps = layers.taps();
  for (int out = 0; layers.pads() && out < layer.out; ++out) {
    std::copy_n(space.grad_weight + out * layers.window(), taps, grad_weight + out * taps);
  }
}

}  // namespace greedynas::blocks
