// The bf16 filter with W_hh h as products of tiles (16 paths by 16 units by 32 inputs); the rest is that of block.h.
//
// For 16 units, the four gates of 16 paths are in four tiles; while the vector units work on the cells of one group of
// paths, the tile unit can already multiply for the next, so the sums go through two buffers in turn.
#pragma once

#include "filter/cpu/block.h"

namespace greedynas::filter {

inline constexpr int kTileRows = 16;
inline constexpr int kTileInputs = 32;
inline constexpr int kTileElements = kTileRows * kTileInputs;  // bf16 numbers of an input tile

GREEDYNAS_VEC_INLINE int tiles_of(int units) { return (units + kTileInputs - 1) / kTileInputs; }

// W_hh [4H, H] -> [H / 16][tiles of inputs][4 gates][16 pairs of inputs][16 units][2].
template <class Tiles>
void pack_recurrent_tiles(Packed& packed, Direction direction, const float* recurrent) {
  const int units = packed.shape.hidden;
  auto* out = reinterpret_cast<std::uint16_t*>(packed.recurrent[direction]);
  for (int block = 0; block < units; block += kTileRows) {
    for (int tile = 0; tile < tiles_of(units); ++tile) {
      for (int gate = 0; gate < 4; ++gate) {
        for (int element = 0; element < kTileElements; ++element) {
          const int unit = block + element / 2 % 16;
          const int k = tile * kTileInputs + element / 32 * 2 + element % 2;
          *out++ = k < units ? bf16_bits(recurrent[(static_cast<std::int64_t>(gate) * units + unit) * units + k]) : 0;
        }
      }
    }
  }
}

// Hidden states as tiles: [groups of 16 paths][tiles of inputs][16 paths][32 inputs] bf16; inputs beyond H stay zero.
struct TileStates {
  std::uint16_t* states;
  int units;

