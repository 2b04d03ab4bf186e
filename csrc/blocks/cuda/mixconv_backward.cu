#include "blocks/cuda/mixconv_tile.cuh"

namespace greedynas::blocks::cuda {
namespace {

// With x at row r and a tap in row u, grad's row is (r + k / 2 - u) / stride, where that divides. So one window of grad
// is all that both gradients need besides x at the place itself, which is read straight into registers. Where windows
// begin a row later, r is one less; the plane that patches lie in then begins at -2, a row before the image.

constexpr int kWarps = kBackward.threads / kLanes;

struct FromGradient {
  const MixconvBackwardArguments& a;
  const float* through;
  template <class T, int kCount>
  __device__ __forceinline__ WholeGradient<T, kCount> make(std::int64_t channel, int lane) const {
    return {a, channel, through + lane};
  }
};

// Gradients of scale and shift, of what a thread has stored.
struct NormSums {
  float scale = 0.0F, shift = 0.0F;
};

// A patch of activated x in one lane, and its gradient.
template <int kRows, int kColumns>
struct Patch {
  float a[kRows][kColumns], grad[kRows][kColumns];
};

__device__ __forceinline__ bool is_within(int i, int size) {
  return static_cast<unsigned>(i) < static_cast<unsigned>(size);
}

// Zeros outside of the image.
template <class T, int kRows, int kColumns>
__device__ __forceinline__ void load_patch(const MixconvBackwardArguments& a, std::int64_t channel,
                                           const MixconvPlace& at, const MixconvLane& own, bool inside,
                                           Patch<kRows, kColumns>& patch) {
  const std::int64_t pixel = a.x.pixel + device::opaque_zero();  // as in load_window_as
  const T* row =
      static_cast<const T*>(a.x.data) + channel + at.image * a.x.image + at.row * a.x.row + at.column * pixel;
  GREEDYNAS_UNROLL
  for (int r = 0; r < kRows; ++r, row += a.x.row) {
    const T* from = row;
    GREEDYNAS_UNROLL
    for (int t = 0; t < kColumns; ++t, from += pixel) {
      const bool is_there = inside && is_within(at.row + r, a.plan.height) && is_within(at.column + t, a.plan.width);
      const float x = is_there ? to_float(*from) : 0.0F;
      patch.a[r][t] = is_there ? activated(a.plan.activation, fmaf(x, own.scale, own.shift)) : 0.0F;
      patch.grad[r][t] = 0.0F;
    }
  }
}

// Reads x again, since there is no room for it in the registers.
template <class T, int kRows, int kColumns>
__device__ __forceinline__ void store_patch(const MixconvBackwardArguments& a, std::int64_t channel,
                                            const MixconvPlace& at, const MixconvLane& own,
                                            const Patch<kRows, kColumns>& patch, NormSums& sums) {
  const std::int64_t x_pixel = a.x.pixel + device::opaque_zero();
  const std::int64_t pixel = a.x_grad.pixel + device::opaque_zero();
  const T* x_row =
      static_cast<const T*>(a.x.data) + channel + at.image * a.x.image + at.row * a.x.row + at.column * x_pixel;
  T* row =
      static_cast<T*>(a.x_grad.data) + channel + at.image * a.x_grad.image + at.row * a.x_grad.row + at.column * pixel;
  GREEDYNAS_UNROLL
  for (int r = 0; r < kRows; ++r, row += a.x_grad.row, x_row += a.x.row) {
    if (!is_within(at.row + r, a.plan.height)) continue;
    const T* from = x_row;
    T* to = row;
    GREEDYNAS_UNROLL
    for (int t = 0; t < kColumns; ++t, to += pixel, from += x_pixel) {
      if (!is_within(at.column + t, a.plan.width)) continue;
      const float x = to_float(*from);
      const float grad = through_activation(a.plan.activation, patch.grad[r][t], fmaf(x, own.scale, own.shift));
      sums.scale = fmaf(grad, x, sums.scale);
      sums.shift += grad;
      *to = from_float<T>(grad * own.scale);
    }
  }
}

// A kernel size that has code of its own: all loops unrolled, the gradient of the weights in registers.
template <int kKernel, int kStride>
struct OwnGradients {
  static constexpr int kRows = backward_patch(kKernel, kStride).rows;
  static constexpr int kColumns = backward_patch(kKernel, kStride).columns;
  static constexpr int kPad = kKernel / 2;
  static constexpr int kBefore = kPad / kStride;  // rows and columns of the window before the patch's first
  static constexpr int kWarpsUsed = kWarps;
  float weight_grad[kKernel * kKernel];

