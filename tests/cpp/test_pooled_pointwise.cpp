// The head in one call: on one thread and on three, the same bits; everything that is promised is written. All tensors
// and workspaces end with their allocation, so that the sanitizers see a step beyond. Values and gradients are compared
// with torch's in tests/nn.
#include <array>
#include <cmath>
#include <cstdint>

#include "blocks/pooled_pointwise.h"
#include "check.h"
#include "elements.h"
#include "floats.h"

using namespace greedynas;

namespace {

Floats unset(std::int64_t count) { return Floats(static_cast<std::size_t>(count), NAN); }

// Everything that the passes write, one after the other.
Floats run(const std::array<int, 4>& sizes, norm::Activation activation, norm::Storage storage, int threads) {
  const auto& [images, pixels, in, out] = sizes;
  const std::int64_t rows = std::int64_t{images} * pixels;
  Elements x(storage, random_floats(rows * in, 1));
  const Floats weight = random_floats(out * in, 2);
  const Floats gamma = random_floats(out, 3), beta = random_floats(out, 4), grad = random_floats(images * out, 5);
  const blocks::PooledPointwise layer{storage,    images,         pixels,        in,
                                      out,        {x.data(), in}, weight.data(), {gamma.data(), beta.data(), 1e-3F},
                                      activation, threads};
  Elements z(storage, rows * out), grad_x(storage, rows * in);
  Floats moments = unset(2 * out), pooled = unset(std::int64_t{images} * out);
  Floats space = unset(blocks::workspace_floats(layer));
  blocks::forward(layer, moments.data(), z.data(), space.data(), pooled.data());
  Floats grad_weight = unset(out * in), grad_gamma = unset(out), grad_beta = unset(out);
  space = unset(blocks::workspace_floats(layer));
  blocks::backward(layer, moments.data(), z.data(), grad.data(), space.data(),
                   {grad_x.data(), grad_weight.data(), {grad_gamma.data(), grad_beta.data()}});
  const Floats of_z = z.numbers(), of_x = grad_x.numbers();
  Floats all;
  for (const Floats* part :
       std::initializer_list<const Floats*>{&moments, &of_z, &pooled, &of_x, &grad_weight, &grad_gamma, &grad_beta}) {
    for (const float value : *part) CHECK(std::isfinite(value));
    all.insert(all.end(), part->begin(), part->end());
  }
  return all;
}

}  // namespace

int main() {
  for (const auto activation : {norm::Activation::relu, norm::Activation::hard_swish, norm::Activation::identity}) {
    for (const std::array<int, 4>& sizes :
         {std::array<int, 4>{3, 21, 5, 20}, {2, 1, 17, 33}, {9, 64, 48, 100}, {1, 2, 1, 1}}) {
      for (const auto storage : {norm::Storage::float32, norm::Storage::bf16}) {
        CHECK(run(sizes, activation, storage, 1) == run(sizes, activation, storage, 3));
      }
    }
  }
  return failed_checks == 0 ? 0 : 1;
}
