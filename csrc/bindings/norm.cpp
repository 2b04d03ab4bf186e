// Normalisation layers. Tensors come as address and row stride in elements; address 0 stands for none.
#include "bindings.h"
#include "blocks/bn_act.h"
#include "blocks/squeeze_excite.h"
#include "cpu/memory.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

norm::Shape shape_at(std::int64_t rows, int channels, bool bf16) {
  return norm::shape_of(storage_of(bf16), rows, channels);
}

norm::Input input(Address address, std::int64_t stride) { return {at<const void>(address), stride}; }

// A layer with its numbers a channel. `moments` is [2, C]: means, then biased variances.
struct Layer {
  norm::BnAct layer;
  float* moments;
  const float *weight, *bias;
  float eps;

  norm::Channels channels() const { return {moments, moments + layer.shape.channels, weight, bias, eps}; }
};

Layer make_layer(std::int64_t rows, int channels, bool bf16, int activation, bool residual, Address moments,
                 Address weight, Address bias, double eps, int threads) {
  const norm::BnAct layer{shape_at(rows, channels, bf16), static_cast<norm::Activation>(activation), residual, threads};
  return {layer, at<float>(moments), at<const float>(weight), at<const float>(bias), static_cast<float>(eps)};
}

void take_moments(const norm::Shape& shape, norm::Input x, int threads, float* workspace, float* moments) {
  norm::moments(shape, x, threads, workspace, moments, moments + shape.channels);
}

void bind_statistics(py::module_& m) {
  m.def(
      "bn_moments",
      [](std::int64_t rows, int channels, bool bf16, Address x, std::int64_t x_stride, Address moments, int threads) {
        const norm::Shape shape = shape_at(rows, channels, bf16);
        const cpu::Workspace workspace(norm::workspace_floats(shape));
        take_moments(shape, input(x, x_stride), threads, workspace.floats(), at<float>(moments));
      },
      py::arg("rows"), py::arg("channels"), py::arg("bf16"), py::arg("x"), py::arg("x_stride"), py::arg("moments"),
      py::arg("threads"), Released());
  m.def(
      "bn_update",
      [](std::int64_t rows, int channels, Address moments, double share, Address running_mean, Address running_var,
         Address counter) {
        const float* const mean = at<const float>(moments);
        norm::update_running(shape_at(rows, channels, false), mean, mean + channels, share, at<float>(running_mean),
                             at<float>(running_var));
        if (counter != 0) ++*at<std::int64_t>(counter);
      },
      py::arg("rows"), py::arg("channels"), py::arg("moments"), py::arg("share"), py::arg("running_mean"),
      py::arg("running_var"), py::arg("counter") = 0);
}

// Prologue: 0 none, 1 scale and shift, 2 then relu, 3 then hard_swish.
void bind_squeeze_excite(py::module_& m) {
  using norm::SqueezeExcite;
  py::class_<SqueezeExcite>(m, "SqueezeExcite")
      .def(py::init([](std::int64_t images, std::int64_t pixels, int channels, bool bf16, int prologue, Address scale,
                       Address shift, int threads) {
             norm::Shape image = shape_at(images * pixels, channels, bf16);
             image.rows = pixels;
             return SqueezeExcite{
                 image,  images, static_cast<norm::Prologue>(prologue), at<const float>(scale), at<const float>(shift),
                 threads};
           }),
           py::arg("images"), py::arg("pixels"), py::arg("channels"), py::arg("bf16"), py::arg("prologue"),
           py::arg("scale"), py::arg("shift"), py::arg("threads"))
      .def(
          "squeeze",
          [](const SqueezeExcite& self, Address x, std::int64_t x_stride, Address means) {
            const cpu::Workspace workspace(norm::workspace_floats(self));
            norm::squeeze(self, input(x, x_stride), workspace.floats(), at<float>(means));
          },
          py::arg("x"), py::arg("x_stride"), py::arg("means"), Released())
      .def(
          "excite",
          [](const SqueezeExcite& self, Address x, std::int64_t x_stride, Address gates, Address y) {
            norm::excite(self, input(x, x_stride), at<const float>(gates), at<void>(y));
          },
          py::arg("x"), py::arg("x_stride"), py::arg("gates"), py::arg("y"), Released())
      .def(
          "excite_backward",
          [](const SqueezeExcite& self, Address grad, std::int64_t grad_stride, Address x, std::int64_t x_stride,
             Address grad_gates) {
            const cpu::Workspace workspace(norm::workspace_floats(self));
            norm::excite_backward(self, input(grad, grad_stride), input(x, x_stride), workspace.floats(),
                                  at<float>(grad_gates));
          },
          py::arg("grad"), py::arg("grad_stride"), py::arg("x"), py::arg("x_stride"), py::arg("grad_gates"), Released())
      .def(
          "squeeze_backward",
          [](const SqueezeExcite& self, Address grad, std::int64_t grad_stride, Address x, std::int64_t x_stride,
             Address gates, Address grad_means, Address grad_x, Address grad_scale, Address grad_shift) {
            const cpu::Workspace workspace(norm::workspace_floats(self));
            norm::squeeze_backward(self, input(grad, grad_stride), input(x, x_stride), at<const float>(gates),
                                   at<const float>(grad_means), workspace.floats(), at<void>(grad_x),
                                   at<float>(grad_scale), at<float>(grad_shift));
          },
          py::arg("grad"), py::arg("grad_stride"), py::arg("x"), py::arg("x_stride"), py::arg("gates"),
          py::arg("grad_means"), py::arg("grad_x"), py::arg("grad_scale"), py::arg("grad_shift"), Released());
}

}  // namespace

