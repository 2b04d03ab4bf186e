// The channel shuffle. Rows to read come as address and distance of rows in elements.
#include "blocks/shuffle.h"

#include "bindings.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

blocks::ShuffleRows rows_at(Address address, std::int64_t stride) { return {at<const void>(address), stride}; }

}  // namespace

void bind_shuffle(py::module_& m) {
  m.def(
      "shuffle_split",
      [](std::int64_t rows, std::int64_t half, int element_bytes, Address x, std::int64_t x_stride, Address kept,
         Address moved, int threads) {
        blocks::shuffle_split({rows, half, element_bytes}, rows_at(x, x_stride), at<void>(kept), at<void>(moved),
                              threads);
      },
      py::arg("rows"), py::arg("half"), py::arg("element_bytes"), py::arg("x"), py::arg("x_stride"), py::arg("kept"),
      py::arg("moved"), py::arg("threads"), Released());
  m.def(
      "shuffle_merge",
      [](std::int64_t rows, std::int64_t half, int element_bytes, Address kept, std::int64_t kept_stride, Address moved,
         std::int64_t moved_stride, Address x, int threads) {
        blocks::shuffle_merge({rows, half, element_bytes}, rows_at(kept, kept_stride), rows_at(moved, moved_stride),
                              at<void>(x), threads);
      },
      py::arg("rows"), py::arg("half"), py::arg("element_bytes"), py::arg("kept"), py::arg("kept_stride"),
      py::arg("moved"), py::arg("moved_stride"), py::arg("x"), py::arg("threads"), Released());
}

}  // namespace greedynas::bindings
