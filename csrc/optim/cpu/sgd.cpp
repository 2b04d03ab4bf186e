#include "optim/sgd.h"

#include <algorithm>
#include <vector>

#include "cpu/team.h"
#include "optim/cpu/sgd_kernels.h"

namespace greedynas::optim {
namespace {

constexpr std::int64_t kChunk = 32768;  // elements: some 40 microseconds of memory traffic

// Neighbouring elements, all with weight decay or all without.
struct Chunk {
  std::int64_t start, end;
  bool decays;
};

void append(std::int64_t start, std::int64_t end, bool decays, std::vector<Chunk>& chunks) {
  for (; start < end; start += kChunk) chunks.push_back({start, std::min(start + kChunk, end), decays});
}

// By the blocks alone, so that sums do not depend on the number of threads.
std::vector<Chunk> divided(Blocks blocks) {
  std::vector<Chunk> chunks;
  for (std::int64_t i = 0; i < blocks.count; ++i) {
    const Block& block = blocks.data[i];
    append(block.start, block.decay_end, true, chunks);
    append(block.decay_end, block.end, false, chunks);
  }
  return chunks;
}

// body(index) for every chunk.
template <class Body>
void for_chunks(const std::vector<Chunk>& chunks, int threads, const Body& body) {
  cpu::team_for(static_cast<std::int64_t>(chunks.size()), 1, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) body(static_cast<std::size_t>(i));
  });
}

float* from(float* buffer, std::int64_t offset) { return buffer == nullptr ? nullptr : buffer + offset; }

}  // namespace

void update(Blocks blocks, const Buffers& buffers, const Sgd& rule, int threads) {
  const Kernel& kernel = kernel_for(cpu::selected());
  const std::vector<Chunk> chunks = divided(blocks);
  const auto rounded = [](double value) { return static_cast<float>(value); };
  const Coefficients without_decay = {
      rounded(rule.gradient_scale),  0.0F,          rounded(rule.momentum), rounded(rule.lr), rounded(rule.ema_decay),
      rounded(1.0 - rule.ema_decay), rule.nesterov, rule.zero_gradients};
  Coefficients with_decay = without_decay;
  with_decay.decay = rounded(rule.weight_decay);
  for_chunks(chunks, threads, [&](std::size_t i) {
    const auto [start, end, decays] = chunks[i];
    const Buffers at = {buffers.parameters + start, buffers.gradients + start, from(buffers.momentum, start),
                        from(buffers.ema, start)};
    kernel.update(decays ? with_decay : without_decay, at, end - start);
  });
}

double sum_of_squares(Blocks blocks, const float* gradients, int threads) {
  const Kernel& kernel = kernel_for(cpu::selected());
  const std::vector<Chunk> chunks = divided(blocks);
  std::vector<double> sums(chunks.size());
  for_chunks(chunks, threads, [&](std::size_t i) {
    sums[i] = kernel.sum_of_squares(gradients + chunks[i].start, chunks[i].end - chunks[i].start);
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace greedynas::optim
