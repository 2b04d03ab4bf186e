#include "cuda/device.h"
#include "cuda/platform.h"

namespace greedynas::cuda {

std::string reason_against(int device) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) return std::string("no usable CUDA driver or device: ") + cudaGetErrorString(status);
  if (device < 0 || device >= count) {
    return "there is no CUDA device " + std::to_string(device) + ", devices are 0 to " + std::to_string(count - 1);
  }
  int major = 0;
  const cudaError_t asked = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (asked != cudaSuccess) return cudaGetErrorString(asked);
  if (major < 8) {
    return "CUDA device " + std::to_string(device) + " has compute capability " + std::to_string(major) +
           ".x, the kernels need 8.0 or later";
  }
  return {};
}

void use_device(int device) { check(cudaSetDevice(device), "cudaSetDevice"); }

}  // namespace greedynas::cuda
