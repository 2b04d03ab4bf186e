#include "blocks/cuda/bn_act.h"
#include "blocks/cuda/rows.cuh"

namespace greedynas::norm::cuda {
namespace {

// What a channel's values are normalised with. slope and offset carry the gradient through the moments: nullptr for
// none.
struct Normalisation {
  const float *mean, *variance, *weight, *bias;
  float eps;
  const float *slope, *offset;
};

Normalisation with(const Channels& channels) {
  return {channels.mean, channels.variance, channels.weight, channels.bias, channels.eps, nullptr, nullptr};
}

template <int kCount>
struct Coefficients {
  float mean[kCount], scale[kCount], bias[kCount];

  __device__ __forceinline__ Coefficients(const Normalisation& from, int channel) {
    load_channels(from.mean, channel, 0.0F, mean);
    load_channels(from.weight, channel, 1.0F, scale);
    load_channels(from.bias, channel, 0.0F, bias);
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCount; ++i) scale[i] *= 1.0F / sqrtf(from.variance[channel + i] + from.eps);
  }
};

// ---- numbers a channel, in float64

__device__ __forceinline__ double inverse_deviation(const Normalisation& from, int c) {
  return 1.0 / sqrt(static_cast<double>(from.variance[c]) + static_cast<double>(from.eps));
}
__device__ __forceinline__ double weight_of(const Normalisation& from, int c) {
  return from.weight == nullptr ? 1.0 : static_cast<double>(from.weight[c]);
}

__global__ void __launch_bounds__(kThreads)
    affine_kernel(int channels, Normalisation from, float* scale, float* shift) {
  const auto c = static_cast<int>(device::global_thread());
  if (c >= channels) return;
  const double factor = inverse_deviation(from, c) * weight_of(from, c);
  const double bias = from.bias == nullptr ? 0.0 : static_cast<double>(from.bias[c]);
  scale[c] = static_cast<float>(factor);
  shift[c] = static_cast<float>(bias - factor * static_cast<double>(from.mean[c]));
}

// Where the gradient through the moments and those of the parameters go; nullptr where not wanted.
struct ChannelGradients {
  float *slope, *offset, *weight, *bias;
};

// From the sums over all rows of the gradient of z, and of that times (x - mean).
__device__ __forceinline__ void set_gradients(double rows, const Normalisation& from, int c, double sum, double product,
                                              const ChannelGradients& to) {
  const double inverse = inverse_deviation(from, c);
  if (to.slope != nullptr) {
    const double factor = -inverse * weight_of(from, c) / rows;
    // Zeros, not products with a zero weight: the sums may not be finite.
    to.slope[c] = factor == 0.0 ? 0.0F : static_cast<float>(factor * inverse * inverse * product);
    to.offset[c] = factor == 0.0 ? 0.0F : static_cast<float>(factor * sum);
  }
  if (to.weight != nullptr) to.weight[c] = static_cast<float>(inverse * product);
  if (to.bias != nullptr) to.bias[c] = static_cast<float>(sum);
}

__global__ void __launch_bounds__(kAddRows* kAddLanes)
    finish_sums_kernel(RowGrid grid, const float* parts, Normalisation from, ChannelGradients to) {
  const int channel = static_cast<int>(blockIdx.x) * kAddLanes + static_cast<int>(threadIdx.x) % kAddLanes;
  double sums[2];
  add_parts(parts, grid.parts(), grid.channels, channel, sums);
  if (threadIdx.x >= kAddLanes || channel >= grid.channels) return;
  set_gradients(static_cast<double>(grid.rows), from, channel, sums[0], sums[1], to);
}

__global__ void __launch_bounds__(kThreads)
    through_moments_kernel(int channels, double rows, Normalisation from, const float* grad_scale,
                           const float* grad_shift, ChannelGradients to) {
  const auto c = static_cast<int>(device::global_thread());
  if (c >= channels) return;
  const auto sum = static_cast<double>(grad_shift[c]);
  const double product = static_cast<double>(grad_scale[c]) - sum * static_cast<double>(from.mean[c]);
  set_gradients(rows, from, c, sum, product, to);
}

// ---- passes over the rows

struct Layer {
  Activation activation;
  bool residual;
};

template <class T, int kCount>
struct Fetched {
  Elements<T, kCount> x, grad, residual;
};

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(RowGrid grid, Layer layer, Normalisation from, Input x, Input residual, T* y) {
  const Slot slot = Slot::of<kCount>(grid);
  if (!slot.live) return;
  const Coefficients<kCount> c(from, slot.channel);
  const auto fetch = [&](std::int64_t row) {
    Fetched<T, kCount> fetched;
    fetched.x.load(at<T>(x, row, slot.channel));
    if (layer.residual) fetched.residual.load(at<T>(residual, row, slot.channel));
    return fetched;
  };
  for_rows<4>(grid, slot, fetch, [&](const Fetched<T, kCount>& fetched, std::int64_t row) {
    float values[kCount], others[kCount];
    fetched.x.get(values);
    fetched.residual.get(others);
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      float z = fmaf(values[i] - c.mean[i], c.scale[i], c.bias[i]);
      if (layer.residual) z += others[i];
      values[i] = activated(layer.activation, z);
    }
    Elements<T, kCount> result;
    result.set(values);
    result.store(y + row * grid.channels + slot.channel);
  });
}

