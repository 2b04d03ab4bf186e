// The fused layers on a CUDA device, present only in a build with CUDA. All addresses are device memory, 0 for none;
// `device` and `stream` come first, as in cuda.cpp. Storage: 0 float32, 1 bf16, 2 fp16.
#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "blocks/cuda/bn_act.h"
#include "blocks/cuda/mixconv.h"
#include "blocks/cuda/squeeze_excite.h"
#include "cuda/device.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

using blocks::cuda::Mixconv;
using blocks::cuda::Storage;
using norm::cuda::SqueezeExcite;

// Address of the first element, then elements between images, rows and pixels.
using Tensor = std::tuple<Address, std::int64_t, std::int64_t, std::int64_t>;

blocks::MixconvTensor tensor_of(const Tensor& tensor) {
  const auto [address, image, row, pixel] = tensor;
  return {at<void>(address), image, row, pixel};
}

// A group is (channels, kernel size, address of its weight); activation counts as blocks::MixconvActivation does.
Mixconv make_mixconv(int storage, int weight_storage, const std::array<std::int64_t, 3>& batch_height_width, int stride,
                     bool same_upper, const std::vector<std::tuple<std::int64_t, int, Address>>& groups,
                     const Tensor& x, int activation, Address scale, Address shift) {
  const auto [batch, height, width] = batch_height_width;
  Mixconv call{static_cast<Storage>(storage),
               static_cast<Storage>(weight_storage),
               batch,
               height,
               width,
               stride,
               {},
               tensor_of(x)};
  for (const auto& [channels, kernel, weight] : groups) {
    call.groups.push_back({channels, kernel, at<const void>(weight), nullptr});
  }
  call.activation = static_cast<blocks::MixconvActivation>(activation);
  call.scale = at<const float>(scale);
  call.shift = at<const float>(shift);
  call.padding = padding_of(same_upper);
  return call;
}

// weight_grads: an address a group, or none at all.
void mixconv_backward(Mixconv& call, int device, Address stream, const Tensor& grad, Address stats_grad,
                      const Tensor& y, const Tensor& x_grad, const std::vector<Address>& weight_grads,
                      Address norm_grad, Address workspace) {
  cuda::use_device(device);
  for (std::size_t g = 0; g < call.groups.size(); ++g) {
    call.groups[g].weight_grad = weight_grads.empty() ? nullptr : at<void>(weight_grads.at(g));
  }
  blocks::cuda::mixconv_backward(
      call, {tensor_of(grad), at<const float>(stats_grad), tensor_of(y), tensor_of(x_grad), at<float>(norm_grad)},
      at<void>(workspace), at<void>(stream));
}

void bind_mixconv(py::module_& m) {
  py::class_<Mixconv>(m, "CudaMixconv", py::module_local())
      .def(py::init(&make_mixconv), py::arg("storage"), py::arg("weight_storage"), py::arg("batch_height_width"),
           py::arg("stride"), py::arg("same_upper"), py::arg("groups"), py::arg("x"), py::arg("activation"),
           py::arg("scale"), py::arg("shift"))
      .def("workspace_bytes", &blocks::cuda::mixconv_workspace_bytes)
      .def(
          "forward",
          [](const Mixconv& call, int device, Address stream, const Tensor& y, Address stats, Address workspace) {
            cuda::use_device(device);
            blocks::cuda::mixconv_forward(call, tensor_of(y), at<float>(stats), at<void>(workspace), at<void>(stream));
          },
          py::arg("device"), py::arg("stream"), py::arg("y"), py::arg("stats"), py::arg("workspace"), Released())
      .def("backward", &mixconv_backward, py::arg("device"), py::arg("stream"), py::arg("grad"), py::arg("stats_grad"),
           py::arg("y"), py::arg("x_grad"), py::arg("weight_grads"), py::arg("norm_grad"), py::arg("workspace"),
           Released());
}

norm::Input input(Address address, std::int64_t stride) { return {at<const void>(address), stride}; }

// A layer with its numbers a channel. `moments` is [2, C]: means, then biased variances.
struct Layer {
  norm::cuda::BnAct layer;
  float* moments;
  const float *weight, *bias;
  float eps;

  norm::Channels channels() const { return {moments, moments + layer.shape.channels, weight, bias, eps}; }
};

