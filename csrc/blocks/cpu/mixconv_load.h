// Rows between the tensors and the workspace of mixconv: conversion, activation on load, their gradients on store.
//
// In the workspace a row is [vectors of the block][columns][width] floats: each vector of channels is a plane.
#pragma once

#include "blocks/cpu/mixconv_kernels.h"
#include "blocks/cpu/mixconv_rows.h"
#include "blocks/cpu/mixconv_vec.h"
#include "blocks/cpu/silu.h"

namespace greedynas::blocks {

// One row of pixels of a block of channels.
struct MixconvRow {
  std::int64_t pixel;   // elements between pixels of the tensor
  std::int64_t pixels;  // that there are
  std::int64_t plane;   // floats between planes of the workspace
  int channels;
  // A vector may be loaded beyond the block's channels, except at this many pixels of the end: what is there belongs
  // to the tensor, and lanes do not mix.
  std::int64_t careful;
  std::int64_t ahead;  // elements from a pixel to one that is needed soon and should be fetched; 0: none
};

struct MixconvNorm {
  const float* scale;  // of the block's first channel
  const float* shift;
};

// So many neighbouring vectors of channels.
template <int kCount>
struct MixconvVectors {
  static constexpr int count = kCount;
};

// Calls body(MixconvVectors, first vector, lanes) for all vectors of a block. Whole ones come together, with lanes ==
// V::width as a constant: memory is then gone through in its order, which the processor fetches ahead.
template <class V, class Body>
GREEDYNAS_VEC_INLINE void for_vectors(int channels, const Body& body) {
  int vector = 0;
  for (; (vector + 2) * V::width <= channels; vector += 2) body(MixconvVectors<2>(), vector, V::width);
  for (; (vector + 1) * V::width <= channels; ++vector) body(MixconvVectors<1>(), vector, V::width);
  if (vector * V::width < channels) body(MixconvVectors<1>(), vector, channels - vector * V::width);
}

// Pixels of a row, seen through some vectors of channels.
template <class V, class E>
struct MixconvReader {
  const E* first;
  std::int64_t pixel, whole;  // before `whole`, pixels are read as whole vectors
  std::int64_t ahead;
  int lanes;

  GREEDYNAS_VEC_INLINE MixconvReader(const void* data, const MixconvRow& row, int vector, int live)
      : first(static_cast<const E*>(data) + vector * V::width),
        pixel(row.pixel),
        whole(live == V::width ? row.pixels : row.pixels - row.careful),
        ahead(row.ahead),
        lanes(live) {}
  GREEDYNAS_VEC_INLINE V at(std::int64_t j, int vector) const {
    const E* const p = first + j * pixel + vector * V::width;
    if (ahead != 0) __builtin_prefetch(p + ahead);
    return __builtin_expect(j < whole, 1) ? load_elements<V>(p) : load_first<V>(p, lanes);
  }
};

template <class V, MixconvActivation kActivation>
GREEDYNAS_VEC_INLINE V activate(V value, V scale, V shift) {
  if constexpr (kActivation == MixconvActivation::none) return value;
  const V z = fma(value, scale, shift);
  // The bound comes first: a NaN is the result of both.
  if constexpr (kActivation == MixconvActivation::relu) return max(V::set(0.0F), z);
  if constexpr (kActivation == MixconvActivation::hard_swish) {
    const V gate = min(V::set(6.0F), max(V::set(0.0F), z + V::set(3.0F)));
    return z * gate * V::set(1.0F / 6.0F);
  }
  if constexpr (kActivation == MixconvActivation::silu) return silu(z);
  if constexpr (kActivation == MixconvActivation::relu6) return min(V::set(6.0F), max(V::set(0.0F), z));
  return z;
}

template <class V, MixconvActivation kActivation>
GREEDYNAS_VEC_INLINE V activation_slope(V z) {
  const V zero = V::set(0.0F), one = V::set(1.0F);
  if constexpr (kActivation == MixconvActivation::relu) return where_greater(z, zero, one, zero);
  if constexpr (kActivation == MixconvActivation::hard_swish) {
    const V middle = fma(z, V::set(1.0F / 3.0F), V::set(0.5F));
    return where_greater(z, V::set(-3.0F), where_greater(V::set(3.0F), z, middle, one), zero);
  }
  if constexpr (kActivation == MixconvActivation::silu) return silu_slope(z);
  if constexpr (kActivation == MixconvActivation::relu6) {
    return where_greater(z, zero, where_greater(V::set(6.0F), z, one, zero), zero);
  }
  return one;
}

// Zeros where there are none.
template <class V>
GREEDYNAS_VEC_INLINE V load_norm(const float* values, int vector, int lanes) {
  if (values == nullptr) return V::set(0.0F);
  const float* const p = values + vector * V::width;
  return lanes == V::width ? V::load(p) : load_first<V>(p, lanes);
}

// Scale and shift of some vectors of channels.
template <class V, int kCount>
struct MixconvAffine {
  V scale[kCount], shift[kCount];

