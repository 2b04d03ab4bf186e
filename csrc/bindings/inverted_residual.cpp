// Whole inverted residuals. Addresses of float32 arrays; 0 stands for none.
#include "blocks/inverted_residual.h"

#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "cpu/memory.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

using blocks::InvertedResidual;
using Released = py::call_guard<py::gil_scoped_release>;
using Address = std::uintptr_t;

float* floats(Address address) { return at<float>(address); }

// Weight, bias, eps.
using Norm = std::tuple<Address, Address, double>;

// sizes: batch, height and width of x, channels of x, in the middle and of y, stride. depthwise: (channels, kernel
// size, address of the weight) a group. gate: addresses of the four parameters. codes: activation of the block and of
// the gate, as BnAct's. flags: residual, batch statistics, sigmoid gate, no
// z1 in memory without and with a backward pass.
InvertedResidual make_block(const std::array<std::int64_t, 7>& sizes, Place expand, Place project,
                            const std::vector<std::tuple<std::int64_t, int, Address>>& depthwise,
                            const std::array<Norm, 3>& norms, const std::array<Address, 4>& gate, int gate_width,
                            std::array<int, 2> codes, std::array<bool, 5> flags, int threads) {
  const auto parameter = [](Address address) { return at<const float>(address); };
  InvertedResidual block{};
  block.batch = sizes[0];
  block.height = sizes[1];
  block.width = sizes[2];
  block.in = static_cast<int>(sizes[3]);
  block.middle = static_cast<int>(sizes[4]);
  block.out = static_cast<int>(sizes[5]);
  block.stride = static_cast<int>(sizes[6]);
  block.activation = static_cast<norm::Activation>(codes[0]);
  block.residual = flags[0];
  block.batch_statistics = flags[1];
  block.expand = parameter(expand.first);
  block.expand_groups = static_cast<int>(expand.second);
  block.project = parameter(project.first);
  block.project_groups = static_cast<int>(project.second);
  for (const auto& [channels, kernel, weight] : depthwise) {
    block.depthwise.push_back({channels, kernel, at<const void>(weight), nullptr});
  }
  for (std::size_t i = 0; i < norms.size(); ++i) {
    const auto& [weight, bias, eps] = norms[i];
    block.norms[i] = {parameter(weight), parameter(bias), static_cast<float>(eps)};
  }
  block.gate = {parameter(gate[0]),
                parameter(gate[1]),
                parameter(gate[2]),
                parameter(gate[3]),
                gate_width,
                static_cast<norm::Activation>(codes[1]),
                flags[2]};
  block.expands_in_caches[0] = flags[3];
  block.expands_in_caches[1] = flags[4];
  block.threads = threads;
  return block;
}

// moments: of the three norms. kept: z1, z2, z3, means, hidden, logits, covariance.
blocks::InvertedResidualTensors tensors_of(const std::array<Address, 3>& moments, const std::array<Address, 7>& kept) {
  const auto [z1, z2, z3, means, hidden, logits, covariance] = kept;
  return {{floats(moments[0]), floats(moments[1]), floats(moments[2])},
          floats(z1),
          floats(z2),
          floats(z3),
          floats(means),
          floats(logits),
          floats(hidden),
          floats(covariance)};
}

}  // namespace

void bind_inverted_residual(py::module_& m) {
  py::class_<InvertedResidual>(m, "InvertedResidual")
      .def(py::init(&make_block), py::arg("sizes"), py::arg("expand"), py::arg("project"), py::arg("depthwise"),
           py::arg("norms"), py::arg("gate"), py::arg("gate_width"), py::arg("codes"), py::arg("flags"),
           py::arg("threads"))
      .def(
          "forward",
          [](const InvertedResidual& self, Place x, const std::array<Address, 3>& moments,
             const std::array<Address, 7>& kept, Address y) {
            const blocks::InvertedResidualTensors tensors = tensors_of(moments, kept);
            const cpu::Workspace workspace(blocks::workspace_floats(self, tensors.z2 != nullptr));
            blocks::forward(with_input(self, x), tensors, workspace.floats(), floats(y));
          },
          py::arg("x"), py::arg("moments"), py::arg("kept"), py::arg("y"), Released())
      // gradients: of the weights, and weight and bias of the norm, of expansion, depthwise convolution (whose weights
      // follow) and projection, and of the gate's four parameters.
      .def(
          "backward",
          [](const InvertedResidual& self, Place x, const std::array<Address, 3>& moments,
             const std::array<Address, 7>& kept, Place grad, Address grad_x, const std::array<Address, 12>& gradients,
             const std::vector<Address>& depthwise) {
            InvertedResidual block = with_input(self, x);
            for (std::size_t g = 0; g < block.depthwise.size(); ++g) {
              block.depthwise[g].weight_grad = at<void>(depthwise.at(g));
            }
            const auto of = [&](std::size_t i) { return floats(gradients[i]); };
            const auto norm = [&](std::size_t i) { return blocks::BlockNormGradients{of(i), of(i + 1)}; };
            const cpu::Workspace workspace(blocks::backward_workspace_floats(block));
            blocks::backward(block, tensors_of(moments, kept), {at<const void>(grad.first), grad.second},
                             workspace.floats(),
                             {floats(grad_x), of(0), of(5), {norm(1), norm(3), norm(6)}, of(8), of(9), of(10), of(11)});
          },
          py::arg("x"), py::arg("moments"), py::arg("kept"), py::arg("grad"), py::arg("grad_x"), py::arg("gradients"),
          py::arg("depthwise"), Released());
}

}  // namespace greedynas::bindings
