#include "blocks/cuda/rows.cuh"
#include "blocks/cuda/squeeze_excite.h"

namespace greedynas::norm::cuda {
namespace {

// a = activation(x * scale + shift); scale and shift are nullptr for a = x.
struct Before {
  Activation activation;
  const float *scale, *shift;
};

Before before(const SqueezeExcite& layer) {
  switch (layer.prologue) {
    case Prologue::none:
      return {Activation::identity, nullptr, nullptr};
    case Prologue::affine:
      return {Activation::identity, layer.scale, layer.shift};
    case Prologue::affine_relu:
      return {Activation::relu, layer.scale, layer.shift};
    case Prologue::affine_hard_swish:
      return {Activation::hard_swish, layer.scale, layer.shift};
    case Prologue::affine_silu:
      return {Activation::silu, layer.scale, layer.shift};
    case Prologue::affine_relu6:
      return {Activation::relu6, layer.scale, layer.shift};
  }
  return {};
}

template <int kCount>
struct Affine {
  float scale[kCount], shift[kCount];

  __device__ __forceinline__ Affine(const Before& from, const Slot& slot) {
    const int channel = slot.live ? slot.channel : 0;
    load_channels(from.scale, channel, 1.0F, scale);
    load_channels(from.shift, channel, 0.0F, shift);
  }
  __device__ __forceinline__ float z(float x, int i) const { return fmaf(x, scale[i], shift[i]); }
};

template <class T, int kCount>
struct Fetched {
  Elements<T, kCount> x, grad;
};

// Reads x and, unless its data is nullptr, grad.
template <class T, int kCount>
struct Fetch {
  const Input &x, &grad;
  int channel;

  __device__ __forceinline__ Fetched<T, kCount> operator()(std::int64_t row) const {
    Fetched<T, kCount> fetched;
    if (x.data != nullptr) fetched.x.load(at<T>(x, row, channel));
    if (grad.data != nullptr) fetched.grad.load(at<T>(grad, row, channel));
    return fetched;
  }
};

// Sums of a, or with grad of grad * a, over each part.
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) sums_kernel(RowGrid grid, Before from, Input grad, Input x, float* out) {
  const Slot slot = Slot::of<kCount>(grid);
  const Affine<kCount> affine(from, slot);
  const bool has_grad = grad.data != nullptr;
  float sums[1][kCount] = {};
  for_rows<4>(grid, slot, Fetch<T, kCount>{x, grad, slot.channel},
              [&](const Fetched<T, kCount>& fetched, std::int64_t) {
                float values[kCount], grads[kCount];
                fetched.x.get(values);
                fetched.grad.get(grads);
                GREEDYNAS_UNROLL
                for (int i = 0; i < kCount; ++i) {
                  const float a = activated(from.activation, affine.z(values[i], i));
                  sums[0][i] = fmaf(has_grad ? grads[i] : 1.0F, a, sums[0][i]);
                }
              });
  leave_sums(grid, slot, sums, out);
}

// Of each image: sums [images, channels] times a factor.
__global__ void __launch_bounds__(kAddRows* kAddLanes)
    add_images_kernel(RowGrid grid, const float* parts, double factor, float* out) {
  const int tiles = (grid.channels + kAddLanes - 1) / kAddLanes;
  const std::int64_t image = blockIdx.x / static_cast<unsigned>(tiles);
  const int channel = static_cast<int>(blockIdx.x % static_cast<unsigned>(tiles)) * kAddLanes +
                      static_cast<int>(threadIdx.x) % kAddLanes;
  double sums[1];
  add_parts(parts + image * grid.chunks * grid.channels, grid.chunks, grid.channels, channel, sums);
  if (threadIdx.x >= kAddLanes || channel >= grid.channels) return;
  out[image * grid.channels + channel] = static_cast<float>(factor * sums[0]);
}

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    excite_kernel(RowGrid grid, Before from, Input x, const float* gates, T* y) {
  const Slot slot = Slot::of<kCount>(grid);
  if (!slot.live) return;
  const Affine<kCount> affine(from, slot);
  float gate[kCount];
  load_channels(gates + slot.image * grid.channels, slot.channel, 0.0F, gate);
  const Input none{nullptr, 0};
  for_rows<4>(grid, slot, Fetch<T, kCount>{x, none, slot.channel},
              [&](const Fetched<T, kCount>& fetched, std::int64_t row) {
                float values[kCount];
                fetched.x.get(values);
                GREEDYNAS_UNROLL
                for (int i = 0; i < kCount; ++i) {
                  values[i] = activated(from.activation, affine.z(values[i], i)) * gate[i];
                }
                Elements<T, kCount> result;
                result.set(values);
                result.store(y + row * grid.channels + slot.channel);
              });
}

// Leaves sums [2]: of the gradient before the activation, and of that times x; unless there is no prologue.
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    squeeze_backward_kernel(RowGrid grid, Before from, Input grad, Input x, const float* gates, const float* grad_means,
                            T* to, float* out) {
  const Slot slot = Slot::of<kCount>(grid);
  const Affine<kCount> affine(from, slot);
  float gate[kCount] = {}, offset[kCount] = {};
  if (slot.live) {
    load_channels(gates + slot.image * grid.channels, slot.channel, 0.0F, gate);
    load_channels(grad_means + slot.image * grid.channels, slot.channel, 0.0F, offset);
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCount; ++i) offset[i] *= 1.0F / static_cast<float>(grid.rows);
  }
  float sums[2][kCount] = {};
  for_rows<2>(grid, slot, Fetch<T, kCount>{x, grad, slot.channel},
              [&](const Fetched<T, kCount>& fetched, std::int64_t row) {
                float values[kCount], grads[kCount];
                fetched.x.get(values);
                fetched.grad.get(grads);
                GREEDYNAS_UNROLL
                for (int i = 0; i < kCount; ++i) {
                  const float whole = fmaf(grads[i], gate[i], offset[i]);
                  const float g = through_activation(from.activation, whole, affine.z(values[i], i));
                  sums[0][i] += g;
                  sums[1][i] = fmaf(g, values[i], sums[1][i]);
                  grads[i] = g * affine.scale[i];
                }
                Elements<T, kCount> result;
                result.set(grads);
                result.store(to + row * grid.channels + slot.channel);
              });
  if (out != nullptr) leave_sums(grid, slot, sums, out);
}

