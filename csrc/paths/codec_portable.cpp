// The codec in plain C++: neighbouring fields are moved together in three steps, 5 -> 10 -> 20 -> 40 bits.
#include "paths/codec_levels.h"
#include "paths/codec_rows.h"

namespace greedynas::paths {
namespace {

struct Portable {
  static std::uint64_t gather(std::uint64_t bytes) {
    std::uint64_t x = (bytes & 0x001f001f001f001fULL) | (bytes & 0x1f001f001f001f00ULL) >> 3;
    x = (x & 0x000003ff000003ffULL) | (x & 0x03ff000003ff0000ULL) >> 6;
    return (x & 0x00000000000fffffULL) | (x & 0x000fffff00000000ULL) >> 12;
  }

  static std::uint64_t scatter(std::uint64_t bits) {
    std::uint64_t x = (bits & 0x00000000000fffffULL) | (bits & 0x000000fffff00000ULL) << 12;
    x = (x & 0x000003ff000003ffULL) | (x & 0x000ffc00000ffc00ULL) << 6;
    return (x & 0x001f001f001f001fULL) | (x & 0x03e003e003e003e0ULL) << 3;
  }
};

}  // namespace

std::int64_t pack_rows_portable(const std::uint8_t* paths, std::int64_t n, int layers, std::uint64_t* keys) {
  return pack_rows<Portable>(paths, n, layers, keys);
}

std::int64_t unpack_rows_portable(const std::uint64_t* keys, std::int64_t n, int layers, std::uint8_t* paths) {
  return unpack_rows<Portable>(keys, n, layers, paths);
}

}  // namespace greedynas::paths
