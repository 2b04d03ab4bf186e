// Whole blocks: with and without what a backward pass needs, on one thread and on three, the same bits; expanded in
// memory and in the caches, nearly the same numbers; in float32 and bf16; everything that is promised is written. All
// tensors and workspaces end with their allocation, so that the sanitizers see a step beyond. Values and gradients are
// compared with torch's in tests/ops.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "blocks/inverted_residual.h"
#include "check.h"
#include "elements.h"
#include "floats.h"

using namespace greedynas;

namespace {

Floats unset(std::int64_t count) { return Floats(static_cast<std::size_t>(count), NAN); }

bool finite(const Floats& values) {
  for (const float value : values) {
    if (!std::isfinite(value)) return false;
  }
  return true;
}

struct Case {
  std::int64_t batch, size;
  int in, middle, out, stride, gate_width;  // 0: no gate
  bool expands, batch_statistics, in_caches;
  norm::Storage storage;
  blocks::MixconvPadding padding;
};

// Everything that a block writes, one after the other; what stands for z1 is the last.
Floats run(const Case& c, int threads) {
  const bool residual = c.stride == 1 && c.in == c.out;
  const int first = c.middle / 3, second = c.middle - first;
  Elements x(c.storage, random_floats(c.batch * c.size * c.size * c.in, 1));
  const Floats expand = random_floats(c.middle * c.in, 2), project = random_floats(c.out * c.middle, 3);
  const Floats kernel3 = random_floats(first * 9, 4), kernel5 = random_floats(second * 25, 5);
  const Floats weights = random_floats(3 * (c.middle + c.out), 6), biases = random_floats(3 * (c.middle + c.out), 7);
  const Floats reduce = random_floats(c.gate_width * c.middle, 8), raise = random_floats(c.middle * c.gate_width, 9);
  const Floats reduce_bias = random_floats(c.gate_width, 10), raise_bias = random_floats(c.middle, 11);
  Floats grad3 = unset(first * 9), grad5 = unset(second * 25);

  blocks::InvertedResidual block{};
  block.storage = c.storage;
  block.batch = c.batch;
  block.height = block.width = c.size;
  block.in = c.in;
  block.middle = c.middle;
  block.out = c.out;
  block.stride = c.stride;
  block.padding = c.padding;
  block.activation = norm::Activation::hard_swish;
  block.residual = residual;
  block.batch_statistics = c.batch_statistics;
  block.x = {x.data(), c.in};
  block.expand = c.expands ? expand.data() : nullptr;
  block.project = project.data();
  block.expand_groups = block.project_groups = 1;
  block.depthwise = {{first, 3, kernel3.data(), grad3.data()}, {second, 5, kernel5.data(), grad5.data()}};
  for (int i = 0; i < 3; ++i) block.norms[i] = {weights.data() + i * c.middle, biases.data() + i * c.middle, 1e-3F};
  if (c.gate_width > 0) {
    block.gate = {reduce.data(), reduce_bias.data(),     raise.data(), raise_bias.data(),
                  c.gate_width,  norm::Activation::relu, false};
  }
  block.expands_in_caches[0] = block.expands_in_caches[1] = c.in_caches;
  block.threads = threads;

  const std::int64_t rows = block.rows(), out_rows = block.out_rows();
  Floats given(static_cast<std::size_t>(2 * (c.middle + c.out)), 0.5F);
  Floats moments1 = unset(2 * c.middle), moments2 = moments1, moments3 = unset(2 * c.out);
  if (!c.batch_statistics) {
    moments1.assign(given.begin(), given.begin() + 2 * c.middle);
    moments2 = moments1;
    moments3.assign(given.begin(), given.begin() + 2 * c.out);
  }
  Elements z1(c.storage, c.expands && !c.in_caches ? rows * c.middle : 0), z2(c.storage, out_rows * c.middle),
      z3(c.storage, out_rows * c.out);
  Floats covariance = unset(c.in_caches && c.batch_statistics ? (c.in + 1) * c.in : 0);
  Floats means = unset(c.gate_width > 0 ? c.batch * c.middle : 0), logits = means;
  Floats hidden = unset(c.batch * c.gate_width);
  Elements y(c.storage, out_rows * c.out), again = y;
  float* const of_first = c.expands ? moments1.data() : nullptr;
  const blocks::InvertedResidualTensors nothing{
      {of_first, moments2.data(), moments3.data()}, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  Floats space = unset(blocks::workspace_floats(block, false));
  blocks::forward(block, nothing, space.data(), again.data());
  const blocks::InvertedResidualTensors kept{{of_first, moments2.data(), moments3.data()},
                                             z1.data(),
                                             z2.data(),
                                             z3.data(),
                                             means.data(),
                                             logits.data(),
                                             hidden.data(),
                                             covariance.data()};
  space = unset(blocks::workspace_floats(block, true));
  blocks::forward(block, kept, space.data(), y.data());
  CHECK(y.numbers() == again.numbers());

  Elements grad(c.storage, random_floats(out_rows * c.out, 12)), grad_x(c.storage, rows * c.in);
  Floats grad_expand = unset(c.expands ? c.middle * c.in : 0), grad_project = unset(c.out * c.middle);
  Floats norm1 = unset(c.expands ? 2 * c.middle : 0), norm2 = unset(2 * c.middle), norm3 = unset(2 * c.out);
  Floats grad_reduce = unset(c.gate_width * c.middle), grad_raise = grad_reduce;
  Floats grad_reduce_bias = unset(c.gate_width), grad_raise_bias = unset(c.gate_width > 0 ? c.middle : 0);
  space = unset(blocks::backward_workspace_floats(block));
  blocks::backward(block, kept, {grad.data(), c.out}, space.data(),
                   {grad_x.data(),
                    grad_expand.data(),
                    grad_project.data(),
                    {{norm1.data(), norm1.data() + (c.expands ? c.middle : 0)},
                     {norm2.data(), norm2.data() + c.middle},
                     {norm3.data(), norm3.data() + c.out}},
                    grad_reduce.data(),
                    grad_reduce_bias.data(),
                    grad_raise.data(),
                    grad_raise_bias.data()});
  const Floats of_y = y.numbers(), of_z1 = z1.numbers(), of_z2 = z2.numbers(), of_z3 = z3.numbers(),
               of_x = grad_x.numbers();
  Floats all;
  for (const Floats* part : std::initializer_list<const Floats*>{&of_y,
                                                                 &of_z2,
                                                                 &of_z3,
                                                                 &means,
                                                                 &hidden,
                                                                 &logits,
                                                                 &moments2,
                                                                 &moments3,
                                                                 &of_x,
                                                                 &grad_expand,
                                                                 &grad_project,
                                                                 &norm1,
                                                                 &norm2,
                                                                 &norm3,
                                                                 &grad3,
                                                                 &grad5,
                                                                 &grad_reduce,
                                                                 &grad_raise,
                                                                 &grad_reduce_bias,
                                                                 &grad_raise_bias,
                                                                 &of_z1,
                                                                 &covariance}) {
    CHECK(finite(*part));
    all.insert(all.end(), part->begin(), part->end());
  }
  return all;
}

// The first `count` numbers differ by some roundings of the largest.
void check_near(const Floats& a, const Floats& b, std::size_t count) {
  float largest = 0.0F, difference = 0.0F;
  for (std::size_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::abs(a[i]));
    difference = std::max(difference, std::abs(a[i] - b[i]));
  }
  CHECK(difference <= 1e-5F * largest);
}

}  // namespace

