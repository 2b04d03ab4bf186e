// Walking over matrices [rows, channels] on a CUDA device, and sums over rows in two stages: blocks leave partial sums
// in the workspace, and a small kernel adds them in one order.
//
// A block has `width` threads side by side, each with the channels of one access, and as many rows of threads as there
// is room for; it takes a chunk of rows. Its grid is [column tiles] by [images * chunks of an image].
#pragma once

#include <algorithm>

#include "blocks/cuda/elements.cuh"

namespace greedynas::norm::cuda {

namespace device = greedynas::cuda;
using blocks::cuda::activated;
using blocks::cuda::Elements;
using blocks::cuda::through_activation;

// Launch parameters, by reckoning: 256 threads with up to 128 registers each leave two blocks a multiprocessor, and
// that many blocks keep a large GPU busy several times over; sums stay small beside the tensors. A block that adds up
// has 16 rows of threads, each of which then reads at most 64 sums after one another.
#ifdef GREEDYNAS_EMULATE_CUDA
// So that small matrices already have several chunks and column tiles; few threads, which take long there.
inline constexpr int kThreads = 32;
inline constexpr int kMaxWidth = 4;
inline constexpr int kBlocksOfSums = 6;
inline constexpr int kBlocks = 9;
inline constexpr int kRowsOfThread = 2;
inline constexpr int kAddRows = 2;
#else
inline constexpr int kThreads = 256;
inline constexpr int kMaxWidth = 32;        // 512 bytes of a row
inline constexpr int kBlocksOfSums = 1024;  // that leave sums, at most
inline constexpr int kBlocks = 4096;        // of others
inline constexpr int kRowsOfThread = 8;     // at least, to be worth reading what is a channel's
inline constexpr int kAddRows = 16;
#endif
inline constexpr int kAddLanes = device::kWarp;

struct RowGrid {
  int channels;
  int width, height;  // threads across, in accesses, and rows of threads
  int column_tiles;
  int chunks;                     // of an image
  std::int64_t rows, chunk_rows;  // of an image, of a chunk
  std::int64_t images;

  dim3 blocks() const { return dim3(static_cast<unsigned>(images * chunks), static_cast<unsigned>(column_tiles)); }
  constexpr std::int64_t parts() const { return images * chunks; }
};

// `count`: elements of an access.
inline RowGrid make_grid(std::int64_t images, std::int64_t rows, int channels, int count, int most_blocks) {
  const int across = (channels + count - 1) / count;
  RowGrid grid{};
  grid.channels = channels;
  grid.column_tiles = (across + kMaxWidth - 1) / kMaxWidth;
  grid.width = (across + grid.column_tiles - 1) / grid.column_tiles;
  grid.height = kThreads / grid.width;
  grid.images = images;
  grid.rows = rows;
  const std::int64_t useful = (rows + grid.height * kRowsOfThread - 1) / (grid.height * kRowsOfThread);
  const std::int64_t wanted = most_blocks / std::max<std::int64_t>(1, images * grid.column_tiles);
  grid.chunk_rows = std::max<std::int64_t>(1, std::min(useful, wanted));  // the number of chunks, for now
  grid.chunk_rows = (rows + grid.chunk_rows - 1) / grid.chunk_rows;
  grid.chunks = rows == 0 ? 0 : static_cast<int>((rows + grid.chunk_rows - 1) / grid.chunk_rows);
  return grid;
}

// The most parts that a grid of this shape has, whatever the accesses are.
inline std::int64_t most_parts(std::int64_t images) { return std::max<std::int64_t>(images, kBlocksOfSums); }

// A thread's place.
struct Slot {
  int channel;  // the first of its access
  int row;      // of threads
  bool live;
  std::int64_t image, part;
  std::int64_t first, end;  // its rows of the image: from `first` on in steps of the grid's height

