// Dropout, classifier and loss. Addresses of float32 arrays, and of int64 for labels; address 0 stands for no mask.
#include "blocks/classifier_loss.h"

#include <pybind11/stl.h>

#include <array>

#include "bindings.h"
#include "cpu/memory.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

using blocks::ClassifierLoss;
using Places = std::array<Address, 3>;

blocks::ClassifierKept kept_at(const Places& kept) {
  return {at<float>(kept[0]), at<float>(kept[1]), at<float>(kept[2])};
}

}  // namespace

void bind_classifier_loss(py::module_& m) {
  py::class_<ClassifierLoss>(m, "ClassifierLoss")
      // sizes: images, features, classes.
      .def(py::init([](const std::array<std::int64_t, 3>& sizes, Address weight, Address bias, int threads) {
             return ClassifierLoss{sizes[0],
                                   static_cast<int>(sizes[1]),
                                   static_cast<int>(sizes[2]),
                                   at<const float>(weight),
                                   at<const float>(bias),
                                   threads};
           }),
           py::arg("sizes"), py::arg("weight"), py::arg("bias"), py::arg("threads"))
      .def(
          "find_bad_label",
          [](const ClassifierLoss& self, Address labels) {
            return blocks::find_bad_label(self, at<const std::int64_t>(labels));
          },
          py::arg("labels"))
      // kept: features, factors, gradient of the logits. loss: of a float32, correct: of an int64.
      .def(
          "forward",
          [](const ClassifierLoss& self, Address labels, float smoothing, Address mask, float scale, const Places& kept,
             Address loss, Address correct) {
            const cpu::Workspace workspace(blocks::workspace_floats(self));
            const blocks::ClassifierResult result =
                blocks::forward(self, {at<const std::int64_t>(labels), smoothing, at<const float>(mask), scale},
                                kept_at(kept), workspace.floats());
            *at<float>(loss) = result.loss;
            *at<std::int64_t>(correct) = result.correct;
          },
          py::arg("labels"), py::arg("smoothing"), py::arg("mask"), py::arg("scale"), py::arg("kept"), py::arg("loss"),
          py::arg("correct"), Released())
      // grad: of the loss. gradients: of features, weight and bias.
      .def(
          "backward",
          [](const ClassifierLoss& self, Address grad, const Places& kept, const Places& gradients) {
            const cpu::Workspace workspace(blocks::workspace_floats(self));
            blocks::backward(self, *at<const float>(grad), kept_at(kept), workspace.floats(),
                             {at<float>(gradients[0]), at<float>(gradients[1]), at<float>(gradients[2])});
          },
          py::arg("grad"), py::arg("kept"), py::arg("gradients"), Released());
}

}  // namespace greedynas::bindings
