// The head of a network before its classifier. Addresses of float32 arrays; x, z and the gradient of x may be bf16.
#include "blocks/pooled_pointwise.h"

#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include "bindings.h"
#include "cpu/memory.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

using blocks::PooledPointwise;

}  // namespace

void bind_pooled_pointwise(py::module_& m) {
  py::class_<PooledPointwise>(m, "PooledPointwise")
      // sizes: images, pixels, channels of x and of the result. norm: weight, bias, eps. activation as BnAct's.
      .def(py::init([](const std::array<std::int64_t, 4>& sizes, Address weight,
                       const std::tuple<Address, Address, double>& norm, int activation, int threads, bool bf16) {
             const auto& [scale, bias, eps] = norm;
             return PooledPointwise{storage_of(bf16),
                                    sizes[0],
                                    sizes[1],
                                    static_cast<int>(sizes[2]),
                                    static_cast<int>(sizes[3]),
                                    {nullptr, 0},
                                    at<const float>(weight),
                                    {at<const float>(scale), at<const float>(bias), static_cast<float>(eps)},
                                    static_cast<norm::Activation>(activation),
                                    threads};
           }),
           py::arg("sizes"), py::arg("weight"), py::arg("norm"), py::arg("activation"), py::arg("threads"),
           py::arg("bf16"))
      .def(
          "forward",
          [](const PooledPointwise& self, Place x, Address moments, Address z, Address pooled) {
            const cpu::Workspace workspace(blocks::workspace_floats(self));
            blocks::forward(with_input(self, x), at<float>(moments), at<void>(z), workspace.floats(),
                            at<float>(pooled));
          },
          py::arg("x"), py::arg("moments"), py::arg("z"), py::arg("pooled"), Released())
      // gradients: of x, of the weight, and of weight and bias of the norm.
      .def(
          "backward",
          [](const PooledPointwise& self, Place x, Address moments, Address z, Address grad,
             const std::array<Address, 4>& gradients) {
            const auto of = [&](std::size_t i) { return at<float>(gradients[i]); };
            const cpu::Workspace workspace(blocks::workspace_floats(self));
            blocks::backward(with_input(self, x), at<const float>(moments), at<const void>(z), at<const float>(grad),
                             workspace.floats(), {at<void>(gradients[0]), of(1), {of(2), of(3)}});
          },
          py::arg("x"), py::arg("moments"), py::arg("z"), py::arg("grad"), py::arg("gradients"), Released());
}

}  // namespace greedynas::bindings
