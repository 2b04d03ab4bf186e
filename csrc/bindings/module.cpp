// greedynas_fast._core: the compiled core for Python.
#include <string>

#include "bindings.h"
#include "cpu/isa.h"
#include "cpu/team.h"
#include "cpu/threads.h"

namespace py = pybind11;
namespace cpu = greedynas::cpu;

namespace {

py::dict build_info() {
  py::list levels;
  for (const cpu::Isa isa : cpu::compiled()) levels.append(std::string(cpu::name_of(isa)));
  py::dict info;
  info["version"] = GREEDYNAS_VERSION;
  info["compiler"] = GREEDYNAS_COMPILER;
  info["build_type"] = GREEDYNAS_BUILD_TYPE;
#ifdef GREEDYNAS_HAS_CUDA
  info["cuda"] = true;
  info["cuda_architectures"] = py::tuple(py::str(GREEDYNAS_CUDA_ARCHITECTURES).attr("split")());
#else
  info["cuda"] = false;
  info["cuda_architectures"] = py::tuple();
#endif
  info["cpu_levels"] = py::tuple(levels);
  return info;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Compiled core of greedynas_fast; use greedynas_fast.paths and greedynas_fast.filter instead.";
  m.def("build_info", &build_info);
  m.def("cpu_isa", [] { return std::string(cpu::name_of(cpu::selected())); });
  m.def("cpu_isa_available", [](const std::string& name) {
    for (const cpu::Isa isa : cpu::compiled()) {
      if (cpu::name_of(isa) == name) return cpu::available(isa);
    }
    return false;
  });
  m.def("num_threads", &cpu::num_threads);
  m.def("use_team", [](std::uintptr_t runner, std::uintptr_t number) {
    cpu::use_team(reinterpret_cast<cpu::TeamRunner>(runner), reinterpret_cast<cpu::TeamNumber>(number));
  });
  m.def("has_team", &cpu::has_team);
  greedynas::bindings::bind_blocks(m);
  greedynas::bindings::bind_classifier_loss(m);
  greedynas::bindings::bind_conv_norm_act(m);
  greedynas::bindings::bind_filter(m);
  greedynas::bindings::bind_inverted_residual(m);
  greedynas::bindings::bind_memory(m);
  greedynas::bindings::bind_norm(m);
  greedynas::bindings::bind_optim(m);
  greedynas::bindings::bind_paths(m);
  greedynas::bindings::bind_pointwise(m);
  greedynas::bindings::bind_pooled_pointwise(m);
  greedynas::bindings::bind_recurrence(m);
  greedynas::bindings::bind_shuffle(m);
  greedynas::bindings::bind_watch(m);
  greedynas::bindings::bind_chain(m);
#ifdef GREEDYNAS_HAS_CUDA
  greedynas::bindings::bind_cuda(m);
  greedynas::bindings::bind_cuda_blocks(m);
#endif
}
