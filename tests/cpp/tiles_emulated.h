// The plain twin of csrc/cpu/tiles_amx.h, so that the tile kernel runs on any machine.
#pragma once

#include <cstdint>
#include <cstring>

#include "filter/arithmetic.h"

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
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 16; ++n) {
        float sum;
        std::memcpy(&sum, &tiles[kSums][m][4 * n], sizeof sum);
        for (int k = 0; k < 16; ++k) {
          for (int half = 0; half < 2; ++half) {
            sum += bf16(&tiles[kA][m][4 * k + 2 * half]) * bf16(&tiles[kB][k][4 * n + 2 * half]);
          }
        }
        std::memcpy(&tiles[kSums][m][4 * n], &sum, sizeof sum);
      }
    }
  }

 private:
  static float bf16(const unsigned char* p) {
    std::uint16_t bits;
    std::memcpy(&bits, p, sizeof bits);
    return greedynas::filter::float_of(static_cast<std::uint32_t>(bits) << 16);
  }
};
