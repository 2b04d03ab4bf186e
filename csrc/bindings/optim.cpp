// The optimizer. Blocks come as the address of int64 [count, 3]; address 0 stands for no momentum or no average.
#include <pybind11/stl.h>

#include <vector>

#include "bindings.h"
#include "optim/sgd.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

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
  // Gradients of several parameters: each array of so many is added to its sum. Not without the interpreter's lock,
  // which keeps backward passes of other threads from the same sums.
  m.def(
      "add_arrays",
      [](const std::vector<Address>& sums, const std::vector<Address>& summands,
         const std::vector<std::int64_t>& counts) {
        for (std::size_t k = 0; k < counts.size(); ++k) {
          float* const sum = at<float>(sums.at(k));
          const float* const more = at<const float>(summands.at(k));
          for (std::int64_t i = 0; i < counts[k]; ++i) sum[i] += more[i];
        }
      },
      py::arg("sums"), py::arg("summands"), py::arg("counts"));
}

}  // namespace greedynas::bindings
