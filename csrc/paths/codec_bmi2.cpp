// The codec with BMI2, which moves eight operations in one instruction. Compiled for AVX2 and BMI2; called at run time
// only where they are found.
#include <immintrin.h>

#include "paths/codec_levels.h"
#include "paths/codec_rows.h"

namespace greedynas::paths {
namespace {

struct Bmi2 {
  static constexpr std::uint64_t kOperations = 0x1f1f1f1f1f1f1f1fULL;
  static std::uint64_t gather(std::uint64_t bytes) { return _pext_u64(bytes, kOperations); }
  static std::uint64_t scatter(std::uint64_t bits) { return _pdep_u64(bits, kOperations); }
};

}  // namespace

std::int64_t pack_rows_bmi2(const std::uint8_t* paths, std::int64_t n, int layers, std::uint64_t* keys) {
  return pack_rows<Bmi2>(paths, n, layers, keys);
}

std::int64_t unpack_rows_bmi2(const std::uint64_t* keys, std::int64_t n, int layers, std::uint8_t* paths) {
  return unpack_rows<Bmi2>(keys, n, layers, paths);
}

}  // namespace greedynas::paths
