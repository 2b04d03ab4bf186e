// The optimizer. Blocks come as the address of int64 [count, 3]; address 0 stands for no momentum or no average.
#include "bindings.h"
#include "optim/sgd.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

using Released = py::call_guard<py::gil_scoped_release>;
using Address = std::uintptr_t;

static_assert(sizeof(optim::Block) == 3 * sizeof(std::int64_t));

optim::Blocks blocks_at(Address address, std::int64_t count) { return {at<const optim::Block>(address), count}; }

}  // namespace

void bind_optim(py::module_& m) {
  m.def(
      "sgd_update",
      [](Address blocks, std::int64_t count, Address parameters, Address gradients, Address momentum_buffer,
         Address ema, double lr, double momentum, double weight_decay, double ema_decay, double gradient_scale,
         bool nesterov, bool zero_gradients, int threads) {
        optim::update(blocks_at(blocks, count),
                      {at<float>(parameters), at<float>(gradients), at<float>(momentum_buffer), at<float>(ema)},
                      {lr, momentum, weight_decay, ema_decay, gradient_scale, nesterov, zero_gradients}, threads);
      },
      py::arg("blocks"), py::arg("count"), py::arg("parameters"), py::arg("gradients"), py::arg("momentum_buffer"),
      py::arg("ema"), py::arg("lr"), py::arg("momentum"), py::arg("weight_decay"), py::arg("ema_decay"),
      py::arg("gradient_scale"), py::arg("nesterov"), py::arg("zero_gradients"), py::arg("threads"), Released());
  m.def(
      "sum_of_squares",
      [](Address blocks, std::int64_t count, Address gradients, int threads) {
        return optim::sum_of_squares(blocks_at(blocks, count), at<const float>(gradients), threads);
      },
      py::arg("blocks"), py::arg("count"), py::arg("gradients"), py::arg("threads"), Released());
}

}  // namespace greedynas::bindings