void bind_norm(py::module_& m) {
  bind_statistics(m);
  bind_squeeze_excite(m);
  // Codes: activation 0 identity, 1 relu, 2 hard_swish.
  py::class_<Layer>(m, "BnAct")
      .def(py::init(&make_layer), py::arg("rows"), py::arg("channels"), py::arg("bf16"), py::arg("activation"),
           py::arg("residual"), py::arg("moments"), py::arg("weight"), py::arg("bias"), py::arg("eps"),
           py::arg("threads"))
      .def(
          "forward",
          [](const Layer& self, bool batch_statistics, Address x, std::int64_t x_stride, Address residual,
             std::int64_t residual_stride, Address y) {
            const norm::Input from = input(x, x_stride);
            const cpu::Workspace workspace(norm::workspace_floats(self.layer.shape));
            float* const space = workspace.floats();
            if (batch_statistics) take_moments(self.layer.shape, from, self.layer.threads, space, self.moments);
            norm::forward(self.layer, from, self.channels(), input(residual, residual_stride), space, at<void>(y));
          },
          py::arg("batch_statistics"), py::arg("x"), py::arg("x_stride"), py::arg("residual"),
          py::arg("residual_stride"), py::arg("y"), Released())
      .def(
          "backward",
          [](const Layer& self, bool batch_statistics, Address grad, std::int64_t grad_stride, Address x,
             std::int64_t x_stride, Address residual, std::int64_t residual_stride, Address grad_x,
             Address grad_residual, Address grad_weight, Address grad_bias) {
            const cpu::Workspace workspace(norm::workspace_floats(self.layer.shape));
            norm::backward(self.layer, batch_statistics, input(grad, grad_stride), input(x, x_stride), self.channels(),
                           input(residual, residual_stride), workspace.floats(),
                           {at<void>(grad_x), at<void>(grad_residual), at<float>(grad_weight), at<float>(grad_bias)});
          },
          py::arg("batch_statistics"), py::arg("grad"), py::arg("grad_stride"), py::arg("x"), py::arg("x_stride"),
          py::arg("residual"), py::arg("residual_stride"), py::arg("grad_x"), py::arg("grad_residual"),
          py::arg("grad_weight"), py::arg("grad_bias"), Released())
      .def(
          "affine",
          [](const Layer& self, Address scale_shift) {
            const int channels = self.layer.shape.channels;
            norm::affine(channels, self.channels(), at<float>(scale_shift), at<float>(scale_shift) + channels);
          },
          py::arg("scale_shift"))
      .def(
          "through_moments",
          [](const Layer& self, bool batch_statistics, Address x, std::int64_t x_stride, Address grad_scale_shift,
             Address grad, Address grad_weight, Address grad_bias) {
            const cpu::Workspace workspace(norm::workspace_floats(self.layer.shape));
            const float* const grads = at<const float>(grad_scale_shift);
            norm::through_moments(self.layer.shape, batch_statistics, input(x, x_stride), self.channels(), grads,
                                  grads + self.layer.shape.channels, self.layer.threads, workspace.floats(),
                                  at<void>(grad), at<float>(grad_weight), at<float>(grad_bias));
          },
          py::arg("batch_statistics"), py::arg("x"), py::arg("x_stride"), py::arg("grad_scale_shift"), py::arg("grad"),
          py::arg("grad_weight"), py::arg("grad_bias"), Released());
}

}  // namespace greedynas::bindings
