// Tensors in any storage for the tests of the fused layers on the emulated device, and comparisons with the CPU core.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "blocks/cuda/elements.cuh"
#include "check.h"

namespace device_test {

using greedynas::blocks::cuda::Storage;
using Floats = std::vector<float>;

inline constexpr Storage kStorages[] = {Storage::float32, Storage::bf16, Storage::fp16};

// Distance of neighbouring values from each other, relative to them.
inline double spacing(Storage storage) {
  return storage == Storage::float32 ? 0x1p-23 : storage == Storage::bf16 ? 0x1p-7 : 0x1p-10;
}

// Memory of `size` elements, allocated to the last one (so that sanitizers see a step beyond) from `offset` elements
// behind an address that is aligned to 16 bytes. NaN where nothing was written.
class Array {
 public:
  Array(Storage storage, std::size_t size, std::size_t offset = 0) : storage_(storage), offset_(offset) {
    if (storage == Storage::float32) {
      floats_.assign(size + offset, std::numeric_limits<float>::quiet_NaN());
    } else {
      halves_.assign(size + offset, 0x7FFF);
    }
  }
  void* data() {
    return storage_ == Storage::float32 ? static_cast<void*>(floats_.data() + offset_) : halves_.data() + offset_;
  }
  std::size_t size() const { return (storage_ == Storage::float32 ? floats_.size() : halves_.size()) - offset_; }
  float get(std::size_t i) const {
    namespace cuda = greedynas::blocks::cuda;
    if (storage_ == Storage::float32) return floats_[i + offset_];
    const std::uint16_t bits = halves_[i + offset_];
    return storage_ == Storage::bf16 ? to_float(cuda::Bf16{bits}) : to_float(cuda::Fp16{bits});
  }
  void set(std::size_t i, float value) {
    namespace cuda = greedynas::blocks::cuda;
    if (storage_ == Storage::float32) floats_[i + offset_] = value;
    if (storage_ == Storage::bf16) halves_[i + offset_] = cuda::from_float<cuda::Bf16>(value).bits;
    if (storage_ == Storage::fp16) halves_[i + offset_] = cuda::from_float<cuda::Fp16>(value).bits;
  }

 private:
  Storage storage_;
  std::size_t offset_;
  Floats floats_;
  std::vector<std::uint16_t> halves_;
};

// Uniform from -2 to 2.
class Random {
 public:
  explicit Random(std::uint32_t seed) : state_(seed) {}
  float next() {
    state_ = state_ * 1664525U + 1013904223U;
    return static_cast<float>(state_ >> 8) * 0x1p-22F - 2.0F;
  }
  Floats floats(std::size_t count) {
    Floats values(count);
    for (float& value : values) value = next();
    return values;
  }

 private:
  std::uint32_t state_;
};

// [rows, channels] within rows of `stride` elements; a compact copy in float32 is what the CPU core gets.
struct Rows {
  std::size_t rows, channels, stride;
  Array array;

  Rows(Storage storage, std::size_t num_rows, std::size_t num_channels, std::size_t row_stride, std::size_t offset)
      : rows(num_rows),
        channels(num_channels),
        stride(row_stride),
        array(storage, num_rows == 0 ? 0 : (num_rows - 1) * row_stride + num_channels, offset) {}
  void fill(Random& random) {
    for (std::size_t i = 0; i < rows * channels; ++i) array.set(i / channels * stride + i % channels, random.next());
  }
  void fill(const Floats& values) {
    for (std::size_t i = 0; i < rows * channels; ++i) array.set(i / channels * stride + i % channels, values[i]);
  }
  Floats compact() const {
    Floats values(rows * channels);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = array.get(i / channels * stride + i % channels);
    return values;
  }
  // Whether nothing lies in the gaps between the rows.
  bool gaps_are_empty() const {
    for (std::size_t i = 0; i < array.size(); ++i) {
      if (i % stride >= channels && !std::isnan(array.get(i))) return false;
    }
    return true;
  }
};

// Every value within `tolerance` of its size plus that of the largest.
inline void compare(const std::string& what, const Floats& got, const Floats& want, double tolerance) {
  CHECK(got.size() == want.size());
  double largest = 0.0;
  for (const float value : want) largest = std::fmax(largest, std::fabs(static_cast<double>(value)));
  for (std::size_t i = 0; i < want.size(); ++i) {
    const auto size = static_cast<double>(want[i]);
    const bool good = std::fabs(static_cast<double>(got[i]) - size) <= tolerance * (std::fabs(size) + largest + 1e-3);
    if (!good) {
      std::printf("%s[%zu]: %.9g instead of %.9g\n", what.c_str(), i, static_cast<double>(got[i]), size);
      CHECK(good);
      return;
    }
  }
}

}  // namespace device_test
