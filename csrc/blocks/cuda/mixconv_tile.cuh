// Tiles of the passes of mixconv: from tensors into shared memory.
#pragma once

#include "blocks/cuda/mixconv_kernels.cuh"

namespace greedynas::blocks::cuda {

// Part of a tensor: `images` times `subs` images, of each some rows and columns, which may lie outside of the image.
struct MixconvWindow {
  int image, images, row, rows, column, columns;
  int batch, height, width;  // of the tensor
};

// x, normalised and activated.
template <class T, int kCount>
class ActivatedInput {
 public:
  using Fetched = Elements<T, kCount>;
  static constexpr int kAhead = 4;  // accesses in flight a thread

  // `norm`: scale and shift of its lanes.
  __device__ __forceinline__ ActivatedInput(const MixconvPlan& plan, const MixconvTensor& x, std::int64_t channel,
                                            const float* norm)
      : x_(x), first_(static_cast<const T*>(x.data) + channel), norm_(plan.has_norm), activation_(plan.activation) {
    read_lanes(norm, scale_);
    read_lanes(norm + kLanes, shift_);
  }
  __device__ __forceinline__ void go_to(int image, int row) { row_ = first_ + image * x_.image + row * x_.row; }
  __device__ __forceinline__ Fetched fetch(int column) const {
    Fetched fetched;
    fetched.load(row_ + column * x_.pixel);
    return fetched;
  }
  __device__ __forceinline__ void convert(const Fetched& fetched, float (&values)[kCount]) const {
    fetched.get(values);
    if (!norm_) return;
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCount; ++i) values[i] = activated(activation_, fmaf(values[i], scale_[i], shift_[i]));
  }

 private:
  const MixconvTensor& x_;
  const T* first_;
  const T* row_ = nullptr;
  float scale_[kCount], shift_[kCount];
  bool norm_;
  Activation activation_;
};

// The gradient of y, with what comes through the statistics: grad + d sum + 2 y d sum_of_squares.
template <class T, int kCount>
class WholeGradient {
 public:
  struct Fetched {
    Elements<T, kCount> grad, y;
  };
  static constexpr int kAhead = 2;  // of both tensors

  // `through`: of the sums, and twice that of the sums of squares, of its lanes.
  __device__ __forceinline__ WholeGradient(const MixconvBackwardArguments& a, std::int64_t channel,
                                           const float* through)
      : a_(a), channel_(channel), through_(a.sum_grad != nullptr) {
    read_lanes(through, sum_);
    read_lanes(through + kLanes, square_);
  }
  __device__ __forceinline__ void go_to(int image, int row) {
    grad_ = static_cast<const T*>(a_.grad.data) + channel_ + image * a_.grad.image + row * a_.grad.row;
    if (through_) y_ = static_cast<const T*>(a_.y.data) + channel_ + image * a_.y.image + row * a_.y.row;
  }
  __device__ __forceinline__ Fetched fetch(int column) const {
    Fetched fetched;
    fetched.grad.load(grad_ + column * a_.grad.pixel);
    if (through_) fetched.y.load(y_ + column * a_.y.pixel);
    return fetched;
  }
  __device__ __forceinline__ void convert(const Fetched& fetched, float (&values)[kCount]) const {
    fetched.grad.get(values);
    if (!through_) return;
    float y[kCount];
    fetched.y.get(y);
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCount; ++i) values[i] += fmaf(square_[i], y[i], sum_[i]);
  }

 private:
  const MixconvBackwardArguments& a_;
  std::int64_t channel_;
  const T* grad_ = nullptr;
  const T* y_ = nullptr;
  float sum_[kCount], square_[kCount];
  bool through_;
};

// Fills `tile` with the window, zeros outside of the images. A warp takes a row, kCount pixels at a time (lanes with
// neighbouring channels first). make_source.make<T, kCount>(channel, lane) gives what the values come from.
template <class T, int kCount, class MakeSource>
__device__ __forceinline__ void load_window_as(const MixconvChannels& channels, const MixconvWindow& window,
                                               const MakeSource& make_source, float* tile) {
  constexpr int kPerPixel = kLanes / kCount;
  // The zero keeps what depends on the lane from being computed once and kept in registers from tile to tile.
  const int lane = static_cast<int>(threadIdx.x) % kLanes + device::opaque_zero();
  const int warps = static_cast<int>(blockDim.x) / kLanes;
  const int first_lane = lane % kPerPixel * kCount;
  const int channel = first_lane % channels.width;
  const bool live = channel < channels.count;
  auto source = make_source.template make<T, kCount>(channels.first + (live ? channel : 0), first_lane);
  constexpr int kAhead = decltype(source)::kAhead;
  GREEDYNAS_UNROLL_BY(1)
  for (int i = static_cast<int>(threadIdx.x) / kLanes; i < window.images * window.rows; i += warps) {
    const int image = window.image + i / window.rows * channels.subs() + first_lane / channels.width;
    const int row = window.row + i % window.rows;
    const bool inside = live && image < window.batch && row >= 0 && row < window.height;
    source.go_to(inside ? image : 0, inside ? row : 0);
    float* const to = tile + i * window.columns * kLanes + first_lane;
    GREEDYNAS_UNROLL_BY(1)
    for (int begin = lane / kPerPixel; begin < window.columns; begin += kAhead * kCount) {
      decltype(source.fetch(0)) fetched[kAhead];
      GREEDYNAS_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        const int column = window.column + begin + k * kCount;
        if (inside && column >= 0 && column < window.width) fetched[k] = source.fetch(column);
      }
      GREEDYNAS_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        const int place = begin + k * kCount;
        if (place >= window.columns) break;
        float values[kCount] = {};
        const int column = window.column + place;
        if (inside && column >= 0 && column < window.width) source.convert(fetched[k], values);
        write_lanes(to + place * kLanes, values, begin % 2 != 0);
      }
    }
  }
}

template <class T, class MakeSource>
__device__ __forceinline__ void load_window(const MixconvChannels& channels, const MixconvWindow& window,
                                            const MakeSource& make_source, float* tile) {
  if (channels.group->wide && channels.count % kWhole<T> == 0) {
    load_window_as<T, kWhole<T>>(channels, window, make_source, tile);
  } else {
    load_window_as<T, 1>(channels, window, make_source, tile);
  }
}

}  // namespace greedynas::blocks::cuda
