#include "bindings.h"
#include "paths/codec.h"
#include "paths/key.h"
#include "paths/proposals.h"

namespace greedynas::bindings {

namespace py = pybind11;

void bind_paths(py::module_& m) {
  m.attr("BITS_PER_OPERATION") = paths::kBitsPerOperation;
  m.attr("MAX_OPERATIONS") = paths::kMaxOperations;
  m.attr("MAX_LAYERS") = paths::kMaxLayers;
  m.def(
      "pack",
      [](std::uintptr_t paths_address, std::int64_t n, int layers, std::uintptr_t keys_address) {
        paths::pack(at<const std::uint8_t>(paths_address), n, layers, at<std::uint64_t>(keys_address));
      },
      py::arg("paths"), py::arg("n"), py::arg("layers"), py::arg("keys"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "unpack",
      [](std::uintptr_t keys_address, std::int64_t n, int layers, std::uintptr_t paths_address) {
        paths::unpack(at<const std::uint64_t>(keys_address), n, layers, at<std::uint8_t>(paths_address));
      },
      py::arg("keys"), py::arg("n"), py::arg("layers"), py::arg("paths"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "propose",
      [](std::uintptr_t allowed_address, int layers, int max_operations, std::uint64_t seed, std::uint32_t stream,
         std::uint64_t start, std::int64_t count, std::uintptr_t paths_address) {
        paths::propose(at<const std::uint8_t>(allowed_address), layers, max_operations, seed, stream, start, count,
                       at<std::uint8_t>(paths_address));
      },
      py::arg("allowed"), py::arg("layers"), py::arg("max_operations"), py::arg("seed"), py::arg("stream"),
      py::arg("start"), py::arg("count"), py::arg("paths"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "propose_at",
      [](std::uintptr_t allowed_address, int layers, int max_operations, std::uint64_t seed, std::uint32_t stream,
         std::uintptr_t numbers_address, std::int64_t count, std::uintptr_t paths_address) {
        paths::propose_at(at<const std::uint8_t>(allowed_address), layers, max_operations, seed, stream,
                          at<const std::uint64_t>(numbers_address), count, at<std::uint8_t>(paths_address));
      },
      py::arg("allowed"), py::arg("layers"), py::arg("max_operations"), py::arg("seed"), py::arg("stream"),
      py::arg("numbers"), py::arg("count"), py::arg("paths"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace greedynas::bindings
