#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/compact.cuh"
#include "cuda/platform.h"
#include "filter/arithmetic.h"
#include "filter/cuda/rejection.h"
#include "paths/cuda/keys.h"
#include "paths/cuda/paths.h"

namespace greedynas::filter::cuda {
namespace {

namespace device = greedynas::cuda;

constexpr int kThreads = device::kCompactThreads;
constexpr int kChunksPerRound = 4;  // between two looks at the counter
constexpr int kSortedBits = 96;     // of a candidate: 64 of its number, 32 of its score

// The loop's progress, in device memory. Kernels of one stream run one after the other.
struct State {
  std::uint64_t nan_proposal;  // lowest offset from request.start of a score that is NaN
  std::int64_t accepted;       // over all chunks so far, may exceed what is wanted
  std::int64_t looked_at;      // known once enough are accepted
  int stop;                    // enough are accepted
  int chunk_counts;            // the current chunk was scored
};
static_assert(2 * sizeof(State) <= kRejectionHostBytes);

// One chunk of the loop: proposals request.start + offset .. + count - 1.
struct Chunk {
  const float* scores;  // [count]
  std::int64_t offset;
  std::int64_t count;
  std::uint64_t start;
  double threshold;
};

struct IsAccepted {
  Chunk chunk;
  __device__ __forceinline__ bool operator()(std::int64_t i) const {
    return static_cast<double>(chunk.scores[i]) <= chunk.threshold;
  }
};

__global__ void __launch_bounds__(kThreads) reset_state(State* state) { *state = {~0ULL, 0, 0, 0, 0}; }

__global__ void __launch_bounds__(kThreads) count_accepted(Chunk chunk, State* state, std::int64_t* segments) {
  if (device::is_stopped(&state->stop)) return;
  const std::uint32_t kept = device::place_kept(chunk.count, IsAccepted{chunk}, [](std::int64_t, std::uint32_t) {});
  if (threadIdx.x == 0) segments[blockIdx.x] = kept;
  for (int i = 0; i < device::kItemsPerThread; ++i) {
    const std::int64_t item = device::item_of_thread(i);
    if (item < chunk.count && chunk.scores[item] != chunk.scores[item]) {
      atomicMin(reinterpret_cast<unsigned long long*>(&state->nan_proposal),
                static_cast<unsigned long long>(chunk.offset + item));
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    sum_segments(std::int64_t* segments, std::int64_t count, std::int64_t wanted, State* state) {
  if (device::is_stopped(&state->stop)) {
    if (threadIdx.x == 0) state->chunk_counts = 0;
    return;
  }
  const std::int64_t accepted = device::sum_up(segments, count, state->accepted);
  if (threadIdx.x != 0) return;
  state->accepted = accepted;
  state->stop = accepted >= wanted ? 1 : 0;
  state->chunk_counts = 1;
}

__global__ void __launch_bounds__(kThreads) write_accepted(Chunk chunk, const std::int64_t* segments,
                                                           std::int64_t wanted, std::uint64_t* accepted, State* state) {
  if (state->chunk_counts == 0) return;
  const std::int64_t begin = segments[blockIdx.x];
  device::place_kept(chunk.count, IsAccepted{chunk}, [=](std::int64_t item, std::uint32_t place) {
    const std::int64_t rank = begin + place;
    if (rank >= wanted) return;
    accepted[rank] = chunk.start + static_cast<std::uint64_t>(chunk.offset + item);
    if (rank == wanted - 1) state->looked_at = chunk.offset + item + 1;
  });
}

// Floats as unsigned numbers of the same order, -0 as +0.
__device__ __forceinline__ std::uint32_t ordered_bits(float value) {
  const std::uint32_t bits = bits_of(value + 0.0F);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

// candidates [room, 2]: (score, number) of the chunk's rejected proposals, all ones for the rest.
__global__ void __launch_bounds__(kThreads) gather_rejected(Chunk chunk, std::int64_t room, std::uint64_t* candidates) {
  const IsAccepted is_accepted{chunk};
  for (std::int64_t i = device::global_thread(); i < room; i += device::global_threads()) {
    const bool rejected = i < chunk.count && !is_accepted(i);
    candidates[2 * i] = rejected ? ordered_bits(chunk.scores[i]) : ~0ULL;
    candidates[2 * i + 1] = rejected ? chunk.start + static_cast<std::uint64_t>(chunk.offset + i) : ~0ULL;
  }
}

__global__ void __launch_bounds__(kThreads)
    take_numbers(const std::uint64_t* candidates, std::int64_t count, std::uint64_t* numbers) {
  for (std::int64_t i = device::global_thread(); i < count; i += device::global_threads()) {
    numbers[i] = candidates[2 * i + 1];
  }
}

// What both passes need in memory.
struct Workspace {
  State* state;
  ScoreStatus* status;
  std::uint8_t* paths;     // [chunk, L]
  float* scores;           // [chunk]
  std::int64_t* segments;  // of a chunk
  void* scoring;
  std::uint64_t* candidates;  // [count + chunk, 2], twice; fallbacks only, as the next
  std::uint64_t* sorted;
  void* sorting;
};

std::int64_t lay_out(const Shape& shape, std::int64_t chunk, std::int64_t fallbacks, void* base, Workspace* workspace) {
  std::int64_t offset = 0;
  const auto take = [&](std::int64_t bytes) -> void* {
    void* const at = base == nullptr ? nullptr : static_cast<std::byte*>(base) + offset;
    offset += (bytes + 255) / 256 * 256;
    return at;
  };
  workspace->state = static_cast<State*>(take(sizeof(State)));
  workspace->status = static_cast<ScoreStatus*>(take(sizeof(ScoreStatus)));
  workspace->paths = static_cast<std::uint8_t*>(take(chunk * shape.layers));
  workspace->scores = static_cast<float*>(take(chunk * 4));
  workspace->segments = static_cast<std::int64_t*>(take(device::segments_of(chunk) * 8));
  workspace->scoring = take(score_workspace_bytes(shape, chunk));
  if (fallbacks > 0) {
    workspace->candidates = static_cast<std::uint64_t*>(take((fallbacks + chunk) * 16));
    workspace->sorted = static_cast<std::uint64_t*>(take((fallbacks + chunk) * 16));
    workspace->sorting = take(paths::cuda::sort_workspace_bytes(fallbacks + chunk));
  }
  return offset;
}

void check(const RejectionRequest& request, std::int64_t chunk) {
  if (chunk < 1 || request.wanted < 0 || request.limit < 0) {
    throw std::invalid_argument("reject: chunk must be at least 1, wanted and limit at least 0, got " +
                                std::to_string(chunk) + ", " + std::to_string(request.wanted) + " and " +
                                std::to_string(request.limit));
  }
}

// Queues proposals and scores of the chunk at `offset`.
Chunk score_chunk(const DeviceModel& model, const RejectionRequest& request, std::int64_t chunk, std::int64_t offset,
                  const Workspace& workspace, const int* stop, Stream stream) {
  const std::int64_t count = std::min(chunk, request.limit - offset);
  const paths::ProposalSource source{request.seed, request.stream, request.start + static_cast<std::uint64_t>(offset)};
  paths::cuda::propose(request.allowed, model.shape.layers, model.shape.operations, source, count, workspace.paths,
                       stop, stream);
  score(model, {workspace.paths, nullptr}, count, workspace.scores, workspace.status, workspace.scoring, stop, stream);
  return {workspace.scores, offset, count, request.start, request.threshold};
}

// The caller may reuse workspace and host memory when a call returns, by an exception too.
class WaitAtEnd {
 public:
  explicit WaitAtEnd(Stream stream) : stream_(stream) {}
  ~WaitAtEnd() { cudaStreamSynchronize(static_cast<cudaStream_t>(stream_)); }
  WaitAtEnd(const WaitAtEnd&) = delete;
  WaitAtEnd& operator=(const WaitAtEnd&) = delete;

 private:
  Stream stream_;
};

class Event {
 public:
  Event() { device::check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(Stream stream) {
    device::check(cudaEventRecord(event_, static_cast<cudaStream_t>(stream)), "cudaEventRecord");
  }
  void wait() { device::check(cudaEventSynchronize(event_), "rejection loop"); }

 private:
  cudaEvent_t event_{};
};

}  // namespace

std::int64_t rejection_workspace_bytes(const Shape& shape, std::int64_t chunk) {
  Workspace unused{};
  return lay_out(shape, chunk, 0, nullptr, &unused);
}

RejectionOutcome reject(const DeviceModel& model, const RejectionRequest& request, std::int64_t chunk,
                        std::uint64_t* accepted, void* memory, void* pinned_host, Stream stream,
                        const std::function<void()>& between_rounds) {
  check(request, chunk);
  if (request.wanted == 0 || request.limit == 0) return {0, 0};
  Workspace workspace{};
  lay_out(model.shape, chunk, 0, memory, &workspace);
  State* const state = workspace.state;
  const WaitAtEnd wait_at_end(stream);
  device::launch(reset_state, dim3(1), 1, 0, stream, state);

  auto* const seen = static_cast<State*>(pinned_host);  // of the last two rounds
  Event events[2];
  int round = 0;
  bool enough = false;
  for (std::int64_t offset = 0; offset < request.limit && !enough; ++round) {
    for (int i = 0; i < kChunksPerRound && offset < request.limit; ++i) {
      const Chunk part = score_chunk(model, request, chunk, offset, workspace, &state->stop, stream);
      const std::int64_t segments = device::segments_of(part.count);
      const dim3 grid(static_cast<unsigned>(segments));
      device::launch(count_accepted, grid, kThreads, 0, stream, part, state, workspace.segments);
      device::launch(sum_segments, dim3(1), kThreads, 0, stream, workspace.segments, segments, request.wanted, state);
      device::launch(write_accepted, grid, kThreads, 0, stream, part, workspace.segments, request.wanted, accepted,
                     state);
      offset += part.count;
    }
    device::check(cudaMemcpyAsync(&seen[round % 2], state, sizeof(State), cudaMemcpyDeviceToHost,
                                  static_cast<cudaStream_t>(stream)),
                  "cudaMemcpyAsync");
    events[round % 2].record(stream);
    between_rounds();
    if (round > 0) {
      events[(round - 1) % 2].wait();
      enough = seen[(round - 1) % 2].stop != 0;
    }
  }
  events[(round - 1) % 2].wait();
  const State last = seen[(round - 1) % 2];
  const std::int64_t proposals = last.stop != 0 ? last.looked_at : request.limit;
  if (last.nan_proposal < static_cast<std::uint64_t>(proposals)) {
    throw std::invalid_argument("reject: log Phi of proposal " + std::to_string(request.start + last.nan_proposal) +
                                " is NaN, the filter's weights overflow float32");
  }
  return {std::min(last.accepted, request.wanted), proposals};
}

std::int64_t fallback_workspace_bytes(const Shape& shape, std::int64_t chunk, std::int64_t count) {
  Workspace unused{};
  return lay_out(shape, chunk, count, nullptr, &unused);
}

void lowest_rejected(const DeviceModel& model, const RejectionRequest& request, std::int64_t chunk, std::int64_t count,
                     std::uint64_t* numbers, void* memory, Stream stream, const std::function<void()>& between_rounds) {
  check(request, chunk);
  if (count <= 0) return;
  Workspace workspace{};
  lay_out(model.shape, chunk, count, memory, &workspace);
  std::uint64_t* best = workspace.candidates;  // the first `count`, then room for a chunk
  std::uint64_t* other = workspace.sorted;
  const WaitAtEnd wait_at_end(stream);
  device::check(cudaMemsetAsync(best, 0xFF, static_cast<std::size_t>(count) * 16, static_cast<cudaStream_t>(stream)),
                "cudaMemsetAsync");
  for (std::int64_t offset = 0; offset < request.limit; offset += chunk) {
    const Chunk part = score_chunk(model, request, chunk, offset, workspace, nullptr, stream);
    device::launch(gather_rejected, device::grid_for(chunk, kThreads), kThreads, 0, stream, part, chunk,
                   best + 2 * count);
    paths::cuda::sort_keys(best, count + chunk, other, workspace.sorting, stream, kSortedBits);
    std::swap(best, other);
    if (offset / chunk % kChunksPerRound == 0) between_rounds();
  }
  device::launch(take_numbers, device::grid_for(count, kThreads), kThreads, 0, stream, best, count, numbers);
  device::check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "lowest_rejected");
}

}  // namespace greedynas::filter::cuda
