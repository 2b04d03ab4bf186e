// Checks, division of mixconv into blocks, and the addition of what the blocks leave.
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "blocks/cuda/mixconv.h"
#include "blocks/cuda/mixconv_kernels.cuh"

namespace greedynas::blocks::cuda {
namespace {

template <class T>
__device__ __forceinline__ void store_weight(void* weights, std::int64_t index, float value) {
  static_cast<T*>(weights)[index] = from_float<T>(value);
}

// A block adds one item of a channel tile over all blocks that left it, in float64 and in a fixed order. The last two
// items of a group go to `pairs` [2, channels], those before are gradients of weights.
__global__ void __launch_bounds__(kSumRows* kLanes)
    add_sums_kernel(const __grid_constant__ MixconvPlan plan, std::int64_t channels, float* pairs) {
  __shared__ double parts[kSumRows][kLanes];
  int left = static_cast<int>(blockIdx.x);
  int g = 0;
  for (; left >= plan.groups[g].channel_tiles * plan.groups[g].items; ++g) {
    left -= plan.groups[g].channel_tiles * plan.groups[g].items;
  }
  const MixconvGroupPlan& group = plan.groups[g];
  const int item = left % group.items;
  const int taps = group.items - 2;
  if (item < taps ? group.weight_grad == nullptr : pairs == nullptr) return;
  const MixconvChannels own = channels_of(group, left / group.items);
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int row = static_cast<int>(threadIdx.x) / kLanes;
  const std::int64_t block_floats = std::int64_t{group.items} * kLanes;
  const float* const from = plan.sums + group.first_sums + own.number * block_floats + item * kLanes + lane;
  double sum = 0.0;
  GREEDYNAS_UNROLL_BY(4)
  for (int split = row; split < group.splits; split += kSumRows) {
    sum += static_cast<double>(from[split * group.channel_tiles * block_floats]);
  }
  parts[row][lane] = sum;
  __syncthreads();
  if (static_cast<int>(threadIdx.x) >= own.count) return;
  double total = 0.0;
  for (int other = 0; other < kSumRows; ++other) {
    for (int sub = 0; sub < own.subs(); ++sub) total += parts[other][sub * own.width + lane];
  }
  const auto value = static_cast<float>(total);
  if (item >= taps) {
    pairs[(item - taps) * channels + own.first + lane] = value;
    return;
  }
  const std::int64_t index = std::int64_t{own.in_group + lane} * taps + item;
  if (plan.weight_storage == Storage::float32) return store_weight<float>(group.weight_grad, index, value);
  if (plan.weight_storage == Storage::bf16) return store_weight<Bf16>(group.weight_grad, index, value);
  store_weight<Fp16>(group.weight_grad, index, value);
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
int as_int(std::int64_t value) { return static_cast<int>(value); }

// Of the plane that patches lie in: y for the forward pass, x for the backward one.
struct Plane {
  int rows, columns, stride;
  bool forward;

  const MixconvPass& pass() const { return forward ? kForward : kBackward; }
  MixconvPatchSize patch(int kernel) const { return forward ? kForwardPatch : backward_patch(kernel, stride); }
  int source(int count, int kernel) const {
    return forward ? input_rows(count, kernel, stride) : grad_rows(count, kernel, stride);
  }
};

int items_of(int kernel, bool forward) { return forward ? 2 : kernel * kernel + 2; }

// Bytes of shared memory for what is not the tile, unless it takes the tile's place.
std::int64_t other_bytes(int kernel, bool forward) {
  const std::int64_t weights = kernel * kernel;
  const bool keeps_sums = !forward && !has_own_code(kernel);
  return 4 * (kNumbers + kLanes * (weights + (keeps_sums ? kAnyBackwardWarps * items_of(kernel, forward) : 0)));
}

// Strips of up to four patches side by side, and whole rows of them as fit; of small images several, unless there would
// be few blocks.
MixconvTile make_tile(const Plane& plane, int kernel, std::int64_t batch, std::int64_t channel_tiles) {
  const MixconvPatchSize patch = plane.patch(kernel);
  const std::int64_t most =
      std::min<std::int64_t>(plane.pass().tile_bytes, kMostShared - other_bytes(kernel, plane.forward));
  const auto fits = [&](int images, int rows, int columns) {
    return std::int64_t{4} * kLanes * images * plane.source(rows, kernel) * plane.source(columns, kernel) <= most;
  };
  const auto whole_patches = [](std::int64_t count, int size) { return as_int(ceil_div(count, size) * size); };
  MixconvTile tile{};
  std::int64_t strips = ceil_div(plane.columns, 4 * patch.columns);
  do {
    tile.columns = whole_patches(ceil_div(plane.columns, strips++), patch.columns);
  } while (tile.columns > patch.columns && !fits(1, patch.rows, tile.columns));
  const int all_rows = whole_patches(plane.rows, patch.rows);
  tile.rows = patch.rows;
  while (tile.rows < all_rows && fits(1, tile.rows + patch.rows, tile.columns)) tile.rows += patch.rows;
  tile.row_tiles = as_int(ceil_div(plane.rows, tile.rows));
  tile.rows = whole_patches(ceil_div(plane.rows, tile.row_tiles), patch.rows);  // about equal ones
  tile.column_tiles = as_int(ceil_div(plane.columns, tile.columns));
  tile.images = 1;
  const int warps = plane.pass().threads / kLanes;
  const auto patches = [&](int images) { return images * (tile.rows / patch.rows) * (tile.columns / patch.columns); };
  while (tile.row_tiles * tile.column_tiles == 1 && patches(tile.images) < 2 * warps &&
         fits(tile.images + 1, tile.rows, tile.columns) &&
         batch / (tile.images + 1) * channel_tiles >= plane.pass().blocks / 4) {
    ++tile.images;
  }
  tile.source_rows = plane.source(tile.rows, kernel);
  tile.source_columns = plane.source(tile.columns, kernel);
  return tile;
}

std::int64_t shared_bytes_of(const MixconvGroupPlan& group, bool forward) {
  const std::int64_t tile =
      std::int64_t{4} * kLanes * group.tile.images * group.tile.source_rows * group.tile.source_columns;
  const std::int64_t sums = forward ? 0 : std::int64_t{4} * kLanes * (kBackward.threads / kLanes) * group.items;
  return other_bytes(group.kernel, forward) + (has_own_code(group.kernel) ? std::max(tile, sums) : tile);
}

struct Launch {
  MixconvPlan plan;
  int blocks, sum_blocks;
  std::int64_t shared_bytes, sum_floats;
};

void check(const Mixconv& call) {
  if (call.stride != 1 && call.stride != 2) {
    throw std::invalid_argument("mixconv: stride must be 1 or 2, got " + std::to_string(call.stride));
  }
  for (const MixconvGroup& group : call.groups) {
    if (group.kernel < 1 || group.kernel > kMixconvMaxKernel || group.kernel % 2 == 0) {
      throw std::invalid_argument("mixconv: kernel sizes must be odd, 1 to " + std::to_string(kMixconvMaxKernel) +
                                  ", got " + std::to_string(group.kernel));
    }
  }
  // Tiles are counted in int; the smallest hold more than one pixel.
  const std::int64_t pixels = call.batch * call.height * call.width;
  if (call.height < 1 || call.width < 1 || pixels > std::numeric_limits<int>::max()) {
    throw std::invalid_argument("mixconv: images must have 1 to 2**31 - 1 pixels together, got " +
                                std::to_string(call.batch) + " of " + std::to_string(call.height) + " x " +
                                std::to_string(call.width));
  }
}

// What does not depend on the other groups. `tensors` are those that are read 16 bytes at a time where they allow it.
MixconvGroupPlan plan_group(const Mixconv& call, const MixconvGroup& from, std::int64_t first_channel, bool forward,
                            const std::vector<MixconvTensor>& tensors) {
  MixconvGroupPlan group{};
  group.first_channel = first_channel;
  group.weight = from.weight;
  group.weight_grad = from.weight_grad;
  group.channels = as_int(from.channels);
  group.kernel = from.kernel;
  group.channel_tiles = as_int(ceil_div(from.channels, kLanes));
  group.items = items_of(from.kernel, forward);
  const std::int64_t bytes = element_bytes(call.storage);
  group.wide = std::all_of(tensors.begin(), tensors.end(), [&](const MixconvTensor& tensor) {
    return whole(reinterpret_cast<std::uintptr_t>(tensor.data), first_channel * bytes, tensor.image * bytes,
                 tensor.row * bytes, tensor.pixel * bytes);
  });
  return group;
}

// Tiles and blocks of all groups.
void divide(const Mixconv& call, bool forward, Launch& launch) {
  const MixconvPlan& plan = launch.plan;
  // Where windows begin later, the plane of x has a row and a column before the image, so that patches of even ones
  // meet whole ones of grad.
  const auto plane_of = [&](int kernel) {
    if (forward) return Plane{plan.out_height, plan.out_width, call.stride, true};
    const bool wide = kernel > 1;
    return Plane{plan.height + (wide ? plan.late_rows : 0), plan.width + (wide ? plan.late_columns : 0), call.stride,
                 false};
  };
  std::int64_t all_tiles = 0;
  for (int g = 0; g < launch.plan.num_groups; ++g) all_tiles += launch.plan.groups[g].channel_tiles;
  for (int g = 0; g < launch.plan.num_groups; ++g) {
    MixconvGroupPlan& group = launch.plan.groups[g];
    const Plane plane = plane_of(group.kernel);
    group.tile = make_tile(plane, group.kernel, call.batch, all_tiles);
    const std::int64_t tiles = ceil_div(call.batch, group.tile.images) * group.tile.row_tiles * group.tile.column_tiles;
    group.splits = as_int(std::min(tiles, ceil_div(plane.pass().blocks, all_tiles)));
    group.first_block = launch.blocks;
    group.first_sums = launch.sum_floats;
    launch.blocks += group.splits * group.channel_tiles;
    launch.sum_blocks += group.channel_tiles * group.items;
    launch.sum_floats += std::int64_t{group.splits} * group.channel_tiles * group.items * kLanes;
    launch.shared_bytes = std::max(launch.shared_bytes, shared_bytes_of(group, forward));
  }
}

// The groups from `begin` on that fit.
Launch make_launch(const Mixconv& call, bool forward, const std::vector<MixconvTensor>& tensors, std::size_t begin,
                   std::int64_t first_channel) {
  Launch launch{};
  MixconvPlan& plan = launch.plan;
  plan.storage = call.storage;
  plan.weight_storage = call.weight_storage;
  plan.batch = as_int(call.batch);
  plan.height = as_int(call.height);
  plan.width = as_int(call.width);
  plan.out_height = as_int(call.out_height());
  plan.out_width = as_int(call.out_width());
  plan.late_rows = mixconv_late(call.padding, call.stride, call.height);
  plan.late_columns = mixconv_late(call.padding, call.stride, call.width);
  plan.has_norm = call.activation != MixconvActivation::none;
  if (call.activation == MixconvActivation::relu) plan.activation = Activation::relu;
  if (call.activation == MixconvActivation::hard_swish) plan.activation = Activation::hard_swish;
  if (call.activation == MixconvActivation::silu) plan.activation = Activation::silu;
  if (call.activation == MixconvActivation::relu6) plan.activation = Activation::relu6;
  plan.scale = call.scale;
  plan.shift = call.shift;
  const std::size_t end = std::min(call.groups.size(), begin + kMaxGroups);
  for (std::size_t g = begin; g < end; ++g) {
    const MixconvGroup& group = call.groups[g];
    if (group.channels > 0) plan.groups[plan.num_groups++] = plan_group(call, group, first_channel, forward, tensors);
    first_channel += group.channels;
  }
  // Larger kernels usually come last in a list, and the longest blocks should begin first.
  std::reverse(plan.groups, plan.groups + plan.num_groups);
  divide(call, forward, launch);
  return launch;
}

// Calls body(launch) for all groups, as many at a time as a launch takes.
template <class Body>
void for_launches(const Mixconv& call, bool forward, const std::vector<MixconvTensor>& tensors, const Body& body) {
  check(call);
  std::int64_t channel = 0;
  for (std::size_t begin = 0; begin < call.groups.size(); begin += kMaxGroups) {
    const Launch launch = make_launch(call, forward, tensors, begin, channel);
    if (launch.plan.num_groups > 0) body(launch);
    for (std::size_t g = begin; g < std::min(call.groups.size(), begin + kMaxGroups); ++g) {
      channel += call.groups[g].channels;
    }
  }
}

std::int64_t channels_of_call(const Mixconv& call) {
  std::int64_t sum = 0;
  for (const MixconvGroup& group : call.groups) sum += group.channels;
  return sum;
}

void add_sums(const Launch& launch, std::int64_t channels, float* pairs, Stream stream) {
  device::launch(add_sums_kernel, dim3(static_cast<unsigned>(launch.sum_blocks)), kSumRows * kLanes, 0, stream,
                 launch.plan, channels, pairs);
}

}  // namespace

std::int64_t mixconv_workspace_bytes(const Mixconv& call) {
  std::int64_t floats = 0;
  for (const bool forward : {true, false}) {
    for_launches(call, forward, {}, [&](const Launch& launch) { floats = std::max(floats, launch.sum_floats); });
  }
  return floats * 4;
}

void mixconv_forward(const Mixconv& call, const MixconvTensor& y, float* stats, void* workspace, Stream stream) {
  for_launches(call, true, {call.x}, [&](Launch launch) {
    if (stats != nullptr) launch.plan.sums = static_cast<float*>(workspace);
    const MixconvForwardArguments arguments{launch.plan, call.x, y};
    if (launch.blocks > 0) launch_mixconv_forward(arguments, call.stride, launch.blocks, launch.shared_bytes, stream);
    if (stats != nullptr) add_sums(launch, channels_of_call(call), stats, stream);
  });
}

void mixconv_backward(const Mixconv& call, const MixconvBackward& backward, void* workspace, Stream stream) {
  const bool wants_sums =
      backward.norm_grad != nullptr || std::any_of(call.groups.begin(), call.groups.end(),
                                                   [](const auto& group) { return group.weight_grad != nullptr; });
  const std::int64_t channels = channels_of_call(call);
  std::vector<MixconvTensor> read{backward.grad};
  if (backward.stats_grad != nullptr) read.push_back(backward.y);
  for_launches(call, false, read, [&](Launch launch) {
    if (wants_sums) launch.plan.sums = static_cast<float*>(workspace);
    MixconvBackwardArguments arguments{launch.plan,     call.x,  backward.grad, backward.y,
                                       backward.x_grad, nullptr, nullptr};
    if (backward.stats_grad != nullptr) {
      arguments.sum_grad = backward.stats_grad;
      arguments.square_grad = backward.stats_grad + channels;
    }
    if (launch.blocks > 0) launch_mixconv_backward(arguments, call.stride, launch.blocks, launch.shared_bytes, stream);
    if (wants_sums) add_sums(launch, channels, backward.norm_grad, stream);
  });
}

}  // namespace greedynas::blocks::cuda
