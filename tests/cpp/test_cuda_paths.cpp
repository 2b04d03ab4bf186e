// The CUDA path kernels, run on the CPU (cuda_emulation.h), against the CPU core and the standard library.
#include <algorithm>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "paths/codec.h"
#include "paths/cuda/keys.h"
#include "paths/cuda/paths.h"
#include "paths/key.h"
#include "paths/proposals.h"

using namespace greedynas::paths;

namespace {

using Bytes = std::vector<std::uint8_t>;
using Words = std::vector<std::uint64_t>;
using Keys = std::vector<PathKey>;

constexpr std::uint64_t kPoison = 0xA5A5A5A5A5A5A5A5ULL;

Bytes random_bytes(std::mt19937& random, std::size_t count, std::uint32_t below) {
  Bytes bytes(count);
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random() % below);
  return bytes;
}

Words words_of(const Keys& keys) {
  Words words;
  for (const PathKey& key : keys) words.insert(words.end(), {key.high, key.low});
  return words;
}

// Few different values, so that there are duplicates; both words take part in the order.
Keys random_keys(std::mt19937& random, std::size_t count, std::uint32_t different) {
  Keys keys(count);
  for (auto& key : keys)
    key = {std::uint64_t{random() % different} << 60, (std::uint64_t{random() % different} << 62) + 1};
  return keys;
}

void test_proposals_equal_the_cpu() {
  std::mt19937 random(1);
  for (const auto& [layers, operations, count] :
       {std::array{1, 1, 1}, {3, 5, 255}, {4, 2, 256}, {21, 13, 700}, {25, 32, 257}, {7, 3, 0}}) {
    Bytes allowed = random_bytes(random, static_cast<std::size_t>(layers * operations), 2);
    for (int layer = 0; layer < layers; ++layer) allowed[static_cast<std::size_t>(layer * operations)] = 1;
    for (const std::uint64_t start : {std::uint64_t{0}, std::uint64_t{0xFFFFFFF0}, ~std::uint64_t{5}}) {
      Bytes expected(static_cast<std::size_t>(count * layers), 0xA5);
      Bytes got = expected;
      propose(allowed.data(), layers, operations, 1ULL << 40 | 7, 3, start, count, expected.data());
      cuda::propose(allowed.data(), layers, operations, {1ULL << 40 | 7, 3, start}, count, got.data(), nullptr,
                    nullptr);
      CHECK(got == expected);
    }
  }
}

void test_a_stopped_loop_proposes_nothing() {
  const Bytes allowed{1, 1, 1, 1};
  Bytes paths(20, 0xA5);
  const int go = 0;
  const int stop = 1;
  cuda::propose(allowed.data(), 2, 2, {}, 10, paths.data(), &stop, nullptr);
  CHECK(paths == Bytes(20, 0xA5));
  cuda::propose(allowed.data(), 2, 2, {}, 10, paths.data(), &go, nullptr);
  CHECK(*std::max_element(paths.begin(), paths.end()) == 1);
}

void test_codec_equals_the_cpu() {
  std::mt19937 random(2);
  for (const int layers : {1, 12, 13, 21, 25}) {
    for (const std::int64_t n : {0, 1, 255, 1000}) {
      const Bytes paths = random_bytes(random, static_cast<std::size_t>(n * layers), kMaxOperations);
      Words expected(static_cast<std::size_t>(2 * n), kPoison);
      Words got = expected;
      std::uint64_t bad = kPoison;
      pack(paths.data(), n, layers, expected.data());
      cuda::pack(paths.data(), n, layers, got.data(), &bad, nullptr);
      CHECK(got == expected);
      CHECK(bad == cuda::kNone);
      Bytes back(paths.size(), 0xA5);
      bad = kPoison;
      cuda::unpack(got.data(), n, layers, back.data(), &bad, nullptr);
      CHECK(back == paths);
      CHECK(bad == cuda::kNone);
    }
  }
}

void test_the_first_bad_path_is_named() {
  Bytes paths(3 * 600, 1);
  paths[3 * 311 + 2] = 32;
  paths[3 * 500] = 255;
  Words keys(2 * 600);
  std::uint64_t bad = 0;
  cuda::pack(paths.data(), 600, 3, keys.data(), &bad, nullptr);
  CHECK(bad == 311);
  Bytes two(2 * 600);
  paths[3 * 311 + 2] = paths[3 * 500] = 1;
  for (int i = 0; i < 420; ++i) paths[static_cast<std::size_t>(3 * i + 2)] = 0;  // 0 as the third is as good as none
  cuda::pack(paths.data(), 600, 3, keys.data(), &bad, nullptr);
  cuda::unpack(keys.data(), 600, 2, two.data(), &bad, nullptr);
  CHECK(bad == 420);
}

void test_sort_unique_and_find() {
  std::mt19937 random(3);
  for (const std::size_t n : {0U, 1U, 2U, 31U, 2048U, 2049U, 6000U}) {
    for (const std::uint32_t different : {1U, 4U, 16U}) {
      const Keys keys = random_keys(random, n, different);
      const auto count = static_cast<std::int64_t>(n);
      Keys expected = keys;
      std::sort(expected.begin(), expected.end());
      Words sorted(2 * n, kPoison);
      Bytes workspace(static_cast<std::size_t>(cuda::sort_workspace_bytes(count)));
      cuda::sort_keys(words_of(keys).data(), count, sorted.data(), workspace.data(), nullptr);
      CHECK(sorted == words_of(expected));

      expected.erase(std::unique(expected.begin(), expected.end()), expected.end());
      Words unique(2 * n, kPoison);
      std::int64_t kept = -1;
      Words segments(static_cast<std::size_t>(cuda::unique_workspace_bytes(count)) / sizeof(std::uint64_t), kPoison);
      cuda::unique_keys(sorted.data(), count, unique.data(), &kept, segments.data(), nullptr);
      CHECK(kept == static_cast<std::int64_t>(expected.size()));
      unique.resize(2 * expected.size());
      CHECK(unique == words_of(expected));

      const Keys queries = random_keys(random, 300, 2 * different);
      Bytes found(queries.size(), 0xA5);
      cuda::find_keys(unique.data(), kept, words_of(queries).data(), 300, found.data(), nullptr);
      for (std::size_t i = 0; i < queries.size(); ++i) {
        CHECK(found[i] == (std::binary_search(expected.begin(), expected.end(), queries[i]) ? 1 : 0));
      }
    }
  }
}

void test_bad_sizes_throw() {
  Words words(2);
  Bytes bytes(26);
  CHECK_THROWS(cuda::pack(bytes.data(), 1, 26, words.data(), words.data(), nullptr), std::invalid_argument);
  CHECK_THROWS(cuda::unpack(words.data(), 1, 0, bytes.data(), words.data(), nullptr), std::invalid_argument);
  const Bytes none(4, 0);
  CHECK_THROWS(cuda::propose(none.data(), 2, 2, {}, 1, bytes.data(), nullptr, nullptr), std::invalid_argument);
}

}  // namespace

int main() {
  test_proposals_equal_the_cpu();
  test_a_stopped_loop_proposes_nothing();
  test_codec_equals_the_cpu();
  test_the_first_bad_path_is_named();
  test_sort_unique_and_find();
  test_bad_sizes_throw();
  std::printf(failed_checks == 0 ? "all checks passed\n" : "%d checks failed\n", failed_checks);
  return failed_checks == 0 ? 0 : 1;
}
