// The CUDA runtime for the .cu files, and what they need beyond it: checked calls, launches, asynchronous copies.
//
// With GREEDYNAS_EMULATE_CUDA the same sources are compiled by the host compiler and run on the CPU, see
// tests/cpp/cuda_emulation.h. Whatever is not plain C++ or a basic CUDA intrinsic goes behind a function that has a
// plain twin there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef GREEDYNAS_EMULATE_CUDA
#include "cuda_emulation.h"
#define GREEDYNAS_UNROLL
#define GREEDYNAS_UNROLL_BY(count)
#else
#include <cuda_runtime.h>
#define GREEDYNAS_PRAGMA(text) _Pragma(#text)
#define GREEDYNAS_UNROLL GREEDYNAS_PRAGMA(unroll)
#define GREEDYNAS_UNROLL_BY(count) GREEDYNAS_PRAGMA(unroll count)
#endif

namespace greedynas::cuda {

inline constexpr int kWarp = 32;

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

// Launches `kernel` and throws std::runtime_error if that fails. Shared memory beyond 48 KB is asked for as needed.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, std::int64_t shared_bytes, void* stream,
            Arguments... arguments) {
  const auto bytes = static_cast<std::size_t>(shared_bytes);
  if (bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)),
          "cudaFuncSetAttribute");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "kernel launch");
}

// Blocks of `threads` that cover `count` items, at most what keeps a large GPU busy: kernels go on in strides.
inline dim3 grid_for(std::int64_t count, int threads) {
  const std::int64_t blocks = (count + threads - 1) / threads;
  return dim3(static_cast<unsigned>(blocks < 8192 ? blocks : 8192));
}

// Blocks for a kernel that takes `tiles` in strides of the grid: as many as the device can hold at once.
template <typename Kernel>
dim3 persistent_grid(Kernel* kernel, int threads, std::int64_t shared_bytes, std::int64_t tiles) {
  const auto bytes = static_cast<std::size_t>(shared_bytes);
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "cudaFuncSetAttribute");
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, bytes),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  const std::int64_t held =
      static_cast<std::int64_t>(blocks < 1 ? 1 : blocks) * device_attribute(cudaDevAttrMultiProcessorCount);
  return dim3(static_cast<unsigned>(tiles < held ? tiles : held));
}

__device__ __forceinline__ std::int64_t global_thread() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ std::int64_t global_threads() { return static_cast<std::int64_t>(gridDim.x) * blockDim.x; }

// The block's dynamic shared memory, aligned to 16 bytes.
__device__ __forceinline__ std::byte* dynamic_shared() {
#ifdef GREEDYNAS_EMULATE_CUDA
  return emulation::dynamic_shared();
#else
  extern __shared__ __align__(16) std::byte shared_bytes[];
  return shared_bytes;
#endif
}

// Copies 16 bytes from global to shared memory; they are there after `wait_for_copies` (this thread's) and a barrier.
__device__ __forceinline__ void copy_async_16(void* to_shared, const void* from_global) {
#ifdef GREEDYNAS_EMULATE_CUDA
  emulation::copy_later(to_shared, from_global, 16);
#else
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to_shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from_global) : "memory");
#endif
}

__device__ __forceinline__ void wait_for_copies() {
#ifdef GREEDYNAS_EMULATE_CUDA
  emulation::finish_copies();
#else
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// 0, which the compiler does not know: an address that it is added to is not computed ahead of a loop, nor is what lies
// there kept in registers over all of it.
__device__ __forceinline__ int opaque_zero() {
  int zero = 0;
#ifndef GREEDYNAS_EMULATE_CUDA
  asm volatile("" : "+r"(zero));
#endif
  return zero;
}

// Whether a kernel of a loop that runs ahead has nothing left to do: `stop` is null or a flag in device memory that an
// earlier kernel of the same stream has set.
__device__ __forceinline__ bool is_stopped(const int* stop) { return stop != nullptr && *stop != 0; }

}  // namespace greedynas::cuda