__global__ void __launch_bounds__(kAddRows* kAddLanes)
    add_all_kernel(RowGrid grid, const float* parts, float* shift, float* scale) {
  const int channel = static_cast<int>(blockIdx.x) * kAddLanes + static_cast<int>(threadIdx.x) % kAddLanes;
  double sums[2];
  add_parts(parts, grid.parts(), grid.channels, channel, sums);
  if (threadIdx.x >= kAddLanes || channel >= grid.channels) return;
  shift[channel] = static_cast<float>(sums[0]);
  scale[channel] = static_cast<float>(sums[1]);
}

RowGrid grid_of(const SqueezeExcite& layer, int count, int most_blocks) {
  return make_grid(layer.images, layer.image.rows, layer.image.channels, count, most_blocks);
}

// Sums of a, or of grad * a, of each image.
void sum_images(const SqueezeExcite& layer, Input grad, Input x, double factor, float* workspace, float* out,
                Stream stream) {
  const Shape& image = layer.image;
  by_access(image.storage, image.channels, {grad, x}, [&](auto zero, auto count) {
    using T = decltype(zero);
    const RowGrid grid = grid_of(layer, count, kBlocksOfSums);
    launch_on(grid, sums_kernel<T, count>, stream, before(layer), grad, x, workspace);
    if (layer.images == 0) return;
    device::launch(add_images_kernel, add_grid(layer.images, image.channels), kAddRows * kAddLanes, 0, stream, grid,
                   workspace, factor, out);
  });
}

Input compact(const void* data, int channels) { return {data, channels}; }

}  // namespace

std::int64_t workspace_floats(const SqueezeExcite& layer) {
  return most_parts(layer.images) * 2 * layer.image.channels;
}

void squeeze(const SqueezeExcite& layer, Input x, float* workspace, float* means, Stream stream) {
  sum_images(layer, {nullptr, 0}, x, 1.0 / static_cast<double>(layer.image.rows), workspace, means, stream);
}

void excite(const SqueezeExcite& layer, Input x, const float* gates, void* y, Stream stream) {
  const Shape& image = layer.image;
  by_access(image.storage, image.channels, {x, compact(y, image.channels)}, [&](auto zero, auto count) {
    using T = decltype(zero);
    const RowGrid grid = grid_of(layer, count, kBlocks);
    launch_on(grid, excite_kernel<T, count>, stream, before(layer), x, gates, static_cast<T*>(y));
  });
}

void excite_backward(const SqueezeExcite& layer, Input grad, Input x, float* workspace, float* grad_gates,
                     Stream stream) {
  sum_images(layer, grad, x, 1.0, workspace, grad_gates, stream);
}

void squeeze_backward(const SqueezeExcite& layer, Input grad, Input x, const float* gates, const float* grad_means,
                      float* workspace, void* grad_x, float* grad_scale, float* grad_shift, Stream stream) {
  const Shape& image = layer.image;
  const bool has_norm = layer.prologue != Prologue::none;
  const Input values = has_norm ? x : Input{nullptr, 0};
  by_access(image.storage, image.channels, {grad, values, compact(grad_x, image.channels)}, [&](auto zero, auto count) {
    using T = decltype(zero);
    const RowGrid grid = grid_of(layer, count, has_norm ? kBlocksOfSums : kBlocks);
    launch_on(grid, squeeze_backward_kernel<T, count>, stream, before(layer), grad, values, gates, grad_means,
              static_cast<T*>(grad_x), has_norm ? workspace : nullptr);
    if (!has_norm) return;
    device::launch(add_all_kernel, add_grid(1, image.channels), kAddRows * kAddLanes, 0, stream, grid, workspace,
                   grad_shift, grad_scale);
  });
}

}  // namespace greedynas::norm::cuda
