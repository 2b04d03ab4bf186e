// Mean and variance of each channel, and the running ones.
#include "blocks/cuda/bn_act.h"
#include "blocks/cuda/rows.cuh"

namespace greedynas::norm::cuda {
namespace {

// Number, mean and sum of squared differences from the mean, and those of two sets together (Chan, Golub, LeVeque
// 1979).
template <class Real>
struct Moments {
  Real count, mean, squares;

  __device__ __forceinline__ void join(const Moments& other) {
    if (other.count == Real{0}) return;
    const Real total = count + other.count;
    const Real step = other.mean - mean;
    const Real share = other.count / total;
    mean += step * share;
    squares += other.squares + step * step * (count * share);
    count = total;
  }
};

constexpr int kTogether = 4;

// Of the first `count` of some values less a shift, in two passes over registers.
template <class T, int kCount>
__device__ __forceinline__ void moments_of(const Elements<T, kCount> (&fetched)[kTogether], int count,
                                           const float (&shift)[kCount], Moments<float> (&result)[kCount]) {
  float values[kCount];
  float sums[kCount] = {};
  GREEDYNAS_UNROLL
  for (int k = 0; k < kTogether; ++k) {
    fetched[k].get(values);
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCount; ++i) sums[i] += k < count ? values[i] - shift[i] : 0.0F;
  }
  const float inverse = 1.0F / static_cast<float>(count);
  GREEDYNAS_UNROLL
  for (int i = 0; i < kCount; ++i) result[i] = {static_cast<float>(count), sums[i] * inverse, 0.0F};
  GREEDYNAS_UNROLL
  for (int k = 0; k < kTogether; ++k) {
    fetched[k].get(values);
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const float difference = k < count ? values[i] - shift[i] - result[i].mean : 0.0F;
      result[i].squares = fmaf(difference, difference, result[i].squares);
    }
  }
}

// Of the thread's rows. Means are those of differences from the first row of all, which takes care of a mean that is
// far from zero.
template <class T, int kCount>
__device__ __forceinline__ void thread_moments(const RowGrid& grid, const Slot& slot, const Input& x,
                                               Moments<float> (&own)[kCount]) {
  float shift[kCount];
  Elements<T, kCount> first;
  first.load(at<T>(x, 0, slot.channel));
  first.get(shift);
  GREEDYNAS_UNROLL_BY(1)
  for (std::int64_t row = slot.first; row < slot.end; row += kTogether * grid.height) {
    Elements<T, kCount> fetched[kTogether];
    int count = 0;
    GREEDYNAS_UNROLL
    for (int k = 0; k < kTogether; ++k) {
      if (row + k * grid.height >= slot.end) continue;
      fetched[k].load(at<T>(x, row + k * grid.height, slot.channel));
      ++count;
    }
    Moments<float> group[kCount];
    moments_of(fetched, count, shift, group);
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCount; ++i) own[i].join(group[i]);
  }
}

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) moments_kernel(RowGrid grid, Input x, float* out) {
  __shared__ float counts[kThreads], means[kCount][kThreads], squares[kCount][kThreads];
  const Slot slot = Slot::of<kCount>(grid);
  Moments<float> own[kCount] = {};
  if (slot.live) thread_moments<T>(grid, slot, x, own);
  const auto thread = static_cast<int>(threadIdx.x);
  counts[thread] = own[0].count;
  GREEDYNAS_UNROLL
  for (int i = 0; i < kCount; ++i) {
    means[i][thread] = own[i].mean;
    squares[i][thread] = own[i].squares;
  }
  for_tree(grid, [&](int a, int b) {
    float count = 0.0F;
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      Moments<float> joined{counts[a], means[i][a], squares[i][a]};
      joined.join({counts[b], means[i][b], squares[i][b]});
      means[i][a] = joined.mean;
      squares[i][a] = joined.squares;
      count = joined.count;
    }
    counts[a] = count;
  });
  if (slot.row != 0 || !slot.live) return;
  GREEDYNAS_UNROLL
  for (int i = 0; i < kCount; ++i) {
    out[(slot.part * 2) * grid.channels + slot.channel + i] = means[i][thread];
    out[(slot.part * 2 + 1) * grid.channels + slot.channel + i] = squares[i][thread];
  }
}

template <class T>
__global__ void __launch_bounds__(kAddRows* kAddLanes)
    join_moments_kernel(RowGrid grid, const float* parts, const T* first_row, float* mean, float* variance) {
  __shared__ Moments<double> shared[kAddRows][kAddLanes];
  const int lane = static_cast<int>(threadIdx.x) % kAddLanes;
  const int row = static_cast<int>(threadIdx.x) / kAddLanes;
  const int channel = static_cast<int>(blockIdx.x) * kAddLanes + lane;
  Moments<double> own{};
  if (channel < grid.channels) {
    GREEDYNAS_UNROLL_BY(4)
    for (std::int64_t part = row; part < grid.chunks; part += kAddRows) {
      const std::int64_t left = grid.rows - part * grid.chunk_rows;
      own.join({static_cast<double>(left < grid.chunk_rows ? left : grid.chunk_rows),
                static_cast<double>(parts[(part * 2) * grid.channels + channel]),
                static_cast<double>(parts[(part * 2 + 1) * grid.channels + channel])});
    }
  }
  shared[row][lane] = own;
  __syncthreads();
  if (row != 0 || channel >= grid.channels) return;
  for (int other = 1; other < kAddRows; ++other) own.join(shared[other][lane]);
  mean[channel] = static_cast<float>(static_cast<double>(blocks::cuda::to_float(first_row[channel])) + own.mean);
  variance[channel] = static_cast<float>(own.squares / own.count);
}

__global__ void __launch_bounds__(kThreads)
    update_kernel(int channels, double unbiased, double share, const float* mean, const float* variance,
                  float* running_mean, float* running_var) {
  const auto c = static_cast<int>(device::global_thread());
  if (c >= channels) return;
  const auto joined = [share](float running, double value) {
    return static_cast<float>((1.0 - share) * static_cast<double>(running) + share * value);
  };
  running_mean[c] = joined(running_mean[c], static_cast<double>(mean[c]));
  running_var[c] = joined(running_var[c], static_cast<double>(variance[c]) * unbiased);
}

}  // namespace

void moments(const Shape& shape, Input x, float* workspace, float* mean, float* variance, Stream stream) {
  by_access(shape.storage, shape.channels, {x}, [&](auto zero, auto count) {
    using T = decltype(zero);
    const RowGrid grid = make_grid(1, shape.rows, shape.channels, count, kBlocksOfSums);
    launch_on(grid, moments_kernel<T, count>, stream, x, workspace);
    device::launch(join_moments_kernel<T>, add_grid(1, shape.channels), kAddRows * kAddLanes, 0, stream, grid,
                   workspace, static_cast<const T*>(x.data), mean, variance);
  });
}

void update_running(const Shape& shape, const float* mean, const float* variance, double share, float* running_mean,
                    float* running_var, Stream stream) {
  const double unbiased = static_cast<double>(shape.rows) / static_cast<double>(shape.rows - 1);
  device::launch(update_kernel, channel_grid(shape.channels), kThreads, 0, stream, shape.channels, unbiased, share,
                 mean, variance, running_mean, running_var);
}

}  // namespace greedynas::norm::cuda
