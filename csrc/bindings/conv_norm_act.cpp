// The beginning of a network. Addresses of float32 arrays; z, y and the gradient of y may be bf16.
#include "blocks/conv_norm_act.h"

#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include "bindings.h"
#include "cpu/memory.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

using blocks::ConvNormAct;

}  // namespace

void bind_conv_norm_act(py::module_& m) {
  py::class_<ConvNormAct>(m, "ConvNormAct")
      // sizes: images, height and width of x, channels of x and of the result, kernel size, stride. norm: weight, bias,
      // eps. activation as BnAct's.
      .def(py::init([](const std::array<std::int64_t, 7>& sizes, Address weight,
                       const std::tuple<Address, Address, double>& norm, int activation, int threads, bool bf16) {
             const auto& [scale, bias, eps] = norm;
             return ConvNormAct{storage_of(bf16),
                                sizes[0],
                                sizes[1],
                                sizes[2],
                                static_cast<int>(sizes[3]),
                                static_cast<int>(sizes[4]),
                                static_cast<int>(sizes[5]),
                                static_cast<int>(sizes[6]),
                                at<const float>(weight),
                                {at<const float>(scale), at<const float>(bias), static_cast<float>(eps)},
                                static_cast<norm::Activation>(activation),
                                threads};
           }),
           py::arg("sizes"), py::arg("weight"), py::arg("norm"), py::arg("activation"), py::arg("threads"),
           py::arg("bf16"))
      .def(
          "forward",
          [](const ConvNormAct& self, Address x, Address moments, Address z, Address y) {
            const cpu::Workspace workspace(blocks::workspace_floats(self));
            blocks::forward(self, at<const float>(x), at<float>(moments), at<void>(z), workspace.floats(), at<void>(y));
          },
          py::arg("x"), py::arg("moments"), py::arg("z"), py::arg("y"), Released())
      // gradients: of the weight, and of weight and bias of the norm.
      .def(
          "backward",
          [](const ConvNormAct& self, Address x, Address moments, Address z, Place grad,
             const std::array<Address, 3>& gradients) {
            const cpu::Workspace workspace(blocks::workspace_floats(self));
            blocks::backward(self, at<const float>(x), at<const float>(moments), at<const void>(z),
                             {at<const void>(grad.first), grad.second}, workspace.floats(), at<float>(gradients[0]),
                             {at<float>(gradients[1]), at<float>(gradients[2])});
          },
          py::arg("x"), py::arg("moments"), py::arg("z"), py::arg("grad"), py::arg("gradients"), Released());
}

}  // namespace greedynas::bindings
