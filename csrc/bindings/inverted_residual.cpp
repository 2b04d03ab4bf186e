// Whole inverted residuals. Addresses of arrays, float32 but x, z1, z2, z3, y and the gradients of x and y, which may
// be bf16; 0 stands for none.
#include "inverted_residual.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "cpu/memory.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

using blocks::InvertedResidual;

// A weight in parts, or its gradient, as the one array that the core wants, for one call.
class Joined {
 public:
  Joined(const Weight& weight, std::int64_t floats) : weight_(weight), part_(floats / weight.groups) {
    if (weight.in_parts()) memory_.emplace(floats);
  }
  // The array, or what is given where the weight is not in parts.
  float* or_else(float* whole) const { return weight_.in_parts() ? memory_->floats() : whole; }
  const float* filled() const {
    for (std::size_t i = 0; weight_.in_parts() && i < weight_.parts.size(); ++i) {
      std::copy_n(floats(weight_.parts[i]), part_, place(i));
    }
    return weight_.in_parts() ? memory_->floats() : weight_.whole();
  }
  // Puts the parts where they belong; gives the places after these.
  const Address* spread(const Address* to) const {
    for (std::size_t i = 0; weight_.in_parts() && i < weight_.parts.size(); ++i) {
      std::copy_n(place(i), part_, floats(*to++));
    }
    return to;
  }

 private:
  float* place(std::size_t i) const { return memory_->floats() + static_cast<std::int64_t>(i) * part_; }

  const Weight& weight_;
  std::int64_t part_;
  std::optional<cpu::Workspace> memory_;  // nothing where the weight is one array
};

// Weight, bias, eps.
using Norm = std::tuple<Address, Address, double>;

// expand, project: addresses of the weight, see Weight; none: no such layer. sizes: batch, height and width of x,
// channels of x, in the middle and of y, stride. depthwise: (channels, kernel size, address of the weight) a group.
// gate: addresses of the four parameters. codes: activation of the block and of the gate, as BnAct's. flags: residual,
// batch statistics, sigmoid gate, no z1 in memory without and with a backward pass, bf16, padding same_upper.
LaidBlock make_block(const std::array<std::int64_t, 7>& sizes, std::vector<Address> expand,
                     std::vector<Address> project, const std::vector<std::tuple<std::int64_t, int, Address>>& depthwise,
                     const std::array<Norm, 3>& norms, const std::array<Address, 4>& gate, int gate_width,
                     std::array<int, 2> codes, std::array<bool, 7> flags, std::array<int, 2> groups, int threads) {
  const auto parameter = [](Address address) { return at<const float>(address); };
  InvertedResidual block{};
  block.storage = storage_of(flags[5]);
  block.batch = sizes[0];
  block.height = sizes[1];
  block.width = sizes[2];
  block.in = static_cast<int>(sizes[3]);
  block.middle = static_cast<int>(sizes[4]);
  block.out = static_cast<int>(sizes[5]);
  block.stride = static_cast<int>(sizes[6]);
  block.padding = padding_of(flags[6]);
  block.activation = static_cast<norm::Activation>(codes[0]);
  block.residual = flags[0];
  block.batch_statistics = flags[1];
  block.expand_groups = groups[0];
  block.project_groups = groups[1];
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
  return {block, {std::move(expand), groups[0]}, {std::move(project), groups[1]}};
}

// moments: of the three norms. kept: z1, z2, z3, means, hidden, logits, covariance.
blocks::InvertedResidualTensors tensors_of(const std::array<Address, 3>& moments, const std::array<Address, 7>& kept) {
  const auto [z1, z2, z3, means, hidden, logits, covariance] = kept;
  return {{floats(moments[0]), floats(moments[1]), floats(moments[2])},
          at<void>(z1),
          at<void>(z2),
          at<void>(z3),
          floats(means),
          floats(logits),
          floats(hidden),
          floats(covariance)};
}

}  // namespace

void run_forward(const LaidBlock& laid, Place x, const Moments& moments, const Kept& kept, Address y) {
  const blocks::InvertedResidualTensors tensors = tensors_of(moments, kept);
  const Joined expand(laid.expand, laid.expand_floats()), project(laid.project, laid.project_floats());
  InvertedResidual block = with_input(laid.block, x);
  block.expand = expand.filled();
  block.project = project.filled();
  const cpu::Workspace workspace(blocks::workspace_floats(block, tensors.z2 != nullptr));
  blocks::forward(block, tensors, workspace.floats(), at<void>(y));
}

void run_backward(const LaidBlock& laid, Place x, const Moments& moments, const Kept& kept, Place grad, Address grad_x,
                  const Gradients& gradients, const Address* depthwise, const Address* parts) {
  const Joined expand(laid.expand, laid.expand_floats()), project(laid.project, laid.project_floats());
  const Joined grad_expand(laid.expand, laid.expand_floats()), grad_project(laid.project, laid.project_floats());
  InvertedResidual block = with_input(laid.block, x);
  block.expand = expand.filled();
  block.project = project.filled();
  for (blocks::MixconvGroup& group : block.depthwise) group.weight_grad = at<void>(*depthwise++);
  const auto of = [&](std::size_t i) { return floats(gradients[i]); };
  const auto norm = [&](std::size_t i) { return blocks::BlockNormGradients{of(i), of(i + 1)}; };
  const cpu::Workspace workspace(blocks::backward_workspace_floats(block));
  blocks::backward(block, tensors_of(moments, kept), {at<const void>(grad.first), grad.second}, workspace.floats(),
                   {at<void>(grad_x),
                    grad_expand.or_else(of(0)),
                    grad_project.or_else(of(5)),
                    {norm(1), norm(3), norm(6)},
                    of(8),
                    of(9),
                    of(10),
                    of(11)});
  grad_project.spread(grad_expand.spread(parts));
}

void bind_inverted_residual(py::module_& m) {
  py::class_<LaidBlock>(m, "InvertedResidual")
      .def(py::init(&make_block), py::arg("sizes"), py::arg("expand"), py::arg("project"), py::arg("depthwise"),
           py::arg("norms"), py::arg("gate"), py::arg("gate_width"), py::arg("codes"), py::arg("flags"),
           py::arg("groups"), py::arg("threads"))
      .def("forward", &run_forward, py::arg("x"), py::arg("moments"), py::arg("kept"), py::arg("y"), Released())
      .def(
          "backward",
          [](const LaidBlock& self, Place x, const Moments& moments, const Kept& kept, Place grad, Address grad_x,
             const Gradients& gradients, const std::vector<Address>& depthwise, const std::vector<Address>& parts) {
            run_backward(self, x, moments, kept, grad, grad_x, gradients, depthwise.data(), parts.data());
          },
          py::arg("x"), py::arg("moments"), py::arg("kept"), py::arg("grad"), py::arg("grad_x"), py::arg("gradients"),
          py::arg("depthwise"), py::arg("parts"), Released());
}

}  // namespace greedynas::bindings
