#include "paths/codec.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "cpu/isa.h"
#include "cpu/threads.h"
#include "paths/codec_levels.h"
#include "paths/key.h"

namespace greedynas::paths {
namespace {

constexpr std::int64_t kGrain = 1 << 15;  // rows a range: some 100 microseconds, and 1 MiB of both arrays

void check_layers(const char* function, int layers) {
  if (layers < 1 || layers > kMaxLayers) {
    throw std::invalid_argument(std::string(function) + ": a key holds 1 to " + std::to_string(kMaxLayers) +
                                " layers, got " + std::to_string(layers));
  }
}

struct Rows {
  PackRows pack;
  UnpackRows unpack;
};

Rows selected_rows() {
  [[maybe_unused]] const cpu::Isa isa = cpu::selected();
#ifdef GREEDYNAS_X86
  // These AMD families run pext and pdep as hundreds of micro-operations; there the plain code is faster.
  static const bool slow = __builtin_cpu_is("amdfam17h") || __builtin_cpu_is("amdfam15h");
  if (isa >= cpu::Isa::avx2 && !slow) return {pack_rows_bmi2, unpack_rows_bmi2};
#endif
  return {pack_rows_portable, unpack_rows_portable};
}

// Calls rows(begin, count), which returns how many rows it did before a bad one, over all n; returns the first bad row
// of all, or n.
template <typename Function>
std::int64_t first_bad(std::int64_t n, const Function& rows) {
  if (n <= kGrain) return rows(0, n);
  std::atomic<std::int64_t> bad = n;
  cpu::parallel_for(n, kGrain, cpu::num_threads(), [&](std::int64_t begin, std::int64_t end) {
    if (bad.load(std::memory_order_relaxed) < begin) return;
    const std::int64_t done = begin + rows(begin, end - begin);
    if (done == end) return;
    std::int64_t known = bad.load(std::memory_order_relaxed);
    while (done < known && !bad.compare_exchange_weak(known, done, std::memory_order_relaxed)) {
    }
  });
  return bad.load();
}

}  // namespace

void pack(const std::uint8_t* paths, std::int64_t n, int layers, std::uint64_t* keys) {
  check_layers("pack", layers);
  const PackRows rows = selected_rows().pack;
  const std::int64_t bad = first_bad(n, [&](std::int64_t begin, std::int64_t count) {
    return rows(paths + begin * layers, count, layers, keys + 2 * begin);
  });
  if (bad == n) return;
  const std::uint8_t* path = paths + bad * layers;
  const std::uint8_t* operation = std::find_if(path, path + layers, [](std::uint8_t o) { return o >= kMaxOperations; });
  throw std::invalid_argument("pack: path " + std::to_string(bad) + " has operation " + std::to_string(*operation) +
                              " at layer " + std::to_string(operation - path) + ", a key holds 0 to " +
                              std::to_string(kMaxOperations - 1));
}

void unpack(const std::uint64_t* keys, std::int64_t n, int layers, std::uint8_t* paths) {
  check_layers("unpack", layers);
  const UnpackRows rows = selected_rows().unpack;
  const std::int64_t bad = first_bad(n, [&](std::int64_t begin, std::int64_t count) {
    return rows(keys + 2 * begin, count, layers, paths + begin * layers);
  });
  if (bad == n) return;
  throw std::invalid_argument("unpack: key " + std::to_string(bad) + " holds more than " + std::to_string(layers) +
                              " layers");
}

}  // namespace greedynas::paths
