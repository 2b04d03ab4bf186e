// The filter network in the plainest form: one path, one number at a time, in the order that the kernels promise.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "filter/arithmetic.h"
#include "filter/model.h"

// One lane with the fused multiply-add of the standard library: the same bits on any machine.
template <bool kApproximate>
struct ExactLane {
  static constexpr bool approximate = kApproximate;
  float v;
  static ExactLane set(float value) { return {value}; }
  friend ExactLane operator+(ExactLane a, ExactLane b) { return {a.v + b.v}; }
  friend ExactLane operator-(ExactLane a, ExactLane b) { return {a.v - b.v}; }
  friend ExactLane operator*(ExactLane a, ExactLane b) { return {a.v * b.v}; }
  friend ExactLane operator/(ExactLane a, ExactLane b) { return {a.v / b.v}; }
  friend ExactLane fma(ExactLane a, ExactLane b, ExactLane c) { return {std::fma(a.v, b.v, c.v)}; }
  friend ExactLane min(ExactLane a, ExactLane b) { return a.v < b.v ? a : b; }
  friend ExactLane max(ExactLane a, ExactLane b) { return a.v > b.v ? a : b; }
  friend ExactLane times_power_of_two(ExactLane p, ExactLane shifted) {
    using namespace greedynas::filter;
    return {float_of(bits_of(p.v) + (bits_of(shifted.v) << 23))};
  }
  friend ExactLane look_up(const float (&numbers)[32], ExactLane index) {
    return {numbers[greedynas::filter::bits_of(index.v) & 31]};
  }
  friend ExactLane size_within(ExactLane x, float limit) { return {std::min(std::fabs(x.v), limit)}; }
  friend ExactLane with_sign_of(ExactLane x, ExactLane size) { return {std::copysign(size.v, x.v)}; }
};

using Exact = ExactLane<false>;

struct Network {
  greedynas::filter::Shape shape;
  std::vector<int> num_ops;
  std::vector<float> tables, recurrent, fc1_weight, fc1_bias, fc2_weight, fc2_bias;

  Network(std::vector<int> ops, int hidden, unsigned seed, float scale = 1.0F) : num_ops(std::move(ops)) {
    shape.layers = static_cast<int>(num_ops.size());
    shape.operations = *std::max_element(num_ops.begin(), num_ops.end());
    shape.hidden = hidden;
    std::mt19937 random(seed);
    const auto fill = [&](std::vector<float>& values, std::size_t count, float width) {
      std::uniform_real_distribution<float> uniform(-width, width);
      values.resize(count);
      for (float& value : values) value = uniform(random);
    };
    const auto h = static_cast<std::size_t>(hidden);
    const float width = scale / std::sqrt(static_cast<float>(hidden));
    fill(tables, 2 * static_cast<std::size_t>(shape.layers * shape.operations) * 4 * h, 2.0F * scale);
    fill(recurrent, 8 * h * h, 2.0F * width);
    fill(fc1_weight, 2 * h * h, width);
    fill(fc1_bias, h, width);
    fill(fc2_weight, 2 * h, 4.0F * width);
    fill(fc2_bias, 2, width);
  }

  greedynas::filter::Parameters parameters() const {
    return {tables.data(), recurrent.data(), fc1_weight.data(), fc1_bias.data(), fc2_weight.data(), fc2_bias.data()};
  }

  std::vector<std::uint8_t> random_paths(int count, unsigned seed) const {
    std::mt19937 random(seed);
    std::vector<std::uint8_t> paths;
    for (int i = 0; i < count; ++i) {
      for (const int ops : num_ops) paths.push_back(static_cast<std::uint8_t>(random() % static_cast<unsigned>(ops)));
    }
    return paths;
  }

  float log_weak(const std::uint8_t* path, bool bf16 = false) const {
    using namespace greedynas::filter;
    const int units = shape.hidden;
    std::vector<float> last;
    for (const int direction : {0, 1}) {
      std::vector<float> h(static_cast<std::size_t>(units)), c(h), next(h);
      for (int step = 0; step < shape.layers; ++step) {
        const int layer = direction == 0 ? step : shape.layers - 1 - step;
        const std::size_t row =
            static_cast<std::size_t>((direction * shape.layers + layer) * shape.operations) + path[layer];
        const float* table = tables.data() + row * 4 * static_cast<std::size_t>(units);
        for (int u = 0; u < units; ++u) {
          Exact z[4];
          for (int g = 0; g < 4; ++g) {
            z[g] = {table[g * units + u]};
            const float* weights = recurrent.data() + (direction * 4 * units + g * units + u) * units;
            for (int k = 0; k < units && step > 0; ++k) {
              const float weight = bf16 ? round_to_bf16(weights[k]) : weights[k];
              const float input = bf16 ? round_to_bf16(h[static_cast<std::size_t>(k)]) : h[static_cast<std::size_t>(k)];
              z[g] = fma(Exact{input}, Exact{weight}, z[g]);
            }
          }
          const auto at = static_cast<std::size_t>(u);
          const CellState<Exact> state =
              step == 0 ? first_lstm_cell(z[0], z[2], z[3]) : lstm_cell(z[0], z[1], z[2], z[3], Exact{c[at]});
          c[at] = state.cell.v;
          next[at] = state.hidden.v;
        }
        h = next;
      }
      last.insert(last.end(), h.begin(), h.end());
    }
    Exact difference{fc2_bias[0] - fc2_bias[1]};
    for (int j = 0; j < units; ++j) {
      Exact sum{fc1_bias[static_cast<std::size_t>(j)]};
      for (int k = 0; k < 2 * units; ++k) {
        sum = fma(Exact{last[static_cast<std::size_t>(k)]},
                  Exact{fc1_weight[static_cast<std::size_t>(j * 2 * units + k)]}, sum);
      }
      const Exact weight{fc2_weight[static_cast<std::size_t>(j)] - fc2_weight[static_cast<std::size_t>(units + j)]};
      difference = fma(max(sum, Exact{0.0F}), weight, difference);
    }
    return log_weak_of<Exact>(difference.v);
  }
};
