// libFuzzer entry point: any bytes as the weights of a filter, its sizes, paths and a mask, at each level of this
// machine. A model is refused with std::invalid_argument, or every path that it takes gets a finite log-probability.
// Build and run as fuzz_codec.cpp says.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "cpu/isa.h"
#include "filter/rejection.h"
#include "filter/score.h"

using namespace greedynas;

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  // Zero when there are no more.
  std::uint8_t next() { return size_ == 0 ? 0 : (--size_, *data_++); }

  // The bytes that are left as floats, over and over.
  std::vector<float> floats(std::size_t count) {
    std::vector<float> result(count, 0.5F);
    const std::size_t given = std::min(size_ / sizeof(float), count);
    if (given == 0) return result;
    std::memcpy(result.data(), data_, given * sizeof(float));
    for (std::size_t i = given; i < count; ++i) result[i] = result[i - given];
    const std::size_t used = given * sizeof(float);
    data_ += used / 4;  // parameters may share bytes: inputs stay small
    size_ -= used / 4;
    return result;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, size);
  const filter::Shape shape{bytes.next() % 6, bytes.next() % 5, bytes.next() % 4 * 16 + (bytes.next() == 7 ? 1 : 0)};
  std::vector<int> num_ops;
  for (int layer = 0; layer < shape.layers; ++layer) num_ops.push_back(bytes.next() % 6);
  std::vector<std::uint8_t> allowed, paths;
  for (int i = 0; i < shape.layers * shape.operations; ++i) allowed.push_back(bytes.next() % 4 != 0);
  for (int i = 0; i < 3 * shape.layers; ++i) paths.push_back(bytes.next() % 6);
  const auto h = static_cast<std::size_t>(shape.hidden);
  const auto rows = static_cast<std::size_t>(shape.layers * shape.operations);
  const auto tables = bytes.floats(8 * rows * h), recurrent = bytes.floats(8 * h * h), fc1 = bytes.floats(2 * h * h);
  const auto bias1 = bytes.floats(h), fc2 = bytes.floats(2 * h), bias2 = bytes.floats(2);
  const filter::Parameters parameters{tables.data(), recurrent.data(), fc1.data(),
                                      bias1.data(),  fc2.data(),       bias2.data()};
  for (const cpu::Isa isa : cpu::compiled()) {
    if (!cpu::available(isa)) continue;
    for (const auto precision : {filter::Precision::float32, filter::Precision::bf16}) {
      try {
        const filter::Model model(shape, num_ops, precision, isa, parameters);
        float scores[3];
        try {
          filter::score(model, paths.data(), 3, 1, scores);
          for (const float score : scores) require(std::isfinite(score) && score <= 0);
        } catch (const std::invalid_argument&) {
        }
        const filter::RejectionRequest request{allowed.data(), 1, 2, 3, 2, 100, -0.7, true};
        const auto found = filter::reject(model, request, 1, [] {});
        require(found.accepted.size() + found.fallbacks.size() == 2);
      } catch (const std::invalid_argument&) {
      }
    }
  }
  return 0;
}
