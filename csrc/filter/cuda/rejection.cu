#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/arena.h"
#include "cuda/platform.h"
#include "cuda/select.h"
#include "filter/arithmetic.h"
#include "filter/cuda/rejection.h"
#include "paths/cuda/keys.h"
#include "paths/cuda/paths.h"

namespace greedynas::filter::cuda {
namespace {

namespace device = greedynas::cuda;

constexpr int kThreads = 256;
constexpr int kChunksPerRound = 4;  // between two looks at the counter
constexpr int kSortedBits = 96;     // of a candidate: 64 of its number, 32 of its score

// The loop's progress, in device memory. Kernels of one stream run one after the other.
struct State {
  std::uint64_t nan_proposal;  // lowest offset from request.start of a score that is NaN
  std::int64_t accepted;       // over all chunks so far, may exceed what is wanted
  std::int64_t looked_at;      // known once enough are accepted
  int stop;                    // enough are accepted
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

// The accepted ones of a chunk by their places in it, ascending.
struct Selected {
  std::int64_t* items;  // [chunk]
  std::int64_t* count;
};

struct IsAccepted {
  Chunk chunk;
  __device__ __forceinline__ bool operator()(std::int64_t i) const {
    return static_cast<double>(chunk.scores[i]) <= chunk.threshold;
  }
};

__global__ void __launch_bounds__(kThreads) reset_state(State* state) { *state = {~0ULL, 0, 0, 0}; }

// flags[i] = 1 if proposal i of the chunk is accepted, else 0. Flags of an earlier chunk stay where the loop has
// stopped: nothing follows from them any more.
__global__ void __launch_bounds__(kThreads) mark_accepted(Chunk chunk, State* state, std::uint8_t* flags) {
  if (device::is_stopped(&state->stop)) return;
  const IsAccepted is_accepted{chunk};
  for (std::int64_t i = device::global_thread(); i < chunk.count; i += device::global_threads()) {
    flags[i] = is_accepted(i) ? 1 : 0;
    if (chunk.scores[i] != chunk.scores[i]) {
      atomicMin(reinterpret_cast<unsigned long long*>(&state->nan_proposal),
                static_cast<unsigned long long>(chunk.offset + i));
    }
  }
}

// Appends the numbers of the chunk's accepted proposals to those of the chunks before.
__global__ void __launch_bounds__(kThreads)
    append_accepted(Chunk chunk, Selected selected, std::int64_t wanted, std::uint64_t* accepted, State* state) {
  if (device::is_stopped(&state->stop)) return;
  const std::int64_t room = wanted - state->accepted;
  const std::int64_t count = *selected.count < room ? *selected.count : room;
  for (std::int64_t i = device::global_thread(); i < count; i += device::global_threads()) {
    const std::int64_t proposal = chunk.offset + selected.items[i];
    accepted[state->accepted + i] = chunk.start + static_cast<std::uint64_t>(proposal);
    if (i == room - 1) state->looked_at = proposal + 1;
  }
}

// Once all of them are written.
__global__ void __launch_bounds__(kThreads) count_accepted(Selected selected, std::int64_t wanted, State* state) {
  if (device::is_stopped(&state->stop)) return;
  state->accepted += *selected.count;
  state->stop = state->accepted >= wanted ? 1 : 0;
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
  std::uint8_t* paths;  // [chunk, L]
  float* scores;        // [chunk]
  std::byte* scoring;
  std::uint8_t* flags;  // [chunk]
  Selected selected;
  std::byte* selecting;
  std::uint64_t* candidates;  // [count + chunk, 2], twice; fallbacks only, as the next
  std::uint64_t* sorted;
  std::byte* sorting;
};

// For `reject`, or for `lowest_rejected` if there are fallbacks.
std::int64_t lay_out(const Shape& shape, std::int64_t chunk, std::int64_t fallbacks, void* memory,
                     Workspace* workspace) {
  device::Arena arena(memory);
  workspace->status = arena.take<ScoreStatus>(1);
  workspace->paths = arena.take<std::uint8_t>(chunk * shape.layers);
  workspace->scores = arena.take<float>(chunk);
  workspace->scoring = arena.take<std::byte>(score_workspace_bytes(shape, chunk));
  if (fallbacks == 0) {
    workspace->state = arena.take<State>(1);
    workspace->flags = arena.take<std::uint8_t>(chunk);
    workspace->selected = {arena.take<std::int64_t>(chunk), arena.take<std::int64_t>(1)};
    workspace->selecting = arena.take<std::byte>(device::select_workspace_bytes(chunk));
  } else {
    workspace->candidates = arena.take<std::uint64_t>(2 * (fallbacks + chunk));
    workspace->sorted = arena.take<std::uint64_t>(2 * (fallbacks + chunk));
    workspace->sorting = arena.take<std::byte>(paths::cuda::sort_workspace_bytes(fallbacks + chunk));
  }
  return arena.bytes();
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
      const dim3 grid = device::grid_for(part.count, kThreads);
      const Selected selected = workspace.selected;
      device::launch(mark_accepted, grid, kThreads, 0, stream, part, state, workspace.flags);
      device::select_flagged(workspace.flags, part.count, selected.items, selected.count, workspace.selecting, stream);
      device::launch(append_accepted, grid, kThreads, 0, stream, part, selected, request.wanted, accepted, state);
      device::launch(count_accepted, dim3(1), 1, 0, stream, selected, request.wanted, state);
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