  GREEDYNAS_VEC_INLINE MixconvAffine(const MixconvNorm& norm, int vector, int lanes) {
    GREEDYNAS_UNROLL
    for (int n = 0; n < kCount; ++n) {
      scale[n] = load_norm<V>(norm.scale, vector + n, lanes);
      shift[n] = load_norm<V>(norm.shift, vector + n, lanes);
    }
  }
};

// Rows of x, activated.
template <class V, class E, MixconvActivation kActivation>
void load_input_row(const void* data, const MixconvRow& row, const MixconvNorm& norm, float* out) {
  for_vectors<V>(row.channels, [&](auto vectors, int vector, int lanes) __attribute__((always_inline)) {
    constexpr int kCount = decltype(vectors)::count;
    const MixconvReader<V, E> values(data, row, vector, lanes);
    float* to = out + vector * row.plane;
    if constexpr (kActivation == MixconvActivation::none) {
      for (std::int64_t j = 0; j < row.pixels; ++j, to += V::width) {
        GREEDYNAS_UNROLL
        for (int n = 0; n < kCount; ++n) values.at(j, n).store(to + n * row.plane);
      }
    } else {
      const MixconvAffine<V, kCount> affine(norm, vector, lanes);
      for (std::int64_t j = 0; j < row.pixels; ++j, to += V::width) {
        GREEDYNAS_UNROLL
        for (int n = 0; n < kCount; ++n) {
          activate<V, kActivation>(values.at(j, n), affine.scale[n], affine.shift[n]).store(to + n * row.plane);
        }
      }
    }
  });
}

// What the gradient of y is made of besides the one that is given; pointers at the block's first channel, or nullptr.
struct MixconvGradSource {
  const void* y;
  MixconvNorm stats;  // scale: of the sums of squares, shift: of the sums
  MixconvNorm gate;   // scale: the gates, shift: the offsets
  MixconvNorm norm;   // before the gate

  GREEDYNAS_VEC_INLINE bool reads_y() const { return stats.scale != nullptr || gate.scale != nullptr; }
};

// Rows of grad, carried through a gate after kGate; with statistics, plus d sum + 2 y d sum_of_squares.
template <class V, class E, MixconvActivation kGate>
void load_grad_row(const void* grad, const MixconvRow& row, const MixconvRow& y_row, const MixconvGradSource& source,
                   float* out) {
  if (!source.reads_y()) return load_input_row<V, E, MixconvActivation::none>(grad, row, {nullptr, nullptr}, out);
  constexpr bool kGated = kGate != MixconvActivation::none;
  for_vectors<V>(row.channels, [&](auto vectors, int vector, int lanes) __attribute__((always_inline)) {
    constexpr int kCount = decltype(vectors)::count;
    const MixconvReader<V, E> grads(grad, row, vector, lanes);
    const MixconvReader<V, E> values(source.y, y_row, vector, lanes);
    MixconvAffine<V, kCount> through(source.stats, vector, lanes);
    const MixconvAffine<V, kCount> norm(source.norm, vector, lanes);
    MixconvAffine<V, kCount> gate(source.gate, vector, lanes);
    GREEDYNAS_UNROLL
    for (int n = 0; n < kCount; ++n) {
      through.scale[n] = through.scale[n] * V::set(2.0F);
      gate.scale[n] = gate.scale[n] * norm.scale[n];
      gate.shift[n] = gate.shift[n] * norm.scale[n];
    }
    float* to = out + vector * row.plane;
    for (std::int64_t j = 0; j < row.pixels; ++j, to += V::width) {
      GREEDYNAS_UNROLL
      for (int n = 0; n < kCount; ++n) {
        const V value = values.at(j, n);
        V own = grads.at(j, n);
        if constexpr (kGated) {
          own = fma(own, gate.scale[n], gate.shift[n]) *
                activation_slope<V, kGate>(fma(value, norm.scale[n], norm.shift[n]));
        }
        (own + fma(through.scale[n], value, through.shift[n])).store(to + n * row.plane);
      }
    }
  });
}

template <class V, class E>
GREEDYNAS_VEC_INLINE void store_lanes(E* to, V value, int lanes) {
  if (lanes == V::width) {
    store_elements(to, value);
  } else {
    store_first(to, value, lanes);
  }
}

// Two running sums of two series each, so that no addition waits for the one just before.
template <class V>
struct MixconvSums {
  V first[2], second[2];

