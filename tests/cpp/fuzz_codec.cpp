// libFuzzer entry point: any bytes as paths and as keys, at each instruction set that this machine has.
//
// cmake -S . -B build-fuzz -DCMAKE_CXX_COMPILER=clang++ -DGREEDYNAS_PYTHON=OFF -DGREEDYNAS_TESTS=ON -DGREEDYNAS_FUZZ=ON
// cmake --build build-fuzz && build-fuzz/tests/cpp/fuzz_codec -max_total_time=300
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "paths/codec.h"
#include "paths/key.h"
#include "paths/key_set.h"
#include "paths/sort.h"

using namespace greedynas;

namespace {

using Bytes = std::vector<std::uint8_t>;
using Words = std::vector<std::uint64_t>;

void require(bool condition) {
  if (!condition) std::abort();
}

// Whether pack takes the paths; then they must be the numbers in base 32 and come back.
bool pack_holds(const Bytes& paths, std::int64_t n, int layers) {
  Words keys(static_cast<std::size_t>(2 * n));
  try {
    paths::pack(paths.data(), n, layers, keys.data());
  } catch (const std::invalid_argument&) {
    return false;
  }
  for (std::int64_t i = 0; i < n; ++i) {
    paths::PathKey key;
    for (int layer = 0; layer < layers; ++layer) {
      key = paths::with_operation(key, layer, paths[static_cast<std::size_t>(i * layers + layer)]);
    }
    require(keys[static_cast<std::size_t>(2 * i)] == key.high && keys[static_cast<std::size_t>(2 * i + 1)] == key.low);
  }
  Bytes back(paths.size());
  paths::unpack(keys.data(), n, layers, back.data());
  require(back == paths);
  return true;
}

// Whether unpack takes the keys; then packing must give them again.
bool unpack_holds(const Words& keys, int layers) {
  const auto n = static_cast<std::int64_t>(keys.size() / 2);
  Bytes paths(static_cast<std::size_t>(n * layers));
  try {
    paths::unpack(keys.data(), n, layers, paths.data());
  } catch (const std::invalid_argument&) {
    return false;
  }
  Words again(keys.size());
  paths::pack(paths.data(), n, layers, again.data());
  require(again == keys);
  return true;
}

void sets_hold(const Words& keys) {
  const std::size_t n = keys.size() / 2;
  std::set<paths::PathKey> expected;
  for (std::size_t i = 0; i < n; ++i) expected.insert({keys[2 * i], keys[2 * i + 1]});
  Words unique(keys.size());
  std::vector<std::int64_t> first(n), inverse(n);
  const auto signed_n = static_cast<std::int64_t>(n);
  const std::int64_t count = paths::unique_keys(keys.data(), signed_n, unique.data(), first.data(), inverse.data());
  require(count == static_cast<std::int64_t>(expected.size()));
  paths::KeySet set;
  Bytes fresh(n);
  require(set.insert(keys.data(), signed_n, fresh.data()) == count);
  Words exported(static_cast<std::size_t>(2 * count));
  require(set.export_keys(exported.data(), count) == count);
  unique.resize(exported.size());
  require(exported == unique);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const int layers = data[0] % (paths::kMaxLayers + 2);  // 0 and 26 are refused
  const std::uint8_t mask = data[1] % 2 == 0 ? 31 : 255;
  data += 2;
  size -= 2;
  const auto n = layers == 0 ? 0 : static_cast<std::int64_t>(size) / layers;
  Bytes paths(static_cast<std::size_t>(n * layers));
  for (std::size_t i = 0; i < paths.size(); ++i) paths[i] = data[i] & mask;
  Words keys(size / 16 * 2);
  if (!keys.empty()) std::memcpy(keys.data(), data, keys.size() * 8);
  std::set<bool> packed, unpacked;
  for (const cpu::Isa isa : cpu::compiled()) {
    if (!cpu::available(isa)) continue;
    setenv("GREEDYNAS_CPU_ISA", std::string(cpu::name_of(isa)).c_str(), 1);
    packed.insert(pack_holds(paths, n, layers));
    unpacked.insert(unpack_holds(keys, layers));
  }
  require(packed.size() == 1 && unpacked.size() == 1);  // all levels refuse the same
  sets_hold(keys);
  return 0;
}