  GREEDYNAS_VEC_INLINE std::uint16_t* tile(int row, int index) const {
    return states + static_cast<std::int64_t>(row / kTileRows * tiles_of(units) + index) * kTileElements;
  }
  GREEDYNAS_VEC_INLINE void clear() const {
    __builtin_memset(states, 0, sizeof(std::uint16_t) * kBlockRows * kTileInputs * tiles_of(units));
  }
};

// 16 hidden states of a path, of units `unit` on.
template <class V>
GREEDYNAS_VEC_INLINE void put_tile_states(const TileStates& states, int row, int unit, V hidden) {
  float rounded[V::width];
  round_to_bf16(hidden).store(rounded);
  std::uint16_t* out = states.tile(row, unit / kTileInputs) + row % kTileRows * kTileInputs + unit % kTileInputs;
  for (int i = 0; i < V::width; ++i) out[i] = static_cast<std::uint16_t>(bits_of(rounded[i]) >> 16);
}

// The gate sums W_hh h of 16 paths and 16 units: sums [4][16 paths][16 units].
template <class Tiles>
GREEDYNAS_VEC_INLINE void multiply_group(const std::uint16_t* weights, const TileStates& states, int row, float* sums) {
  Tiles::template zero<0>();
  Tiles::template zero<1>();
  Tiles::template zero<2>();
  Tiles::template zero<3>();
  for (int tile = 0; tile < tiles_of(states.units); ++tile, weights += 4 * kTileElements) {
    Tiles::template load<4>(states.tile(row, tile));
    Tiles::template load<5>(weights);
    Tiles::template multiply_add<0, 4, 5>();
    Tiles::template load<6>(weights + kTileElements);
    Tiles::template multiply_add<1, 4, 6>();
    Tiles::template load<7>(weights + 2 * kTileElements);
    Tiles::template multiply_add<2, 4, 7>();
    Tiles::template load<5>(weights + 3 * kTileElements);
    Tiles::template multiply_add<3, 4, 5>();
  }
  Tiles::template store<0>(sums);
  Tiles::template store<1>(sums + 256);
  Tiles::template store<2>(sums + 512);
  Tiles::template store<3>(sums + 768);
}

// One step of a direction in which h is not zero.
template <class Tiles, class V>
void tile_step(const BlockPaths& paths, int step, int rows, const TileStates& in, const TileStates& out, float* cell,
               float* last) {
  const int units = paths.packed.shape.hidden;
  const int groups = rows / kTileRows;
  const float* tables[kBlockRows];
  for (int row = 0; row < rows; ++row) tables[row] = paths.table_row(row, step);
  const auto* weights = reinterpret_cast<const std::uint16_t*>(paths.packed.recurrent[paths.direction]);
  const std::int64_t block_size = std::int64_t{4} * tiles_of(units) * kTileElements;
  alignas(64) float sums[2][4 * 256];
  const int tasks = units / kTileRows * groups;
  const auto multiply = [&](int task) __attribute__((always_inline)) {
    multiply_group<Tiles>(weights + task / groups * block_size, in, task % groups * kTileRows, sums[task % 2]);
  };
  multiply(0);
  for (int task = 0; task < tasks; ++task) {
    if (task + 1 < tasks) multiply(task + 1);
    const int unit = task / groups * kTileRows;
    for (int r = 0; r < kTileRows; ++r) {
      const int row = task % groups * kTileRows + r;
      V gates[4];
      for (int g = 0; g < 4; ++g) {
        gates[g] = V::load(sums[task % 2] + g * 256 + r * 16) + V::load(tables[row] + g * units + unit);
      }
      float* const c = cell + row * units + unit;
      const CellState<V> state = lstm_cell(gates[0], gates[1], gates[2], gates[3], V::load(c));
      state.cell.store(c);
      if (last != nullptr) {
        state.hidden.store(last + row * units + unit);
      } else {
        put_tile_states(out, row, unit, state.hidden);
      }
    }
  }
}

// As run_direction, but that the states between steps are tiles. memory.hidden is scratch for them: tiles take no more
// room than floats, H rounded up to 32 included.
template <class Tiles, class V>
void run_direction_tiles(const BlockPaths& paths, const PrefixStates* prefix, int steps, BlockMemory& memory,
                         float* last) {
  const int rows = (paths.rows + kTileRows - 1) / kTileRows * kTileRows;
  const int units = paths.packed.shape.hidden;
  int step = 1;
  // The states to begin with come as floats, in `last`: it is written for good only at the end.
  if (prefix != nullptr && prefix->depth > 0) {
    step = begin_from_prefix<V, Singles<V>>(paths, *prefix, rows, memory, last, Precision::float32);
  } else {
    first_step<V, Singles<V>>(paths, rows, memory, last, Precision::float32);
  }
  const TileStates states[2] = {{reinterpret_cast<std::uint16_t*>(memory.hidden[0]), units},
                                {reinterpret_cast<std::uint16_t*>(memory.hidden[1]), units}};
  states[0].clear();
  states[1].clear();
  for (int row = 0; row < rows; ++row) {
    for (int u = 0; u < units; u += V::width) put_tile_states(states[0], row, u, V::load(last + row * units + u));
  }
  for (int turn = 0; step < steps; ++step, turn ^= 1) {
    tile_step<Tiles, V>(paths, step, rows, states[turn], states[turn ^ 1], memory.cell,
                        step == steps - 1 ? last : nullptr);
  }
}

template <class Tiles, class V>
void tile_prefix_states_of(const Packed& packed, Direction direction, const std::uint8_t* paths, int rows, int depth,
                           float* workspace, float* hidden, float* cell) {
  const int units = packed.shape.hidden;
  BlockMemory memory(workspace, units);
  Tiles::configure();
  run_direction_tiles<Tiles, V>({packed, direction, paths, packed.shape.layers, rows}, nullptr, depth, memory,
                                memory.last[0]);
  Tiles::release();
  __builtin_memcpy(hidden, memory.last[0], sizeof(float) * static_cast<std::size_t>(rows) * units);
  __builtin_memcpy(cell, memory.cell, sizeof(float) * static_cast<std::size_t>(rows) * units);
}

template <class Tiles, class V>
void tile_score_of(const Packed& packed, const Prefixes* prefixes, const std::uint8_t* paths, int rows,
                   float* workspace, float* log_weak) {
  BlockMemory memory(workspace, packed.shape.hidden);
  Tiles::configure();
  for (const Direction direction : {kForward, kBackward}) {
    run_direction_tiles<Tiles, V>({packed, direction, paths, packed.shape.layers, rows},
                                  prefixes == nullptr ? nullptr : &prefixes->direction[direction], packed.shape.layers,
                                  memory, memory.last[direction]);
  }
  Tiles::release();
  classify<V>(packed, memory, rows, log_weak);
}

template <class Tiles, class V>
constexpr Kernel tile_kernel_over(const char* name) {
  static_assert(V::width == 16 && kBlockRows % kTileRows == 0);
  return {name, &pack_recurrent_tiles<Tiles>, &tile_prefix_states_of<Tiles, V>, &tile_score_of<Tiles, V>};
}

}  // namespace greedynas::filter
