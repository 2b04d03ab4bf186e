// The CUDA kernels, present only in a build with CUDA. All addresses are device memory but `allowed`, `num_ops` and
// `pinned_host`; `stream` is a cudaStream_t as an integer, of the device that is named first.
#include <pybind11/stl.h>

#include <array>
#include <utility>
#include <vector>

#include "bindings.h"
#include "cuda/device.h"
#include "filter/cuda/rejection.h"
#include "filter/cuda/score.h"
#include "paths/cuda/keys.h"
#include "paths/cuda/paths.h"

namespace greedynas::bindings {

namespace py = pybind11;

namespace {

namespace device_paths = paths::cuda;
namespace device_filter = filter::cuda;

filter::cuda::DeviceModel model_of(const std::array<int, 3>& shape, bool bf16, Address weights) {
  return {{shape[0], shape[1], shape[2]},
          bf16 ? filter::Precision::bf16 : filter::Precision::float32,
          at<const void>(weights)};
}

// Ctrl-C, for calls that have let go of the interpreter.
void heed_signals() {
  const py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

void bind_device_paths(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> release;
  m.def(
      "cuda_propose",
      [](int device, Address stream, Address allowed, int layers, int max_operations, std::uint64_t seed,
         std::uint32_t stream_number, std::uint64_t start, std::int64_t count, Address to_paths) {
        cuda::use_device(device);
        device_paths::propose(at<const std::uint8_t>(allowed), layers, max_operations, {seed, stream_number, start},
                              count, at<std::uint8_t>(to_paths), nullptr, at<void>(stream));
      },
      release);
  m.def(
      "cuda_pack",
      [](int device, Address stream, Address from_paths, std::int64_t n, int layers, Address keys, Address first_bad) {
        cuda::use_device(device);
        device_paths::pack(at<const std::uint8_t>(from_paths), n, layers, at<std::uint64_t>(keys),
                           at<std::uint64_t>(first_bad), at<void>(stream));
      },
      release);
  m.def(
      "cuda_unpack",
      [](int device, Address stream, Address keys, std::int64_t n, int layers, Address to_paths, Address first_bad) {
        cuda::use_device(device);
        device_paths::unpack(at<const std::uint64_t>(keys), n, layers, at<std::uint8_t>(to_paths),
                             at<std::uint64_t>(first_bad), at<void>(stream));
      },
      release);
  m.def(
      "cuda_sort_workspace_bytes",
      [](int device, std::int64_t n) {
        cuda::use_device(device);
        return device_paths::sort_workspace_bytes(n);
      },
      release);
  m.def(
      "cuda_sort_keys",
      [](int device, Address stream, Address keys, std::int64_t n, Address sorted, Address workspace) {
        cuda::use_device(device);
        device_paths::sort_keys(at<const std::uint64_t>(keys), n, at<std::uint64_t>(sorted), at<void>(workspace),
                                at<void>(stream));
      },
      release);
  m.def(
      "cuda_unique_workspace_bytes",
      [](int device, std::int64_t n) {
        cuda::use_device(device);
        return device_paths::unique_workspace_bytes(n);
      },
      release);
  m.def(
      "cuda_unique_keys",
      [](int device, Address stream, Address sorted, std::int64_t n, Address unique, Address count, Address workspace) {
        cuda::use_device(device);
        device_paths::unique_keys(at<const std::uint64_t>(sorted), n, at<std::uint64_t>(unique),
                                  at<std::int64_t>(count), at<void>(workspace), at<void>(stream));
      },
      release);
  m.def(
      "cuda_find_keys",
      [](int device, Address stream, Address sorted, std::int64_t n, Address queries, std::int64_t num_queries,
         Address found) {
        cuda::use_device(device);
        device_paths::find_keys(at<const std::uint64_t>(sorted), n, at<const std::uint64_t>(queries), num_queries,
                                at<std::uint8_t>(found), at<void>(stream));
      },
      release);
}

// Parameters as one list of addresses, in the order of filter::Parameters.
void bind_device_scores(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> release;
  m.def("cuda_weights_bytes", [](const std::array<int, 3>& shape, bool bf16) {
    return device_filter::weights_bytes({shape[0], shape[1], shape[2]},
                                        bf16 ? filter::Precision::bf16 : filter::Precision::float32);
  });
  m.def(
      "cuda_prepare",
      [](int device, Address stream, const std::array<int, 3>& shape, bool bf16, const std::vector<int>& num_ops,
         const std::array<Address, 6>& parameters, Address weights) {
        cuda::use_device(device);
        const auto tensor = [&](std::size_t i) { return at<const float>(parameters[i]); };
        device_filter::prepare(
            {shape[0], shape[1], shape[2]}, bf16 ? filter::Precision::bf16 : filter::Precision::float32, num_ops,
            {tensor(0), tensor(1), tensor(2), tensor(3), tensor(4), tensor(5)}, at<void>(weights), at<void>(stream));
      },
      release);
  m.def("cuda_score_workspace_bytes", [](const std::array<int, 3>& shape, std::int64_t n) {
    return device_filter::score_workspace_bytes({shape[0], shape[1], shape[2]}, n);
  });
  m.def(
      "cuda_score",
      [](int device, Address stream, const std::array<int, 3>& shape, bool bf16, Address weights, Address from_paths,
         Address keys, std::int64_t n, Address log_weak, Address status, Address workspace) {
        cuda::use_device(device);
        device_filter::score(model_of(shape, bf16, weights),
                             {at<const std::uint8_t>(from_paths), at<const std::uint64_t>(keys)}, n,
                             at<float>(log_weak), at<device_filter::ScoreStatus>(status), at<void>(workspace), nullptr,
                             at<void>(stream));
      },
      release);
}

void bind_device_rejection(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> release;
  m.attr("CUDA_REJECTION_HOST_BYTES") = device_filter::kRejectionHostBytes;
  m.def(
      "cuda_rejection_workspace_bytes",
      [](int device, const std::array<int, 3>& shape, std::int64_t chunk) {
        cuda::use_device(device);
        return device_filter::rejection_workspace_bytes({shape[0], shape[1], shape[2]}, chunk);
      },
      release);
  m.def(
      "cuda_reject",
      [](int device, Address stream, const std::array<int, 3>& shape, bool bf16, Address weights, Address allowed,
         std::uint64_t seed, std::uint32_t stream_number, std::uint64_t start, std::int64_t wanted, std::int64_t limit,
         double threshold, std::int64_t chunk, Address accepted, Address workspace, Address pinned_host) {
        cuda::use_device(device);
        const device_filter::RejectionOutcome outcome = device_filter::reject(
            model_of(shape, bf16, weights),
            {at<const std::uint8_t>(allowed), seed, stream_number, start, wanted, limit, threshold, false}, chunk,
            at<std::uint64_t>(accepted), at<void>(workspace), at<void>(pinned_host), at<void>(stream), heed_signals);
        return std::pair{outcome.accepted, outcome.proposals};
      },
      release);
  m.def(
      "cuda_fallback_workspace_bytes",
      [](int device, const std::array<int, 3>& shape, std::int64_t chunk, std::int64_t count) {
        cuda::use_device(device);
        return device_filter::fallback_workspace_bytes({shape[0], shape[1], shape[2]}, chunk, count);
      },
      release);
  m.def(
      "cuda_lowest_rejected",
      [](int device, Address stream, const std::array<int, 3>& shape, bool bf16, Address weights, Address allowed,
         std::uint64_t seed, std::uint32_t stream_number, std::uint64_t start, std::int64_t limit, double threshold,
         std::int64_t chunk, std::int64_t count, Address numbers, Address workspace) {
        cuda::use_device(device);
        device_filter::lowest_rejected(
            model_of(shape, bf16, weights),
            {at<const std::uint8_t>(allowed), seed, stream_number, start, count, limit, threshold, true}, chunk, count,
            at<std::uint64_t>(numbers), at<void>(workspace), at<void>(stream), heed_signals);
      },
      release);
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("cuda_reason_against", &cuda::reason_against, py::arg("device"));
  bind_device_paths(m);
  bind_device_scores(m);
  bind_device_rejection(m);
}

}  // namespace greedynas::bindings
