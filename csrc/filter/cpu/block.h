// The filter network for a block of paths, written once over a vector type V (csrc/cpu/vec_*.h).
//
// Order of work: step by step through the layers; in a step, V::width hidden units at a time (their slice of W_hh stays
// in the L1 cache), and for these all paths, V::rows at a time with the four gates in registers. Each number is
// computed in the order that arithmetic.h names, whatever the block, so results do not depend on the grouping.
// Included by one file a level, each compiled for that level alone: no inline function of the standard library here.
#pragma once

#include "cpu/vec_generic.h"
#include "filter/arithmetic.h"
#include "filter/cpu/kernels.h"
#include "filter/cpu/together.h"

namespace greedynas::filter {

// Where a block keeps its numbers: parts of the workspace that kernels.h speaks of, each [kBlockRows, H].
struct BlockMemory {
  float* hidden[2];  // of the step before and of this one
  float* cell;
  float* last[2];  // last hidden state, a direction
  float* features;

  GREEDYNAS_VEC_INLINE BlockMemory(float* workspace, int units) {
    float** const parts[] = {&hidden[0], &hidden[1], &cell, &last[0], &last[1], &features};
    for (float** part : parts) {
      *part = workspace;
      workspace += kBlockRows * units;
    }
  }
};

// One direction of a block: which path goes through which table row.
struct BlockPaths {
  const Packed& packed;
  Direction direction;
  const std::uint8_t* operations;  // [rows, stride], in the order of the layers
  int stride;
  int rows;

  GREEDYNAS_VEC_INLINE int layer(int step) const {
    return direction == kForward ? step : packed.shape.layers - 1 - step;
  }
  // Rows beyond the last are computed along with it and thrown away.
  GREEDYNAS_VEC_INLINE int operation(int row, int step) const {
    return operations[static_cast<std::int64_t>(row < rows ? row : rows - 1) * stride + layer(step)];
  }
  GREEDYNAS_VEC_INLINE const float* table_row(int row, int step) const {
    const std::int64_t index = static_cast<std::int64_t>(layer(step)) * packed.shape.operations + operation(row, step);
    return packed.table[direction] + index * 4 * packed.shape.hidden;
  }
};

// How W_hh and the hidden states that meet it are kept, and their product: here one number in a 32-bit word. Pairs of
// bf16 numbers: pair_block.h.
template <class V>
struct Singles {
  static constexpr int inputs = 1;  // of a word

