#include "filter/recurrence.h"

#include <algorithm>
#include <functional>

#include "blocks/cpu/gemm_kernels.h"  // products of small matrices
#include "cpu/isa.h"
#include "cpu/memory.h"
#include "cpu/team.h"
#include "filter/cpu/cells.h"

namespace greedynas::filter {
namespace {

using blocks::GemmAhead;
using blocks::GemmKernel;

constexpr std::int64_t kRows = 64;   // of a task
constexpr std::int64_t kGates = 64;  // whose weights' gradients are one task

// Gates and states in memory have H rounded up; what is added stays zero.
struct Widths {
  int hidden, units, gates;

  explicit Widths(int h) : hidden(h), units((h + kCellUnits - 1) / kCellUnits * kCellUnits), gates(4 * units) {}
};

// What a level leaves for the backward pass: gates after their activations, cell states, their tanh, states.
template <class Float>
struct Kept {
  Float *gates, *cell, *tanh_cell, *state;

  static std::int64_t floats(const Widths& widths, std::int64_t rows) {
    return rows * (widths.gates + 3 * std::int64_t{widths.units});
  }
  Kept(Float* from, const Widths& widths, std::int64_t rows) : gates(from) {
    cell = gates + rows * widths.gates;
    tanh_cell = cell + rows * widths.units;
    state = tanh_cell + rows * widths.units;
  }
};

// Of the levels of both directions.
template <class Float>
std::vector<std::vector<Kept<Float>>> split(const Recurrence& net, const Widths& widths, Float* kept) {
  std::vector<std::vector<Kept<Float>>> all;
  for (const RecurrenceDirection& direction : net.directions) {
    all.emplace_back();
    for (const RecurrenceLevel& level : direction.levels) {
      all.back().emplace_back(kept, widths, level.rows);
      kept += Kept<Float>::floats(widths, level.rows);
    }
  }
  return all;
}

struct Weights {
  cpu::Workspace padded, packed;

  // turned: for products with the transposed weights.
  Weights(const GemmKernel& gemm, const Widths& widths, const float* weight, bool turned)
      : padded(std::int64_t{widths.gates} * widths.units), packed(std::int64_t{widths.gates} * widths.units) {
    float* to = padded.floats();
    std::fill_n(to, std::int64_t{widths.gates} * widths.units, 0.0F);
    for (int gate = 0; gate < 4; ++gate) {
      for (int unit = 0; unit < widths.hidden; ++unit, weight += widths.hidden) {
        std::copy_n(weight, widths.hidden, to + (std::int64_t{gate} * widths.units + unit) * widths.units);
      }
    }
    if (turned) {
      gemm.pack(to, 1, widths.units, widths.units, widths.gates, packed.floats());
    } else {
      gemm.pack(to, widths.units, 1, widths.gates, widths.units, packed.floats());
    }
  }
};

// The layer whose tables a level takes.
std::size_t layer_of(const Recurrence& net, std::size_t direction, std::size_t t) {
  return direction == 0 ? t : net.directions[direction].levels.size() - 1 - t;
}

// body(direction, first row, end) for the rows of a level of both directions.
void for_rows(const Recurrence& net, std::size_t t,
              const std::function<void(std::size_t, std::int64_t, std::int64_t)>& body) {
  const auto tasks = [&](std::size_t direction) {
    return (net.directions[direction].levels[t].rows + kRows - 1) / kRows;
  };
  const std::int64_t of_first = tasks(0);
  cpu::team_for(of_first + tasks(1), 1, net.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      const std::size_t direction = task < of_first ? 0 : 1;
      const std::int64_t first = (task - (direction == 0 ? 0 : of_first)) * kRows;
      body(direction, first, std::min(first + kRows, net.directions[direction].levels[t].rows));
    }
  });
}

// Rows [begin, end) of what a level goes on from, side by side.
const float* gathered(const RecurrenceLevel& level, const float* before, int units, std::int64_t begin,
                      std::int64_t end, float* room) {
  if (level.parents == nullptr) return before + begin * units;
  for (std::int64_t row = begin; row < end; ++row) {
    std::copy_n(before + level.parents[row] * units, units, room + (row - begin) * units);
  }
  return room;
}

