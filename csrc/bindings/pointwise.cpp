// 1x1 convolutions. Tensors, float32 or bf16, come as address and row stride in elements; address 0 stands for none.
// Weights are float32.
#include "blocks/pointwise.h"

#include "bindings.h"
#include "cpu/memory.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

// A layer, what it reads and its weight.
struct Layer {
  blocks::Pointwise layer;
  blocks::PointwiseInput input;
  const float* weight;
};

Layer make_layer(std::int64_t rows, int in, int out, Address x, std::int64_t x_stride, int prologue,
                 Address scale_shift, Address gates, std::int64_t pixels, Address weight, int threads, int groups,
                 bool bf16) {
  const float* const scale = at<const float>(scale_shift);
  return {{rows, in, out, threads, groups, 0, storage_of(bf16)},
          {{at<const void>(x), x_stride},
           static_cast<norm::Prologue>(prologue),
           scale,
           scale == nullptr ? nullptr : scale + in,
           at<const float>(gates),
           pixels},
          at<const float>(weight)};
}

}  // namespace

void bind_pointwise(py::module_& m) {
  // Prologue: as SqueezeExcite. scale_shift, moments: [2, C].
  py::class_<Layer>(m, "Pointwise")
      .def(py::init(&make_layer), py::arg("rows"), py::arg("in_channels"), py::arg("out_channels"), py::arg("x"),
           py::arg("x_stride"), py::arg("prologue"), py::arg("scale_shift"), py::arg("gates"), py::arg("pixels"),
           py::arg("weight"), py::arg("threads"), py::arg("groups"), py::arg("bf16"))
      .def(
          "forward",
          [](const Layer& self, Address y, Address moments) {
            const cpu::Workspace workspace(blocks::workspace_floats(self.layer));
            float* const mean = at<float>(moments);
            blocks::pointwise(self.layer, self.input, self.weight, workspace.floats(), at<void>(y), mean,
                              mean == nullptr ? nullptr : mean + self.layer.out);
          },
          py::arg("y"), py::arg("moments"), Released())
      .def(
          "backward",
          [](const Layer& self, Address grad, std::int64_t grad_stride, Address y, Address moments, Address norm_weight,
             double eps, Address norm_grads, bool scaled, Address add, std::int64_t add_stride, Address grad_x,
             Address grad_scale_shift, Address grad_weight) {
            const cpu::Workspace workspace(blocks::workspace_floats(self.layer));
            const int out = self.layer.out;
            const float *const mean = at<const float>(moments), *const grads = at<const float>(norm_grads);
            const norm::Channels norm{mean, mean == nullptr ? nullptr : mean + out, at<const float>(norm_weight),
                                      nullptr, static_cast<float>(eps)};
            float* const grad_scale = at<float>(grad_scale_shift);
            const blocks::PointwiseGrad from{{at<const void>(grad), grad_stride},
                                             {at<const void>(y), out},
                                             &norm,
                                             {grads, grads == nullptr ? nullptr : grads + out, scaled}};
            blocks::pointwise_backward(
                self.layer, from, self.input, self.weight, {at<const void>(add), add_stride}, workspace.floats(),
                {at<void>(grad_x), grad_scale, grad_scale == nullptr ? nullptr : grad_scale + self.layer.in,
                 at<float>(grad_weight)});
          },
          py::arg("grad"), py::arg("grad_stride"), py::arg("y"), py::arg("moments"), py::arg("norm_weight"),
          py::arg("eps"), py::arg("norm_grads"), py::arg("scaled"), py::arg("add"), py::arg("add_stride"),
          py::arg("grad_x"), py::arg("grad_scale_shift"), py::arg("grad_weight"), Released());
}

}  // namespace greedynas::bindings