  // The weights of `inputs` inputs from `weights` on, as a word.
  GREEDYNAS_VEC_INLINE static float word(const float* weights, Precision precision) {
    return precision == Precision::bf16 ? round_to_bf16(*weights) : *weights;
  }
  // bf16 states of V::width units as words.
  GREEDYNAS_VEC_INLINE static void store_bf16(V hidden, float* words) { round_to_bf16(hidden).store(words); }
  // sums + weights * inputs, of V::width words each.
  GREEDYNAS_VEC_INLINE static V multiply_add(V inputs, V weights, V sums) { return fma(inputs, weights, sums); }
};

// Hidden states of a path from unit `at` on, where `states` begins with unit 0: for W_hh if bf16, else as they are.
template <class V, class Form>
GREEDYNAS_VEC_INLINE void put_states(V hidden, float* states, int at, Precision precision) {
  if (precision == Precision::bf16) {
    Form::store_bf16(hidden, states + at / Form::inputs);
  } else {
    hidden.store(states + at);
  }
}

// W_hh [4H, H] -> words [H / width][H / inputs][4 gates][width].
template <class V, class Form>
void pack_recurrent_of(Packed& packed, Direction direction, const float* recurrent) {
  const int units = packed.shape.hidden;
  float* out = packed.recurrent[direction];
  for (int block = 0; block < units; block += V::width) {
    for (int k = 0; k < units; k += Form::inputs) {
      for (int gate = 0; gate < 4; ++gate) {
        for (int u = block; u < block + V::width; ++u) {
          const float* weights = recurrent + (static_cast<std::int64_t>(gate) * units + u) * units + k;
          *out++ = Form::word(weights, packed.precision);
        }
      }
    }
  }
}

template <class V, class Form>
void first_step(const BlockPaths& paths, int rows, BlockMemory& memory, float* hidden_out, Precision precision) {
  const int units = paths.packed.shape.hidden;
  for (int row = 0; row < rows; ++row) {
    const float* table = paths.table_row(row, 0);
    for (int u = 0; u < units; u += V::width) {
      const CellState<V> state =
          first_lstm_cell(V::load(table + u), V::load(table + 2 * units + u), V::load(table + 3 * units + u));
      state.cell.store(memory.cell + row * units + u);
      put_states<V, Form>(state.hidden, hidden_out, row * units + u, precision);
    }
  }
}

// Gate inputs of V::rows paths and V::width units from `unit` on: gates [rows][4][width]. A function of its own, so
// that nothing else competes for registers: on AVX2 it needs all of them.
template <class V, class Form>
__attribute__((noinline)) void gate_inputs(const float* weights, const float* const* tables, int units, int unit,
                                           const float* hidden_in, float* gates) {
  constexpr int kRows = V::rows;
  V sums[kRows][4];
  GREEDYNAS_UNROLL
  for (int r = 0; r < kRows; ++r) {
    GREEDYNAS_UNROLL
    for (int g = 0; g < 4; ++g) sums[r][g] = V::load(tables[r] + g * units + unit);
  }
  const int words = units / Form::inputs;
  for (int k = 0; k < words; ++k) {
    V inputs[kRows];
    GREEDYNAS_UNROLL
    for (int r = 0; r < kRows; ++r) inputs[r] = V::broadcast(hidden_in + r * words + k);
    GREEDYNAS_UNROLL
    for (int g = 0; g < 4; ++g) {
      const V weight = V::load_to_register(weights + (4 * k + g) * V::width);
      GREEDYNAS_UNROLL
      for (int r = 0; r < kRows; ++r) sums[r][g] = Form::multiply_add(inputs[r], weight, sums[r][g]);
    }
  }
  GREEDYNAS_UNROLL
  for (int r = 0; r < kRows; ++r) {
    GREEDYNAS_UNROLL
    for (int g = 0; g < 4; ++g) sums[r][g].store(gates + (4 * r + g) * V::width);
  }
}

// Cells that are computed side by side. On Zen 4, of 1, 2 and 3 together, 3 were the fastest: AVX2 gains 11 %, float32
// on AVX-512 2 %, bf16 5 %.
inline constexpr int kCells = 3;

// `at`: where the states of these paths and units begin.
template <class V, class Form>
GREEDYNAS_VEC_INLINE void cells(const float* gates, int units, int at, float* cell, float* hidden_out,
                                Precision precision) {
  using Cells = Together<V, kCells>;
  const auto load = [&](int g)
                        __attribute__((always_inline)) { return Cells::load(gates + g * V::width, 4 * V::width); };
  for (int r = 0; r < V::rows; r += kCells, gates += kCells * 4 * V::width) {
    const CellState<Cells> state = lstm_cell(load(0), load(1), load(2), load(3), Cells::load(cell + at, units));
    GREEDYNAS_UNROLL
    for (int i = 0; i < kCells; ++i, at += units) {
      state.cell.v[i].store(cell + at);
      put_states<V, Form>(state.hidden.v[i], hidden_out, at, precision);
    }
  }
}

template <class V, class Form>
void later_step(const BlockPaths& paths, int step, int rows, const float* hidden_in, float* cell, float* hidden_out,
                Precision precision) {
  const int units = paths.packed.shape.hidden;
  const float* tables[kBlockRows];
  for (int row = 0; row < rows; ++row) tables[row] = paths.table_row(row, step);
  const float* weights = paths.packed.recurrent[paths.direction];
  for (int unit = 0; unit < units; unit += V::width) {
    for (int row = 0; row < rows; row += V::rows) {
      float gates[V::rows * 4 * V::width];
      gate_inputs<V, Form>(weights, tables + row, units, unit, hidden_in + row * (units / Form::inputs), gates);
      cells<V, Form>(gates, units, row * units + unit, cell, hidden_out, precision);
    }
    weights += static_cast<std::int64_t>(4) * (units / Form::inputs) * V::width;
  }
}

// Copies the states that the paths have after the shared steps; returns how many steps these are.
template <class V, class Form>
int begin_from_prefix(const BlockPaths& paths, const PrefixStates& prefix, int rows, BlockMemory& memory,
                      float* hidden_out, Precision precision) {
  const int units = paths.packed.shape.hidden;
  for (int row = 0; row < rows; ++row) {
    std::int64_t index = 0;
    for (int step = 0; step < prefix.depth; ++step) {
      index = index * paths.packed.num_ops[paths.layer(step)] + paths.operation(row, step);
    }
    for (int u = 0; u < units; u += V::width) {
      put_states<V, Form>(V::load(prefix.hidden + index * units + u), hidden_out, row * units + u, precision);
      V::load(prefix.cell + index * units + u).store(memory.cell + row * units + u);
    }
  }
  return prefix.depth;
}

// Steps 0 .. steps of one direction; the last hidden state, unrounded, goes to `last`.
template <class V, class Form>
void run_direction(const BlockPaths& paths, const PrefixStates* prefix, int steps, BlockMemory& memory, float* last) {
  const int rows = (paths.rows + V::rows - 1) / V::rows * V::rows;
  const Precision precision = paths.packed.precision;
  int step = 0;
  if (prefix != nullptr && prefix->depth > 0) {
    step = begin_from_prefix<V, Form>(paths, *prefix, rows, memory, memory.hidden[0], precision);
  } else {
    first_step<V, Form>(paths, rows, memory, steps == 1 ? last : memory.hidden[0],
                        steps == 1 ? Precision::float32 : precision);
    step = 1;
  }
  for (int turn = 0; step < steps; ++step, turn ^= 1) {
    const bool is_last = step == steps - 1;
    later_step<V, Form>(paths, step, rows, memory.hidden[turn], memory.cell, is_last ? last : memory.hidden[turn ^ 1],
                        is_last ? Precision::float32 : precision);
  }
}

// fc1 and its ReLU for V::rows paths and kVectors * V::width outputs from `output` on.
template <class V, int kVectors>
GREEDYNAS_VEC_INLINE void hidden_layer(const Packed& packed, const BlockMemory& memory, int row, int output) {
  constexpr int kRows = V::rows;
  const int units = packed.shape.hidden;
  V sums[kRows][kVectors];
  GREEDYNAS_UNROLL
  for (int r = 0; r < kRows; ++r) {
    GREEDYNAS_UNROLL
    for (int i = 0; i < kVectors; ++i) sums[r][i] = V::load(packed.fc1_bias + output + i * V::width);
  }
  const float* weights = packed.fc1_weight + output;
  for (const float* last : memory.last) {
    for (int k = 0; k < units; ++k, weights += units) {
      V inputs[kRows];
      GREEDYNAS_UNROLL
      for (int r = 0; r < kRows; ++r) inputs[r] = V::broadcast(last + (row + r) * units + k);
      GREEDYNAS_UNROLL
      for (int i = 0; i < kVectors; ++i) {
        const V weight = V::load_to_register(weights + i * V::width);
        GREEDYNAS_UNROLL
        for (int r = 0; r < kRows; ++r) sums[r][i] = fma(inputs[r], weight, sums[r][i]);
      }
    }
  }
  GREEDYNAS_UNROLL
  for (int r = 0; r < kRows; ++r) {
    GREEDYNAS_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      max(sums[r][i], V::set(0.0F)).store(memory.features + (row + r) * units + output + i * V::width);
    }
  }
}

