// Whether Python objects are as they were when something was worked out from them: see greedynas_fast/ops/watch.py.
//
// A block has a hundred attributes to look at. The interpreter takes 0.08 ms for that between two kernels, a twentieth
// of what the kernels of a small block take. References stay in lists of the caller, where the garbage collector sees
// them.
#include "bindings.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

PyObject* item(const py::list& list, Py_ssize_t i) { return PyList_GET_ITEM(list.ptr(), i); }

Py_ssize_t length(const py::list& list) { return PyList_GET_SIZE(list.ptr()); }

// Dictionary, key, value; `...` for a key that is not there.
bool same_entries(const py::list& entries) {
  for (Py_ssize_t i = 0; i + 2 < length(entries); i += 3) {
    PyObject* const found = PyDict_GetItemWithError(item(entries, i), item(entries, i + 1));
    if (found == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
    if ((found == nullptr ? Py_Ellipsis : found) != item(entries, i + 2)) return false;
  }
  return true;
}

// Dictionary, number of entries.
bool same_sizes(const py::list& sizes) {
  for (Py_ssize_t i = 0; i + 1 < length(sizes); i += 2) {
    if (PyDict_Size(item(sizes, i)) != PyLong_AsSsize_t(item(sizes, i + 1))) return false;
  }
  return true;
}

// Object, type.
bool same_types(const py::list& types) {
  for (Py_ssize_t i = 0; i + 1 < length(types); i += 2) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(item(types, i))) != item(types, i + 1)) return false;
  }
  return true;
}

// Tensor, address of its first element.
bool same_places(const py::list& places, const py::str& data_ptr) {
  for (Py_ssize_t i = 0; i + 1 < length(places); i += 2) {
    PyObject* const address = PyObject_CallMethodNoArgs(item(places, i), data_ptr.ptr());
    if (address == nullptr) throw py::error_already_set();
    const int same = PyObject_RichCompareBool(address, item(places, i + 1), Py_EQ);
    Py_DECREF(address);
    if (same <= 0) return false;
  }
  return true;
}

}  // namespace

void bind_watch(py::module_& m) {
  const py::str data_ptr("data_ptr");
  m.def(
      "unchanged",
      [data_ptr](const py::list& entries, const py::list& sizes, const py::list& types, const py::list& places) {
        return same_types(types) && same_sizes(sizes) && same_entries(entries) && same_places(places, data_ptr);
      },
      py::arg("entries"), py::arg("sizes"), py::arg("types"), py::arg("places"));
}

}  // namespace greedynas::bindings
