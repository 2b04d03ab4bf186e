// The recurrence of the path filter's training: every level against plain loops in double; on one thread and on three,
// the same bits. All arrays end with their allocation, so that the sanitizers see a step beyond. Gradients are compared
// with torch's in tests/filter.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "filter/recurrence.h"
#include "floats.h"

using namespace greedynas;

namespace {

Floats unset(std::int64_t count) { return Floats(static_cast<std::size_t>(count), NAN); }

struct Case {
  std::int64_t paths;
  int layers, operations, hidden;
  bool shares, mixed;
};

// The arrays of a network: in one that shares beginnings, level t has t + 1 rows until there is one for each path.
struct Arrays {
  std::vector<std::vector<std::int64_t>> operations, others, parents;  // of each level
  std::vector<std::int64_t> members;
  std::array<Floats, 2> tables, weights;

  explicit Arrays(const Case& c) {
    for (int t = 0; t < c.layers; ++t) {
      const std::int64_t rows = c.shares ? std::min<std::int64_t>(t + 1, c.paths) : c.paths;
      operations.emplace_back();
      others.emplace_back();
      parents.emplace_back();
      for (std::int64_t row = 0; row < rows; ++row) {
        operations.back().push_back((row * 7 + t) % c.operations);
        others.back().push_back((row * 5 + 2 * t) % c.operations);
        parents.back().push_back(t == 0 ? 0
                                        : row % static_cast<std::int64_t>(operations[operations.size() - 2].size()));
      }
    }
    for (std::int64_t path = 0; path < c.paths; ++path) {
      members.push_back(path % static_cast<std::int64_t>(operations.back().size()));
    }
    for (unsigned d = 0; d < 2; ++d) {
      tables[d] = random_floats(std::int64_t{c.layers} * c.operations * 4 * c.hidden, 1 + d);
      weights[d] = random_floats(std::int64_t{4} * c.hidden * c.hidden, 3 + d);
      // Larger ones would make errors grow from step to step.
      for (float& weight : weights[d]) weight /= std::sqrt(static_cast<float>(c.hidden));
    }
  }
};

filter::Recurrence network(const Case& c, const Arrays& arrays, int threads) {
  filter::Recurrence net{c.paths, c.operations, c.hidden, 0.25F, {}, threads};
  for (std::size_t d = 0; d < 2; ++d) {
    net.directions[d] = {
        arrays.tables[d].data(), arrays.weights[d].data(), {}, c.shares ? arrays.members.data() : nullptr};
    for (std::size_t t = 0; t < arrays.operations.size(); ++t) {
      net.directions[d].levels.push_back({static_cast<std::int64_t>(arrays.operations[t].size()),
                                          arrays.operations[t].data(), c.mixed ? arrays.others[t].data() : nullptr,
                                          c.shares ? arrays.parents[t].data() : nullptr});
    }
  }
  return net;
}

// The last hidden states of one direction, [rows][H].
std::vector<std::vector<double>> plain_states(const Case& c, const filter::Recurrence& net, std::size_t d) {
  const filter::RecurrenceDirection& direction = net.directions[d];
  std::vector<std::vector<double>> states, cells;
  for (std::size_t t = 0; t < direction.levels.size(); ++t) {
    const filter::RecurrenceLevel& level = direction.levels[t];
    const std::size_t layer = d == 0 ? t : direction.levels.size() - 1 - t;
    std::vector<std::vector<double>> new_states, new_cells;
    for (std::int64_t row = 0; row < level.rows; ++row) {
      const auto parent = static_cast<std::size_t>(level.parents == nullptr ? row : level.parents[row]);
      std::vector<double> z;
      for (int gate = 0; gate < 4 * c.hidden; ++gate) {
        const auto input = [&](std::int64_t operation) {
          return double{
              direction.tables[(static_cast<std::int64_t>(layer) * c.operations + operation) * 4 * c.hidden + gate]};
        };
        double sum = input(level.operations[row]);
        if (level.others != nullptr) sum = net.share * sum + (1.0 - net.share) * input(level.others[row]);
        for (int unit = 0; t > 0 && unit < c.hidden; ++unit) {
          sum += double{direction.weight[gate * c.hidden + unit]} * states[parent][static_cast<std::size_t>(unit)];
        }
        z.push_back(sum);
      }
      const auto at = [&](int gate, int unit) { return z[static_cast<std::size_t>(gate * c.hidden + unit)]; };
      const auto sigmoid = [](double x) { return 1.0 / (1.0 + std::exp(-x)); };
      new_cells.emplace_back();
      new_states.emplace_back();
      for (int unit = 0; unit < c.hidden; ++unit) {
        const double before = t == 0 ? 0.0 : cells[parent][static_cast<std::size_t>(unit)];
        new_cells.back().push_back(sigmoid(at(1, unit)) * before + sigmoid(at(0, unit)) * std::tanh(at(2, unit)));
        new_states.back().push_back(sigmoid(at(3, unit)) * std::tanh(new_cells.back().back()));
      }
    }
    states = new_states;
    cells = new_cells;
  }
  return states;
}

// States, and the gradients of both directions.
Floats run(const Case& c, int threads) {
  const Arrays arrays(c);
  const filter::Recurrence net = network(c, arrays, threads);
  Floats kept = unset(filter::kept_floats(net)), states = unset(2 * c.paths * c.hidden);
  filter::forward(net, kept.data(), states.data());
  double error = 0.0;
  for (std::size_t d = 0; d < 2; ++d) {
    const auto expected = plain_states(c, net, d);
    for (std::int64_t path = 0; path < c.paths; ++path) {
      const auto row = static_cast<std::size_t>(c.shares ? arrays.members[static_cast<std::size_t>(path)] : path);
      for (std::size_t unit = 0; unit < static_cast<std::size_t>(c.hidden); ++unit) {
        const double found =
            states[(2 * static_cast<std::size_t>(path) + d) * static_cast<std::size_t>(c.hidden) + unit];
        error = std::max(error, std::abs(found - expected[row][unit]));
      }
    }
  }
  CHECK(error < 1e-5);
  const Floats grad = random_floats(2 * c.paths * c.hidden, 9);
  Floats all = states;
  std::array<Floats, 2> tables, weights;
  std::array<filter::RecurrenceGradients, 2> gradients;
  for (std::size_t d = 0; d < 2; ++d) {
    tables[d] = unset(static_cast<std::int64_t>(arrays.tables[d].size()));
    weights[d] = unset(static_cast<std::int64_t>(arrays.weights[d].size()));
    gradients[d] = {tables[d].data(), weights[d].data()};
  }
  filter::backward(net, kept.data(), grad.data(), gradients);
  for (const Floats* part : {&tables[0], &weights[0], &tables[1], &weights[1]}) {
    for (const float value : *part) CHECK(std::isfinite(value));
    all.insert(all.end(), part->begin(), part->end());
  }
  return all;
}

}  // namespace

int main() {
  for (const cpu::Isa isa : {cpu::Isa::portable, cpu::Isa::avx2, cpu::Isa::avx512}) {
    if (!cpu::available(isa)) continue;
    setenv("GREEDYNAS_CPU_ISA", std::string(cpu::name_of(isa)).c_str(), 1);
    for (const Case& c : {Case{1, 1, 1, 1, false, false},
                          {5, 3, 4, 3, false, true},
                          {130, 4, 7, 16, false, false},
                          {130, 5, 3, 33, true, false},
                          {70, 90, 5, 20, true, false}}) {
      CHECK(run(c, 1) == run(c, 3));
    }
  }
  return failed_checks == 0 ? 0 : 1;
}