// The gate inputs of a row.
void take_inputs(const Recurrence& net, const RecurrenceLevel& level, const float* table, const Widths& widths,
                 std::int64_t row, float* gates) {
  const std::int64_t size = 4 * std::int64_t{widths.hidden};
  const float* one = table + level.operations[row] * size;
  const float* other = level.others == nullptr ? nullptr : table + level.others[row] * size;
  for (int gate = 0; gate < 4; ++gate, gates += widths.units, one += widths.hidden) {
    std::copy_n(one, widths.hidden, gates);
    std::fill(gates + widths.hidden, gates + widths.units, 0.0F);
    if (other == nullptr) continue;
    for (int unit = 0; unit < widths.hidden; ++unit) {
      gates[unit] = net.share * gates[unit] + (1.0F - net.share) * other[unit];
    }
    other += widths.hidden;
  }
}

// Adds the gradient of a row's gate inputs to those of the tables.
void give_inputs(const Recurrence& net, const RecurrenceLevel& level, const float* grads, const Widths& widths,
                 std::int64_t row, float* table) {
  const auto add = [&](std::int64_t operation, float share) {
    float* to = table + operation * 4 * widths.hidden;
    for (int gate = 0; gate < 4; ++gate, to += widths.hidden) {
      const float* const from = grads + gate * widths.units;
      for (int unit = 0; unit < widths.hidden; ++unit) to[unit] += share * from[unit];
    }
  };
  if (level.others == nullptr) return add(level.operations[row], 1.0F);
  add(level.operations[row], net.share);
  add(level.others[row], 1.0F - net.share);
}

std::int64_t most_rows(const RecurrenceDirection& direction) {
  const auto fewer = [](const RecurrenceLevel& a, const RecurrenceLevel& b) { return a.rows < b.rows; };
  return std::max_element(direction.levels.begin(), direction.levels.end(), fewer)->rows;
}

// The backward pass of one direction, a level at a time from the last one on.
class Backward {
 public:
  Backward(const Recurrence& net, std::size_t which, const Widths& widths, const std::vector<Kept<const float>>& kept,
           const RecurrenceGradients& gradients)
      : net_(net),
        direction_(net.directions[which]),
        which_(which),
        widths_(widths),
        kept_(kept),
        gradients_(gradients),
        gemm_(blocks::gemm_kernel_for(cpu::selected())),
        cells_kernel_(cell_kernel_for(cpu::selected())),
        weights_(gemm_, widths, direction_.weight, false),
        most_rows_(most_rows(direction_)),
        room_(most_rows_ * (widths.gates + 6 * std::int64_t{widths.units})),
        grad_weight_(std::int64_t{widths.gates} * widths.units) {
    float* next = room_.floats();
    grad_gates_ = next;
    next += most_rows_ * widths.gates;
    for (float** rows : {&states_, &grad_state_, &grad_cell_, &grad_state_before_, &grad_cell_before_, &cells_}) {
      *rows = next;
      next += most_rows_ * widths.units;
    }
    std::fill_n(grad_weight_.floats(), std::int64_t{widths.gates} * widths.units, 0.0F);
    std::fill_n(gradients.tables,
                direction_.levels.size() * static_cast<std::size_t>(net.operations * 4 * widths.hidden), 0.0F);
  }

  // grad: of the states [paths, 2H].
  void begin(const float* grad) {
    std::fill_n(grad_state_, direction_.levels.back().rows * widths_.units, 0.0F);
    for (std::int64_t path = 0; path < net_.paths; ++path) {
      float* const to = grad_state_ + (direction_.members == nullptr ? path : direction_.members[path]) * widths_.units;
      const float* const from = grad + (2 * path + static_cast<std::int64_t>(which_)) * widths_.hidden;
      for (int unit = 0; unit < widths_.hidden; ++unit) to[unit] += from[unit];
    }
  }

