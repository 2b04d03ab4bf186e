// The recurrence of the path filter's training. Addresses of float32 and int64 arrays; 0 stands for none.
#include "filter/recurrence.h"

#include <pybind11/stl.h>

#include <array>
#include <cstddef>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "cpu/memory.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

using filter::Recurrence;

// Rows, and the addresses of operations, others and parents.
using Level = std::tuple<std::int64_t, Address, Address, Address>;
// Addresses of tables, weight and members, and the levels.
using Direction = std::tuple<Address, Address, Address, std::vector<Level>>;

Recurrence make_recurrence(std::int64_t paths, int operations, int hidden, float share,
                           const std::array<Direction, 2>& directions, int threads) {
  Recurrence net{paths, operations, hidden, share, {}, threads};
  for (std::size_t d = 0; d < directions.size(); ++d) {
    const auto& [tables, weight, members, levels] = directions[d];
    net.directions[d] = {at<const float>(tables), at<const float>(weight), {}, at<const std::int64_t>(members)};
    for (const auto& [rows, own, others, parents] : levels) {
      net.directions[d].levels.push_back(
          {rows, at<const std::int64_t>(own), at<const std::int64_t>(others), at<const std::int64_t>(parents)});
    }
  }
  return net;
}

// The passes of one step of training, and what the first leaves for the second.
class Passes {
 public:
  explicit Passes(Recurrence net) : net_(std::move(net)), kept_(filter::kept_floats(net_)) {}

  void forward(Address states) { filter::forward(net_, kept_.floats(), at<float>(states)); }

  // gradients: of tables and weight, of each direction.
  void backward(Address grad, const std::array<std::pair<Address, Address>, 2>& gradients) const {
    const auto of = [&](std::size_t d) {
      return filter::RecurrenceGradients{at<float>(gradients[d].first), at<float>(gradients[d].second)};
    };
    filter::backward(net_, kept_.floats(), at<const float>(grad), {of(0), of(1)});
  }

 private:
  Recurrence net_;
  cpu::Workspace kept_;
};

}  // namespace

void bind_recurrence(py::module_& m) {
  py::class_<Passes>(m, "Recurrence")
      .def(py::init([](std::int64_t paths, int operations, int hidden, float share,
                       const std::array<Direction, 2>& directions, int threads) {
             return std::make_unique<Passes>(make_recurrence(paths, operations, hidden, share, directions, threads));
           }),
           py::arg("paths"), py::arg("operations"), py::arg("hidden"), py::arg("share"), py::arg("directions"),
           py::arg("threads"))
      .def("forward", &Passes::forward, py::arg("states"), Released())
      .def("backward", &Passes::backward, py::arg("grad"), py::arg("gradients"), Released());
}

}  // namespace greedynas::bindings