// Reads what the gradient of z is made of.
template <class T, int kCount>
struct GradientOfZ {
  const Layer& layer;
  const Coefficients<kCount>& c;
  const Input &grad, &x, &residual;
  int channel;

  __device__ __forceinline__ Fetched<T, kCount> operator()(std::int64_t row) const {
    Fetched<T, kCount> fetched;
    fetched.grad.load(at<T>(grad, row, channel));
    fetched.x.load(at<T>(x, row, channel));
    if (layer.residual) fetched.residual.load(at<T>(residual, row, channel));
    return fetched;
  }
  __device__ __forceinline__ void compute(const Fetched<T, kCount>& fetched, float (&grads)[kCount],
                                          float (&centred)[kCount]) const {
    float others[kCount];
    fetched.grad.get(grads);
    fetched.x.get(centred);
    fetched.residual.get(others);
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      centred[i] -= c.mean[i];
      float z = fmaf(centred[i], c.scale[i], c.bias[i]);
      if (layer.residual) z += others[i];
      grads[i] = through_activation(layer.activation, grads[i], z);
    }
  }
};

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    sums_kernel(RowGrid grid, Layer layer, Normalisation from, Input grad, Input x, Input residual, float* out) {
  const Slot slot = Slot::of<kCount>(grid);
  const Coefficients<kCount> c(from, slot.live ? slot.channel : 0);
  const GradientOfZ<T, kCount> fetch{layer, c, grad, x, residual, slot.channel};
  float sums[2][kCount] = {};
  for_rows<2>(grid, slot, fetch, [&](const Fetched<T, kCount>& fetched, std::int64_t) {
    float grads[kCount], centred[kCount];
    fetch.compute(fetched, grads, centred);
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      sums[0][i] += grads[i];
      sums[1][i] = fmaf(grads[i], centred[i], sums[1][i]);
    }
  });
  leave_sums(grid, slot, sums, out);
}

// to_residual may be nullptr. With `scaled`, grad has been multiplied with the scale already.
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(RowGrid grid, Layer layer, Normalisation from, bool scaled, Input grad, Input x, Input residual,
                    T* to_x, T* to_residual) {
  const Slot slot = Slot::of<kCount>(grid);
  if (!slot.live) return;
  const Coefficients<kCount> c(from, slot.channel);
  float slope[kCount], offset[kCount];
  load_channels(from.slope, slot.channel, 0.0F, slope);
  load_channels(from.offset, slot.channel, 0.0F, offset);
  const GradientOfZ<T, kCount> fetch{layer, c, grad, x, residual, slot.channel};
  for_rows<2>(grid, slot, fetch, [&](const Fetched<T, kCount>& fetched, std::int64_t row) {
    float grads[kCount], centred[kCount];
    fetch.compute(fetched, grads, centred);
    const std::int64_t place = row * grid.channels + slot.channel;
    Elements<T, kCount> result;
    if (to_residual != nullptr) {
      result.set(grads);
      result.store(to_residual + place);
    }
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      grads[i] = fmaf(grads[i], scaled ? 1.0F : c.scale[i], fmaf(centred[i], slope[i], offset[i]));
    }
    result.set(grads);
    result.store(to_x + place);
  });
}

