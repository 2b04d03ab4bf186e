// Log-probabilities of weak on a CUDA device. The numbers are those of the CPU: bit for bit in float32, within the band
// that bf16 is measured by otherwise.
//
// Every pointer is device memory that the caller owns, aligned to 256 bytes where it is void*. Calls are queued on
// `stream` (a cudaStream_t) of the current device and return at once. Sizes out of range throw std::invalid_argument,
// CUDA's errors std::runtime_error. Legend: L layers, N operations in the widest layer, H hidden units.
#pragma once

#include <cstdint>
#include <vector>

#include "filter/model.h"

namespace greedynas::filter::cuda {

using Stream = void*;

// What `prepare` made, and from what.
struct DeviceModel {
  Shape shape;
  Precision precision = Precision::float32;
  const void* weights = nullptr;  // weights_bytes(shape, precision)
};

std::int64_t weights_bytes(const Shape& shape, Precision precision);

// Writes the kernels' layout of `parameters` (device memory, finite) to `weights`. num_ops: [L], host memory.
void prepare(const Shape& shape, Precision precision, const std::vector<int>& num_ops, const Parameters& parameters,
             void* weights, Stream stream);

// What scoring found wrong, in device memory: the lowest path that has an operation which its layer lacks (it is scored
// as if it were operation 0), and the lowest with a score that is NaN; kNoPath where there is none.
inline constexpr std::uint64_t kNoPath = ~0ULL;
struct ScoreStatus {
  std::uint64_t bad_path;
  std::uint64_t nan_path;
};

// One of: operations [n, L], or keys [n, 2] as paths/key.h has them (L at most 25).
struct PathBatch {
  const std::uint8_t* paths = nullptr;
  const std::uint64_t* keys = nullptr;
};

// Grows with n up to a limit: larger batches are scored in parts.
std::int64_t score_workspace_bytes(const Shape& shape, std::int64_t n);

// Writes log Phi to log_weak [n] and overwrites *status. Nothing is scored if `stop` is not null and the device
// integer it points to is not 0 when a kernel runs.
void score(const DeviceModel& model, const PathBatch& batch, std::int64_t n, float* log_weak, ScoreStatus* status,
           void* workspace, const int* stop, Stream stream);

}  // namespace greedynas::filter::cuda
