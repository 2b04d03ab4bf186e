// The matrix products, written once over a vector type V and over P, how numbers in memory are multiplied.
//
// A tile of results stays in registers while the depth is gone through; a step broadcasts one number a row and reads a
// few vectors, so that it is bound by multiplications, not by loads. Panels of three vectors load least; what is left
// over goes into panels of two, and a single vector is taken only where there is no more.
//
// Included by one file a level, each compiled for that level alone.
#pragma once

#include <type_traits>
#include <utility>

#include "blocks/cpu/gemm_kernels.h"
#include "blocks/cpu/mixconv_vec.h"

namespace greedynas::blocks {
namespace {

// Steps after which the next panel has its turn: three vectors of columns take 24 KB, which stay in an L1 cache.
template <class V>
constexpr int gemm_depth() {
  return 2048 / V::width;
}

// Rows of a tile, so that accumulators, a step's vectors and a broadcast fill the registers: 32 of 16 floats, or 16.
template <class V, int kVectors>
constexpr int gemm_tile_rows() {
  constexpr int narrow = kVectors == 3 ? 4 : 6;
  return V::width == 16 ? 2 * narrow : narrow;
}

constexpr int gemm_panel(int vectors_left) { return vectors_left == 1 ? 1 : vectors_left % 3 == 0 ? 3 : 2; }

template <class V>
GREEDYNAS_VEC_INLINE int gemm_vectors(int columns) {
  return (columns + V::width - 1) / V::width;
}

// Where a tile reads and writes; `lanes`: of the last vector, V::width if it is whole.
template <class A, class C>
struct GemmTile {
  const A* a;
  std::int64_t a_row, a_step;
  const float* b;
  std::int64_t b_step, steps;
  GemmRowsOf<C> init;
  C* c;
  std::int64_t c_stride;
  int lanes;
  GemmAhead* ahead;

  GREEDYNAS_VEC_INLINE GemmTile from(std::int64_t row) const {
    return {a + row * a_row,    a_row,    a_step, b,    b_step, steps, init.from(row),
            c + row * c_stride, c_stride, lanes,  ahead};
  }
};

// How much there is of a panel's last vector: all, half, more than half or less.
enum class GemmLast { whole, half, most, some };

// Half a vector, where a level has it: its type, and lower(V), the lower half of a vector.
template <class V>
struct GemmHalf {
  using type = V;
  static constexpr bool exists = false;
};

// Products of floats. What P has: the types of sums and of what is multiplied in one step, of a number of a in memory,
// and a P of half the width; b is floats or words of the same size.
template <class Vec>
struct GemmFloats {
  using V = Vec;
  using A = float;
  using Half = GemmFloats<typename GemmHalf<V>::type>;
  static constexpr bool has_half = GemmHalf<V>::exists;

