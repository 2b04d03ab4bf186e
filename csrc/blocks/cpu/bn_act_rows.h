// How the normalisation kernels walk over a matrix [rows, channels], and choose their templates.
//
// All channels of a few rows at a time: memory is then read from end to end, and what belongs to channels (means,
// accumulators) stays in the L1 cache. The last vector of a row may overlap the one before it; it computes the same.
//
// Included by one file a level, each compiled for that level alone.
#pragma once

#include "blocks/bn_act.h"
#include "blocks/cpu/bn_act_vector.h"

namespace greedynas::norm {
namespace {

template <class T>
struct RowsOf {
  T* data;
  std::int64_t stride;

  GREEDYNAS_VEC_INLINE T* operator[](std::int64_t row) const { return data + row * stride; }
};

template <class T>
GREEDYNAS_VEC_INLINE RowsOf<const T> rows_of(Input input) {
  return {static_cast<const T*>(input.data), input.stride};
}

// The vectors of a row: where the i-th one begins.
template <class V>
struct Slots {
  int channels;

  GREEDYNAS_VEC_INLINE int count() const { return (channels + V::width - 1) / V::width; }
  GREEDYNAS_VEC_INLINE int start(int i) const {
    return (i + 1) * V::width <= channels ? i * V::width : channels - V::width;
  }
  // Whether to ask for the next few rows while these are worked on: a walk over rows looks irregular to the processor.
  // Rows of more than 2 KB are long enough for it, and the next ones would drive these out of the L1 cache. Found by a
  // sweep.
  GREEDYNAS_VEC_INLINE bool prefetches() const { return channels <= 512; }
  // Accumulators of all slots, one after the other, to one number a channel, in place.
  GREEDYNAS_VEC_INLINE void close_gap(float* accumulators) const {
    const int last = count() - 1;
    V::load(accumulators + last * V::width).store(accumulators + start(last));
  }
};

template <bool kStream, class V, class T>
GREEDYNAS_VEC_INLINE void put(V v, T* p) {
  if constexpr (kStream) {
    stream_as(v, p);
  } else {
    store_as(v, p);
  }
}

// Whether all vectors of the output may be written past the caches.
template <class V, class T>
GREEDYNAS_VEC_INLINE bool streams(const Shape& shape, const void* output) {
  return shape.large && shape.channels % V::width == 0 &&
         reinterpret_cast<std::uintptr_t>(output) % (V::width * sizeof(T)) == 0;
}

template <class V, template <class, class> class Op, class... Arguments>
GREEDYNAS_VEC_INLINE void by_storage(const Shape& shape, Arguments... arguments) {
  if (shape.storage == Storage::float32) {
    Op<V, float>::run(shape, arguments...);
  } else {
    Op<V, Bf16>::run(shape, arguments...);
  }
}

}  // namespace
}  // namespace greedynas::norm