int main() {
  for (const bool batch_statistics : {true, false}) {
    for (const int gate_width : {0, 1, 5}) {
      for (const int stride : {1, 2}) {
        for (const bool expands : {true, false}) {
          for (const auto& [batch, size, in, middle, out] :
               {std::array<int, 5>{3, 5, 8, 24, 8}, {2, 3, 5, 17, 7}, {9, 8, 20, 50, 20}}) {
            Case c{batch,
                   size,
                   expands ? in : middle,
                   middle,
                   expands ? out : middle,
                   stride,
                   gate_width,
                   expands,
                   batch_statistics,
                   false,
                   norm::Storage::bf16,
                   gate_width == 1 ? blocks::MixconvPadding::same_upper : blocks::MixconvPadding::symmetric};
            const Floats rounded = run(c, 1);
            CHECK(rounded == run(c, 3));
            c.storage = norm::Storage::float32;
            const Floats first = run(c, 1);
            CHECK(first == run(c, 3));
            if (!expands) continue;
            c.in_caches = true;
            const Floats second = run(c, 1);
            CHECK(second == run(c, 3));
            check_near(first, second, first.size() - static_cast<std::size_t>(batch * size * size * middle));
          }
        }
      }
    }
  }
  return failed_checks == 0 ? 0 : 1;
}
