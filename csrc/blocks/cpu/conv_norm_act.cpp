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

  int window() const { return layer.kernel * layer.kernel * layer.in; }
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
  float* rest;
  std::int64_t floats;

  Space(const Layers& layers, float* workspace) {
    const ConvNormAct& layer = layers.layer;
    Pieces pieces(workspace);
    windows = pieces.take(norm::floats_for(layer.storage, layer.rows() * layers.window()));
    grad_z = pieces.take(norm::floats_for(layer.storage, layer.rows() * layer.out));
    rest = pieces.take(std::max(workspace_floats(layers.convolution()), norm::workspace_floats(layers.norm().shape)));
    floats = pieces.taken();
  }
};

void copy(const float* from, std::int64_t count, float* to) { std::copy_n(from, count, to); }
void copy(const float* from, std::int64_t count, Bf16Bits* to) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = bf16_of(from[i]);
}

// A row of a window, `run` numbers. Rows of the usual 3 x 3 windows, of grey and of coloured images, without a loop.
template <class Element>
void copy_run(const float* from, std::int64_t run, Element* to) {
  if (run == 3) {
    copy(from, 3, to);
  } else if (run == 9) {
    copy(from, 9, to);
  } else {
    copy(from, run, to);
  }
}

// The windows of one row of pixels of y.
template <class Element>
void take_windows(const ConvNormAct& layer, const float* image, std::int64_t y, Element* windows) {
  const std::int64_t run = std::int64_t{layer.kernel} * layer.in, pad = layer.kernel / 2;
  const std::int64_t window = run * layer.kernel;
  for (std::int64_t ky = 0; ky < layer.kernel; ++ky) {
    const std::int64_t row = y * layer.stride + ky - pad;
    const bool outside = row < 0 || row >= layer.height;
    const float* const from = image + (outside ? 0 : row * layer.width * layer.in);
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
        copy(from + begin * layer.in, (end - begin) * layer.in, to + (begin - first) * layer.in);
      }
    }
  }
}

template <class Element>
void take_windows_of(const Layers& layers, const float* x, Element* windows) {
  const ConvNormAct& layer = layers.layer;
  const std::int64_t height = layer.out_height(), size = layer.out_width() * layers.window();
  const std::int64_t grain = std::max<std::int64_t>(1, (1 << 14) / size);
  cpu::team_for(layer.images * height, grain, layer.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const float* const image = x + row / height * layer.height * layer.width * layer.in;
      take_windows(layer, image, row % height, windows + row * size);
    }
  });
}

void take_windows(const Layers& layers, const float* x, void* windows) {
  if (layers.layer.storage == Storage::bf16) {
    take_windows_of(layers, x, static_cast<Bf16Bits*>(windows));
  } else {
    take_windows_of(layers, x, static_cast<float*>(windows));
  }
}

}  // namespace

std::int64_t workspace_floats(const ConvNormAct& layer) { return Space(Layers{layer}, nullptr).floats; }

void forward(const ConvNormAct& layer, const float* x, float* moments, void* z, float* workspace, void* y) {
  const Layers layers{layer};
  const Space space(layers, workspace);
  take_windows(layers, x, space.windows);
  pointwise(layers.convolution(), layers.input(space.windows), layer.weight, space.rest, z, moments,
            moments + layer.out);
  norm::forward(layers.norm(), {z, layer.out}, layers.channels(moments), {nullptr, 0}, space.rest, y);
}

void backward(const ConvNormAct& layer, const float* x, const float* moments, const void* z, norm::Input grad,
              float* workspace, float* grad_weight, const BlockNormGradients& grad_norm) {
  const Layers layers{layer};
  const Space space(layers, workspace);
  norm::backward(layers.norm(), true, grad, {z, layer.out}, layers.channels(moments), {nullptr, 0}, space.rest,
                 {space.grad_z, nullptr, grad_norm.weight, grad_norm.bias});
  take_windows(layers, x, space.windows);
  pointwise_backward(layers.convolution(), {{space.grad_z, layer.out}, {nullptr, 0}, nullptr, {}},
                     layers.input(space.windows), layer.weight, {nullptr, 0}, space.rest,
                     {nullptr, nullptr, nullptr, grad_weight});
}

}  // namespace greedynas::blocks
