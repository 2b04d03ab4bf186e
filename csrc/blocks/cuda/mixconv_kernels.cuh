// What the passes of mixconv share: how the work is divided into blocks, and the rows of sums that blocks leave.
//
// A block has up to 32 channels of one group, a lane each, and walks over tiles of the images. In a tile each warp
// computes patches in registers; what they are computed from lies in shared memory as float32, converted and activated
// once: [image][row][column][lane]. If a group's last channels are 16 or fewer, the lanes are shared by 2 or 4 images
// (`subs`), so that none is idle.
#pragma once

#include "blocks/cuda/elements.cuh"
#include "blocks/cuda/mixconv.h"

namespace greedynas::blocks::cuda {

inline constexpr int kLanes = device::kWarp;
inline constexpr int kMaxGroups = 8;  // of a launch

// Launch parameters, found by counting registers, bytes and accesses, not by measurement.
struct MixconvPass {
  int threads;
  int tile_bytes;  // at most, of the tile in shared memory
  int blocks;      // about as many
};
// Registers allow two (forward) or three (backward) blocks a multiprocessor at these sizes, and so does shared memory
// on an A100. The number of blocks is a few times what a large GPU holds at once, since kernel sizes differ in cost;
// more would leave sums that are no longer small beside the tensors.
#ifdef GREEDYNAS_EMULATE_CUDA
// So that small images already have several tiles, and a block several of them; few threads, which take long there.
inline constexpr MixconvPass kForward{64, 16 * 1024, 7};
inline constexpr MixconvPass kBackward{96, 16 * 1024, 7};
inline constexpr int kSumRows = 2;
#else
inline constexpr MixconvPass kForward{256, 72 * 1024, 2048};
inline constexpr MixconvPass kBackward{128, 46 * 1024, 1536};
inline constexpr int kSumRows = 16;  // warps of a block that adds up: each takes every sixteenth block
#endif

// What any device of compute capability 8.0 or more lets a block have, less the static part.
inline constexpr std::int64_t kMostShared = 96 * 1024;

// Outputs of a warp at a time. A value read from shared memory serves kernel * rows multiplications, which keeps the
// multipliers busy from two rows on; the widths of ImageNet's layers are multiples of 7. Where the gradient of 7 x 7
// weights fills the registers, patches are smaller. At stride 2 those of x begin at even rows and columns.
struct MixconvPatchSize {
  int rows, columns;
};
inline constexpr MixconvPatchSize kForwardPatch{2, 7};
inline constexpr MixconvPatchSize backward_patch(int kernel, int stride) {
  if (kernel == 7) return stride == 1 ? MixconvPatchSize{1, 7} : MixconvPatchSize{2, 4};
  return stride == 1 ? MixconvPatchSize{2, 7} : MixconvPatchSize{2, 8};
}

// A tile of y (forward) or x (backward), whole patches, and of what it is computed from, x or grad.
struct MixconvTile {
  int images, rows, columns;
  int source_rows, source_columns;
  int row_tiles, column_tiles;  // of an image
};

struct MixconvGroupPlan {
  std::int64_t first_channel;
  std::int64_t first_sums;  // in the workspace, in floats
  const void* weight;
  void* weight_grad;
  int channels, kernel;
  int channel_tiles, splits;  // blocks: [splits][channel_tiles]
  int first_block, items;     // a block leaves sums [items][kLanes]
  bool wide;                  // accesses of 16 bytes are aligned
  MixconvTile tile;
};

struct MixconvPlan {
  Storage storage, weight_storage;
  int batch, height, width, out_height, out_width;
  int late_rows, late_columns;  // see mixconv_late
  bool has_norm;
  Activation activation;
  const float *scale, *shift;
  float* sums;  // nullptr: not wanted
  int num_groups;
  MixconvGroupPlan groups[kMaxGroups];
};

struct MixconvForwardArguments {
  MixconvPlan plan;
  MixconvTensor x, y;
};

struct MixconvBackwardArguments {
  MixconvPlan plan;
  MixconvTensor x, grad, y, x_grad;
  const float *sum_grad, *square_grad;  // of the statistics; nullptr: none
};

void launch_mixconv_forward(const MixconvForwardArguments& arguments, int stride, int blocks, std::int64_t shared_bytes,
                            Stream stream);
void launch_mixconv_backward(const MixconvBackwardArguments& arguments, int stride, int blocks,
                             std::int64_t shared_bytes, Stream stream);

// Warps of the backward pass that take patches of a kernel size without code of its own. The sums of the weights'
// gradients lie in shared memory then, and those of four warps for 11 x 11 are more than some devices have.
inline constexpr int kAnyBackwardWarps = 3;

// Kernel sizes with code of their own: unrolled, the gradient of the weights in registers.
inline constexpr bool has_own_code(int kernel) { return kernel == 3 || kernel == 5 || kernel == 7; }

// Rows (or columns) of grad that meet `rows` rows of x, which begin at a multiple of the stride; the first is
// kernel / 2 / stride before the one at their beginning.
inline constexpr int grad_rows(int rows, int kernel, int stride) {
  return (rows - 1 + kernel / 2) / stride + kernel / 2 / stride + 1;
}

// Rows and columns by which windows begin later than kernel / 2 before their pixel.
struct MixconvLate {
  int rows, columns;
};
template <int kStride>
__device__ __forceinline__ MixconvLate late_of(const MixconvPlan& plan, int kernel) {
  if (kStride == 1 || kernel == 1) return {0, 0};
  return {plan.late_rows, plan.late_columns};
}

// Rows of x that meet `rows` rows of y; the first is kernel / 2 before the one at their beginning.
inline constexpr int input_rows(int rows, int kernel, int stride) { return (rows - 1) * stride + kernel; }

// The channels of a block.
struct MixconvChannels {
  const MixconvGroupPlan* group;
  std::int64_t first;  // of all
  int in_group;        // the first one's place in the group
  int count;           // at most kLanes
  int width;           // lanes of an image: 8, 16 or 32
  int split;
  int number;  // of the block, in the group

