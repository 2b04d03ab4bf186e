// The CUDA filter kernels, run on the CPU (cuda_emulation.h), against a plain scalar loop.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "cuda_emulation.h"
#include "cuda_engine.h"
#include "paths/codec.h"

using namespace greedynas;
using filter::Precision;
using reference::Bytes;
using reference::Engine;
using reference::Floats;
using reference::Net;

namespace {

struct Case {
  int layers, operations, hidden;
  int n;
};

// The second layer has about half of the operations, where there are two.
Net net_for(const Case& c) {
  std::vector<int> num_ops(static_cast<std::size_t>(c.layers), c.operations);
  if (c.layers > 1) num_ops[1] = (c.operations + 1) / 2;
  return Net(num_ops, c.hidden, static_cast<unsigned>(c.hidden + c.layers), 1.5F);
}

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

const std::uint8_t* path_at(const Net& net, const Bytes& paths, std::size_t i) {
  return &paths[i * static_cast<std::size_t>(net.shape.layers)];
}

void check_float32(const Case& c) {
  const Net net = net_for(c);
  const Bytes paths = net.random_paths(c.n, 5);
  const Floats scores = Engine(net, Precision::float32).score_paths(paths);
  for (std::size_t i = 0; i < scores.size(); i += i + 2 < scores.size() && c.hidden > 64 ? 13 : 1) {
    CHECK(same_bits(scores[i], net.log_weak(path_at(net, paths, i))));
  }
  CHECK(std::none_of(scores.begin(), scores.end(), [](float score) { return std::isnan(score); }));
}

void test_float32_is_the_reference_bit_for_bit() {
  for (const Case& c : {Case{1, 3, 16, 5},
                        {2, 1, 16, 3},
                        {64, 2, 16, 3},
                        {25, 32, 32, 9},
                        {4, 5, 48, 70},
                        {3, 7, 64, 65},
                        {3, 5, 96, 65},
                        {3, 13, 128, 6},
                        {2, 3, 144, 33},
                        {2, 2, 256, 3}}) {
    check_float32(c);
  }
  // W_hh is kept in shared memory as a whole, in part, or not at all.
  const int most = emulation::max_shared_bytes;
  emulation::max_shared_bytes = 163 * 1024;
  for (const Case& c : {Case{3, 7, 64, 65}, {4, 5, 96, 70}, {3, 3, 128, 6}, {3, 2, 256, 3}}) check_float32(c);
  emulation::max_shared_bytes = 99 * 1024;
  for (const Case& c : {Case{1, 3, 128, 5}, {4, 3, 128, 65}, {3, 2, 256, 3}}) check_float32(c);
  emulation::max_shared_bytes = 36 * 1024;
  for (const Case& c : {Case{2, 3, 32, 9}, {4, 7, 64, 65}}) check_float32(c);
  emulation::max_shared_bytes = most;
}

// The order of additions differs from the reference's, and a state that lies between two bfloat16 numbers may then be
// rounded the other way. Measured over these cases: 1e-6 from the rounded reference, 3.5e-3 from the exact one.
void check_bf16(const Case& c) {
  const Net net = net_for(c);
  const Bytes paths = net.random_paths(c.n, 6);
  const Floats scores = Engine(net, Precision::bf16).score_paths(paths);
  for (std::size_t i = 0; i < scores.size(); i += scores.size() > 8 ? 7 : 1) {
    const float rounded = net.log_weak(path_at(net, paths, i), true);
    const float exact = net.log_weak(path_at(net, paths, i));
    CHECK(std::abs(scores[i] - rounded) < 1e-4F);
    CHECK(std::abs(scores[i] - exact) < 1e-2F);
  }
  CHECK(std::none_of(scores.begin(), scores.end(), [](float score) { return std::isnan(score); }));
}

void test_bf16_stays_in_its_band() {
  for (const Case& c :
       {Case{1, 3, 16, 5}, {6, 1, 16, 3}, {25, 5, 16, 70}, {4, 5, 48, 70}, {3, 13, 128, 6}, {2, 2, 144, 33}}) {
    check_bf16(c);
  }
  const int most = emulation::max_shared_bytes;
  check_bf16({2, 2, 256, 3});                // W_hh does not fit into shared memory
  emulation::max_shared_bytes = 160 * 1024;  // here it does, beside 48 paths
  check_bf16({2, 2, 128, 50});
  emulation::max_shared_bytes = 100 * 1024;  // and here not
  check_bf16({2, 2, 128, 5});
  emulation::max_shared_bytes = most;
}

void test_keys_score_as_paths() {
  for (const int layers : {1, 13, 25}) {
    const Net net = net_for({layers, 32, 16, 0});
    const Bytes paths = net.random_paths(67, 8);
    std::vector<std::uint64_t> keys(2 * 67);
    paths::pack(paths.data(), 67, layers, keys.data());
    for (const Precision precision : {Precision::float32, Precision::bf16}) {
      const Engine engine(net, precision);
      filter::cuda::ScoreStatus status{};
      const Floats scores = engine.score({nullptr, keys.data()}, 67, &status);
      CHECK(status.bad_path == filter::cuda::kNoPath);
      CHECK(scores == engine.score_paths(paths));
    }
  }
}

void test_large_batches_are_scored_in_parts() {
  const Net net = net_for({1, 5, 16, 0});
  const int n = 65536 + 70;
  const Bytes paths = net.random_paths(n, 9);
  const Engine engine(net, Precision::bf16);
  const Floats scores = engine.score_paths(paths);
  const Floats last = engine.score_paths(Bytes(paths.end() - 100, paths.end()));
  CHECK(std::equal(last.begin(), last.end(), scores.end() - 100));
}

void test_wrong_operations_and_nan_are_reported() {
  const Net net({6, 2, 6}, 16, 4);
  Bytes paths = net.random_paths(100, 9);
  for (const Precision precision : {Precision::float32, Precision::bf16}) {
    Bytes wrong = paths;
    wrong[3 * 70 + 1] = 2;
    wrong[3 * 80] = 255;
    filter::cuda::ScoreStatus status{};
    Engine(net, precision).score({wrong.data(), nullptr}, 100, &status);
    CHECK(status.bad_path == 70);
    CHECK(status.nan_path == filter::cuda::kNoPath);

    Net huge = net;
    for (int j = 0; j < 16; ++j) {
      huge.fc1_bias[static_cast<std::size_t>(j)] = std::numeric_limits<float>::infinity();
      huge.fc2_weight[static_cast<std::size_t>(j)] = j % 2 == 0 ? 1.0F : -1.0F;
      huge.fc2_weight[static_cast<std::size_t>(16 + j)] = 0;
    }
    const Floats scores = Engine(huge, precision).score({paths.data(), nullptr}, 100, &status);
    CHECK(status.nan_path == 0);
    CHECK(std::isnan(scores[99]));
  }
}

void test_bad_sizes_throw() {
  const auto refuses = [](filter::Shape shape) {
    CHECK_THROWS(filter::cuda::weights_bytes(shape, Precision::bf16), std::invalid_argument);
  };
  refuses({0, 3, 16});
  refuses({65, 3, 16});
  refuses({3, 33, 16});
  refuses({3, 3, 24});
  refuses({3, 3, 272});
  const Net net = net_for({26, 2, 16, 0});
  const Engine engine(net, Precision::float32);
  filter::cuda::ScoreStatus status{};
  const std::uint64_t key[2] = {0, 0};
  CHECK_THROWS(engine.score({nullptr, key}, 1, &status), std::invalid_argument);
}

}  // namespace

int main() {
  test_float32_is_the_reference_bit_for_bit();
  test_bf16_stays_in_its_band();
  test_keys_score_as_paths();
  test_large_batches_are_scored_in_parts();
  test_wrong_operations_and_nan_are_reported();
  test_bad_sizes_throw();
  std::printf(failed_checks == 0 ? "all checks passed\n" : "%d checks failed\n", failed_checks);
  return failed_checks == 0 ? 0 : 1;
}