  GREEDYNAS_VEC_INLINE MixconvSums() { first[0] = first[1] = second[0] = second[1] = V::set(0.0F); }
  GREEDYNAS_VEC_INLINE void add_to(float* sums) const {
    (V::load(sums) + (first[0] + first[1])).store(sums);
    (V::load(sums + kMixconvBlock) + (second[0] + second[1])).store(sums + kMixconvBlock);
  }
};

// body(pixel, series) for all pixels, which belong to the two series by turns.
template <class Body>
GREEDYNAS_VEC_INLINE void for_pixels(int pixels, const Body& body) {
  int j = 0;
  for (; j + 2 <= pixels; j += 2) {
    body(j, 0);
    body(j + 1, 1);
  }
  if (j < pixels) body(j, 0);
}

// Calls body(lanes) with the lanes of a vector of a block that there are: a constant if it is whole.
template <class V, class Body>
GREEDYNAS_VEC_INLINE void with_lanes(int channels, int vector, const Body& body) {
  const int lanes = channels - vector * V::width;
  lanes >= V::width ? body(V::width) : body(lanes);
}

// Whether results are written past the caches where a task says so: whole lines, of one vector or of two. Parts of
// lines would leave the processor one by one, for the other parts come later.
template <class V, class E>
inline constexpr bool can_stream = false;
template <class V>
  requires(V::width == kMixconvLine || 2 * V::width == kMixconvLine) && requires(V value, float* p) { value.stream(p); }
inline constexpr bool can_stream<V, float> = true;

GREEDYNAS_VEC_INLINE bool begins_lines(const float* row, std::int64_t pixel) {
  constexpr std::uintptr_t kLineBytes = kMixconvLine * sizeof(float);
  return reinterpret_cast<std::uintptr_t>(row) % kLineBytes == 0 && pixel % kMixconvLine == 0;
}

// Whole tiles of results straight from registers into a row, for correlate_row.
template <class V, class E, bool kStats>
struct MixconvDirect {
  static constexpr bool usable = true, takes_all = false;
  static constexpr bool half_lines = 2 * V::width == kMixconvLine;

  E* to;
  std::int64_t pixel, ahead;
  float* stats;  // [2][kMixconvBlock], if kStats
  bool streams;  // writes past the caches, to the beginnings of lines
  // Where a vector is half a line: vectors before this one share whole lines, and a tile of first halves, in
  // first_half [kMixconvOverrun][V::width], waits for that of the second ones.
  int shared_lines_end = 0;
  float* first_half = nullptr;

  template <int kTile>
  GREEDYNAS_VEC_INLINE void put(const V (&results)[kTile], int vector, std::int64_t j) const {
    if constexpr (can_stream<V, E> && half_lines) {
      if (streams && vector < shared_lines_end) {
        return vector % 2 == 0 ? put_as<Put::wait>(results, vector, j) : put_as<Put::stream>(results, vector, j);
      }
    } else if constexpr (can_stream<V, E>) {
      if (streams) return put_as<Put::stream>(results, vector, j);
    }
    put_as<Put::store>(results, vector, j);
  }

