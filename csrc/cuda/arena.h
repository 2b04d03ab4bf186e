// Arrays one after the other in memory that the caller owns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace greedynas::cuda {

// Hands out parts aligned to 256 bytes of memory that is so aligned. Without memory (nullptr) it counts only.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<std::byte*>(memory)) {}

  template <typename T>
  T* take(std::int64_t count) {
    std::byte* const at = memory_ == nullptr ? nullptr : memory_ + bytes_;
    bytes_ += (count * static_cast<std::int64_t>(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(at);
  }

  // Of all parts so far.
  std::int64_t bytes() const { return bytes_; }

 private:
  std::byte* memory_;
  std::int64_t bytes_ = 0;
};

}  // namespace greedynas::cuda
