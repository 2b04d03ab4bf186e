// greedynas_fast._core: the compiled core for Python. Addresses and sizes only; greedynas_fast/paths.py owns the arrays
// and checks them. Nothing here knows numpy or torch.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "paths/codec.h"
#include "paths/key.h"
#include "paths/proposals.h"

namespace py = pybind11;
namespace paths = greedynas::paths;

namespace {

template <typename T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

py::dict build_info() {
  py::dict info;
  info["version"] = GREEDYNAS_VERSION;
  info["compiler"] = GREEDYNAS_COMPILER;
  info["build_type"] = GREEDYNAS_BUILD_TYPE;
  info["cuda"] = false;
  info["cuda_architectures"] = py::tuple();
  info["cpu_levels"] = py::make_tuple("portable");
  return info;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Compiled core of greedynas_fast; use greedynas_fast.paths instead.";
  m.attr("BITS_PER_OPERATION") = paths::kBitsPerOperation;
  m.attr("MAX_OPERATIONS") = paths::kMaxOperations;
  m.attr("MAX_LAYERS") = paths::kMaxLayers;
  m.def("build_info", &build_info);
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
}
