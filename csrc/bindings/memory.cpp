// Arrays of cpu/memory.h as tensors, by the protocol of DLPack (https://dmlc.github.io/dlpack): a capsule with the
// address of a structure, which the one who takes it frees.
#include "cpu/memory.h"

#include <pybind11/stl.h>

#include <memory>
#include <utility>
#include <vector>

#include "bindings.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

// DLPack's structures.
struct DLDevice {
  std::int32_t type, id;
};
struct DLDataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  std::int32_t ndim;
  DLDataType dtype;
  const std::int64_t *shape, *strides;
  std::uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};
constexpr DLDevice kCpu{1, 0};
constexpr DLDataType kFloat32{2, 32, 1}, kBfloat16{4, 16, 1};
constexpr const char* kCapsule = "dltensor";

// Size and strides of tensors, in elements.
struct TensorForm {
  std::vector<std::int64_t> shape, strides;
  DLDataType type;
  std::int64_t bytes;
};

TensorForm make_form(std::vector<std::int64_t> shape, std::vector<std::int64_t> strides, bool bf16) {
  const DLDataType type = bf16 ? kBfloat16 : kFloat32;
  std::int64_t values = 1;
  for (std::size_t i = 0; i < shape.size(); ++i) values += (shape[i] - 1) * strides.at(i);
  return {std::move(shape), std::move(strides), type, values * type.bits / 8};
}

// A tensor as it goes out, with what its structure points to.
struct Managed : DLManagedTensor {
  std::shared_ptr<const TensorForm> form;
};

void destroy(DLManagedTensor* managed) {
  cpu::give_back_memory(managed->tensor.data);
  delete static_cast<Managed*>(managed);
}

// One that nobody has taken; a capsule that was taken has another name.
void destroy_capsule(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, kCapsule) == 0) return;
  destroy(static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, kCapsule)));
}

py::object empty(std::shared_ptr<const TensorForm> form) {
  auto managed = std::make_unique<Managed>();
  const auto dimensions = static_cast<std::int32_t>(form->shape.size());
  void* const data = cpu::take_memory(form->bytes);
  managed->tensor = {data, kCpu, dimensions, form->type, form->shape.data(), form->strides.data(), 0};
  managed->deleter = destroy;
  managed->form = std::move(form);
  DLManagedTensor* const outgoing = managed.release();
  PyObject* const capsule = PyCapsule_New(outgoing, kCapsule, destroy_capsule);
  if (capsule == nullptr) {
    destroy(outgoing);
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::object>(capsule);
}

}  // namespace

void bind_memory(py::module_& m) {
  py::class_<TensorForm, std::shared_ptr<TensorForm>>(m, "TensorForm")
      .def(py::init(&make_form), py::arg("shape"), py::arg("strides"), py::arg("bf16") = false)
      .def("empty", &empty);
  m.def("memory_use", [] {
    const cpu::MemoryUse use = cpu::memory_use();
    return std::pair(use.taken, use.kept);
  });
  m.def("release_memory", &cpu::release_memory);
}

}  // namespace greedynas::bindings
