#include "filter/score.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/threads.h"
#include "filter/cpu/kernels.h"
#include "paths/codec.h"

namespace greedynas::filter {
namespace {

// Paths a thread takes at a time: some tens of milliseconds of work, so that their workspace costs nothing.
constexpr std::int64_t kRange = 4 * kBlockRows;

void check_operations(const Model& model, const std::uint8_t* paths, std::int64_t n) {
  const int layers = model.shape().layers;
  const int* num_ops = model.num_ops().data();
  for (std::int64_t i = 0; i < n; ++i) {
    for (int layer = 0; layer < layers; ++layer) {
      if (paths[i * layers + layer] >= num_ops[layer]) {
        throw std::invalid_argument("paths: path " + std::to_string(i) + " has operation " +
                                    std::to_string(paths[i * layers + layer]) + " at layer " + std::to_string(layer) +
                                    ", which has " + std::to_string(num_ops[layer]) + " operations");
      }
    }
  }
}

}  // namespace

void score(const Model& model, const std::uint8_t* paths, std::int64_t n, int threads, float* log_weak) {
  // All of them before any work, so that the first bad path is the one that is named.
  check_operations(model, paths, n);
  const Prefixes* prefixes = model.prefixes(n);
  cpu::parallel_for(n, kRange, threads, [&](std::int64_t begin, std::int64_t end) {
    const Floats workspace = allocate_floats(workspace_floats(model.shape().hidden));
    for (std::int64_t block = begin; block < end; block += kBlockRows) {
      const int rows = static_cast<int>(std::min<std::int64_t>(kBlockRows, end - block));
      model.kernel().score(model.packed(), prefixes, paths + block * model.shape().layers, rows, workspace.get(),
                           log_weak + block);
    }
  });
}

void score_keys(const Model& model, const std::uint64_t* keys, std::int64_t n, int threads, float* log_weak) {
  std::vector<std::uint8_t> paths(static_cast<std::size_t>(n * model.shape().layers));
  paths::unpack(keys, n, model.shape().layers, paths.data());
  score(model, paths.data(), n, threads, log_weak);
}

}  // namespace greedynas::filter
