// CUDA kernels on a CPU, for tests: each CUDA thread is a fiber (ucontext), blocks run one after the other.
//
// What it finds: wrong indices and sizes (dynamic shared memory is a heap block of exactly the size asked for, filled
// with NaN for each block, so AddressSanitizer sees overruns and results show what was never written), barriers that
// not all threads reach (the program stops), a missing wait for asynchronous copies (they happen at the wait). What it
// cannot find: races between threads that a barrier should separate, memory ordering, the real tensor-core layouts.
// Kernel launches, copies and events finish before they return.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <tuple>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __shared__ static  // one block runs at a time

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

// Limits of the pretended device; tests set them.
inline int multiprocessors = 2;
inline int max_shared_bytes = 227 * 1024;

enum class State { runs, waits_for_warp, waits_for_block, finished };

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

struct Fiber {
  static constexpr std::size_t stack_bytes = 256 * 1024;
  ucontext_t context{};
  std::unique_ptr<char[]> stack;
  State state = State::finished;
  std::vector<Copy> copies;
};

inline std::vector<std::unique_ptr<Fiber>> fibers;
inline std::size_t current = 0;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline std::vector<std::byte> exchange;  // one slot of kSlot bytes a thread, for warp collectives
inline constexpr std::size_t kSlot = 64;
inline std::unique_ptr<float4[]> shared;

#if defined(__SANITIZE_ADDRESS__)
inline const void* scheduler_stack = nullptr;
inline std::size_t scheduler_stack_bytes = 0;
#endif

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "CUDA emulation: %s (block %u, %u, thread %zu)\n", what, blockIdx.x, blockIdx.y, current);
  std::abort();
}

inline void leave_fiber(State state) {
  Fiber& fiber = *fibers[current];
  fiber.state = state;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, scheduler_stack, scheduler_stack_bytes);
#endif
  swapcontext(&fiber.context, &scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
  for (;;) {
    body();
    leave_fiber(State::finished);
  }
}

inline void resume(std::size_t thread) {
  current = thread;
  threadIdx = dim3(static_cast<unsigned>(thread));
  Fiber& fiber = *fibers[thread];
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), Fiber::stack_bytes);
#endif
  swapcontext(&scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void start(Fiber* fiber) {
  fiber->stack.reset(new char[Fiber::stack_bytes]);
  ucontext_t* const context = &fiber->context;
  getcontext(context);
  context->uc_stack.ss_sp = fiber->stack.get();
  context->uc_stack.ss_size = Fiber::stack_bytes;
  makecontext(context, fiber_main, 0);
}

inline void make_fibers(std::size_t count) {
  while (fibers.size() < count) {
    fibers.push_back(std::make_unique<Fiber>());
    start(fibers.back().get());
  }
}

inline std::size_t count_in(State state, std::size_t begin, std::size_t end) {
  std::size_t count = 0;
  for (std::size_t i = begin; i < end; ++i) count += fibers[i]->state == state ? 1 : 0;
  return count;
}

inline void release(State state, std::size_t begin, std::size_t end) {
  for (std::size_t i = begin; i < end; ++i) {
    if (fibers[i]->state == state) fibers[i]->state = State::runs;
  }
}

// Runs the threads of one warp until each has finished or waits for the block.
inline void run_warp(std::size_t begin, std::size_t end) {
  for (;;) {
    for (std::size_t i = begin; i < end; ++i) {
      if (fibers[i]->state == State::runs) resume(i);
    }
    const std::size_t waiting = count_in(State::waits_for_warp, begin, end);
    if (waiting == 0) return;
    if (waiting != end - begin) fail("a warp operation that not every lane of its warp reached");
    release(State::waits_for_warp, begin, end);
  }
}

inline void run_block(std::size_t threads, std::size_t shared_bytes) {
  std::memset(static_cast<void*>(shared.get()), 0xFF, shared_bytes);  // NaN
  for (std::size_t i = 0; i < threads; ++i) fibers[i]->state = State::runs;
  for (;;) {
    for (std::size_t begin = 0; begin < threads; begin += 32) {
      run_warp(begin, begin + 32 < threads ? begin + 32 : threads);
    }
    const std::size_t waiting = count_in(State::waits_for_block, 0, threads);
    if (waiting == 0) return;
    if (waiting != threads) fail("a barrier that not every thread of the block reached");
    release(State::waits_for_block, 0, threads);
  }
}

inline void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, std::function<void()> kernel) {
  const std::size_t threads = block.x;
  if (threads < 1 || threads > 1024 || block.y != 1 || block.z != 1)
    fail("a block must be 1 to 1024 threads by 1 by 1");
  if (grid.x < 1 || grid.y < 1 || grid.y > 65535 || grid.z != 1) fail("a bad grid");
  if (shared_bytes > static_cast<std::size_t>(max_shared_bytes)) fail("too much shared memory");
  make_fibers(threads);
  exchange.assign(threads * kSlot, std::byte{0});
  shared.reset(new float4[shared_bytes / sizeof(float4) + (shared_bytes % sizeof(float4) != 0 ? 1 : 0)]);
  gridDim = grid;
  blockDim = block;
  body = std::move(kernel);
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = dim3(x, y);
      run_block(threads, shared_bytes);
    }
  }
}