template <class V>
void classify(const Packed& packed, const BlockMemory& memory, int rows, float* log_weak) {
  const int units = packed.shape.hidden;
  for (int output = 0; output < units;) {
    const int left = (units - output) / V::width;
    for (int row = 0; row < rows; row += V::rows) {  // the last group may reach beyond: all parts have room
      if (left >= 4) {
        hidden_layer<V, 4>(packed, memory, row, output);
      } else {
        hidden_layer<V, 1>(packed, memory, row, output);
      }
    }
    output += (left >= 4 ? 4 : 1) * V::width;
  }
  for (int row = 0; row < rows; ++row) {
    Scalar difference{packed.fc2_bias};
    for (int u = 0; u < units; ++u) {
      difference = fma(Scalar{memory.features[row * units + u]}, Scalar{packed.fc2_weight[u]}, difference);
    }
    log_weak[row] = log_weak_of(difference.v);
  }
}

template <class V, class Form>
void prefix_states_of(const Packed& packed, Direction direction, const std::uint8_t* operations, int rows, int depth,
                      float* workspace, float* hidden, float* cell) {
  const int units = packed.shape.hidden;
  BlockMemory memory(workspace, units);
  const BlockPaths paths{packed, direction, operations, packed.shape.layers, rows};
  run_direction<V, Form>(paths, nullptr, depth, memory, memory.last[0]);
  __builtin_memcpy(hidden, memory.last[0], sizeof(float) * static_cast<std::size_t>(rows) * units);
  __builtin_memcpy(cell, memory.cell, sizeof(float) * static_cast<std::size_t>(rows) * units);
}

template <class V, class Form>
void score_of(const Packed& packed, const Prefixes* prefixes, const std::uint8_t* paths, int rows, float* workspace,
              float* log_weak) {
  BlockMemory memory(workspace, packed.shape.hidden);
  for (const Direction direction : {kForward, kBackward}) {
    const BlockPaths block{packed, direction, paths, packed.shape.layers, rows};
    run_direction<V, Form>(block, prefixes == nullptr ? nullptr : &prefixes->direction[direction], packed.shape.layers,
                           memory, memory.last[direction]);
  }
  classify<V>(packed, memory, rows, log_weak);
}

template <class V, class Form = Singles<V>>
constexpr Kernel kernel_over(const char* name) {
  static_assert(kBlockRows % V::rows == 0 && V::rows % kCells == 0 && 16 % V::width == 0);
  return {name, &pack_recurrent_of<V, Form>, &prefix_states_of<V, Form>, &score_of<V, Form>};
}

}  // namespace greedynas::filter