  // Of rows [begin, end): the gradients of the gates, and of what they go on from.
  void rows(std::size_t t, std::int64_t begin, std::int64_t end) const {
    const RecurrenceLevel& level = direction_.levels[t];
    const int units = widths_.units;
    const std::int64_t at = begin * units, gates = begin * widths_.gates;
    const float *cells = nullptr, *states = nullptr;
    if (t > 0) {
      cells = gathered(level, kept_[t - 1].cell, units, begin, end, cells_ + at);
      states = gathered(level, kept_[t - 1].state, units, begin, end, states_ + at);
    }
    const bool is_last = t + 1 == direction_.levels.size();
    cells_kernel_.backward(end - begin, units, kept_[t].gates + gates, cells, kept_[t].tanh_cell + at, grad_state_ + at,
                           is_last ? nullptr : grad_cell_ + at, grad_gates_ + gates, grad_cell_before_ + at);
    if (states == nullptr) return;
    GemmAhead nothing;
    gemm_.multiply({grad_gates_ + gates, widths_.gates}, end - begin, widths_.gates, weights_.packed.floats(), units,
                   {nullptr, 0}, grad_state_before_ + at, units, nothing);
  }

  std::int64_t weight_tasks() const { return (widths_.gates + kGates - 1) / kGates; }

  // Of some of the gates: the gradients of their weights.
  void weights(std::size_t t, std::int64_t task) const {
    if (t == 0) return;
    const RecurrenceLevel& level = direction_.levels[t];
    const std::int64_t first = task * kGates, count = std::min<std::int64_t>(kGates, widths_.gates - first);
    const float* const states = level.parents == nullptr ? kept_[t - 1].state : states_;
    GemmAhead nothing;
    gemm_.accumulate({grad_gates_ + first, widths_.gates}, {states, widths_.units}, level.rows, static_cast<int>(count),
                     widths_.units, grad_weight_.floats() + first * widths_.units, widths_.units, nothing);
  }

  // The gradients of the tables; then those of the level before are next.
  void end_level(std::size_t t) {
    const RecurrenceLevel& level = direction_.levels[t];
    float* const table =
        gradients_.tables + static_cast<std::int64_t>(layer_of(net_, which_, t)) * net_.operations * 4 * widths_.hidden;
    for (std::int64_t row = 0; row < level.rows; ++row) {
      give_inputs(net_, level, grad_gates_ + row * widths_.gates, widths_, row, table);
    }
    if (t == 0) return;
    if (level.parents == nullptr) {
      std::swap(grad_state_, grad_state_before_);
      std::swap(grad_cell_, grad_cell_before_);
      return;
    }
    add_to_parents(level, direction_.levels[t - 1].rows, grad_state_before_, grad_state_);
    add_to_parents(level, direction_.levels[t - 1].rows, grad_cell_before_, grad_cell_);
  }

  void end() const {
    float* to = gradients_.weight;
    for (int gate = 0; gate < 4; ++gate) {
      for (int unit = 0; unit < widths_.hidden; ++unit, to += widths_.hidden) {
        const std::int64_t row = std::int64_t{gate} * widths_.units + unit;
        std::copy_n(grad_weight_.floats() + row * widths_.units, widths_.hidden, to);
      }
    }
  }

 private:
  void add_to_parents(const RecurrenceLevel& level, std::int64_t rows_before, const float* from, float* to) const {
    std::fill_n(to, rows_before * widths_.units, 0.0F);
    for (std::int64_t row = 0; row < level.rows; ++row, from += widths_.units) {
      float* const parent = to + level.parents[row] * widths_.units;
      for (int unit = 0; unit < widths_.units; ++unit) parent[unit] += from[unit];
    }
  }

  const Recurrence& net_;
  const RecurrenceDirection& direction_;
  std::size_t which_;
  Widths widths_;
  const std::vector<Kept<const float>>& kept_;
  RecurrenceGradients gradients_;
  const GemmKernel& gemm_;
  const CellKernel& cells_kernel_;
  Weights weights_;
  std::int64_t most_rows_;
  cpu::Workspace room_, grad_weight_;
  float *grad_gates_, *states_, *grad_state_, *grad_cell_, *grad_state_before_, *grad_cell_before_, *cells_;
};

}  // namespace

