#include "filter/model.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <stdexcept>
#include <string>

#include "filter/cpu/kernels.h"
#include "paths/key.h"

namespace greedynas::filter {
namespace {

// Beginnings are shared up to so many combinations of operations: 4 MB at H = 128, and about as much work as 400 paths.
constexpr std::int64_t kMaxPrefixStates = 4096;

void check(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument("filter: " + message);
}

void check_sizes(const Shape& shape, const std::vector<int>& num_ops) {
  check(shape.layers >= 1 && shape.layers <= kMaxFilterLayers,
        "1 to " + std::to_string(kMaxFilterLayers) + " layers are supported, got " + std::to_string(shape.layers));
  check(shape.operations >= 1 && shape.operations <= paths::kMaxOperations,
        "1 to " + std::to_string(paths::kMaxOperations) + " operations a layer are supported, got " +
            std::to_string(shape.operations));
  check(
      shape.hidden >= 16 && shape.hidden <= kMaxHidden && shape.hidden % 16 == 0,
      "hidden must be a multiple of 16 up to " + std::to_string(kMaxHidden) + ", got " + std::to_string(shape.hidden));
  check(num_ops.size() == static_cast<std::size_t>(shape.layers),
        "num_ops must have " + std::to_string(shape.layers) + " entries, got " + std::to_string(num_ops.size()));
  for (const int count : num_ops) {
    check(count >= 1 && count <= shape.operations,
          "a layer must have 1 to " + std::to_string(shape.operations) + " operations, got " + std::to_string(count));
  }
}

void check_weights(const char* name, const float* values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    // Written so that NaN fails too.
    check(std::fabs(values[i]) <= kMaxWeight,
          std::string(name) + " holds " + std::to_string(values[i]) + "; weights must be finite and at most 1e15");
  }
}

}  // namespace

Floats allocate_floats(std::int64_t count) {
  const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(float) + 63) / 64 * 64;
  auto* memory = static_cast<float*>(std::aligned_alloc(64, std::max<std::size_t>(bytes, 64)));
  if (memory == nullptr) throw std::bad_alloc();
  return Floats(memory);
}

float* Model::store(std::int64_t count) {
  storage_.push_back(allocate_floats(count));
  return storage_.back().get();
}

Model::Model(const Shape& shape, std::vector<int> num_ops, Precision precision, cpu::Isa isa,
             const Parameters& parameters)
    : Model(shape, std::move(num_ops), precision, kernel_for(isa, precision), parameters) {}

Model::Model(const Shape& shape, std::vector<int> num_ops, Precision precision, const Kernel& kernel,
             const Parameters& parameters)
    : kernel_(kernel), num_ops_(std::move(num_ops)) {
  check_sizes(shape, num_ops_);
  const std::int64_t units = shape.hidden;
  const std::int64_t table_size = std::int64_t{shape.layers} * shape.operations * 4 * units;
  check_weights("tables", parameters.tables, 2 * table_size);
  check_weights("recurrent", parameters.recurrent, 8 * units * units);
  check_weights("fc1_weight", parameters.fc1_weight, 2 * units * units);
  check_weights("fc1_bias", parameters.fc1_bias, units);
  check_weights("fc2_weight", parameters.fc2_weight, 2 * units);
  check_weights("fc2_bias", parameters.fc2_bias, 2);

  packed_.shape = shape;
  packed_.precision = precision;
  packed_.num_ops = num_ops_.data();
  for (const Direction direction : {kForward, kBackward}) {
    float* table = store(table_size);
    std::copy_n(parameters.tables + direction * table_size, table_size, table);
    packed_.table[direction] = table;
    packed_.recurrent[direction] = store(4 * units * ((units + 31) / 32 * 32));
    kernel_.pack_recurrent(packed_, direction, parameters.recurrent + direction * 4 * units * units);
  }
  float* fc1 = store(2 * units * units);
  float* fc1_bias = store(units);
  float* fc2 = store(units);
  for (std::int64_t j = 0; j < units; ++j) {
    for (std::int64_t k = 0; k < 2 * units; ++k) fc1[k * units + j] = parameters.fc1_weight[j * 2 * units + k];
    fc1_bias[j] = parameters.fc1_bias[j];
    fc2[j] = parameters.fc2_weight[j] - parameters.fc2_weight[units + j];
  }
  packed_.fc1_weight = fc1;
  packed_.fc1_bias = fc1_bias;
  packed_.fc2_weight = fc2;
  packed_.fc2_bias = parameters.fc2_bias[0] - parameters.fc2_bias[1];
}

const Prefixes* Model::prefixes(std::int64_t more) const {
  const std::lock_guard lock(prefix_mutex_);
  scored_ += more;
  // By then they pay: computing them is as much work as at most kMaxPrefixStates / 10 paths.
  if (!prefixes_ && scored_ >= kMaxPrefixStates) {
    prefixes_ = std::make_unique<Prefixes>(Prefixes{{compute_prefix(kForward), compute_prefix(kBackward)}});
  }
  return prefixes_.get();
}

PrefixStates Model::compute_prefix(Direction direction) const {
  const int layers = packed_.shape.layers;
  const std::int64_t units = packed_.shape.hidden;
  const auto layer = [&](int step) { return direction == kForward ? step : layers - 1 - step; };
  int depth = 0;
  std::int64_t states = 1;
  while (depth < layers - 1 && states * num_ops_[static_cast<std::size_t>(layer(depth))] <= kMaxPrefixStates) {
    states *= num_ops_[static_cast<std::size_t>(layer(depth++))];
  }
  Floats hidden = allocate_floats(states * units);
  Floats cell = allocate_floats(states * units);
  const Floats workspace = allocate_floats(workspace_floats(packed_.shape.hidden));
  std::vector<std::uint8_t> block(static_cast<std::size_t>(kBlockRows) * static_cast<std::size_t>(layers));
  for (std::int64_t begin = 0; depth > 0 && begin < states; begin += kBlockRows) {
    const int rows = static_cast<int>(std::min<std::int64_t>(kBlockRows, states - begin));
    for (int row = 0; row < rows; ++row) {
      std::int64_t rest = begin + row;
      for (int step = depth - 1; step >= 0; --step) {
        const int count = num_ops_[static_cast<std::size_t>(layer(step))];
        block[static_cast<std::size_t>(row * layers + layer(step))] = static_cast<std::uint8_t>(rest % count);
        rest /= count;
      }
    }
    kernel_.prefix_states(packed_, direction, block.data(), rows, depth, workspace.get(), hidden.get() + begin * units,
                          cell.get() + begin * units);
  }
  const PrefixStates result{depth, hidden.get(), cell.get()};
  storage_.push_back(std::move(hidden));
  storage_.push_back(std::move(cell));
  return result;
}

}  // namespace greedynas::filter