void bind_statistics(py::module_& m) {
  m.def(
      "cuda_bn_workspace_floats",
      [](std::int64_t rows, int channels) {
        return norm::cuda::workspace_floats(norm::cuda::Shape{Storage::float32, rows, channels});
      },
      py::arg("rows"), py::arg("channels"));
  m.def(
      "cuda_bn_moments",
      [](int device, Address stream, std::int64_t rows, int channels, int storage, Address x, std::int64_t x_stride,
         Address workspace, Address moments) {
        cuda::use_device(device);
        norm::cuda::moments({static_cast<Storage>(storage), rows, channels}, input(x, x_stride), at<float>(workspace),
                            at<float>(moments), at<float>(moments) + channels, at<void>(stream));
      },
      py::arg("device"), py::arg("stream"), py::arg("rows"), py::arg("channels"), py::arg("storage"), py::arg("x"),
      py::arg("x_stride"), py::arg("workspace"), py::arg("moments"), Released());
  m.def(
      "cuda_bn_update",
      [](int device, Address stream, std::int64_t rows, int channels, Address moments, double share,
         Address running_mean, Address running_var) {
        cuda::use_device(device);
        const float* const mean = at<const float>(moments);
        norm::cuda::update_running({Storage::float32, rows, channels}, mean, mean + channels, share,
                                   at<float>(running_mean), at<float>(running_var), at<void>(stream));
      },
      py::arg("device"), py::arg("stream"), py::arg("rows"), py::arg("channels"), py::arg("moments"), py::arg("share"),
      py::arg("running_mean"), py::arg("running_var"), Released());
}

// Codes: activation 0 identity, 1 relu, 2 hard_swish.
void bind_bn_act(py::module_& m) {
  py::class_<Layer>(m, "CudaBnAct", py::module_local())
      .def(py::init([](std::int64_t rows, int channels, int storage, int activation, bool residual, Address moments,
                       Address weight, Address bias, double eps) {
             return Layer{
                 {{static_cast<Storage>(storage), rows, channels}, static_cast<norm::Activation>(activation), residual},
                 at<float>(moments),
                 at<const float>(weight),
                 at<const float>(bias),
                 static_cast<float>(eps)};
           }),
           py::arg("rows"), py::arg("channels"), py::arg("storage"), py::arg("activation"), py::arg("residual"),
           py::arg("moments"), py::arg("weight"), py::arg("bias"), py::arg("eps"))
      .def(
          "forward",
          [](const Layer& self, int device, Address stream, Address x, std::int64_t x_stride, Address residual,
             std::int64_t residual_stride, Address y) {
            cuda::use_device(device);
            norm::cuda::forward(self.layer, input(x, x_stride), self.channels(), input(residual, residual_stride),
                                at<void>(y), at<void>(stream));
          },
          py::arg("device"), py::arg("stream"), py::arg("x"), py::arg("x_stride"), py::arg("residual"),
          py::arg("residual_stride"), py::arg("y"), Released())
      .def(
          "backward",
          [](const Layer& self, int device, Address stream, bool batch_statistics, Address grad,
             std::int64_t grad_stride, Address x, std::int64_t x_stride, Address residual, std::int64_t residual_stride,
             Address workspace, Address grad_x, Address grad_residual, Address grad_weight, Address grad_bias) {
            cuda::use_device(device);
            norm::cuda::backward(
                self.layer, batch_statistics, input(grad, grad_stride), input(x, x_stride), self.channels(),
                input(residual, residual_stride), at<float>(workspace),
                {at<void>(grad_x), at<void>(grad_residual), at<float>(grad_weight), at<float>(grad_bias)},
                at<void>(stream));
          },
          py::arg("device"), py::arg("stream"), py::arg("batch_statistics"), py::arg("grad"), py::arg("grad_stride"),
          py::arg("x"), py::arg("x_stride"), py::arg("residual"), py::arg("residual_stride"), py::arg("workspace"),
          py::arg("grad_x"), py::arg("grad_residual"), py::arg("grad_weight"), py::arg("grad_bias"), Released())
      .def(
          "affine",
          [](const Layer& self, int device, Address stream, Address scale_shift) {
            cuda::use_device(device);
            const int channels = self.layer.shape.channels;
            norm::cuda::affine(channels, self.channels(), at<float>(scale_shift), at<float>(scale_shift) + channels,
                               at<void>(stream));
          },
          py::arg("device"), py::arg("stream"), py::arg("scale_shift"), Released())
      .def(
          "through_moments",
          [](const Layer& self, int device, Address stream, bool batch_statistics, Address x, std::int64_t x_stride,
             Address grad_scale_shift, Address workspace, Address grad, Address grad_weight, Address grad_bias) {
            cuda::use_device(device);
            const float* const grads = at<const float>(grad_scale_shift);
            norm::cuda::through_moments(self.layer.shape, batch_statistics, input(x, x_stride), self.channels(), grads,
                                        grads + self.layer.shape.channels, at<float>(workspace), at<void>(grad),
                                        at<float>(grad_weight), at<float>(grad_bias), at<void>(stream));
          },
          py::arg("device"), py::arg("stream"), py::arg("batch_statistics"), py::arg("x"), py::arg("x_stride"),
          py::arg("grad_scale_shift"), py::arg("workspace"), py::arg("grad"), py::arg("grad_weight"),
          py::arg("grad_bias"), Released());
}