 private:
  enum class Put { store, stream, wait };

  template <Put kPut, int kTile>
  GREEDYNAS_VEC_INLINE void put_as(const V (&results)[kTile], int vector, std::int64_t j) const {
    const std::int64_t step = pixel;
    E* p = to + j * step + vector * V::width;
    GREEDYNAS_UNROLL_ALL
    for (int first = 0; first < kTile; first += kNarrowTile<kTile>) {
      MixconvSums<V> sums;
      GREEDYNAS_UNROLL_ALL
      for (int t = 0; t < kNarrowTile<kTile>; ++t, p += step) {
        const V value = as_stored(results[first + t], p);
        if constexpr (kPut == Put::wait) {
          value.store(first_half + (first + t) * V::width);
        } else if constexpr (kPut == Put::stream) {
          if constexpr (half_lines) V::load(first_half + (first + t) * V::width).stream(p - V::width);
          value.stream(p);
        } else {
          __builtin_prefetch(p + ahead, 1);
          store_elements(p, value);
        }
        if constexpr (kStats) {
          sums.first[t % 2] = sums.first[t % 2] + value;
          sums.second[t % 2] = fma(value, value, sums.second[t % 2]);
        }
      }
      if constexpr (kStats) sums.add_to(stats + vector * V::width);
    }
  }
};

// Calls body(MixconvDirect) with what stores into a row of this kind; stats as for store_results. `streams`: past the
// caches, if its pixels begin with a line.
template <class V, class Body>
GREEDYNAS_VEC_INLINE void with_direct(MixconvStorage storage, void* data, const MixconvRow& row, float* stats,
                                      bool streams, const Body& body) {
  if (storage == MixconvStorage::float32) {
    float* const to = static_cast<float*>(data);
    streams = streams && begins_lines(to, row.pixel);
    alignas(64) float first_half[kMixconvOverrun * V::width];
    const int shared_lines_end = row.channels / kMixconvLine * (kMixconvLine / V::width);
    if (stats == nullptr) {
      return body(
          MixconvDirect<V, float, false>{to, row.pixel, row.ahead, nullptr, streams, shared_lines_end, first_half});
    }
    return body(MixconvDirect<V, float, true>{to, row.pixel, row.ahead, stats, streams, shared_lines_end, first_half});
  }
  std::uint16_t* const to = static_cast<std::uint16_t*>(data);
  if (stats == nullptr) {
    return body(MixconvDirect<V, std::uint16_t, false>{to, row.pixel, row.ahead, nullptr, false});
  }
  return body(MixconvDirect<V, std::uint16_t, true>{to, row.pixel, row.ahead, stats, false});
}

// Results into a row of y; stats [2][kMixconvBlock], nullptr: not wanted.
template <class V, class E>
void store_results(const MixconvTile& tile, void* data, const MixconvRow& row, float* stats) {
  with_lanes<V>(row.channels, tile.vector, [&](int lanes) __attribute__((always_inline)) {
    const float* const from = tile.results;
    const std::int64_t pixel = row.pixel, ahead = row.ahead;
    const int count = tile.count;
    E* const first = static_cast<E*>(data) + tile.first * pixel + tile.vector * V::width;
    if (stats == nullptr) {
      for (int j = 0; j < count; ++j) {
        E* const to = first + j * pixel;
        __builtin_prefetch(to + ahead, 1);
        store_lanes(to, as_stored(V::load(from + j * V::width), to), lanes);
      }
      return;
    }
    MixconvSums<V> sums;
    for_pixels(count, [&](int j, int series) __attribute__((always_inline)) {
      E* const to = first + j * pixel;
      __builtin_prefetch(to + ahead, 1);
      const V value = as_stored(V::load(from + j * V::width), to);
      store_lanes(to, value, lanes);
      sums.first[series] = sums.first[series] + value;
      sums.second[series] = fma(value, value, sums.second[series]);
    });
    sums.add_to(stats + tile.vector * V::width);
  });
}

// Gradients of activated inputs into a row of x_grad; adds to norm_grad [2][kMixconvBlock] unless there is no norm.
template <class V, class E, MixconvActivation kActivation>
void store_input_grads(const MixconvTile& tile, const void* x, const MixconvRow& x_row, const MixconvNorm& norm,
                       void* data, const MixconvRow& row, float* norm_grad) {
  if constexpr (kActivation == MixconvActivation::none) return store_results<V, E>(tile, data, row, nullptr);
  with_lanes<V>(row.channels, tile.vector, [&](int lanes) __attribute__((always_inline)) {
    const float* const from = tile.results;
    const std::int64_t pixel = row.pixel, ahead = row.ahead;
    E* const first = static_cast<E*>(data) + tile.first * pixel + tile.vector * V::width;
    const MixconvReader<V, E> values(x, x_row, tile.vector, lanes);
    const MixconvAffine<V, 1> affine(norm, tile.vector, lanes);
    MixconvSums<V> sums;
    for_pixels(tile.count, [&](int j, int series) __attribute__((always_inline)) {
      E* const to = first + j * pixel;
      __builtin_prefetch(to + ahead, 1);
      const V value = values.at(tile.first + j, 0);
      const V slope = activation_slope<V, kActivation>(fma(value, affine.scale[0], affine.shift[0]));
      const V grad = V::load(from + j * V::width) * slope;
      sums.first[series] = fma(grad, value, sums.first[series]);
      sums.second[series] = sums.second[series] + grad;
      store_lanes(to, as_stored(grad * affine.scale[0], to), lanes);
    });
    sums.add_to(norm_grad + tile.vector * V::width);
  });
}

// The functions for a call's storage and activation.
struct MixconvRowFunctions {
  void (*load_input)(const void*, const MixconvRow&, const MixconvNorm&, float*);
  void (*load_grad)(const void*, const MixconvRow&, const MixconvRow&, const MixconvGradSource&, float*);
  void (*store_results)(const MixconvTile&, void*, const MixconvRow&, float*);
  void (*store_input_grads)(const MixconvTile&, const void*, const MixconvRow&, const MixconvNorm&, void*,
                            const MixconvRow&, float*);
};

template <MixconvActivation kActivation>
struct MixconvActivationIs {
  static constexpr MixconvActivation value = kActivation;
};

// body(MixconvActivationIs)
template <class Body>
GREEDYNAS_VEC_INLINE void with_activation(MixconvActivation activation, const Body& body) {
  switch (activation) {
    case MixconvActivation::identity:
      return body(MixconvActivationIs<MixconvActivation::identity>());
    case MixconvActivation::relu:
      return body(MixconvActivationIs<MixconvActivation::relu>());
    case MixconvActivation::hard_swish:
      return body(MixconvActivationIs<MixconvActivation::hard_swish>());
    case MixconvActivation::silu:
      return body(MixconvActivationIs<MixconvActivation::silu>());
    case MixconvActivation::relu6:
      return body(MixconvActivationIs<MixconvActivation::relu6>());
    case MixconvActivation::none:
      return body(MixconvActivationIs<MixconvActivation::none>());
  }
}

template <class V, class E>
GREEDYNAS_VEC_INLINE MixconvRowFunctions row_functions_of(MixconvActivation activation, MixconvActivation gate) {
  MixconvRowFunctions functions{nullptr, nullptr, &store_results<V, E>, nullptr};
  with_activation(activation, [&](auto is) __attribute__((always_inline)) {
    functions.load_input = &load_input_row<V, E, decltype(is)::value>;
    functions.store_input_grads = &store_input_grads<V, E, decltype(is)::value>;
  });
  with_activation(gate, [&](auto is) __attribute__((always_inline)) {
    functions.load_grad = &load_grad_row<V, E, decltype(is)::value>;
  });
  return functions;
}

// gate: of a MixconvGate.
template <class V>
GREEDYNAS_VEC_INLINE MixconvRowFunctions row_functions(const MixconvGeometry& geometry, MixconvActivation gate) {
  if (geometry.storage == MixconvStorage::bf16) return row_functions_of<V, std::uint16_t>(geometry.activation, gate);
  return row_functions_of<V, float>(geometry.activation, gate);
}

}  // namespace greedynas::blocks
