// Checks, division of mixconv into tasks, and sums over tasks in a fixed order.
#include "blocks/mixconv.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "blocks/cpu/bn_act_chunks.h"
#include "blocks/cpu/mixconv_kernels.h"
#include "blocks/cpu/mixconv_made.h"
#include "cpu/team.h"

namespace greedynas::blocks {

namespace {

// Tasks are blocks of channels by chunks of images. Their number depends on the shape alone, and so do the results:
// about kTasks, which keeps that many threads busy, but none with less than kPixels outputs, which would be dominated
// by packing weights and adding up their gradients. Blocks are not so wide that there were less than kFewTasks.
constexpr std::int64_t kTasks = 64;
constexpr std::int64_t kFewTasks = 6;
constexpr std::int64_t kPixels = 1024;
// Of a block's rings, its weights and their gradients, at most, unless `fewest_channels` take more. The rings should
// stay in an L1 cache: where the products' inputs come out of L2, they wait for the same few buffers as the rows of
// tensors that are being fetched, and nothing overlaps.
constexpr std::int64_t kRingFloats = 14 << 10;
constexpr std::int64_t kPair = 2 * kMixconvLine;  // channels that the widest vectors take at a time

bool is_amd() {
#ifdef GREEDYNAS_X86
  static const bool amd = __builtin_cpu_is("amd");
  return amd;
#else
  return false;
#endif
}

// Channels of a block whose rings are larger. On Zen 4 pixels in longer pieces are worth more than rings in L1: up to a
// sixth of the time, measured.
std::int64_t fewest_channels() { return is_amd() ? 3 * kPair : kPair; }

// Whether a result is written past the caches, so that its lines need not enter them first. On Zen 4 that takes up to a
// third off both passes, and something even together with what reads the result next; elsewhere not then. Smaller ones
// may still be in an L2 cache when they are read.
bool streams_into(const MixconvCall& call, std::int64_t pixels) {
  constexpr std::int64_t kStreamBytes = 3 << 19;
  const std::int64_t bytes = call.batch * pixels * call.channels() * static_cast<std::int64_t>(sizeof(float));
  return is_amd() && call.storage == MixconvStorage::float32 && bytes >= kStreamBytes;
}

// Of a block's rows of y whose moments are taken together, at most, unless one row is more: 256 KB stay in an L2 cache.
constexpr std::int64_t kMomentsFloats = 64 << 10;

struct Block {
  MixconvBlock block;
  std::size_t group;
  std::int64_t channel_in_group;
  std::int64_t sums;     // where its weight gradient begins in a chunk's, in floats
  std::int64_t columns;  // where it begins among the widths of all blocks
};

// Whether the blocks of a chunk are one piece of work, in their order.
enum class Blocks { apart, in_turn };

struct Plan {
  MixconvGeometry geometry;
  Blocks order;
  std::vector<Block> blocks;
  std::int64_t chunk_images, chunks;
  std::int64_t weight_sums = 0;                       // floats of a chunk's weight gradients
  std::int64_t task_floats = 0;                       // of a thread's workspace
  std::int64_t columns = 0;                           // widths of all blocks
  std::int64_t moments_rows = 0, moments_pieces = 0;  // of a chunk, see MixconvMomentsTask

