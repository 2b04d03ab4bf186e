#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "filter/cpu/kernels.h"
#include "filter/model.h"
#include "filter/rejection.h"
#include "filter/score.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

filter::Precision precision_of(const std::string& name) {
  if (name == "float32") return filter::Precision::float32;
  if (name == "bf16") return filter::Precision::bf16;
  throw std::invalid_argument("precision must be float32 or bf16, got " + name);
}

// Addresses of float32 arrays in the layouts of filter::Parameters, in its order.
std::shared_ptr<filter::Model> make_model(std::vector<int> num_ops, int operations, int hidden,
                                          const std::string& precision, const std::vector<Address>& parameters) {
  const filter::Shape shape{static_cast<int>(num_ops.size()), operations, hidden};
  const auto values = [&](std::size_t i) { return at<const float>(parameters.at(i)); };
  return std::make_shared<filter::Model>(
      shape, std::move(num_ops), precision_of(precision), cpu::selected(),
      filter::Parameters{values(0), values(1), values(2), values(3), values(4), values(5)});
}

py::bytes as_bytes(const std::vector<std::uint64_t>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(std::uint64_t)};
}

// Accepted numbers and fallbacks as bytes of uint64, and how many proposals were looked at.
py::tuple reject(const filter::Model& model, const filter::RejectionRequest& request, int threads,
                 const filter::Model* screen, double band) {
  filter::RejectionResult result;
  {
    const py::gil_scoped_release release;
    const auto between_rounds = [] {
      const py::gil_scoped_acquire acquire;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();  // Ctrl-C
    };
    if (screen == nullptr) {
      result = filter::reject(model, request, threads, between_rounds);
    } else {
      const filter::Screen with{*screen, band};
      result = filter::reject(model, request, threads, between_rounds, &with);
    }
  }
  return py::make_tuple(as_bytes(result.accepted), as_bytes(result.fallbacks), result.proposals);
}

}  // namespace

void bind_filter(py::module_& m) {
  using filter::Model;
  m.attr("MAX_FILTER_WEIGHT") = filter::kMaxWeight;
  py::class_<Model, std::shared_ptr<Model>>(m, "FilterModel")
      .def(py::init(&make_model), py::arg("num_ops"), py::arg("operations"), py::arg("hidden"), py::arg("precision"),
           py::arg("parameters"))
      .def_property_readonly("isa", [](const Model& model) { return model.kernel().name; })
      .def(
          "score",
          [](const Model& model, Address paths, std::int64_t n, int threads, Address log_weak) {
            filter::score(model, at<const std::uint8_t>(paths), n, threads, at<float>(log_weak));
          },
          py::arg("paths"), py::arg("n"), py::arg("threads"), py::arg("log_weak"), Released())
      .def(
          "score_keys",
          [](const Model& model, Address keys, std::int64_t n, int threads, Address log_weak) {
            filter::score_keys(model, at<const std::uint64_t>(keys), n, threads, at<float>(log_weak));
          },
          py::arg("keys"), py::arg("n"), py::arg("threads"), py::arg("log_weak"), Released())
      .def(
          "reject",
          [](const Model& model, Address allowed, std::uint64_t seed, std::uint32_t stream, std::uint64_t start,
             std::int64_t wanted, std::int64_t limit, double threshold, bool want_fallbacks, int threads,
             const Model* screen, double band) {
            return reject(
                model, {at<const std::uint8_t>(allowed), seed, stream, start, wanted, limit, threshold, want_fallbacks},
                threads, screen, band);
          },
          py::arg("allowed"), py::arg("seed"), py::arg("stream"), py::arg("start"), py::arg("wanted"), py::arg("limit"),
          py::arg("threshold"), py::arg("want_fallbacks"), py::arg("threads"), py::arg("screen") = nullptr,
          py::arg("band") = 0.0);
}

}  // namespace greedynas::bindings