  GREEDYNAS_VEC_INLINE static V row(const float* p) { return V::broadcast_to_register(p); }
  GREEDYNAS_VEC_INLINE static auto lower(V values) { return GemmHalf<V>::lower(values); }
  GREEDYNAS_VEC_INLINE static V multiply_add(V row, V columns, V sums) { return fma(row, columns, sums); }
  // Read by the multiplication: for one alone, a broadcast into a register takes too long.
  GREEDYNAS_VEC_INLINE static V multiply_add(const float* row, V columns, V sums) {
    return fma(V::broadcast(row), columns, sums);
  }
};

// In the way of P where it has one.
template <class P, class V, class C>
GREEDYNAS_VEC_INLINE void gemm_store(C* p, V sums) {
  if constexpr (requires { P::store(p, sums); }) {
    P::store(p, sums);
  } else {
    store_elements(p, as_stored(sums, p));
  }
}
template <class P, class V, class C>
GREEDYNAS_VEC_INLINE void gemm_store_first(C* p, V sums, int lanes) {
  if constexpr (requires { P::store_first(p, sums, lanes); }) {
    P::store_first(p, sums, lanes);
  } else {
    store_first(p, as_stored(sums, p), lanes);
  }
}

// A compiler that knew where all rows of a tile are would compute it in advance, for more registers than there are.
template <class T>
GREEDYNAS_VEC_INLINE T* gemm_advanced(T* from, std::int64_t by) {
  from += by;
  __asm__("" : "+r"(from));
  return from;
}

template <class P, class C, int kRows, int kVectors, GemmLast kEnd>
GREEDYNAS_VEC_INLINE void gemm_tile(const GemmTile<typename P::A, C>& t) {
  constexpr int kLast = kVectors - 1;
  constexpr bool kLower = kEnd == GemmLast::half || kEnd == GemmLast::some;
  constexpr bool kMasked = kEnd == GemmLast::most || kEnd == GemmLast::some;
  using V = typename P::V;
  using OfLast = std::conditional_t<kLower, typename P::Half, P>;
  using Last = typename OfLast::V;
  V sums[kRows][kVectors];  // without those of the last vector
  Last last_sums[kRows];
  const C* from = t.init.data;
  GREEDYNAS_UNROLL
  for (int m = 0; m < kRows; ++m) {
    if (t.init.data == nullptr) {
      GREEDYNAS_UNROLL
      for (int n = 0; n < kLast; ++n) sums[m][n] = V::set(0.0F);
      last_sums[m] = Last::set(0.0F);
      continue;
    }
    GREEDYNAS_UNROLL
    for (int n = 0; n < kLast; ++n) sums[m][n] = load_elements<V>(from + n * V::width);
    if constexpr (kMasked) {
      last_sums[m] = load_first<Last>(from + kLast * V::width, t.lanes);
    } else {
      last_sums[m] = load_elements<Last>(from + kLast * V::width);
    }
    from = gemm_advanced(from, t.init.stride);
  }
  const typename P::A* a = t.a;
  const float* b = t.b;
  const auto step = [&]() __attribute__((always_inline)) {
    V columns[kVectors];  // as sums
    GREEDYNAS_UNROLL
    for (int n = 0; n < kLast; ++n) columns[n] = V::load_to_register(b + n * V::width);
    const Last last_columns = Last::load_to_register(b + kLast * V::width);
    const typename P::A* three_rows = a;
    GREEDYNAS_UNROLL
    for (int m = 0; m < kRows; ++m) {
      if (m > 0 && m % 3 == 0) three_rows = gemm_advanced(three_rows, 3 * t.a_row);
      const typename P::A* const value = three_rows + m % 3 * t.a_row;
      if constexpr (kVectors == 1) {
        last_sums[m] = OfLast::multiply_add(value, last_columns, last_sums[m]);
      } else {
        const V values = P::row(value);
        GREEDYNAS_UNROLL
        for (int n = 0; n < kLast; ++n) sums[m][n] = P::multiply_add(values, columns[n], sums[m][n]);
        if constexpr (kLower) {
          last_sums[m] = OfLast::multiply_add(P::lower(values), last_columns, last_sums[m]);
        } else {
          last_sums[m] = P::multiply_add(values, last_columns, last_sums[m]);
        }
      }
    }
    a += t.a_step;
    b += t.b_step;
  };
  GemmAhead::Range& range = t.ahead->range();
  const std::int64_t lines = range.lines < t.steps ? range.lines : t.steps;
  for (std::int64_t k = 0; k < lines; ++k) {
    __builtin_prefetch(range.next + 64 * k, 0, 2);
    step();
  }
  for (std::int64_t k = lines; k < t.steps; ++k) step();
  range.next += 64 * lines;
  range.lines -= lines;
  C* to = t.c;
  GREEDYNAS_UNROLL
  for (int m = 0; m < kRows; ++m) {
    GREEDYNAS_UNROLL
    for (int n = 0; n < kLast; ++n) gemm_store<P>(to + n * V::width, sums[m][n]);
    if constexpr (kMasked) {
      gemm_store_first<OfLast>(to + kLast * V::width, last_sums[m], t.lanes);
    } else {
      gemm_store<OfLast>(to + kLast * V::width, last_sums[m]);
    }
    to = gemm_advanced(to, t.c_stride);
  }
}

// `tiles` tiles of kRows rows.
template <class P, class C, int kRows, int kVectors, GemmLast kEnd>
void gemm_strip(GemmTile<typename P::A, C> t, std::int64_t tiles) {
  for (; tiles > 0; --tiles) {
    gemm_tile<P, C, kRows, kVectors, kEnd>(t);
    t = t.from(kRows);
  }
}

// All rows of a panel in as few tiles as they need, whose numbers of rows differ by one at most: multiplications of a
// tile of few rows wait for each other.
template <class P, class C, int kVectors, GemmLast kEnd>
void gemm_rows(const GemmTile<typename P::A, C>& t, std::int64_t rows) {
  constexpr int kMost = gemm_tile_rows<typename P::V, kVectors>();
  const std::int64_t tiles = (rows + kMost - 1) / kMost;
  if (tiles == 0) return;
  const std::int64_t least = rows / tiles, with_one_more = rows % tiles;
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    using Strip = void(GemmTile<typename P::A, C>, std::int64_t);
    constexpr Strip* strips[] = {&gemm_strip<P, C, kIndex + 1, kVectors, kEnd>...};  // of tiles of 1, 2, .. rows
    if (with_one_more > 0) strips[least](t, with_one_more);
    strips[least - 1](t.from(with_one_more * (least + 1)), tiles - with_one_more);
  }(std::make_integer_sequence<int, kMost>());
}

template <class P, class C, int kVectors>
void gemm_panel_rows(const GemmTile<typename P::A, C>& t, std::int64_t rows) {
  constexpr int kWidth = P::V::width;
  if (t.lanes == kWidth) return gemm_rows<P, C, kVectors, GemmLast::whole>(t, rows);
  if constexpr (P::has_half) {
    if (2 * t.lanes == kWidth) return gemm_rows<P, C, kVectors, GemmLast::half>(t, rows);
    if (2 * t.lanes < kWidth) return gemm_rows<P, C, kVectors, GemmLast::some>(t, rows);
  }
  gemm_rows<P, C, kVectors, GemmLast::most>(t, rows);
}

// body(first column, columns of the panel with those that fill it up, lanes of the last vector, vectors) for each
// panel.
template <class V, class Body>
GREEDYNAS_VEC_INLINE void gemm_for_panels(int columns, const Body& body) {
  int left = gemm_vectors<V>(columns);
  for (int first = 0; left > 0;) {
    const int vectors = gemm_panel(left);
    left -= vectors;
    const int width = vectors * V::width;
    const int filled = first + width - columns;
    const int lanes = filled > 0 ? V::width - filled : V::width;
    body(first, width, lanes, vectors);
    first += width;
  }
}

template <class P, class C>
GREEDYNAS_VEC_INLINE void gemm_panel_of(int vectors, const GemmTile<typename P::A, C>& t, std::int64_t rows) {
  if (vectors == 3) return gemm_panel_rows<P, C, 3>(t, rows);
  if (vectors == 2) return gemm_panel_rows<P, C, 2>(t, rows);
  gemm_panel_rows<P, C, 1>(t, rows);
}

template <class V>
void gemm_pack(const float* b, std::int64_t row_stride, std::int64_t column_stride, int depth, int columns,
               float* packed) {
  gemm_for_panels<V>(columns, [&](int first, int width, int lanes, int) {
    const int there = width - V::width + lanes;
    const float* const from = b + first * column_stride;
    for (int k = 0; k < depth; ++k) {
      for (int n = 0; n < there; ++n) packed[n] = from[k * row_stride + n * column_stride];
      for (int n = there; n < width; ++n) packed[n] = 0.0F;
      packed += width;
    }
  });
}

template <class V>
void gemm_multiply(GemmRows a, std::int64_t rows, int depth, const float* packed, int columns, GemmRows init, float* c,
                   std::int64_t c_stride, GemmAhead& ahead) {
  for (int k = 0; k < depth; k += gemm_depth<V>()) {
    const int steps = depth - k < gemm_depth<V>() ? depth - k : gemm_depth<V>();
    const GemmRows summand = k == 0 ? init : GemmRows{c, c_stride};
    gemm_for_panels<V>(columns, [&](int first, int width, int lanes, int vectors) {
      const float* const b = packed + static_cast<std::int64_t>(depth) * first + k * width;
      gemm_panel_of<GemmFloats<V>, float>(
          vectors, {a.data + k, a.stride, 1, b, width, steps, summand.after(first), c + first, c_stride, lanes, &ahead},
          rows);
    });
  }
}

template <class V>
void gemm_accumulate(GemmRows g, GemmRows x, std::int64_t rows, int out, int in, float* c, std::int64_t c_stride,
                     GemmAhead& ahead) {
  gemm_for_panels<V>(in, [&](int first, int, int lanes, int vectors) {
    gemm_panel_of<GemmFloats<V>, float>(vectors,
                                        {g.data,
                                         1,
                                         g.stride,
                                         x.data + first,
                                         x.stride,
                                         rows,
                                         {c + first, c_stride},
                                         c + first,
                                         c_stride,
                                         lanes,
                                         &ahead},
                                        out);
  });
}

template <class V>
constexpr GemmKernel gemm_kernel_over(const char* name) {
  return {name, &gemm_pack<V>, &gemm_multiply<V>, &gemm_accumulate<V>};
}

}  // namespace
}  // namespace greedynas::blocks
