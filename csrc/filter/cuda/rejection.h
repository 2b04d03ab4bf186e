// The rejection loop of filter/rejection.h on a CUDA device. The result does not depend on the chunk.
//
// Pointers are device memory of the caller, `workspace` aligned to 256 bytes; request.allowed is host memory and must
// allow only operations that the model has. Sizes out of range and a score that is NaN throw std::invalid_argument,
// CUDA's errors std::runtime_error. These calls wait for `stream` (a cudaStream_t of the current device). Every few
// chunks they call `between_rounds`; what it throws ends the loop, after the work that is queued.
#pragma once

#include <cstdint>
#include <functional>

#include "filter/cuda/score.h"
#include "filter/rejection.h"

namespace greedynas::filter::cuda {

struct RejectionOutcome {
  std::int64_t accepted;   // numbers written, at most request.wanted
  std::int64_t proposals;  // looked at: up to the last accepted one, or request.limit
};

// Bytes of page-locked host memory that `reject` needs to follow the loop without stopping it.
inline constexpr std::int64_t kRejectionHostBytes = 256;

std::int64_t rejection_workspace_bytes(const Shape& shape, std::int64_t chunk);

// Looks at `chunk` proposals at a time and writes the numbers of the accepted ones, ascending, to accepted
// [request.wanted]. The host looks at the device's counter every few chunks, while later ones are already queued; those
// do nothing once there are enough.
RejectionOutcome reject(const DeviceModel& model, const RejectionRequest& request, std::int64_t chunk,
                        std::uint64_t* accepted, void* workspace, void* pinned_host, Stream stream,
                        const std::function<void()>& between_rounds);

std::int64_t fallback_workspace_bytes(const Shape& shape, std::int64_t chunk, std::int64_t count);

// After `reject` has reached the limit: scores all request.limit proposals again and writes the `count` rejected ones
// of lowest (log Phi, number), in that order, to numbers [count]; so many must have been rejected.
void lowest_rejected(const DeviceModel& model, const RejectionRequest& request, std::int64_t chunk, std::int64_t count,
                     std::uint64_t* numbers, void* workspace, Stream stream,
                     const std::function<void()>& between_rounds);

}  // namespace greedynas::filter::cuda