  template <int kCount>
  __device__ __forceinline__ static Slot of(const RowGrid& grid) {
    Slot slot;
    const auto thread = static_cast<int>(threadIdx.x);
    slot.row = thread / grid.width;
    slot.channel = (static_cast<int>(blockIdx.y) * grid.width + thread % grid.width) * kCount;
    slot.live = slot.row < grid.height && slot.channel < grid.channels;
    slot.part = blockIdx.x;
    slot.image = slot.part / grid.chunks;
    const std::int64_t begin = slot.part % grid.chunks * grid.chunk_rows;
    slot.end = begin + grid.chunk_rows < grid.rows ? begin + grid.chunk_rows : grid.rows;
    slot.first = begin + slot.row;
    return slot;
  }
};

template <class T>
__device__ __forceinline__ const T* at(const Input& tensor, std::int64_t row, int channel) {
  return static_cast<const T*>(tensor.data) + row * tensor.stride + channel;
}

// Calls use(fetched, row of all images) for the thread's rows, kTogether of which are fetched at a time.
template <int kTogether, class Fetch, class Use>
__device__ __forceinline__ void for_rows(const RowGrid& grid, const Slot& slot, const Fetch& fetch, const Use& use) {
  if (!slot.live) return;
  const std::int64_t image_row = slot.image * grid.rows;
  GREEDYNAS_UNROLL_BY(1)
  for (std::int64_t row = slot.first; row < slot.end; row += kTogether * grid.height) {
    decltype(fetch(row)) fetched[kTogether];
    GREEDYNAS_UNROLL
    for (int i = 0; i < kTogether; ++i) {
      if (row + i * grid.height < slot.end) fetched[i] = fetch(image_row + row + i * grid.height);
    }
    GREEDYNAS_UNROLL
    for (int i = 0; i < kTogether; ++i) {
      if (row + i * grid.height < slot.end) use(fetched[i], image_row + row + i * grid.height);
    }
  }
}

template <int kCount>
__device__ __forceinline__ void load_channels(const float* from, int channel, float missing, float (&values)[kCount]) {
  GREEDYNAS_UNROLL
  for (int i = 0; i < kCount; ++i) values[i] = from == nullptr ? missing : from[channel + i];
}

// One pass of a tree over the rows of threads: calls join(own index, other index), indices in [height][width].
template <class Join>
__device__ __forceinline__ void for_tree(const RowGrid& grid, const Join& join) {
  const auto thread = static_cast<int>(threadIdx.x);
  const int row = thread / grid.width;
  int step = 1;
  while (2 * step < grid.height) step *= 2;
  for (; step > 0; step /= 2) {
    __syncthreads();
    if (row < step && row + step < grid.height) join(thread, thread + step * grid.width);
  }
}

// Launches a kernel that begins with the grid, unless there are no rows.
template <typename... Parameters, typename... Arguments>
void launch_on(const RowGrid& grid, void (*kernel)(Parameters...), blocks::cuda::Stream stream,
               Arguments... arguments) {
  if (grid.parts() > 0) device::launch(kernel, grid.blocks(), kThreads, 0, stream, grid, arguments...);
}

// The block's kSums sums a channel into out [parts][kSums][channels].
template <int kSums, int kCount>
__device__ __forceinline__ void leave_sums(const RowGrid& grid, const Slot& slot, const float (&sums)[kSums][kCount],
                                           float* out) {
  __shared__ float parts[kSums][kCount][kThreads];
  const auto thread = static_cast<int>(threadIdx.x);
  GREEDYNAS_UNROLL
  for (int s = 0; s < kSums; ++s) {
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCount; ++i) parts[s][i][thread] = slot.live ? sums[s][i] : 0.0F;
  }
  for_tree(grid, [&](int own, int other) {
    GREEDYNAS_UNROLL
    for (int s = 0; s < kSums; ++s) {
      GREEDYNAS_UNROLL
      for (int i = 0; i < kCount; ++i) parts[s][i][own] += parts[s][i][other];
    }
  });
  if (slot.row != 0 || !slot.live) return;
  GREEDYNAS_UNROLL
  for (int s = 0; s < kSums; ++s) {
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      out[(slot.part * kSums + s) * grid.channels + slot.channel + i] = parts[s][i][thread];
    }
  }
}

// For blocks [kAddRows][kAddLanes] that add up, a channel a lane: the sum over `count` parts, kSums a part, from
// parts [count][kSums][channels] on. Only the first row of threads gets it. All threads call it.
template <int kSums>
__device__ __forceinline__ void add_parts(const float* parts, std::int64_t count, int channels, int channel,
                                          double (&sums)[kSums]) {
  __shared__ double shared[kSums][kAddRows][kAddLanes];
  const int lane = static_cast<int>(threadIdx.x) % kAddLanes;
  const int row = static_cast<int>(threadIdx.x) / kAddLanes;
  GREEDYNAS_UNROLL
  for (int s = 0; s < kSums; ++s) sums[s] = 0.0;
  if (channel < channels) {
    GREEDYNAS_UNROLL_BY(4)
    for (std::int64_t part = row; part < count; part += kAddRows) {
      GREEDYNAS_UNROLL
      for (int s = 0; s < kSums; ++s) sums[s] += static_cast<double>(parts[(part * kSums + s) * channels + channel]);
    }
  }
  GREEDYNAS_UNROLL
  for (int s = 0; s < kSums; ++s) shared[s][row][lane] = sums[s];
  __syncthreads();
  if (row != 0) return;
  for (int other = 1; other < kAddRows; ++other) {
    GREEDYNAS_UNROLL
    for (int s = 0; s < kSums; ++s) sums[s] += shared[s][other][lane];
  }
}

// For kernels with a thread a channel.
inline dim3 channel_grid(int channels) { return device::grid_for(channels, kThreads); }

inline dim3 add_grid(std::int64_t groups, int channels) {
  return dim3(static_cast<unsigned>(groups * ((channels + kAddLanes - 1) / kAddLanes)));
}

// Calls body(T{}, constant elements of an access): the widest that all of the tensors allow. They are pointers and
// row strides of matrices with `channels` channels.
template <class Body>
void by_access(blocks::cuda::Storage storage, int channels, std::initializer_list<Input> tensors, const Body& body) {
  const std::int64_t bytes = blocks::cuda::element_bytes(storage);
  bool wide = blocks::cuda::whole(channels * bytes);
  for (const Input& tensor : tensors) {
    wide = wide && blocks::cuda::whole(reinterpret_cast<std::uintptr_t>(tensor.data), tensor.stride * bytes);
  }
  blocks::cuda::by_storage(storage, [&](auto zero) {
    using T = decltype(zero);
    if (wide) {
      body(zero, std::integral_constant<int, blocks::cuda::kWhole<T>>{});
    } else {
      body(zero, std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace greedynas::norm::cuda
