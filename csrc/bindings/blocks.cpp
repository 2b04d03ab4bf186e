#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "blocks/mixconv.h"
#include "cpu/memory.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

using blocks::MixconvCall;

// Address of the first element, then elements between images, rows and pixels.
using Tensor = std::tuple<Address, std::int64_t, std::int64_t, std::int64_t>;

blocks::MixconvTensor tensor_of(const Tensor& tensor) {
  const auto [address, image, row, pixel] = tensor;
  return {at<void>(address), image, row, pixel};
}

blocks::MixconvStorage storage_of(bool bf16) {
  return bf16 ? blocks::MixconvStorage::bf16 : blocks::MixconvStorage::float32;
}

// A group is (channels, kernel size, address of its weight); activation counts as blocks::MixconvActivation does.
MixconvCall make_call(bool bf16, bool weight_bf16, const std::array<std::int64_t, 3>& batch_height_width, int stride,
                      bool same_upper, const std::vector<std::tuple<std::int64_t, int, Address>>& groups,
                      const Tensor& x, int activation, Address scale, Address shift) {
  const auto [batch, height, width] = batch_height_width;
  MixconvCall call{storage_of(bf16), storage_of(weight_bf16), batch, height, width, stride, {}, tensor_of(x)};
  for (const auto& [channels, kernel, weight] : groups) {
    call.groups.push_back({channels, kernel, at<const void>(weight), nullptr});
  }
  call.activation = static_cast<blocks::MixconvActivation>(activation);
  call.scale = at<const float>(scale);
  call.shift = at<const float>(shift);
  call.padding = padding_of(same_upper);
  return call;
}

cpu::Workspace workspace_of(const MixconvCall& call, int threads) {
  const std::size_t bytes = blocks::mixconv_workspace_bytes(call, threads);
  return cpu::Workspace(static_cast<std::int64_t>(bytes / sizeof(float) + 1));
}

// weight_grads: an address a group, or none at all.
void backward(MixconvCall& call, const Tensor& grad, Address stats_grad, const Tensor& y, const Tensor& x_grad,
              const std::vector<Address>& weight_grads, Address norm_grad, int threads) {
  const cpu::Workspace workspace = workspace_of(call, threads);
  for (std::size_t g = 0; g < call.groups.size(); ++g) {
    call.groups[g].weight_grad = weight_grads.empty() ? nullptr : at<void>(weight_grads.at(g));
  }
  blocks::mixconv_backward(
      call, {tensor_of(grad), at<const float>(stats_grad), tensor_of(y), tensor_of(x_grad), at<float>(norm_grad)},
      workspace.floats(), threads);
}

}  // namespace

void bind_blocks(py::module_& m) {
  m.attr("MIXCONV_MAX_KERNEL") = blocks::kMixconvMaxKernel;
  py::class_<MixconvCall>(m, "MixconvCall", py::module_local())
      .def(py::init(&make_call), py::arg("bf16"), py::arg("weight_bf16"), py::arg("batch_height_width"),
           py::arg("stride"), py::arg("same_upper"), py::arg("groups"), py::arg("x"), py::arg("activation"),
           py::arg("scale"), py::arg("shift"))
      .def(
          "forward",
          [](const MixconvCall& call, const Tensor& y, Address stats, int threads) {
            const cpu::Workspace workspace = workspace_of(call, threads);
            blocks::mixconv_forward(call, tensor_of(y), at<float>(stats), {}, workspace.floats(), threads);
          },
          py::arg("y"), py::arg("stats"), py::arg("threads"), Released())
      .def("backward", &backward, py::arg("grad"), py::arg("stats_grad"), py::arg("y"), py::arg("x_grad"),
           py::arg("weight_grads"), py::arg("norm_grad"), py::arg("threads"), Released());
}

}  // namespace greedynas::bindings
