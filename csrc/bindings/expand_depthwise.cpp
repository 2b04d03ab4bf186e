// The first half of an inverted residual without a backward pass. Address 0 stands for none.
#include "blocks/expand_depthwise.h"

#include "bindings.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

using Released = py::call_guard<py::gil_scoped_release>;
using Address = std::uintptr_t;

blocks::ExpandDepthwise layer_of(const blocks::MixconvCall& call, int in, Address x, std::int64_t x_stride,
                                 Address weight, int threads) {
  const auto out = static_cast<int>(call.channels());
  return {{call.batch * call.height * call.width, in, out, threads},
          {at<const void>(x), x_stride},
          at<const float>(weight),
          call};
}

}  // namespace

void bind_expand_depthwise(py::module_& m) {
  // moments: [2, out].
  m.def(
      "expanded_moments_floats",
      [](std::int64_t rows, int in, int out) { return blocks::expanded_moments_floats({rows, in, out, 1}); },
      py::arg("rows"), py::arg("in_channels"), py::arg("out_channels"));
  m.def(
      "expanded_moments",
      [](std::int64_t rows, int in, int out, Address x, std::int64_t x_stride, Address weight, Address workspace,
         Address moments, int threads) {
        blocks::expanded_moments({rows, in, out, threads}, {at<const void>(x), x_stride}, at<const float>(weight),
                                 at<float>(workspace), at<float>(moments), at<float>(moments) + out);
      },
      py::arg("rows"), py::arg("in_channels"), py::arg("out_channels"), py::arg("x"), py::arg("x_stride"),
      py::arg("weight"), py::arg("workspace"), py::arg("moments"), py::arg("threads"), Released());
  // call: of the convolution; its x is not read.
  m.def(
      "expand_depthwise_floats",
      [](const blocks::MixconvCall& call, int in) {
        return blocks::expand_depthwise_floats(layer_of(call, in, 0, 0, 0, 1));
      },
      py::arg("call"), py::arg("in_channels"));
  m.def(
      "expand_depthwise",
      [](const blocks::MixconvCall& call, int in, Address x, std::int64_t x_stride, Address weight, Address workspace,
         Address y, Address moments, int threads) {
        float* const mean = at<float>(moments);
        blocks::expand_depthwise(layer_of(call, in, x, x_stride, weight, threads), at<float>(workspace), at<float>(y),
                                 mean, mean == nullptr ? nullptr : mean + call.channels());
      },
      py::arg("call"), py::arg("in_channels"), py::arg("x"), py::arg("x_stride"), py::arg("weight"),
      py::arg("workspace"), py::arg("y"), py::arg("moments"), py::arg("threads"), Released());
}

}  // namespace greedynas::bindings