  __device__ __forceinline__ OwnGradients(float*, int) {
    GREEDYNAS_UNROLL
    for (int i = 0; i < kKernel * kKernel; ++i) weight_grad[i] = 0.0F;
  }
  // `grad`: the window's first value for this patch, in this lane.
  __device__ __forceinline__ void run(const float* grad, int row_floats, const float* weights, int,
                                      Patch<kRows, kColumns>& patch) {
    constexpr int kGrads = grad_rows(kColumns, kKernel, kStride);
    GREEDYNAS_UNROLL
    for (int i = 0; i < grad_rows(kRows, kKernel, kStride); ++i, grad += row_floats) {
      // Not all taps and rows at once, which would be more than there are registers.
      grad += device::opaque_zero();
      weights += device::opaque_zero();
      float values[kGrads];
      GREEDYNAS_UNROLL
      for (int j = 0; j < kGrads; ++j) values[j] = grad[j * kLanes];
      GREEDYNAS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const int u = r + kPad - kStride * (i - kBefore);
        if (u < 0 || u >= kKernel) continue;
        GREEDYNAS_UNROLL
        for (int v = 0; v < kKernel; ++v) {
          const float tap = weights[u * kKernel + v];
          GREEDYNAS_UNROLL
          for (int t = 0; t < kColumns; ++t) {
            if ((t + kPad - v) % kStride != 0) continue;
            const float value = values[(t + kPad - v) / kStride + kBefore];
            patch.grad[r][t] = fmaf(value, tap, patch.grad[r][t]);
            weight_grad[u * kKernel + v] = fmaf(value, patch.a[r][t], weight_grad[u * kKernel + v]);
          }
        }
      }
    }
  }
  // Into [taps][kLanes].
  __device__ __forceinline__ void finish(float* sums, int) const {
    GREEDYNAS_UNROLL
    for (int i = 0; i < kKernel * kKernel; ++i) sums[i * kLanes] = weight_grad[i];
  }
};

// Any other: the gradient of the weights is added up in shared memory, where each thread has a column.
template <int kStride>
struct AnyGradients {
  static constexpr int kRows = backward_patch(0, kStride).rows;
  static constexpr int kColumns = backward_patch(0, kStride).columns;
  static constexpr int kWarpsUsed = kAnyBackwardWarps;
  float* sums;

