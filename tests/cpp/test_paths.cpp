#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_set>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "paths/codec.h"
#include "paths/key.h"
#include "paths/philox.h"
#include "paths/proposals.h"
#include "paths/variation.h"

using namespace greedynas::paths;

namespace {

using Path = std::vector<std::uint8_t>;

// The oracle: bits written one by one into a string of 128 characters.
std::string bits_of(const Path& path) {
  std::string bits(128, '0');
  for (std::size_t layer = 0; layer < path.size(); ++layer) {
    for (int bit = 0; bit < 5; ++bit) {
      if ((path[layer] >> (4 - bit)) & 1) bits[layer * 5 + static_cast<std::size_t>(bit)] = '1';
    }
  }
  return bits;
}

std::string bits_of(PathKey key) {
  std::string bits;
  for (int bit = 63; bit >= 0; --bit) bits += ((key.high >> bit) & 1) != 0 ? '1' : '0';
  for (int bit = 63; bit >= 0; --bit) bits += ((key.low >> bit) & 1) != 0 ? '1' : '0';
  return bits;
}

PathKey pack_one(const Path& path) {
  std::uint64_t words[2];
  pack(path.data(), 1, static_cast<int>(path.size()), words);
  return {words[0], words[1]};
}

Path random_path(std::mt19937& random, std::size_t layers) {
  Path path(layers);
  for (auto& operation : path) operation = static_cast<std::uint8_t>(random() % kMaxOperations);
  return path;
}

// Calls the function with each instruction set that this machine has.
template <typename Function>
void with_each_level(const Function& function) {
  for (const greedynas::cpu::Isa isa : greedynas::cpu::compiled()) {
    if (!greedynas::cpu::available(isa)) continue;
    setenv("GREEDYNAS_CPU_ISA", std::string(greedynas::cpu::name_of(isa)).c_str(), 1);
    function();
  }
  unsetenv("GREEDYNAS_CPU_ISA");
}

std::string message_of(const auto& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

// Arrays of their exact size, so that AddressSanitizer sees any read or write past them.
void test_batches_touch_their_arrays_only() {
  std::mt19937 random(3);
  for (int layers = 1; layers <= kMaxLayers; ++layers) {
    for (const std::int64_t n : {0, 1, 2, 5, 33}) {
      const Path paths = random_path(random, static_cast<std::size_t>(n * layers));
      std::vector<std::uint64_t> keys(static_cast<std::size_t>(2 * n));
      pack(paths.data(), n, layers, keys.data());
      for (std::int64_t i = 0; i < n; ++i) {
        const Path path(paths.begin() + i * layers, paths.begin() + (i + 1) * layers);
        CHECK(bits_of(PathKey{keys[static_cast<std::size_t>(2 * i)], keys[static_cast<std::size_t>(2 * i + 1)]}) ==
              bits_of(path));
      }
      Path back(paths.size(), 255);
      unpack(keys.data(), n, layers, back.data());
      CHECK(back == paths);
    }
  }
}

void test_every_bad_byte_and_bit_is_found() {
  for (int layers = 1; layers <= kMaxLayers; ++layers) {
    for (int bad = 0; bad < 3 * layers; ++bad) {
      Path paths(static_cast<std::size_t>(3 * layers), 31);
      paths[static_cast<std::size_t>(bad)] = static_cast<std::uint8_t>(32 << bad % 3);
      std::uint64_t keys[6];
      CHECK(message_of([&] { pack(paths.data(), 3, layers, keys); }) ==
            "pack: path " + std::to_string(bad / layers) + " has operation " + std::to_string(32 << bad % 3) +
                " at layer " + std::to_string(bad % layers) + ", a key holds 0 to 31");
    }
    for (int bit = 0; bit < 128; ++bit) {
      const std::uint64_t words[4] = {0, 0, bit >= 64 ? 1ULL << (bit - 64) : 0, bit < 64 ? 1ULL << bit : 0};
      Path paths(static_cast<std::size_t>(2 * layers));
      const bool fits = bit >= 128 - 5 * layers;
      CHECK(message_of([&] { unpack(words, 2, layers, paths.data()); }) ==
            (fits ? "" : "unpack: key 1 holds more than " + std::to_string(layers) + " layers"));
    }
  }
}

void test_large_batches_on_threads_name_the_first_bad_row() {
  constexpr std::int64_t kRows = 200'000;
  setenv("GREEDYNAS_NUM_THREADS", "4", 1);
  std::mt19937 random(4);
  Path paths = random_path(random, static_cast<std::size_t>(kRows * 21));
  std::vector<std::uint64_t> keys(static_cast<std::size_t>(2 * kRows));
  pack(paths.data(), kRows, 21, keys.data());
  for (std::int64_t i = 0; i < kRows; i += 997) {
    const Path path(paths.begin() + i * 21, paths.begin() + (i + 1) * 21);
    CHECK(pack_one(path) ==
          (PathKey{keys[static_cast<std::size_t>(2 * i)], keys[static_cast<std::size_t>(2 * i + 1)]}));
  }
  Path back(paths.size());
  unpack(keys.data(), kRows, 21, back.data());
  CHECK(back == paths);
  for (const std::size_t row : {199'999U, 150'000U, 70'001U, 70'000U, 5U}) {
    paths[row * 21 + 20] = 99;
    keys[row * 2 + 1] |= 1;
    CHECK(message_of([&] { pack(paths.data(), kRows, 21, std::vector<std::uint64_t>(keys.size()).data()); }) ==
          "pack: path " + std::to_string(row) + " has operation 99 at layer 20, a key holds 0 to 31");
    CHECK(message_of([&] { unpack(keys.data(), kRows, 21, back.data()); }) ==
          "unpack: key " + std::to_string(row) + " holds more than 21 layers");
  }
  unsetenv("GREEDYNAS_NUM_THREADS");
}

void test_pack_matches_the_bit_string_for_every_length() {
  std::mt19937 random(1);
  for (std::size_t layers = 1; layers <= static_cast<std::size_t>(kMaxLayers); ++layers) {
    for (int i = 0; i < 50; ++i) {
      const Path path = random_path(random, layers);
      const PathKey key = pack_one(path);
      CHECK(bits_of(key) == bits_of(path));
      Path back(layers);
      const std::uint64_t words[2] = {key.high, key.low};
      unpack(words, 1, static_cast<int>(layers), back.data());
      CHECK(back == path);
    }
  }
}

void test_order_equality_and_hash_follow_the_paths() {
  std::mt19937 random(2);
  for (int i = 0; i < 2000; ++i) {
    Path a = random_path(random, 21);
    Path b = a;
    if (i % 3 != 0) b[random() % b.size()] = static_cast<std::uint8_t>(random() % kMaxOperations);
    const PathKey ka = pack_one(a);
    const PathKey kb = pack_one(b);
    CHECK((ka == kb) == (a == b));
    CHECK((ka < kb) == std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end()));
    if (a == b) CHECK(hash(ka) == hash(kb));
  }
  // All paths of three layers: no two share a hash, and low bits spread (a hash table uses them).
  std::unordered_set<std::uint64_t> hashes;
  std::vector<int> buckets(256, 0);
  for (int code = 0; code < 32 * 32 * 32; ++code) {
    const PathKey key = pack_one({static_cast<std::uint8_t>(code >> 10), static_cast<std::uint8_t>((code >> 5) & 31),
                                  static_cast<std::uint8_t>(code & 31)});
    hashes.insert(hash(key));
    ++buckets[hash(key) & 255];
  }
  CHECK(hashes.size() == 32u * 32u * 32u);
  CHECK(*std::max_element(buckets.begin(), buckets.end()) < 200);  // mean 128, standard deviation 11
}

void test_bad_input_throws() {
  std::uint64_t words[2] = {0, 0};
  const Path bad{1, 32, 3};
  CHECK_THROWS(pack(bad.data(), 1, 3, words), std::invalid_argument);
  CHECK_THROWS(pack(bad.data(), 1, 0, words), std::invalid_argument);
  CHECK_THROWS(pack(bad.data(), 1, kMaxLayers + 1, words), std::invalid_argument);
  const PathKey longer = pack_one({1, 2, 3});
  const std::uint64_t longer_words[2] = {longer.high, longer.low};
  Path two(2);
  CHECK_THROWS(unpack(longer_words, 1, 2, two.data()), std::invalid_argument);
}

void test_philox_known_answers() {
  // Known answers published with the Random123 library (kat_vectors, philox4x32 10).
  CHECK((philox4x32_10({0, 0, 0, 0}, {0, 0}) == PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  CHECK(
      (philox4x32_10({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) == PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK((philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
         PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

void test_proposals_do_not_depend_on_the_batch() {
  const std::vector<std::uint8_t> allowed{1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1};  // 5 layers, 3 operations
  std::vector<std::uint8_t> whole(100 * 5);
  propose(allowed.data(), 5, 3, 42, 7, 1000, 100, whole.data());
  for (int i = 0; i < 100; ++i) {
    std::vector<std::uint8_t> one(5);
    propose(allowed.data(), 5, 3, 42, 7, static_cast<std::uint64_t>(1000 + i), 1, one.data());
    CHECK(std::equal(one.begin(), one.end(), whole.begin() + i * 5));
    for (int layer = 0; layer < 5; ++layer)
      CHECK(allowed[static_cast<std::size_t>(layer * 3 + one[static_cast<std::size_t>(layer)])] == 1);
  }
  std::vector<std::uint8_t> other(100 * 5);
  propose(allowed.data(), 5, 3, 42, 8, 1000, 100, other.data());
  CHECK(other != whole);
  propose(allowed.data(), 5, 3, 43, 7, 1000, 100, other.data());
  CHECK(other != whole);
}

void test_an_empty_layer_throws() {
  const std::vector<std::uint8_t> allowed{1, 1, 0, 0};
  std::vector<std::uint8_t> path(2);
  CHECK_THROWS(propose(allowed.data(), 2, 2, 0, 0, 0, 1, path.data()), std::invalid_argument);
}

void test_variation_does_not_depend_on_the_batch() {
  constexpr int kLayers = 25;
  const std::vector<std::uint8_t> allowed(kLayers * 7, 1);
  std::vector<std::uint8_t> parents(40 * kLayers);
  propose(allowed.data(), kLayers, 7, 1, 0, 0, 40, parents.data());
  std::vector<std::uint8_t> crossed(parents.size());
  std::vector<std::uint8_t> mutated(parents.size());
  const std::uint64_t start = (1ULL << 32) - 10;  // the index passes from one counter word into the next
  crossover(parents.data(), 20, kLayers, 0.9, 42, 7, start, crossed.data());
  mutate(parents.data(), 40, allowed.data(), kLayers, 7, 0.5, 42, 7, start, mutated.data());
  for (int i = 0; i < 40; ++i) {
    const std::uint64_t at = start + static_cast<std::uint64_t>(i);
    std::vector<std::uint8_t> two(2 * kLayers);
    if (i < 20) {
      crossover(parents.data() + i * 2 * kLayers, 1, kLayers, 0.9, 42, 7, at, two.data());
      CHECK(std::equal(two.begin(), two.end(), crossed.begin() + i * 2 * kLayers));
    }
    std::vector<std::uint8_t> one(kLayers);
    mutate(parents.data() + i * kLayers, 1, allowed.data(), kLayers, 7, 0.5, 42, 7, at, one.data());
    CHECK(std::equal(one.begin(), one.end(), mutated.begin() + i * kLayers));
  }
  std::vector<std::uint8_t> other(parents.size());
  for (const auto& [seed, stream, first] : {std::tuple{43U, 7U, start}, {42U, 8U, start}, {42U, 7U, start + 1}}) {
    crossover(parents.data(), 20, kLayers, 0.9, seed, stream, first, other.data());
    CHECK(other != crossed);
    mutate(parents.data(), 40, allowed.data(), kLayers, 7, 0.5, seed, stream, first, other.data());
    CHECK(other != mutated);
  }
}

// The documented counters, one by one.
void test_variation_draws_from_the_documented_blocks() {
  const std::vector<std::uint8_t> parents{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  const std::vector<std::uint8_t> allowed(6 * 16, 1);
  for (std::uint32_t index = 0; index < 200; ++index) {
    const auto block = [&](std::uint32_t last) { return philox4x32_10({index, 0, 5, last}, {9, 0}); };
    Path children(12);
    crossover(parents.data(), 1, 6, 0.75, 9, 5, index, children.data());
    const PhiloxBlock pair = block(1 << 6);
    for (std::size_t l = 0; l < 6; ++l) {
      const bool swapped = pair[0] < 0xc0000000U && (pair[1] >> l & 1) != 0;
      CHECK(children[l] == parents[swapped ? l + 6 : l]);
      CHECK(children[l + 6] == parents[swapped ? l : l + 6]);
    }
    Path mutated(6);
    mutate(parents.data(), 1, allowed.data(), 6, 16, 0.25, 9, 5, index, mutated.data());
    for (std::size_t l = 0; l < 6; ++l) {
      const auto group = static_cast<std::uint32_t>(l / 4);
      std::uint64_t expected = l;
      if (block(2 << 6 | group)[l % 4] < 0x40000000U) {
        expected = static_cast<std::uint64_t>(block(2 << 6 | 8 | group)[l % 4]) * 15 >> 32;
        if (expected >= l) ++expected;
      }
      CHECK(mutated[l] == expected);  // 2^32 mod 15 is 1: none of these draws is taken again
    }
  }
}

void test_variation_refuses() {
  const Path paths{0, 1, 2, 0, 1, 9};
  const std::vector<std::uint8_t> allowed{1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1};
  Path out(12);
  CHECK(message_of([&] { mutate(paths.data(), 2, allowed.data(), 3, 4, 0, 0, 0, 0, out.data()); }) ==
        "mutate: path 1 has operation 9 at layer 2, which is not allowed");
  CHECK(message_of([&] { mutate(paths.data() + 1, 1, allowed.data(), 3, 4, 0, 0, 0, 0, out.data()); }) == "");
  std::vector<std::uint8_t> other = allowed;
  other[8] = 0;
  CHECK(message_of([&] { mutate(paths.data() + 1, 1, other.data(), 3, 4, 0, 0, 0, 0, out.data()); }) ==
        "mutate: path 0 has operation 0 at layer 2, which is not allowed");
  for (const double bad : {-0.1, 1.1, std::nan("")}) {
    CHECK_THROWS(mutate(paths.data(), 1, allowed.data(), 3, 4, bad, 0, 0, 0, out.data()), std::invalid_argument);
    CHECK_THROWS(crossover(paths.data(), 1, 3, bad, 0, 0, 0, out.data()), std::invalid_argument);
  }
  CHECK_THROWS(mutate(paths.data(), 1, allowed.data(), 3, 33, 0, 0, 0, 0, out.data()), std::invalid_argument);
  CHECK_THROWS(mutate(paths.data(), 1, allowed.data(), 26, 4, 0, 0, 0, 0, out.data()), std::invalid_argument);
  CHECK_THROWS(crossover(paths.data(), 1, 0, 0, 0, 0, 0, out.data()), std::invalid_argument);
}

}  // namespace

int main() {
  with_each_level(test_pack_matches_the_bit_string_for_every_length);
  with_each_level(test_batches_touch_their_arrays_only);
  with_each_level(test_every_bad_byte_and_bit_is_found);
  with_each_level(test_large_batches_on_threads_name_the_first_bad_row);
  test_variation_does_not_depend_on_the_batch();
  test_variation_draws_from_the_documented_blocks();
  test_variation_refuses();
  test_order_equality_and_hash_follow_the_paths();
  test_bad_input_throws();
  test_philox_known_answers();
  test_proposals_do_not_depend_on_the_batch();
  test_an_empty_layer_throws();
  std::printf(failed_checks == 0 ? "all checks passed\n" : "%d checks failed\n", failed_checks);
  return failed_checks == 0 ? 0 : 1;
}
