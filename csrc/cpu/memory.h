// Large arrays that are used again instead of being given back to the system.
//
// What a training step frees the next one needs, and the system clears every page that it hands out: for small images
// that takes up to a fifth of a step.
#pragma once

#include <cstdint>

namespace greedynas::cpu {

// An array that begins on a cache line; any thread may give it back. Throws std::bad_alloc.
void* take_memory(std::int64_t bytes);
void give_back_memory(void* memory) noexcept;

// Large arrays, in bytes.
struct MemoryUse {
  std::int64_t taken;
  std::int64_t kept;  // given back, and not yet taken again
};
MemoryUse memory_use();

// Gives to the system what is kept.
void release_memory();

// An array for one call.
class Workspace {
 public:
  explicit Workspace(std::int64_t floats)
      : floats_(static_cast<float*>(take_memory(floats * static_cast<std::int64_t>(sizeof(float))))) {}
  ~Workspace() { give_back_memory(floats_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  float* floats() const { return floats_; }

 private:
  float* floats_;
};

}  // namespace greedynas::cpu
