#include "blocks/cuda/mixconv_tile.cuh"

namespace greedynas::blocks::cuda {
namespace {

constexpr int kRows = kForwardPatch.rows;
constexpr int kColumns = kForwardPatch.columns;
constexpr int kWarps = kForward.threads / kLanes;

struct FromInput {
  const MixconvForwardArguments& a;
  const float* norm;
  template <class T, int kCount>
  __device__ __forceinline__ ActivatedInput<T, kCount> make(std::int64_t channel, int lane) const {
    return {a.plan, a.x, channel, norm + lane};
  }
};

// Sum and sum of squares over what a thread has stored.
struct Statistics {
  float sum = 0.0F, squares = 0.0F;
};

template <class T>
__device__ __forceinline__ void store_patch(const MixconvForwardArguments& a, std::int64_t channel,
                                            const MixconvPlace& at, const float (&results)[kRows][kColumns],
                                            Statistics& statistics) {
  const std::int64_t pixel = a.y.pixel + device::opaque_zero();  // as in load_window_as
  T* row = static_cast<T*>(a.y.data) + channel + at.image * a.y.image + at.row * a.y.row + at.column * pixel;
  GREEDYNAS_UNROLL
  for (int r = 0; r < kRows; ++r, row += a.y.row) {
    T* to = row;
    GREEDYNAS_UNROLL
    for (int t = 0; t < kColumns; ++t, to += pixel) {
      if (at.row + r >= a.plan.out_height || at.column + t >= a.plan.out_width) continue;
      const T stored = from_float<T>(results[r][t]);
      *to = stored;
      const float value = to_float(stored);
      statistics.sum += value;
      statistics.squares = fmaf(value, value, statistics.squares);
    }
  }
}

// A kernel size that has code of its own: all loops unrolled.
template <int kKernel, int kStride>
struct OwnCorrelation {
  // `input`: where the patch's first output has its first tap, in this lane.
  __device__ __forceinline__ static void run(const float* input, int row_floats, const float* weights, int,
                                             float (&sums)[kRows][kColumns]) {
    constexpr int kInputs = input_rows(kColumns, kKernel, kStride);
    GREEDYNAS_UNROLL
    for (int i = 0; i < input_rows(kRows, kKernel, kStride); ++i, input += row_floats) {
      // Not all taps and rows at once, which would be more than there are registers.
      input += device::opaque_zero();
      weights += device::opaque_zero();
      float values[kInputs];
      GREEDYNAS_UNROLL
      for (int j = 0; j < kInputs; ++j) values[j] = input[j * kLanes];
      GREEDYNAS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const int u = i - r * kStride;
        if (u < 0 || u >= kKernel) continue;
        GREEDYNAS_UNROLL
        for (int v = 0; v < kKernel; ++v) {
          const float tap = weights[u * kKernel + v];
          GREEDYNAS_UNROLL
          for (int t = 0; t < kColumns; ++t) sums[r][t] = fmaf(values[t * kStride + v], tap, sums[r][t]);
        }
      }
    }
  }
};

template <int kStride>
struct AnyCorrelation {
  __device__ __forceinline__ static void run(const float* input, int row_floats, const float* weights, int kernel,
                                             float (&sums)[kRows][kColumns]) {
    for (int u = 0; u < kernel; ++u, input += row_floats) {
      for (int v = 0; v < kernel; ++v, ++weights) {
        GREEDYNAS_UNROLL
        for (int r = 0; r < kRows; ++r) {
          GREEDYNAS_UNROLL
          for (int t = 0; t < kColumns; ++t) {
            sums[r][t] = fmaf(input[r * kStride * row_floats + (t * kStride + v) * kLanes], *weights, sums[r][t]);
          }
        }
      }
    }
  }
};

template <class T, class Correlation, int kStride>
__device__ __forceinline__ void walk(const MixconvForwardArguments& a, const MixconvGroupPlan& group, float* sums) {
  const MixconvPlan& plan = a.plan;
  const MixconvChannels channels =
      channels_of(group, static_cast<int>(blockIdx.x) - group.first_block + device::opaque_zero());
  const MixconvTile& tile = group.tile;
  const int kernel = group.kernel;
  const MixconvLate late = late_of<kStride>(plan, kernel);
  auto* const norm = reinterpret_cast<float*>(device::dynamic_shared());
  float* const weights = norm + kNumbers;
  float* const inputs = weights + kLanes * kernel * kernel;
  const int row_floats = tile.source_columns * kLanes;
  const MixconvLane own(plan, channels);
  set_numbers(norm, own.scale, own.shift);
  load_weights(plan, channels, kernel * kernel, weights);
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  Statistics statistics;
  const int tiles = tiles_of(plan, channels);
  for (int number = channels.split; number < tiles; number += group.splits) {
    const MixconvPlace place = place_of(channels, number);
    __syncthreads();  // norm is there, and the tile before has been read
    load_window<T>(
        channels,
        {place.image, tile.images, place.row * kStride - kernel / 2 + late.rows, tile.source_rows,
         place.column * kStride - kernel / 2 + late.columns, tile.source_columns, plan.batch, plan.height, plan.width},
        FromInput{a, norm}, inputs);
    __syncthreads();
    for (int p = warp; p < patches_of<kRows, kColumns>(tile); p += kWarps) {
      const MixconvPatch patch = patch_of<kRows, kColumns>(tile, p);
      const MixconvPlace at{place.image + patch.image * channels.subs() + own.sub, place.row + patch.row,
                            place.column + patch.column};
      if (at.row >= plan.out_height || at.column >= plan.out_width) continue;
      float results[kRows][kColumns] = {};
      const int row = patch.image * tile.source_rows + patch.row * kStride;
      Correlation::run(inputs + row * row_floats + patch.column * kStride * kLanes + own.lane, row_floats,
                       weights + own.channel * kernel * kernel, kernel, results);
      if (own.live && at.image < plan.batch) store_patch<T>(a, channels.first + own.channel, at, results, statistics);
    }
  }
  if (plan.sums == nullptr) return;
  sums[(warp * 2) * kLanes + own.lane] = statistics.sum;
  sums[(warp * 2 + 1) * kLanes + own.lane] = statistics.squares;
  __syncthreads();
  leave_sums(plan, channels, sums, kWarps);
}

template <class T, int kStride>
__global__ void __launch_bounds__(kForward.threads, 2)
    forward_kernel(const __grid_constant__ MixconvForwardArguments arguments) {
  __shared__ float sums[kWarps * 2 * kLanes];
  const MixconvGroupPlan& group = group_of_block(arguments.plan);
  switch (group.kernel) {
    case 3:
      return walk<T, OwnCorrelation<3, kStride>, kStride>(arguments, group, sums);
    case 5:
      return walk<T, OwnCorrelation<5, kStride>, kStride>(arguments, group, sums);
    case 7:
      return walk<T, OwnCorrelation<7, kStride>, kStride>(arguments, group, sums);
    default:
      return walk<T, AnyCorrelation<kStride>, kStride>(arguments, group, sums);
  }
}

}  // namespace

void launch_mixconv_forward(const MixconvForwardArguments& arguments, int stride, int blocks, std::int64_t shared_bytes,
                            Stream stream) {
  const dim3 grid(static_cast<unsigned>(blocks));
  by_storage(arguments.plan.storage, [&](auto zero) {
    using T = decltype(zero);
    const auto kernel = stride == 1 ? &forward_kernel<T, 1> : &forward_kernel<T, 2>;
    device::launch(kernel, grid, kForward.threads, shared_bytes, stream, arguments);
  });
}

}  // namespace greedynas::blocks::cuda