  __device__ __forceinline__ AnyGradients(float* own_sums, int kernel) : sums(own_sums) {
    for (int i = 0; i < kernel * kernel; ++i) sums[i * kLanes] = 0.0F;
  }
  __device__ __forceinline__ void run(const float* grad, int row_floats, const float* weights, int kernel,
                                      Patch<kRows, kColumns>& patch) {
    const int pad = kernel / 2;
    const int before = pad / kStride;
    float* sum = sums;
    for (int u = 0; u < kernel; ++u) {
      for (int v = 0; v < kernel; ++v, ++weights, sum += kLanes) {
        float part = 0.0F;
        GREEDYNAS_UNROLL
        for (int r = 0; r < kRows; ++r) {
          if ((r + pad - u) % kStride != 0) continue;
          const float* const row = grad + ((r + pad - u) / kStride + before) * row_floats;
          GREEDYNAS_UNROLL
          for (int t = 0; t < kColumns; ++t) {
            if ((t + pad - v) % kStride != 0) continue;
            const float value = row[((t + pad - v) / kStride + before) * kLanes];
            patch.grad[r][t] = fmaf(value, *weights, patch.grad[r][t]);
            part = fmaf(value, patch.a[r][t], part);
          }
        }
        *sum += part;
      }
    }
  }
  __device__ __forceinline__ void finish(float*, int) const {}
};

// In shared memory: two numbers a lane, weights [channels][taps], sums [warps][items][kLanes], then the window of grad.
// Where the gradient of the weights is in registers, the sums take the window's place at the end.
template <class T, class Gradients, int kStride>
__device__ __forceinline__ void walk(const MixconvBackwardArguments& a, const MixconvGroupPlan& group) {
  constexpr int kRows = Gradients::kRows;
  constexpr int kColumns = Gradients::kColumns;
  constexpr int kWarpsUsed = Gradients::kWarpsUsed;
  const MixconvPlan& plan = a.plan;
  const MixconvChannels channels =
      channels_of(group, static_cast<int>(blockIdx.x) - group.first_block + device::opaque_zero());
  const MixconvTile& tile = group.tile;
  const int kernel = group.kernel;
  const int before = kernel / 2 / kStride;
  const MixconvLate late = late_of<kStride>(plan, kernel);
  auto* const through = reinterpret_cast<float*>(device::dynamic_shared());
  float* const weights = through + kNumbers;
  float* const sums = weights + kLanes * kernel * kernel;
  float* const window = has_own_code(kernel) ? sums : sums + kWarpsUsed * group.items * kLanes;
  const int row_floats = tile.source_columns * kLanes;
  const MixconvLane own(plan, channels);
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  const bool works = warp < kWarpsUsed;
  float* const own_sums = sums + (works ? warp : 0) * group.items * kLanes + own.lane;  // the last two are the norm's
  const std::int64_t channel = channels.first + own.channel;
  if (a.sum_grad != nullptr) set_numbers(through, a.sum_grad[channel], 2.0F * a.square_grad[channel]);
  load_weights(plan, channels, kernel * kernel, weights);
  Gradients gradients(works ? own_sums : nullptr, works ? kernel : 0);
  NormSums norm_sums;
  const int tiles = tiles_of(plan, channels);
  for (int number = channels.split; number < tiles; number += group.splits) {
    const MixconvPlace place = place_of(channels, number);
    __syncthreads();  // `through` is there, and the window before has been read
    load_window<T>(channels,
                   {place.image, tile.images, place.row / kStride - late.rows - before, tile.source_rows,
                    place.column / kStride - late.columns - before, tile.source_columns, plan.batch, plan.out_height,
                    plan.out_width},
                   FromGradient{a, through}, window);
    __syncthreads();
    for (int p = warp; works && p < patches_of<kRows, kColumns>(tile); p += kWarpsUsed) {
      const MixconvPatch in_tile = patch_of<kRows, kColumns>(tile, p);
      const MixconvPlace at{place.image + in_tile.image * channels.subs() + own.sub,
                            place.row + in_tile.row - late.rows, place.column + in_tile.column - late.columns};
      if (at.row >= plan.height || at.column >= plan.width) continue;
      const bool inside = own.live && at.image < plan.batch;
      Patch<kRows, kColumns> patch;
      load_patch<T>(a, channel, at, own, inside, patch);
      const int row = in_tile.image * tile.source_rows + in_tile.row / kStride;
      gradients.run(window + row * row_floats + in_tile.column / kStride * kLanes + own.lane, row_floats,
                    weights + own.channel * kernel * kernel, kernel, patch);
      if (inside && a.x_grad.data != nullptr) {
        store_patch<T>(a, channel, at, own, patch, norm_sums);
      }
    }
  }
  if (plan.sums == nullptr) return;
  __syncthreads();
  if (works) {
    gradients.finish(own_sums, kernel);
    own_sums[(group.items - 2) * kLanes] = norm_sums.scale;
    own_sums[(group.items - 1) * kLanes] = norm_sums.shift;
  }
  __syncthreads();
  leave_sums(plan, channels, sums, kWarpsUsed);
}

template <class T, int kStride>
__global__ void __launch_bounds__(kBackward.threads, 3)
    backward_kernel(const __grid_constant__ MixconvBackwardArguments arguments) {
  const MixconvGroupPlan& group = group_of_block(arguments.plan);
  switch (group.kernel) {
    case 3:
      return walk<T, OwnGradients<3, kStride>, kStride>(arguments, group);
    case 5:
      return walk<T, OwnGradients<5, kStride>, kStride>(arguments, group);
    case 7:
      return walk<T, OwnGradients<7, kStride>, kStride>(arguments, group);
    default:
      return walk<T, AnyGradients<kStride>, kStride>(arguments, group);
  }
}

}  // namespace

void launch_mixconv_backward(const MixconvBackwardArguments& arguments, int stride, int blocks,
                             std::int64_t shared_bytes, Stream stream) {
  const dim3 grid(static_cast<unsigned>(blocks));
  by_storage(arguments.plan.storage, [&](auto zero) {
    using T = decltype(zero);
    const auto kernel = stride == 1 ? &backward_kernel<T, 1> : &backward_kernel<T, 2>;
    device::launch(kernel, grid, kBackward.threads, shared_bytes, stream, arguments);
  });
}

}  // namespace greedynas::blocks::cuda