Input compact(const void* data, int channels) { return {data, channels}; }

// Slope and offset [2, channels], with batch statistics, lie behind the parts of sums.
ChannelGradients gradients_of(const Shape& shape, bool batch_statistics, float* workspace, float* weight, float* bias) {
  if (!batch_statistics) return {nullptr, nullptr, weight, bias};
  float* const slopes = workspace + most_parts(1) * 2 * shape.channels;
  return {slopes, slopes + shape.channels, weight, bias};
}

}  // namespace

std::int64_t workspace_floats(const Shape& shape) { return (most_parts(1) + 1) * 2 * shape.channels; }

void affine(int num_channels, const Channels& channels, float* scale, float* shift, Stream stream) {
  device::launch(affine_kernel, channel_grid(num_channels), kThreads, 0, stream, num_channels, with(channels), scale,
                 shift);
}

void through_moments(const Shape& shape, bool batch_statistics, Input x, const Channels& channels,
                     const float* grad_scale, const float* grad_shift, float* workspace, void* grad, float* grad_weight,
                     float* grad_bias, Stream stream) {
  Normalisation from = with(channels);
  const ChannelGradients to = gradients_of(shape, batch_statistics, workspace, grad_weight, grad_bias);
  device::launch(through_moments_kernel, channel_grid(shape.channels), kThreads, 0, stream, shape.channels,
                 static_cast<double>(shape.rows), from, grad_scale, grad_shift, to);
  if (!batch_statistics) return;
  from.slope = to.slope;
  from.offset = to.offset;
  const Input gradient = compact(grad, shape.channels);
  by_access(shape.storage, shape.channels, {x, gradient}, [&](auto zero, auto count) {
    using T = decltype(zero);
    const RowGrid grid = make_grid(1, shape.rows, shape.channels, count, kBlocks);
    launch_on(grid, backward_kernel<T, count>, stream, Layer{Activation::identity, false}, from, true, gradient, x,
              Input{}, static_cast<T*>(grad), static_cast<T*>(nullptr));
  });
}

void forward(const BnAct& layer, Input x, const Channels& channels, Input residual, void* y, Stream stream) {
  const Shape& shape = layer.shape;
  if (!layer.residual) residual = {};
  by_access(shape.storage, shape.channels, {x, residual, compact(y, shape.channels)}, [&](auto zero, auto count) {
    using T = decltype(zero);
    const RowGrid grid = make_grid(1, shape.rows, shape.channels, count, kBlocks);
    launch_on(grid, forward_kernel<T, count>, stream, Layer{layer.activation, layer.residual}, with(channels), x,
              residual, static_cast<T*>(y));
  });
}

void backward(const BnAct& layer, bool batch_statistics, Input grad, Input x, const Channels& channels, Input residual,
              float* workspace, const Gradients& gradients, Stream stream) {
  const Shape& shape = layer.shape;
  if (!layer.residual) residual = {};
  Normalisation from = with(channels);
  const ChannelGradients to = gradients_of(shape, batch_statistics, workspace, gradients.weight, gradients.bias);
  const Input to_x = compact(gradients.x, shape.channels), to_residual = compact(gradients.residual, shape.channels);
  by_access(shape.storage, shape.channels, {grad, x, residual, to_x, to_residual}, [&](auto zero, auto count) {
    using T = decltype(zero);
    const Layer kind{layer.activation, layer.residual};
    if (batch_statistics || gradients.weight != nullptr || gradients.bias != nullptr) {
      const RowGrid grid = make_grid(1, shape.rows, shape.channels, count, kBlocksOfSums);
      launch_on(grid, sums_kernel<T, count>, stream, kind, from, grad, x, residual, workspace);
      device::launch(finish_sums_kernel, add_grid(1, shape.channels), kAddRows * kAddLanes, 0, stream, grid, workspace,
                     from, to);
    }
    if (gradients.x == nullptr) return;
    from.slope = to.slope;
    from.offset = to.offset;
    const RowGrid grid = make_grid(1, shape.rows, shape.channels, count, kBlocks);
    launch_on(grid, backward_kernel<T, count>, stream, kind, from, false, grad, x, residual,
              static_cast<T*>(gradients.x), static_cast<T*>(gradients.residual));
  });
}

}  // namespace greedynas::norm::cuda