inline std::byte* dynamic_shared() { return reinterpret_cast<std::byte*>(shared.get()); }

inline void copy_later(void* to, const void* from, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(to) % bytes != 0 || reinterpret_cast<std::uintptr_t>(from) % bytes != 0) {
    fail("an asynchronous copy from or to an unaligned address");
  }
  fibers[current]->copies.push_back({to, from, bytes});
}

inline void finish_copies() {
  for (const Copy& copy : fibers[current]->copies) std::memcpy(copy.to, copy.from, copy.bytes);
  fibers[current]->copies.clear();
}

// Every lane hands in `value` and reads those of all 32 lanes of its warp through `read(lane)`.
template <typename T, typename Result>
Result with_warp(const T& value, Result (*use)(const T* const* lanes)) {
  static_assert(sizeof(T) <= kSlot);
  std::memcpy(&exchange[current * kSlot], &value, sizeof(T));
  leave_fiber(State::waits_for_warp);
  const T* lanes[32];
  const std::size_t first = current / 32 * 32;
  for (std::size_t lane = 0; lane < 32; ++lane)
    lanes[lane] = reinterpret_cast<const T*>(&exchange[(first + lane) * kSlot]);
  const Result result = use(lanes);
  leave_fiber(State::waits_for_warp);
  return result;
}

}  // namespace emulation

inline void __syncthreads() { emulation::leave_fiber(emulation::State::waits_for_block); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline unsigned __ballot_sync(unsigned, int predicate) {
  return emulation::with_warp<int, unsigned>(predicate, [](const int* const* lanes) {
    unsigned mask = 0;
    for (int lane = 0; lane < 32; ++lane) mask |= (*lanes[lane] != 0 ? 1U : 0U) << lane;
    return mask;
  });
}
template <typename T>
T atomicMin(T* address, T value) {
  const T old = *address;
  if (value < old) *address = value;
  return old;
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}

using cudaError_t = int;
using cudaStream_t = void*;
using cudaEvent_t = int*;
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
inline constexpr cudaError_t cudaSuccess = 0;
inline constexpr unsigned cudaEventDisableTiming = 2;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t) { return "error"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? emulation::multiprocessors : emulation::max_shared_bytes;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, std::size_t) {
  return *blocks = 1, cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return *event = nullptr, cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const std::tuple<Parameters...> values(arguments...);
  emulation::run_grid(config->gridDim, config->blockDim, config->dynamicSmemBytes,
                      [kernel, values] { std::apply(kernel, values); });
  return cudaSuccess;
}