  __device__ __forceinline__ int subs() const { return kLanes / width; }
};

// The group of block `block`, where its groups' blocks begin at `first_of(group)`.
template <class First>
__device__ __forceinline__ int group_of(const MixconvPlan& plan, int block, const First& first_of) {
  int g = 0;
  while (g + 1 < plan.num_groups && block >= first_of(plan.groups[g + 1])) ++g;
  return g;
}

__device__ __forceinline__ MixconvChannels channels_of(const MixconvGroupPlan& group, int number) {
  const int channel_tile = number % group.channel_tiles;
  const int in_group = channel_tile * kLanes;
  const int left = group.channels - in_group;
  const int count = left < kLanes ? left : kLanes;
  const int width = count > 16 ? 32 : count > 8 ? 16 : 8;
  return {&group, group.first_channel + in_group, in_group, count, width, number / group.channel_tiles, number};
}

__device__ __forceinline__ const MixconvGroupPlan& group_of_block(const MixconvPlan& plan) {
  const int g =
      group_of(plan, static_cast<int>(blockIdx.x), [](const MixconvGroupPlan& group) { return group.first_block; });
  return plan.groups[g];
}

// Where a tile of the walk begins.
struct MixconvPlace {
  int image, row, column;
};

__device__ __forceinline__ int tiles_of(const MixconvPlan& plan, const MixconvChannels& channels) {
  const MixconvTile& tile = channels.group->tile;
  const int images = tile.images * channels.subs();
  return (plan.batch + images - 1) / images * tile.row_tiles * tile.column_tiles;
}

__device__ __forceinline__ MixconvPlace place_of(const MixconvChannels& channels, int number) {
  const MixconvTile& tile = channels.group->tile;
  const int rows = number / tile.column_tiles;
  const int images = rows / tile.row_tiles;
  return {images * tile.images * channels.subs(), rows % tile.row_tiles * tile.rows,
          number % tile.column_tiles * tile.columns};
}

// A patch of a tile, from the first row and column of the tile on.
struct MixconvPatch {
  int image, row, column;
};

template <int kRows, int kColumns>
__device__ __forceinline__ MixconvPatch patch_of(const MixconvTile& tile, int number) {
  const int across = tile.columns / kColumns;
  const int down = tile.rows / kRows;
  const int row = number / across;
  return {row / down, row % down * kRows, number % across * kColumns};
}

template <int kRows, int kColumns>
__device__ __forceinline__ int patches_of(const MixconvTile& tile) {
  return tile.images * (tile.rows / kRows) * (tile.columns / kColumns);
}

// A lane's channel in its group, with the norm; lanes beyond the channels have that of the first.
struct MixconvLane {
  int lane, channel;  // channel: from the block's first
  int sub;
  bool live;
  float scale, shift;