  std::int64_t tasks() const { return chunks * static_cast<std::int64_t>(blocks.size()); }
  std::int64_t tasks_together() const {
    return order == Blocks::in_turn ? static_cast<std::int64_t>(blocks.size()) : 1;
  }
  std::int64_t slots(int threads) const { return std::min<std::int64_t>(threads, tasks() / tasks_together()); }
  // Two sums a channel (of statistics or of scale and shift) and the weight gradients of all chunks.
  std::int64_t pair_floats() const { return tasks() * 2 * kMixconvBlock; }
  std::int64_t weight_floats() const { return chunks * weight_sums; }
  std::int64_t moments_floats() const { return chunks * moments_pieces * 3 * columns; }
};

// Images of the shortest chunk.
std::int64_t fewest_images(const MixconvGeometry& geometry) {
  const std::int64_t pixels = geometry.out_height * geometry.out_width;
  return (kPixels + pixels - 1) / pixels;
}

// Channels of a group's blocks but the last one: as many as may be, in blocks of about one size. Not of an empty group.
std::int64_t block_channels(const MixconvCall& call, const MixconvGeometry& geometry, const MixconvGroup& group,
                            std::int64_t fewest) {
  const std::int64_t few = fewest_images(geometry);
  const std::int64_t chunks = std::max<std::int64_t>((call.batch + few - 1) / few, 1);
  const std::int64_t shared = call.channels() * chunks / kFewTasks;
  const std::int64_t fitting = std::max(kRingFloats / mixconv_channel_floats(geometry, group.kernel), fewest);
  const std::int64_t most = std::clamp<std::int64_t>(std::min(shared, fitting), kPair, kMixconvBlock);
  const std::int64_t blocks = (group.channels + most - 1) / most;
  return std::min<std::int64_t>(((group.channels + blocks - 1) / blocks + kPair - 1) / kPair * kPair, kMixconvBlock);
}

Plan make_plan(const MixconvCall& call, Blocks order = Blocks::apart) {
  if (call.stride != 1 && call.stride != 2) {
    throw std::invalid_argument("mixconv: stride must be 1 or 2, got " + std::to_string(call.stride));
  }
  Plan plan{};
  plan.order = order;
  plan.geometry = {call.height,
                   call.width,
                   call.out_height(),
                   call.out_width(),
                   call.stride,
                   call.storage,
                   call.weight_storage,
                   call.x,
                   call.activation,
                   call.scale,
                   call.shift,
                   mixconv_late(call.padding, call.stride, call.height),
                   mixconv_late(call.padding, call.stride, call.width)};
  // How images and rows are divided, which sums depend on, is the same whatever the widths are on this processor.
  std::int64_t channel = 0, widest = kMixconvLine, usual_blocks = 0;
  for (std::size_t g = 0; g < call.groups.size(); ++g) {
    const MixconvGroup& group = call.groups[g];
    if (group.kernel < 1 || group.kernel > kMixconvMaxKernel || group.kernel % 2 == 0) {
      throw std::invalid_argument("mixconv: kernel sizes must be odd, 1 to " + std::to_string(kMixconvMaxKernel) +
                                  ", got " + std::to_string(group.kernel));
    }
    const std::int64_t taps = static_cast<std::int64_t>(group.kernel) * group.kernel;
    const std::int64_t weight_bytes = call.weight_storage == MixconvStorage::bf16 ? 2 : 4;
    if (group.channels == 0) continue;
    const std::int64_t usual = block_channels(call, plan.geometry, group, kPair);
    usual_blocks += (group.channels + usual - 1) / usual;
    const std::int64_t usual_width = (std::min(usual, group.channels) + kMixconvLine - 1) / kMixconvLine * kMixconvLine;
    widest = std::max(widest, usual_width);
    const std::int64_t most = block_channels(call, plan.geometry, group, fewest_channels());
    for (std::int64_t c = 0; c < group.channels; c += most) {
      const int channels = static_cast<int>(std::min(most, group.channels - c));
      const int width = (channels + kMixconvLine - 1) / kMixconvLine * kMixconvLine;
      const char* const weight = static_cast<const char*>(group.weight) + c * taps * weight_bytes;
      plan.blocks.push_back(
          {{group.kernel, channels, width, channel + c, weight, 0, 0, nullptr}, g, c, plan.weight_sums, plan.columns});
      plan.columns += width;
      plan.weight_sums += taps * width;
      plan.task_floats = std::max(plan.task_floats, width * mixconv_channel_floats(plan.geometry, group.kernel));
    }
    channel += group.channels;
  }
  const std::int64_t blocks = order == Blocks::in_turn ? 1 : std::max<std::int64_t>(1, usual_blocks);
  const std::int64_t wanted = (kTasks + blocks - 1) / blocks;
  plan.chunk_images = std::max((call.batch + wanted - 1) / wanted, fewest_images(plan.geometry));
  plan.chunks = (call.batch + plan.chunk_images - 1) / plan.chunk_images;
  plan.moments_rows = std::max<std::int64_t>(kMomentsFloats / (widest * plan.geometry.out_width), 1);
  const std::int64_t chunk_rows = plan.chunk_images * plan.geometry.out_height;
  plan.moments_pieces = (chunk_rows + plan.moments_rows - 1) / plan.moments_rows;
  return plan;
}

float* aligned(void* workspace) {
  return reinterpret_cast<float*>((reinterpret_cast<std::uintptr_t>(workspace) + 63) / 64 * 64);
}

// Runs body(block index, chunk, MixconvBlock) for all tasks, each thread with a workspace of its own.
template <class Body>
void run_tasks(const Plan& plan, float* workspaces, int threads, const Body& body) {
  const auto blocks = static_cast<std::int64_t>(plan.blocks.size());
  cpu::team_for(plan.tasks(), plan.tasks_together(), threads, cpu::Order::forwards,
                [&](int worker, std::int64_t begin, std::int64_t end) {
                  for (std::int64_t task = begin; task < end; ++task) {
                    const std::int64_t chunk = task / blocks, turn = task % blocks;
                    // Larger kernels usually come last in a list, and the longest tasks should begin first.
                    const std::int64_t index = plan.order == Blocks::in_turn ? turn : blocks - 1 - turn;
                    MixconvBlock block = plan.blocks[static_cast<std::size_t>(index)].block;
                    block.image_begin = chunk * plan.chunk_images;
                    block.image_end = block.image_begin + plan.chunk_images;
                    block.workspace = workspaces + worker * plan.task_floats;
                    body(index, chunk, block);
                  }
                });
}

// pairs [chunks][blocks][2][kMixconvBlock] -> out [2, C]
void add_pairs(const Plan& plan, const float* pairs, std::int64_t channels, float* out) {
  const std::size_t blocks = plan.blocks.size();
  for (std::size_t b = 0; b < blocks; ++b) {
    const MixconvBlock& block = plan.blocks[b].block;
    for (int row = 0; row < 2; ++row) {
      float* const to = out + row * channels + block.first_channel;
      for (int c = 0; c < block.channels; ++c) {
        float sum = 0.0F;
        for (std::int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
          const std::size_t task = static_cast<std::size_t>(chunk) * blocks + b;
          sum += pairs[(task * 2 + static_cast<std::size_t>(row)) * kMixconvBlock + static_cast<std::size_t>(c)];
        }
        to[c] = sum;
      }
    }
  }
}

// pieces [chunks][moments_pieces][3][columns] -> moments [C]
void join_pieces(const Plan& plan, std::int64_t images, const float* pieces, const MixconvMoments& moments) {
  const std::int64_t chunk_rows = plan.chunk_images * plan.geometry.out_height;
  const std::int64_t rows = images * plan.geometry.out_height;
  // The last chunk may have fewer rows and pieces.
  const std::int64_t last = rows - (plan.chunks - 1) * chunk_rows;
  const std::int64_t count =
      (plan.chunks - 1) * plan.moments_pieces + (last + plan.moments_rows - 1) / plan.moments_rows;
  const auto rows_of = [&](std::int64_t part) {
    const std::int64_t in_chunk = part % plan.moments_pieces * plan.moments_rows;
    const std::int64_t in_all = part / plan.moments_pieces * chunk_rows + in_chunk;
    return std::min({plan.moments_rows, chunk_rows - in_chunk, rows - in_all}) * plan.geometry.out_width;
  };
  for (const Block& of : plan.blocks) {
    const std::int64_t first = of.block.first_channel;
    norm::join_moments(count, of.block.channels, moments.mean + first, moments.variance + first, rows_of,
                       [&](std::int64_t part, int c) -> norm::PartMoments {
                         const float* const at = pieces + part * 3 * plan.columns + of.columns + c;
                         return {static_cast<double>(at[2 * plan.columns]) + static_cast<double>(at[0]),
                                 static_cast<double>(at[plan.columns])};
                       });
  }
}

void store_weight(void* out, MixconvStorage storage, std::int64_t index, float value) {
  if (storage == MixconvStorage::float32) {
    static_cast<float*>(out)[index] = value;
    return;
  }
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const std::uint32_t rounded = value != value ? 0x7FC00000U : bits + 0x7FFFU + ((bits >> 16) & 1U);
  static_cast<std::uint16_t*>(out)[index] = static_cast<std::uint16_t>(rounded >> 16);
}

// sums [chunks][blocks' taps][width] -> the groups' gradients [channels, taps]
void add_weight_grads(const Plan& plan, const MixconvCall& call, const float* sums, int threads) {
  cpu::team_for(static_cast<std::int64_t>(plan.blocks.size()), 8, threads, [&](std::int64_t begin, std::int64_t end) {
    float total[kMixconvBlock];
    for (std::int64_t b = begin; b < end; ++b) {
      const Block& of = plan.blocks[static_cast<std::size_t>(b)];
      const int taps = of.block.kernel * of.block.kernel;
      void* const out = call.groups[of.group].weight_grad;
      for (int tap = 0; tap < taps; ++tap) {
        std::fill_n(total, of.block.width, 0.0F);
        for (std::int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
          const float* const from = sums + chunk * plan.weight_sums + of.sums + tap * of.block.width;
          for (int c = 0; c < of.block.width; ++c) total[c] += from[c];
        }
        for (int c = 0; c < of.block.channels; ++c) {
          store_weight(out, call.weight_storage, (of.channel_in_group + c) * taps + tap, total[c]);
        }
      }
    }
  });
}

std::size_t workspace_bytes(const Plan& plan, int threads) {
  const std::int64_t floats = plan.slots(threads) * plan.task_floats + plan.pair_floats() +
                              std::max(plan.weight_floats(), plan.moments_floats());
  return static_cast<std::size_t>(floats) * sizeof(float) + 64;
}

// The rows of a task, if they are to be made.
std::unique_ptr<MixconvRows> rows_for(const MixconvMaker* maker, std::int64_t chunk, MixconvBlock& block) {
  if (maker == nullptr) return nullptr;
  std::unique_ptr<MixconvRows> rows = maker->rows(chunk, block);
  block.rows = rows.get();
  return rows;
}

void run_forward(const MixconvKernel& kernel, const MixconvCall& call, const MixconvMaker* maker,
                 const MixconvTensor& y, float* stats, const MixconvMoments& moments, void* workspace, int threads) {
  const Plan plan = make_plan(call);
  float* const pairs = aligned(workspace);
  float* const pieces = pairs + plan.pair_floats();
  // Moments are taken from the rows of y.
  const bool streams =
      moments.mean == nullptr && streams_into(call, plan.geometry.out_height * plan.geometry.out_width);
  run_tasks(plan, pieces + plan.moments_floats(), threads, [&](std::int64_t b, std::int64_t chunk, MixconvBlock block) {
    block.image_end = std::min(block.image_end, call.batch);
    float* const own = pairs + (chunk * static_cast<std::int64_t>(plan.blocks.size()) + b) * 2 * kMixconvBlock;
    MixconvMomentsTask own_moments{};
    if (moments.mean != nullptr) {
      const std::int64_t first = chunk * plan.moments_pieces * 3 * plan.columns;
      own_moments = {&norm::kernel_for(cpu::selected(), block.channels), plan.moments_rows,
                     pieces + first + plan.blocks[static_cast<std::size_t>(b)].columns, plan.columns};
    }
    const std::unique_ptr<MixconvRows> rows = rows_for(maker, chunk, block);
    kernel.forward({&plan.geometry, block, y, stats == nullptr ? nullptr : own, own_moments, streams});
  });
  if (moments.mean != nullptr) join_pieces(plan, call.batch, pieces, moments);
  if (stats != nullptr) add_pairs(plan, pairs, call.channels(), stats);
}

void run_backward(const MixconvKernel& kernel, const MixconvCall& call, const MixconvBackward& backward,
                  const MixconvMaker* maker, void* workspace, int threads) {
  const Plan plan = make_plan(call, maker == nullptr ? Blocks::apart : Blocks::in_turn);
  // An empty group has no gradient to be written.
  const bool want_weights = std::any_of(call.groups.begin(), call.groups.end(),
                                        [](const MixconvGroup& group) { return group.weight_grad != nullptr; });
  float* const pairs = aligned(workspace);
  float* const sums = pairs + plan.pair_floats();
  const bool streams = streams_into(call, call.height * call.width);
  run_tasks(plan, sums + plan.weight_floats(), threads, [&](std::int64_t b, std::int64_t chunk, MixconvBlock block) {
    block.image_end = std::min(block.image_end, call.batch);
    const std::int64_t task = chunk * static_cast<std::int64_t>(plan.blocks.size()) + b;
    const std::int64_t own = plan.blocks[static_cast<std::size_t>(b)].sums;
    const std::unique_ptr<MixconvRows> rows = rows_for(maker, chunk, block);
    kernel.backward({&plan.geometry, block, backward.grad, backward.y, backward.x_grad, backward.stats_grad,
                     call.channels(), want_weights ? sums + chunk * plan.weight_sums + own : nullptr,
                     backward.norm_grad == nullptr ? nullptr : pairs + task * 2 * kMixconvBlock, backward.gate,
                     streams});
  });
  if (backward.norm_grad != nullptr) add_pairs(plan, pairs, call.channels(), backward.norm_grad);
  if (want_weights) add_weight_grads(plan, call, sums, threads);
}

}  // namespace

std::size_t mixconv_workspace_bytes(const MixconvCall& call, int threads) {
  return workspace_bytes(make_plan(call), threads);
}

void mixconv_forward(const MixconvCall& call, const MixconvTensor& y, float* stats, const MixconvMoments& moments,
                     void* workspace, int threads) {
  mixconv_forward_with(mixconv_kernel_for(cpu::selected()), call, y, stats, moments, workspace, threads);
}

void mixconv_forward_with(const MixconvKernel& kernel, const MixconvCall& call, const MixconvTensor& y, float* stats,
                          const MixconvMoments& moments, void* workspace, int threads) {
  run_forward(kernel, call, nullptr, y, stats, moments, workspace, threads);
}

void mixconv_backward(const MixconvCall& call, const MixconvBackward& backward, void* workspace, int threads) {
  mixconv_backward_with(mixconv_kernel_for(cpu::selected()), call, backward, workspace, threads);
}

void mixconv_backward_with(const MixconvKernel& kernel, const MixconvCall& call, const MixconvBackward& backward,
                           void* workspace, int threads) {
  run_backward(kernel, call, backward, nullptr, workspace, threads);
}

std::int64_t mixconv_made_chunks(const MixconvCall& call) { return make_plan(call, Blocks::in_turn).chunks; }

std::size_t mixconv_made_workspace_bytes(const MixconvCall& call, int threads) {
  return std::max(workspace_bytes(make_plan(call, Blocks::apart), threads),
                  workspace_bytes(make_plan(call, Blocks::in_turn), threads));
}

void mixconv_forward_made(const MixconvCall& call, const MixconvMaker& maker, const MixconvTensor& y,
                          const MixconvMoments& moments, void* workspace, int threads) {
  run_forward(mixconv_kernel_for(cpu::selected()), call, &maker, y, nullptr, moments, workspace, threads);
}

void mixconv_backward_made(const MixconvCall& call, const MixconvBackward& backward, const MixconvMaker& maker,
                           void* workspace, int threads) {
  run_backward(mixconv_kernel_for(cpu::selected()), call, backward, &maker, workspace, threads);
}

}  // namespace greedynas::blocks
