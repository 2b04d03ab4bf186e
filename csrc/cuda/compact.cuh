// Keeping the items that fulfil a condition, in order: count them a segment, sum up the counts, write each to its
// place.
//
// Three small kernels instead of a library's one pass: in the loop of filter/cuda/rejection.cu the places of a chunk go
// on from those of the chunk before, and chunks after the last have to do nothing, both without asking the host.
#pragma once

#include <cstdint>

#include "cuda/platform.h"

namespace greedynas::cuda {

inline constexpr int kCompactThreads = 256;
inline constexpr int kItemsPerThread = 8;
inline constexpr std::int64_t kSegment = kCompactThreads * kItemsPerThread;

inline std::int64_t segments_of(std::int64_t count) { return (count + kSegment - 1) / kSegment; }

// Item number `i` (0 .. kItemsPerThread - 1) of the calling thread in the segment of its block: a warp's are in a row.
__device__ __forceinline__ std::int64_t item_of_thread(int i) {
  const std::int64_t warp = threadIdx.x / kWarp;
  return blockIdx.x * kSegment + (warp * kItemsPerThread + i) * kWarp + threadIdx.x % kWarp;
}

// Calls write(item, place) for the items with keep(item), place counting from 0 in the segment, and returns how many
// there are, to every thread. All threads of the block call it. Items from `count` on are not asked about.
template <typename Keep, typename Write>
__device__ __forceinline__ std::uint32_t place_kept(std::int64_t count, const Keep& keep, const Write& write) {
  constexpr int kWarps = kCompactThreads / kWarp;
  __shared__ std::uint32_t totals[kWarps];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  std::uint32_t votes[kItemsPerThread];
  std::uint32_t total = 0;
  GREEDYNAS_UNROLL
  for (int i = 0; i < kItemsPerThread; ++i) {
    const std::int64_t item = item_of_thread(i);
    votes[i] = __ballot_sync(0xFFFFFFFFU, item < count && keep(item) ? 1 : 0);
    total += static_cast<std::uint32_t>(__popc(votes[i]));
  }
  if (lane == 0) totals[warp] = total;
  __syncthreads();
  std::uint32_t place = 0;
  std::uint32_t all = 0;
  GREEDYNAS_UNROLL
  for (int other = 0; other < kWarps; ++other) {
    place += other < warp ? totals[other] : 0;
    all += totals[other];
  }
  GREEDYNAS_UNROLL
  for (int i = 0; i < kItemsPerThread; ++i) {
    if ((votes[i] >> lane & 1U) != 0) {
      const std::uint32_t lower = votes[i] & ((1U << lane) - 1U);
      write(item_of_thread(i), place + static_cast<std::uint32_t>(__popc(lower)));
    }
    place += static_cast<std::uint32_t>(__popc(votes[i]));
  }
  return all;
}

// segments[0 .. count - 1] from counts to the sums of those before, plus `base`; returns base plus all, to every
// thread. One block of kCompactThreads threads calls it.
__device__ __forceinline__ std::int64_t sum_up(std::int64_t* segments, std::int64_t count, std::int64_t base) {
  __shared__ std::int64_t sums[kCompactThreads];
  const std::int64_t run = (count + kCompactThreads - 1) / kCompactThreads;
  const std::int64_t begin = run * threadIdx.x < count ? run * threadIdx.x : count;
  const std::int64_t end = begin + run < count ? begin + run : count;
  std::int64_t sum = 0;
  for (std::int64_t i = begin; i < end; ++i) sum += segments[i];
  sums[threadIdx.x] = sum;
  __syncthreads();
  std::int64_t place = base;
  std::int64_t all = base;
  for (int other = 0; other < kCompactThreads; ++other) {
    place += other < static_cast<int>(threadIdx.x) ? sums[other] : 0;
    all += sums[other];
  }
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t kept = segments[i];
    segments[i] = place;
    place += kept;
  }
  return all;
}

}  // namespace greedynas::cuda
