// Tensors of float32 or bf16 numbers that tests of layers are made of.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "blocks/bn_act.h"
#include "blocks/cpu/mixconv_vec.h"
#include "floats.h"

// Ends with its allocation; all bits are set at first, which is not-a-number.
class Elements {
 public:
  Elements(greedynas::norm::Storage storage, std::int64_t count)
      : bf16_(storage == greedynas::norm::Storage::bf16),
        bytes_(static_cast<std::size_t>(count * (bf16_ ? 2 : 4)), 0xFF) {}
  Elements(greedynas::norm::Storage storage, const Floats& values)
      : Elements(storage, static_cast<std::int64_t>(values.size())) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::uint16_t half = greedynas::blocks::bf16_of(values[i]);
      if (bf16_) {
        std::memcpy(bytes_.data() + 2 * i, &half, sizeof half);
      } else {
        std::memcpy(bytes_.data() + 4 * i, &values[i], sizeof values[i]);
      }
    }
  }
  void* data() { return bytes_.data(); }
  Floats numbers() const {
    Floats result;
    for (std::size_t i = 0; i < bytes_.size(); i += bf16_ ? 2 : 4) {
      std::uint16_t half = 0;
      float number = 0.0F;
      std::memcpy(&half, bytes_.data() + i, sizeof half);
      if (!bf16_) std::memcpy(&number, bytes_.data() + i, sizeof number);
      result.push_back(bf16_ ? greedynas::blocks::number_of(half) : number);
    }
    return result;
  }

 private:
  bool bf16_;
  std::vector<unsigned char> bytes_;
};