  __device__ __forceinline__ MixconvLane(const MixconvPlan& plan, const MixconvChannels& channels)
      : lane(static_cast<int>(threadIdx.x) % kLanes),
        channel(lane % channels.width),
        sub(lane / channels.width),
        live(channel < channels.count),
        scale(1.0F),
        shift(0.0F) {
    if (!live) channel = 0;
    if (plan.has_norm) {
      scale = plan.scale[channels.first + channel];
      shift = plan.shift[channels.first + channel];
    }
  }
};

// Two numbers a lane in shared memory, [2][kLanes], for what all warps of the block read: kCount lanes of a row.
inline constexpr int kNumbers = 2 * kLanes;

__device__ __forceinline__ void set_numbers(float* numbers, float first, float second) {
  if (threadIdx.x >= kLanes) return;
  numbers[threadIdx.x] = first;
  numbers[kLanes + threadIdx.x] = second;
}

// kCount is 1 or a multiple of 4, and so is the place of `from` among the lanes.
template <int kCount>
__device__ __forceinline__ void read_lanes(const float* from, float (&values)[kCount]) {
  if constexpr (kCount == 1) {
    values[0] = *from;
  } else {
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCount; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + i);
      values[i] = four.x;
      values[i + 1] = four.y;
      values[i + 2] = four.z;
      values[i + 3] = four.w;
    }
  }
}

// `odd` lanes write their halves in the other order: with kCount of 8, a quarter of a warp has two pixels, which would
// meet in the same banks.
template <int kCount>
__device__ __forceinline__ void write_lanes(float* to, const float (&values)[kCount], bool odd) {
  if constexpr (kCount == 1) {
    *to = values[0];
  } else {
    auto* const fours = reinterpret_cast<float4*>(to);
    const float4 first = make_float4(values[0], values[1], values[2], values[3]);
    if constexpr (kCount == 4) {
      fours[0] = first;
    } else {
      static_assert(kCount == 8);
      const float4 second = make_float4(values[4], values[5], values[6], values[7]);
      fours[odd ? 1 : 0] = odd ? second : first;
      fours[odd ? 0 : 1] = odd ? first : second;
    }
  }
}

// The group's weights of the block's channels into shared memory, [channel][taps]. The number of taps is odd, so lanes
// read from different banks.
__device__ __forceinline__ void load_weights(const MixconvPlan& plan, const MixconvChannels& channels, int taps,
                                             float* to) {
  const auto load = [&](auto zero) {
    using T = decltype(zero);
    const T* const from = static_cast<const T*>(channels.group->weight) + std::int64_t{channels.in_group} * taps;
    for (int i = static_cast<int>(threadIdx.x); i < channels.count * taps; i += static_cast<int>(blockDim.x)) {
      to[i] = to_float(from[i]);
    }
  };
  if (plan.weight_storage == Storage::float32) return load(float{});
  if (plan.weight_storage == Storage::bf16) return load(Bf16{});
  load(Fp16{});
}

// The block's sums, [warps][items][kLanes] in shared memory, added up into its place in the workspace. All threads call
// it, after a barrier.
__device__ __forceinline__ void leave_sums(const MixconvPlan& plan, const MixconvChannels& channels, const float* sums,
                                           int warps) {
  const int size = channels.group->items * kLanes;
  float* const to = plan.sums + channels.group->first_sums + std::int64_t{channels.number} * size;
  for (int i = static_cast<int>(threadIdx.x); i < size; i += static_cast<int>(blockDim.x)) {
    float sum = sums[i];
    for (int warp = 1; warp < warps; ++warp) sum += sums[warp * size + i];
    to[i] = sum;
  }
}

}  // namespace greedynas::blocks::cuda
