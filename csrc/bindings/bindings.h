// What the files of this folder share. Addresses and sizes only cross the border to Python; the modules of
// greedynas_fast that call in here own the arrays and check them. Nothing here knows numpy or torch.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>

#include "blocks/bn_act.h"
#include "blocks/mixconv.h"

namespace greedynas::bindings {

using Address = std::uintptr_t;  // of an array

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// An address, and the distance of rows or the groups of a convolution.
using Place = std::pair<Address, std::int64_t>;

inline norm::Storage storage_of(bool bf16) { return bf16 ? norm::Storage::bf16 : norm::Storage::float32; }

inline blocks::MixconvPadding padding_of(bool same_upper) {
  return same_upper ? blocks::MixconvPadding::same_upper : blocks::MixconvPadding::symmetric;
}

// Calls that leave Python to other threads.
using Released = pybind11::call_guard<pybind11::gil_scoped_release>;

// The layer for this x; layers are made once for many.
template <class Layer>
Layer with_input(Layer layer, Place x) {
  layer.x = {at<const void>(x.first), x.second};
  return layer;
}

void bind_blocks(pybind11::module_& m);
void bind_chain(pybind11::module_& m);  // after the layers that it joins
void bind_classifier_loss(pybind11::module_& m);
void bind_conv_norm_act(pybind11::module_& m);
void bind_filter(pybind11::module_& m);
void bind_inverted_residual(pybind11::module_& m);
void bind_memory(pybind11::module_& m);
void bind_norm(pybind11::module_& m);
void bind_optim(pybind11::module_& m);
void bind_paths(pybind11::module_& m);
void bind_pointwise(pybind11::module_& m);
void bind_pooled_pointwise(pybind11::module_& m);
void bind_recurrence(pybind11::module_& m);
void bind_shuffle(pybind11::module_& m);
void bind_watch(pybind11::module_& m);
void bind_cuda(pybind11::module_& m);         // only in a build with CUDA
void bind_cuda_blocks(pybind11::module_& m);  // as well

}  // namespace greedynas::bindings