std::int64_t kept_floats(const Recurrence& net) {
  std::int64_t floats = 0;
  for (const RecurrenceDirection& direction : net.directions) {
    for (const RecurrenceLevel& level : direction.levels) floats += Kept<float>::floats(Widths(net.hidden), level.rows);
  }
  return floats;
}

void forward(const Recurrence& net, float* kept, float* states) {
  const Widths widths(net.hidden);
  const GemmKernel& gemm = blocks::gemm_kernel_for(cpu::selected());
  const CellKernel& cells = cell_kernel_for(cpu::selected());
  const Weights weights[2] = {{gemm, widths, net.directions[0].weight, true},
                              {gemm, widths, net.directions[1].weight, true}};
  const auto all = split(net, widths, kept);
  const std::int64_t table_floats = std::int64_t{net.operations} * 4 * net.hidden;
  for (std::size_t t = 0; t < net.directions[0].levels.size(); ++t) {
    for_rows(net, t, [&](std::size_t d, std::int64_t begin, std::int64_t end) {
      const RecurrenceLevel& level = net.directions[d].levels[t];
      const float* const table =
          net.directions[d].tables + static_cast<std::int64_t>(layer_of(net, d, t)) * table_floats;
      const Kept<float>& own = all[d][t];
      float* const gates = own.gates + begin * widths.gates;
      for (std::int64_t row = begin; row < end; ++row) {
        take_inputs(net, level, table, widths, row, own.gates + row * widths.gates);
      }
      const cpu::Workspace room(2 * kRows * widths.units);
      const float* previous = nullptr;
      if (t > 0) {
        const Kept<float>& before = all[d][t - 1];
        const float* const from = gathered(level, before.state, widths.units, begin, end, room.floats());
        previous = gathered(level, before.cell, widths.units, begin, end, room.floats() + kRows * widths.units);
        GemmAhead nothing;
        gemm.multiply({from, widths.units}, end - begin, widths.units, weights[d].packed.floats(), widths.gates,
                      {gates, widths.gates}, gates, widths.gates, nothing);
      }
      const std::int64_t at = begin * widths.units;
      cells.forward(end - begin, widths.units, gates, previous, own.cell + at, own.tanh_cell + at, own.state + at);
    });
  }
  for (std::size_t d = 0; d < 2; ++d) {
    const RecurrenceDirection& direction = net.directions[d];
    for (std::int64_t path = 0; path < net.paths; ++path) {
      const std::int64_t row = direction.members == nullptr ? path : direction.members[path];
      std::copy_n(all[d].back().state + row * widths.units, net.hidden,
                  states + (2 * path + static_cast<std::int64_t>(d)) * net.hidden);
    }
  }
}

void backward(const Recurrence& net, const float* kept, const float* grad,
              const std::array<RecurrenceGradients, 2>& gradients) {
  const Widths widths(net.hidden);
  const auto all = split(net, widths, kept);
  Backward passes[2] = {{net, 0, widths, all[0], gradients[0]}, {net, 1, widths, all[1], gradients[1]}};
  const std::int64_t tasks = 1 + passes[0].weight_tasks();  // of a direction after its rows
  for (Backward& pass : passes) pass.begin(grad);
  for (std::size_t t = net.directions[0].levels.size(); t-- > 0;) {
    for_rows(net, t, [&](std::size_t d, std::int64_t begin, std::int64_t end) { passes[d].rows(t, begin, end); });
    cpu::team_for(2 * tasks, 1, net.threads, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        Backward& pass = passes[i / tasks];
        if (i % tasks == 0) {
          pass.end_level(t);
        } else {
          pass.weights(t, i % tasks - 1);
        }
      }
    });
  }
  for (const Backward& pass : passes) pass.end();
}

}  // namespace greedynas::filter
