// Whether a CUDA device can be used, and which one calls mean.
#pragma once

#include <string>

namespace greedynas::cuda {

// Why `device` cannot run the kernels, in a sentence, or nothing if it can. Never throws: a missing driver is a reason.
std::string reason_against(int device);

// Makes `device` current for the calling thread. Throws std::runtime_error with CUDA's reason.
void use_device(int device);

}  // namespace greedynas::cuda
