#include <algorithm>
#include <cstdint>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <vector>

#include "check.h"
#include "paths/codec.h"
#include "paths/key.h"
#include "paths/philox.h"
#include "paths/proposals.h"

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

}  // namespace

int main() {
  test_pack_matches_the_bit_string_for_every_length();
  test_order_equality_and_hash_follow_the_paths();
  test_bad_input_throws();
  test_philox_known_answers();
  test_proposals_do_not_depend_on_the_batch();
  test_an_empty_layer_throws();
  std::printf(failed_checks == 0 ? "all checks passed\n" : "%d checks failed\n", failed_checks);
  return failed_checks == 0 ? 0 : 1;
}