// Prologue: 0 none, 1 scale and shift, 2 then relu, 3 then hard_swish.
void bind_squeeze_excite(py::module_& m) {
  py::class_<SqueezeExcite>(m, "CudaSqueezeExcite", py::module_local())
      .def(py::init([](std::int64_t images, std::int64_t pixels, int channels, int storage, int prologue, Address scale,
                       Address shift) {
             return SqueezeExcite{{static_cast<Storage>(storage), pixels, channels},
                                  images,
                                  static_cast<norm::Prologue>(prologue),
                                  at<const float>(scale),
                                  at<const float>(shift)};
           }),
           py::arg("images"), py::arg("pixels"), py::arg("channels"), py::arg("storage"), py::arg("prologue"),
           py::arg("scale"), py::arg("shift"))
      .def("workspace_floats", [](const SqueezeExcite& self) { return norm::cuda::workspace_floats(self); })
      .def(
          "squeeze",
          [](const SqueezeExcite& self, int device, Address stream, Address x, std::int64_t x_stride, Address workspace,
             Address means) {
            cuda::use_device(device);
            norm::cuda::squeeze(self, input(x, x_stride), at<float>(workspace), at<float>(means), at<void>(stream));
          },
          py::arg("device"), py::arg("stream"), py::arg("x"), py::arg("x_stride"), py::arg("workspace"),
          py::arg("means"), Released())
      .def(
          "excite",
          [](const SqueezeExcite& self, int device, Address stream, Address x, std::int64_t x_stride, Address gates,
             Address y) {
            cuda::use_device(device);
            norm::cuda::excite(self, input(x, x_stride), at<const float>(gates), at<void>(y), at<void>(stream));
          },
          py::arg("device"), py::arg("stream"), py::arg("x"), py::arg("x_stride"), py::arg("gates"), py::arg("y"),
          Released())
      .def(
          "excite_backward",
          [](const SqueezeExcite& self, int device, Address stream, Address grad, std::int64_t grad_stride, Address x,
             std::int64_t x_stride, Address workspace, Address grad_gates) {
            cuda::use_device(device);
            norm::cuda::excite_backward(self, input(grad, grad_stride), input(x, x_stride), at<float>(workspace),
                                        at<float>(grad_gates), at<void>(stream));
          },
          py::arg("device"), py::arg("stream"), py::arg("grad"), py::arg("grad_stride"), py::arg("x"),
          py::arg("x_stride"), py::arg("workspace"), py::arg("grad_gates"), Released())
      .def(
          "squeeze_backward",
          [](const SqueezeExcite& self, int device, Address stream, Address grad, std::int64_t grad_stride, Address x,
             std::int64_t x_stride, Address gates, Address grad_means, Address workspace, Address grad_x,
             Address grad_scale, Address grad_shift) {
            cuda::use_device(device);
            norm::cuda::squeeze_backward(self, input(grad, grad_stride), input(x, x_stride), at<const float>(gates),
                                         at<const float>(grad_means), at<float>(workspace), at<void>(grad_x),
                                         at<float>(grad_scale), at<float>(grad_shift), at<void>(stream));
          },
          py::arg("device"), py::arg("stream"), py::arg("grad"), py::arg("grad_stride"), py::arg("x"),
          py::arg("x_stride"), py::arg("gates"), py::arg("grad_means"), py::arg("workspace"), py::arg("grad_x"),
          py::arg("grad_scale"), py::arg("grad_shift"), Released());
}

}  // namespace

void bind_cuda_blocks(py::module_& m) {
  bind_mixconv(m);
  bind_statistics(m);
  bind_bn_act(m);
  bind_squeeze_excite(m);
}

}  // namespace greedynas::bindings
