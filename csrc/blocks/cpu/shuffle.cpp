// Rows are independent, so threads share them out; within a row the loops are left to the compiler's vectoriser.
#include "blocks/shuffle.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/team.h"

namespace greedynas::blocks {

namespace {

constexpr std::int64_t kRangeBytes = 1 << 17;  // that a range of rows holds: tens of microseconds

void copy(const std::byte* from, std::int64_t bytes, std::byte* to) {
  if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));  // an empty tensor may have no address
}

// Elements of a size that the compiler knows.
template <class T>
struct Elements {
  explicit Elements(int) {}

  static void interleave(const std::byte* first, const std::byte* second, std::int64_t n, std::byte* out) {
    const T* __restrict const a = reinterpret_cast<const T*>(first);
    const T* __restrict const b = reinterpret_cast<const T*>(second);
    T* __restrict const to = reinterpret_cast<T*>(out);
    for (std::int64_t i = 0; i < n; ++i) {
      to[2 * i] = a[i];
      to[2 * i + 1] = b[i];
    }
  }

  static void separate(const std::byte* from, std::int64_t n, std::byte* first, std::byte* second) {
    const T* __restrict const pairs = reinterpret_cast<const T*>(from);
    T* __restrict const a = reinterpret_cast<T*>(first);
    T* __restrict const b = reinterpret_cast<T*>(second);
    for (std::int64_t i = 0; i < n; ++i) {
      a[i] = pairs[2 * i];
      b[i] = pairs[2 * i + 1];
    }
  }

  static constexpr std::int64_t bytes() { return sizeof(T); }
};

// Elements of any size.
class AnyElements {
 public:
  explicit AnyElements(int bytes) : bytes_(bytes) {}

  void interleave(const std::byte* first, const std::byte* second, std::int64_t n, std::byte* out) const {
    for (std::int64_t i = 0; i < n; ++i) {
      copy(first + i * bytes_, bytes_, out + 2 * i * bytes_);
      copy(second + i * bytes_, bytes_, out + (2 * i + 1) * bytes_);
    }
  }

  void separate(const std::byte* from, std::int64_t n, std::byte* first, std::byte* second) const {
    for (std::int64_t i = 0; i < n; ++i) {
      copy(from + 2 * i * bytes_, bytes_, first + i * bytes_);
      copy(from + (2 * i + 1) * bytes_, bytes_, second + i * bytes_);
    }
  }

  std::int64_t bytes() const { return bytes_; }

 private:
  std::int64_t bytes_;
};

template <class Body>
void for_elements(int bytes, const Body& body) {
  if (bytes < 1) {
    throw std::invalid_argument("shuffle: an element must have 1 byte or more, got " + std::to_string(bytes));
  }
  if (bytes == 4) return body(Elements<std::uint32_t>(bytes));
  if (bytes == 2) return body(Elements<std::uint16_t>(bytes));
  body(AnyElements(bytes));
}

// Runs body(row) for all rows.
template <class Body>
void for_rows(std::int64_t rows, std::int64_t row_bytes, int threads, const Body& body) {
  const std::int64_t grain = kRangeBytes / std::max<std::int64_t>(1, row_bytes);
  cpu::team_for(rows, grain, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) body(row);
  });
}

const std::byte* bytes_of(const void* data) { return static_cast<const std::byte*>(data); }
std::byte* bytes_of(void* data) { return static_cast<std::byte*>(data); }

}  // namespace

// With an odd half the pair in the middle is divided: its first element ends `kept`, its second begins `moved`.

void shuffle_split(const ShuffleShape& shape, ShuffleRows x, void* kept, void* moved, int threads) {
  for_elements(shape.element_bytes, [&](const auto& elements) {
    const std::int64_t bytes = elements.bytes(), half = shape.half * bytes;
    const std::int64_t pairs = shape.half / 2, odd = shape.half % 2;
    for_rows(shape.rows, 2 * half, threads, [&](std::int64_t row) {
      const std::byte* const from = bytes_of(x.data) + row * x.stride * bytes;
      std::byte* const to_kept = bytes_of(kept) + row * half;
      std::byte* const to_moved = bytes_of(moved) + row * half;
      elements.interleave(from, from + half, pairs, to_kept);
      if (odd != 0) {
        copy(from + pairs * bytes, bytes, to_kept + 2 * pairs * bytes);
        copy(from + half + pairs * bytes, bytes, to_moved);
      }
      const std::byte* const rest = from + (pairs + odd) * bytes;
      elements.interleave(rest, rest + half, pairs, to_moved + odd * bytes);
    });
  });
}

void shuffle_merge(const ShuffleShape& shape, ShuffleRows kept, ShuffleRows moved, void* x, int threads) {
  for_elements(shape.element_bytes, [&](const auto& elements) {
    const std::int64_t bytes = elements.bytes(), half = shape.half * bytes;
    const std::int64_t pairs = shape.half / 2, odd = shape.half % 2;
    for_rows(shape.rows, 2 * half, threads, [&](std::int64_t row) {
      const std::byte* const from_kept = bytes_of(kept.data) + row * kept.stride * bytes;
      const std::byte* const from_moved = bytes_of(moved.data) + row * moved.stride * bytes;
      std::byte* const to = bytes_of(x) + row * 2 * half;
      elements.separate(from_kept, pairs, to, to + half);
      if (odd != 0) {
        copy(from_kept + 2 * pairs * bytes, bytes, to + pairs * bytes);
        copy(from_moved, bytes, to + half + pairs * bytes);
      }
      std::byte* const rest = to + (pairs + odd) * bytes;
      elements.separate(from_moved + odd * bytes, pairs, rest, rest + half);
    });
  });
}

}  // namespace greedynas::blocks
