// The plain twin of csrc/cpu/tiles_amx.h, so that the tile kernel runs on any machine.
#pragma once

#include <cstdint>
#include <cstring>

#include "filter/arithmetic.h"
#include "pairs_emulated.h"

struct TilesEmulated {
  static inline thread_local unsigned char tiles[8][16][64];
  static inline thread_local bool configured = false;

  static void configure() { configured = true; }
  static void release() {
    configured = false;
    std::memset(tiles, 0xFF, sizeof tiles);  // NaN: what is not loaded again must not be used
  }
  template <int kTile>
  static void zero() {
    std::memset(tiles[kTile], 0, sizeof tiles[kTile]);
  }
  template <int kTile>
  static void load(const void* p) {
    std::memcpy(tiles[kTile], p, sizeof tiles[kTile]);
  }
  template <int kTile>
  static void store(float* p) {
    std::memcpy(p, tiles[kTile], sizeof tiles[kTile]);
  }
  template <int kSums, int kA, int kB>
  static void multiply_add() {
    float a[16][32], b[32][16], sums[16][16];
    std::memcpy(sums, tiles[kSums], sizeof sums);
    std::uint16_t bits[2][16][32];
    std::memcpy(bits[0], tiles[kA], sizeof bits[0]);
    std::memcpy(bits[1], tiles[kB], sizeof bits[1]);
    for (int row = 0; row < 16; ++row) {
      for (int i = 0; i < 32; ++i) {
        a[row][i] = value_of(bits[0][row][i]);
        b[2 * row + i % 2][i / 2] = value_of(bits[1][row][i]);
      }
    }
    for (int m = 0; m < 16; ++m) {
      for (int k = 0; k < 32; ++k) {
        for (int n = 0; n < 16; ++n) sums[m][n] += a[m][k] * b[k][n];
      }
    }
    std::memcpy(tiles[kSums], sums, sizeof sums);
  }

  template <class V>
  static void store_bf16(V values, std::uint16_t* p) {
    PairsEmulated<V>::store_bf16(values, p);
  }

 private:
  static float value_of(std::uint16_t bf16) {
    return greedynas::filter::float_of(static_cast<std::uint32_t>(bf16) << 16);
  }
};
