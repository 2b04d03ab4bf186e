// Which items fulfil a condition, in order, on a CUDA device.
#pragma once

#include <cstdint>

namespace greedynas::cuda {

std::int64_t select_workspace_bytes(std::int64_t count);

// Writes the numbers i with flags[i] != 0, ascending, to `selected`, and how many there are to *num_selected. `flags`
// and `selected` are [count], all is device memory, `workspace` has as many bytes as the function above says and is
// aligned to 256. Queued on `stream`, a cudaStream_t of the current device, with no word from the host in between.
// CUDA's errors throw std::runtime_error.
void select_flagged(const std::uint8_t* flags, std::int64_t count, std::int64_t* selected, std::int64_t* num_selected,
                    void* workspace, void* stream);

}  // namespace greedynas::cuda
