// The bf16 filter with W_hh h as products of tiles (16 paths by 16 units by 32 inputs); the rest is that of block.h.
//
// For 16 units, the four gates of 16 paths are in four tiles. While the vector units work on the cells of one group of
// paths, the tile unit multiplies for the next: two products are issued between two pairs of cells, because a CPU looks
// about four cells ahead. The sums go through two buffers in turn.
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
template <class Tiles, class V>
GREEDYNAS_VEC_INLINE void put_tile_states(const TileStates& states, int row, int unit, V hidden) {
  Tiles::store_bf16(hidden, states.tile(row, unit / kTileInputs) + row % kTileRows * kTileInputs + unit % kTileInputs);
}

// The gate sums W_hh h of 16 paths and 16 units, in tiles 0 to 3.
template <class Tiles>
struct GateSums {
  const std::uint16_t* weights;  // of these units
  const TileStates& states;
  int row;

  GREEDYNAS_VEC_INLINE static void clear() {
    Tiles::template zero<0>();
    Tiles::template zero<1>();
    Tiles::template zero<2>();
    Tiles::template zero<3>();
  }
  // Half `half` of all: two gates of a tile of inputs.
  GREEDYNAS_VEC_INLINE void add(int half) const {
    const std::uint16_t* gates = weights + std::int64_t{2} * half * kTileElements;
    if (half % 2 == 0) {
      Tiles::template load<4>(states.tile(row, half / 2));
      Tiles::template load<5>(gates);
      Tiles::template load<6>(gates + kTileElements);
      Tiles::template multiply_add<0, 4, 5>();
      Tiles::template multiply_add<1, 4, 6>();
    } else {
      Tiles::template load<5>(gates);
      Tiles::template load<6>(gates + kTileElements);
      Tiles::template multiply_add<2, 4, 5>();
      Tiles::template multiply_add<3, 4, 6>();
    }
  }
  // sums [4][16 paths][16 units]
  GREEDYNAS_VEC_INLINE static void store(float* sums) {
    Tiles::template store<0>(sums);
    Tiles::template store<1>(sums + 256);
    Tiles::template store<2>(sums + 512);
    Tiles::template store<3>(sums + 768);
  }
};

inline constexpr int kTileCells = 2;  // side by side; 1 and 4 are slower on Emerald Rapids

// One step of a direction in which h is not zero.
template <class Tiles, class V>
void tile_step(const BlockPaths& paths, int step, int rows, const TileStates& in, const TileStates& out, float* cell,
               float* last) {
  using Cells = Together<V, kTileCells>;
  const int units = paths.packed.shape.hidden;
  const int groups = rows / kTileRows;
  const float* tables[kBlockRows];
  for (int row = 0; row < rows; ++row) tables[row] = paths.table_row(row, step);
  const auto* weights = reinterpret_cast<const std::uint16_t*>(paths.packed.recurrent[paths.direction]);
  const int inputs = tiles_of(units);
  const std::int64_t block_size = std::int64_t{4} * inputs * kTileElements;
  alignas(64) float sums[2][4 * 256];
  const int tasks = units / kTileRows * groups;
  const auto gate_sums = [&](int task) __attribute__((always_inline)) {
    return GateSums<Tiles>{weights + task / groups * block_size, in, task % groups * kTileRows};
  };
  GateSums<Tiles>::clear();
  for (int half = 0; half < 2 * inputs; ++half) gate_sums(0).add(half);
  GateSums<Tiles>::store(sums[0]);
  for (int task = 0; task < tasks; ++task) {
    const bool more = task + 1 < tasks;
    const GateSums<Tiles> next = gate_sums(more ? task + 1 : task);
    const float* gates = sums[task % 2];
    const int unit = task / groups * kTileRows;
    if (more) next.clear();
    int half = 0;
    for (int r = 0; r < kTileRows; r += kTileCells, gates += kTileCells * 16) {
      if (more) {
        for (; half < 2 * inputs && half * (kTileRows - kTileCells) < 2 * inputs * (r + kTileCells); ++half) {
          next.add(half);
        }
        if (r + kTileCells == kTileRows) next.store(sums[(task + 1) % 2]);
      }
      const int row = task % groups * kTileRows + r;
      const auto load = [&](int g) __attribute__((always_inline)) {
        Cells from_table;
        GREEDYNAS_UNROLL
        for (int i = 0; i < kTileCells; ++i) from_table.v[i] = V::load(tables[row + i] + g * units + unit);
        return Cells::load(gates + g * 256, 16) + from_table;
      };
      float* const c = cell + row * units + unit;
      const CellState<Cells> state = lstm_cell(load(0), load(1), load(2), load(3), Cells::load(c, units));
      GREEDYNAS_UNROLL
      for (int i = 0; i < kTileCells; ++i) {
        state.cell.v[i].store(c + i * units);
        if (last != nullptr) {
          state.hidden.v[i].store(last + (row + i) * units + unit);
        } else {
          put_tile_states<Tiles>(out, row + i, unit, state.hidden.v[i]);
        }
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
    for (int u = 0; u < units; u += V::width) {
      put_tile_states<Tiles>(states[0], row, u, V::load(last + row * units + u));
    }
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
