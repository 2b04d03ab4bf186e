// The channel shuffle against its index map, element by element: every size, odd halves, rows with gaps, threads.
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <stdexcept>
#include <vector>

#include "blocks/shuffle.h"
#include "check.h"

namespace {

namespace blocks = greedynas::blocks;
using Bytes = std::vector<unsigned char>;

constexpr unsigned char kGap = 0xEE;

// [rows, channels] of elements whose bytes all differ from their neighbours', with `gap` elements between rows. The
// last row ends the allocation, so that the sanitizers see a step beyond.
struct Rows {
  std::int64_t rows, channels, stride;
  int element;
  Bytes bytes;

  Rows(std::int64_t n, std::int64_t c, std::int64_t gap, int element_bytes, unsigned seed)
      : rows(n), channels(c), stride(c + gap), element(element_bytes) {
    bytes.assign(static_cast<std::size_t>(n == 0 ? 0 : ((n - 1) * stride + c) * element), kGap);
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t i = 0; i < channels * element; ++i) {
        seed = seed * 1664525U + 1013904223U;
        bytes[static_cast<std::size_t>(row * stride * element + i)] = static_cast<unsigned char>(seed >> 24);
      }
    }
  }
  blocks::ShuffleRows view() const { return {bytes.data(), stride}; }
  bool same(std::int64_t row, std::int64_t channel, const Rows& other, std::int64_t other_channel) const {
    for (int i = 0; i < element; ++i) {
      const auto mine = static_cast<std::size_t>((row * stride + channel) * element + i);
      const auto theirs = static_cast<std::size_t>((row * other.stride + other_channel) * element + i);
      if (bytes[mine] != other.bytes[theirs]) return false;
    }
    return true;
  }
};

void test_split_and_merge(std::int64_t rows, std::int64_t half, std::int64_t gap, int element, int threads) {
  const Rows x(rows, 2 * half, gap, element, 1);
  Rows kept(rows, half, 0, element, 2), moved(rows, half, 0, element, 3);
  blocks::shuffle_split({rows, half, element}, x.view(), kept.bytes.data(), moved.bytes.data(), threads);
  bool right = true;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t to = 0; to < 2 * half; ++to) {
      const std::int64_t from = to % 2 * half + to / 2;
      const bool first = to < half;
      right = right && (first ? kept : moved).same(row, first ? to : to - half, x, from);
    }
  }
  CHECK(right);

  // From rows with gaps back to x.
  Rows kept_grad(rows, half, gap, element, 4), moved_grad(rows, half, 2 * gap, element, 5);
  Rows x_grad(rows, 2 * half, 0, element, 6);
  blocks::shuffle_merge({rows, half, element}, kept_grad.view(), moved_grad.view(), x_grad.bytes.data(), threads);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t to = 0; to < 2 * half; ++to) {
      const std::int64_t from = to % 2 * half + to / 2;
      const bool first = to < half;
      right = right && (first ? kept_grad : moved_grad).same(row, first ? to : to - half, x_grad, from);
    }
  }
  CHECK(right);
}

void test_bad_element() {
  CHECK_THROWS(blocks::shuffle_split({0, 1, 0}, {nullptr, 2}, nullptr, nullptr, 1), std::invalid_argument);
  CHECK_THROWS(blocks::shuffle_merge({0, 1, -1}, {nullptr, 1}, {nullptr, 1}, nullptr, 1), std::invalid_argument);
}

}  // namespace

int main() {
  for (const int element : {1, 2, 3, 4, 8}) {
    for (const std::int64_t half : {1, 2, 3, 8, 17, 58}) {
      for (const std::int64_t gap : {0, 5}) {
        for (const std::int64_t rows : {0, 1, 7}) test_split_and_merge(rows, half, gap, element, 1);
      }
    }
    // Enough rows for several ranges.
    test_split_and_merge(5000, 29, 3, element, 4);
  }
  test_bad_element();
  return failed_checks == 0 ? 0 : 1;
}
