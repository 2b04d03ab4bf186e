#include <algorithm>
#include <atomic>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "check.h"
#include "paths/key.h"
#include "paths/key_set.h"
#include "paths/sort.h"

using namespace greedynas::paths;

namespace {

using Words = std::vector<std::uint64_t>;

PathKey key_at(const Words& words, std::size_t i) { return {words[2 * i], words[2 * i + 1]}; }

Words words_of(const std::vector<PathKey>& keys) {
  Words words;
  for (const PathKey key : keys) words.insert(words.end(), {key.high, key.low});
  return words;
}

// Keys of several kinds: any 128 bits, few distinct ones, equal but for their last bits, zeros.
std::vector<Words> batches() {
  std::mt19937_64 random(5);
  std::vector<Words> all;
  for (const std::size_t n : {0, 1, 2, 17, 511, 513, 3000, 20'000}) {
    for (int kind = 0; kind < 4; ++kind) {
      Words words(2 * n);
      for (std::size_t i = 0; i < words.size(); ++i) {
        const std::uint64_t any = random();
        if (kind == 0) words[i] = any;
        if (kind == 1) words[i] = any % 7 << (any % 3 * 30);
        if (kind == 2) words[i] = i % 2 == 0 ? 42 : any & 0xfff;
      }
      all.push_back(words);
    }
  }
  return all;
}

void test_sorting_and_unique_against_the_standard_library() {
  for (const Words& words : batches()) {
    const std::size_t n = words.size() / 2;
    std::vector<PathKey> keys(n);
    std::map<PathKey, std::int64_t> firsts;
    for (std::size_t i = 0; i < n; ++i) {
      keys[i] = key_at(words, i);
      firsts.try_emplace(keys[i], static_cast<std::int64_t>(i));
    }
    std::vector<PathKey> expected = keys;
    std::sort(expected.begin(), expected.end());
    Words sorted = words;
    sort_keys(sorted.data(), static_cast<std::int64_t>(n));
    CHECK(sorted == words_of(expected));

    Words unique(2 * n);
    std::vector<std::int64_t> first(n), inverse(n);
    const auto count = static_cast<std::size_t>(
        unique_keys(words.data(), static_cast<std::int64_t>(n), unique.data(), first.data(), inverse.data()));
    CHECK(count == firsts.size());
    std::size_t place = 0;
    for (const auto& [key, index] : firsts) {
      CHECK(key_at(unique, place) == key);
      CHECK(first[place++] == index);
    }
    for (std::size_t i = 0; i < n; ++i) CHECK(key_at(unique, static_cast<std::size_t>(inverse[i])) == keys[i]);
  }
}

void test_the_set_against_the_standard_library() {
  for (const Words& words : batches()) {
    KeySet set;
    std::set<PathKey> expected;
    const std::size_t n = words.size() / 2;
    for (std::size_t begin = 0; begin < n; begin += n / 3 + 1) {
      const std::size_t end = std::min(n, begin + n / 3 + 1);
      const auto count = static_cast<std::int64_t>(end - begin);
      std::vector<std::uint8_t> found(end - begin, 7), fresh(end - begin, 7);
      set.contains(words.data() + 2 * begin, count, found.data());
      for (std::size_t i = begin; i < end; ++i) CHECK(found[i - begin] == expected.count(key_at(words, i)));
      std::int64_t total = set.insert(words.data() + 2 * begin, count, fresh.data());
      for (std::size_t i = begin; i < end; ++i) {
        CHECK(fresh[i - begin] == (expected.insert(key_at(words, i)).second ? 1 : 0));
        total -= fresh[i - begin];
      }
      CHECK(total == 0);
      CHECK(set.size() == static_cast<std::int64_t>(expected.size()));
    }
    Words out(2 * expected.size());
    CHECK(set.export_keys(out.data()) == set.size());
    CHECK(out == words_of({expected.begin(), expected.end()}));
    if (!expected.empty()) {
      Words untouched(2, 99);
      CHECK(set.export_keys(untouched.data(), set.size() - 1) == set.size());
      CHECK((untouched == Words{99, 99}));
    }
  }
}

void test_single_keys() {
  KeySet set;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    const PathKey key{i % 2, i / 2 << 40};
    CHECK(!set.contains(key));
    CHECK(set.insert(key));
    CHECK(set.contains(key));
    CHECK(!set.insert(key));
  }
  CHECK(set.size() == 1000);
  CHECK(!set.contains(PathKey{2, 0}));
}

void test_threads_may_share_a_set() {
  constexpr std::int64_t kKeys = 5000;
  Words words(2 * kKeys);
  for (std::size_t i = 0; i < kKeys; ++i) words[2 * i] = i * 0x9e3779b97f4a7c15ULL;
  KeySet set;
  std::atomic<std::int64_t> fresh_ones = 0;
  std::vector<std::thread> threads;
  for (std::int64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::vector<std::uint8_t> marks(kKeys);
      for (std::int64_t i = 0; i < kKeys; i += 500) {
        const std::int64_t begin = (i + t * 1500) % kKeys;
        fresh_ones += set.insert(words.data() + 2 * begin, 500, marks.data());
        set.contains(words.data(), kKeys, marks.data());
        Words out(2 * kKeys);
        CHECK(set.export_keys(out.data()) <= set.size());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(fresh_ones == kKeys);
  CHECK(set.size() == kKeys);
}

}  // namespace

int main() {
  test_sorting_and_unique_against_the_standard_library();
  test_the_set_against_the_standard_library();
  test_single_keys();
  test_threads_may_share_a_set();
  std::printf(failed_checks == 0 ? "all checks passed\n" : "%d checks failed\n", failed_checks);
  return failed_checks == 0 ? 0 : 1;
}
