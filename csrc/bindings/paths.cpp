#include "bindings.h"
#include "paths/codec.h"
#include "paths/key.h"
#include "paths/key_set.h"
#include "paths/proposals.h"
#include "paths/sort.h"
#include "paths/variation.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

void bind_keys(py::module_& m) {
  m.def(
      "pack",
      [](Address paths_address, std::int64_t n, int layers, Address keys) {
        paths::pack(at<const std::uint8_t>(paths_address), n, layers, at<std::uint64_t>(keys));
      },
      py::arg("paths"), py::arg("n"), py::arg("layers"), py::arg("keys"), Released());
  m.def(
      "unpack",
      [](Address keys, std::int64_t n, int layers, Address paths_address) {
        paths::unpack(at<const std::uint64_t>(keys), n, layers, at<std::uint8_t>(paths_address));
      },
      py::arg("keys"), py::arg("n"), py::arg("layers"), py::arg("paths"), Released());
  m.def(
      "sort_keys", [](Address keys, std::int64_t n) { paths::sort_keys(at<std::uint64_t>(keys), n); }, py::arg("keys"),
      py::arg("n"), Released());
  m.def(
      "unique_keys",
      [](Address keys, std::int64_t n, Address unique, Address first, Address inverse) {
        return paths::unique_keys(at<const std::uint64_t>(keys), n, at<std::uint64_t>(unique), at<std::int64_t>(first),
                                  at<std::int64_t>(inverse));
      },
      py::arg("keys"), py::arg("n"), py::arg("unique"), py::arg("first"), py::arg("inverse"), Released());
}

void bind_key_set(py::module_& m) {
  using paths::KeySet;
  py::class_<KeySet>(m, "KeySet", py::module_local())
      .def(py::init<>())
      .def(
          "insert",
          [](KeySet& set, Address keys, std::int64_t n, Address fresh) {
            return set.insert(at<const std::uint64_t>(keys), n, at<std::uint8_t>(fresh));
          },
          py::arg("keys"), py::arg("n"), py::arg("fresh"), Released())
      .def(
          "contains",
          [](const KeySet& set, Address keys, std::int64_t n, Address found) {
            set.contains(at<const std::uint64_t>(keys), n, at<std::uint8_t>(found));
          },
          py::arg("keys"), py::arg("n"), py::arg("found"), Released())
      .def("size", &KeySet::size, Released())
      .def(
          "export_keys",
          [](const KeySet& set, Address out, std::int64_t capacity) {
            return set.export_keys(at<std::uint64_t>(out), capacity);
          },
          py::arg("out"), py::arg("capacity"), Released());
}

void bind_draws(py::module_& m) {
  m.def(
      "propose",
      [](Address allowed, int layers, int max_operations, std::uint64_t seed, std::uint32_t stream, std::uint64_t start,
         std::int64_t count, Address paths_address) {
        paths::propose(at<const std::uint8_t>(allowed), layers, max_operations, seed, stream, start, count,
                       at<std::uint8_t>(paths_address));
      },
      py::arg("allowed"), py::arg("layers"), py::arg("max_operations"), py::arg("seed"), py::arg("stream"),
      py::arg("start"), py::arg("count"), py::arg("paths"), Released());
  m.def(
      "propose_at",
      [](Address allowed, int layers, int max_operations, std::uint64_t seed, std::uint32_t stream, Address numbers,
         std::int64_t count, Address paths_address) {
        paths::propose_at(at<const std::uint8_t>(allowed), layers, max_operations, seed, stream,
                          at<const std::uint64_t>(numbers), count, at<std::uint8_t>(paths_address));
      },
      py::arg("allowed"), py::arg("layers"), py::arg("max_operations"), py::arg("seed"), py::arg("stream"),
      py::arg("numbers"), py::arg("count"), py::arg("paths"), Released());
  m.def(
      "crossover",
      [](Address parents, std::int64_t pairs, int layers, double probability, std::uint64_t seed, std::uint32_t stream,
         std::uint64_t start, Address children) {
        paths::crossover(at<const std::uint8_t>(parents), pairs, layers, probability, seed, stream, start,
                         at<std::uint8_t>(children));
      },
      py::arg("parents"), py::arg("pairs"), py::arg("layers"), py::arg("probability"), py::arg("seed"),
      py::arg("stream"), py::arg("start"), py::arg("children"), Released());
  m.def(
      "mutate",
      [](Address paths_address, std::int64_t n, Address allowed, int layers, int max_operations, double probability,
         std::uint64_t seed, std::uint32_t stream, std::uint64_t start, Address mutated) {
        paths::mutate(at<const std::uint8_t>(paths_address), n, at<const std::uint8_t>(allowed), layers, max_operations,
                      probability, seed, stream, start, at<std::uint8_t>(mutated));
      },
      py::arg("paths"), py::arg("n"), py::arg("allowed"), py::arg("layers"), py::arg("max_operations"),
      py::arg("probability"), py::arg("seed"), py::arg("stream"), py::arg("start"), py::arg("mutated"), Released());
}

}  // namespace

void bind_paths(py::module_& m) {
  m.attr("BITS_PER_OPERATION") = paths::kBitsPerOperation;
  m.attr("MAX_OPERATIONS") = paths::kMaxOperations;
  m.attr("MAX_LAYERS") = paths::kMaxLayers;
  bind_keys(m);
  bind_key_set(m);
  bind_draws(m);
}

}  // namespace greedynas::bindings
