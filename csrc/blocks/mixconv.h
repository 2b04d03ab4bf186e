// Depthwise convolution with a kernel size a group of channels (MixConv), forward and backward, on the CPU.
//
//   a = activation(x * scale + shift)            (or a = x)
//   y[n, i, j, c] = sum over u, v of weight[c, u, v] * a[n, i * stride + u - k / 2, j * stride + v - k / 2, c]
//
// with k the odd kernel size of the group of c, and zeros where an index of a is outside of the image: the padding is
// applied after the activation. Other paddings shift the windows, see MixconvPadding. Tensors are channels-last; x, y
// and their gradients are float32 or bf16, sums float32. Results do not depend on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace greedynas::blocks {

enum class MixconvStorage { float32, bf16 };
// none: no scale and shift either; then as norm::Activation.
enum class MixconvActivation { none, identity, relu, hard_swish, silu, relu6 };

inline constexpr int kMixconvMaxKernel = 11;

// same_upper (so called by ONNX; SAME of TensorFlow) has as few zeros as out_height and out_width need, and the odd one
// at the end: at stride 2, along an even size, windows of more than one pixel begin a pixel later than above.
enum class MixconvPadding { symmetric, same_upper };

// Pixels by which windows begin later along a dimension of this size, unless the kernel size is 1.
inline int mixconv_late(MixconvPadding padding, int stride, std::int64_t size) {
  return padding == MixconvPadding::same_upper && stride == 2 && size % 2 == 0 ? 1 : 0;
}

// A tensor [N, H, W, C] whose channels are consecutive; the other strides are in elements.
struct MixconvTensor {
  void* data = nullptr;
  std::int64_t image = 0;
  std::int64_t row = 0;
  std::int64_t pixel = 0;
};

// Consecutive channels with one kernel size: odd, 1 .. kMixconvMaxKernel.
struct MixconvGroup {
  std::int64_t channels;
  int kernel;
  const void* weight;  // [channels, kernel, kernel], contiguous
  void* weight_grad;   // the same, for the backward pass; nullptr in all groups: not wanted
};

struct MixconvCall {
  MixconvStorage storage;         // of x, y, grad and x_grad
  MixconvStorage weight_storage;  // of weights and their gradients
  std::int64_t batch, height, width;
  int stride;  // 1 or 2
  std::vector<MixconvGroup> groups;
  MixconvTensor x;
  MixconvActivation activation = MixconvActivation::none;
  const float* scale = nullptr;  // [C], as shift; unless activation is none
  const float* shift = nullptr;
  MixconvPadding padding = MixconvPadding::symmetric;

  std::int64_t channels() const {
    std::int64_t sum = 0;
    for (const MixconvGroup& group : groups) sum += group.channels;
    return sum;
  }
  std::int64_t out_height() const { return (height - 1) / stride + 1; }
  std::int64_t out_width() const { return (width - 1) / stride + 1; }
};

// Mean and biased variance [C] of each channel of y, to be written; nullptr, both: not wanted. Taken of some rows at a
// time while these are in the caches. y has no gaps between rows and images.
struct MixconvMoments {
  float *mean = nullptr, *variance = nullptr;
};

// A squeeze-and-excitation of b = activation(y * scale + shift), whose gradient has been computed but not carried back
// to y: grad is that of b * gates, and that of y is (grad * gates + offsets) * activation's slope * scale.
struct MixconvGate {
  const float *gates = nullptr, *offsets = nullptr;        // [N, C]
  const float *scale = nullptr, *shift = nullptr;          // [C]
  MixconvActivation activation = MixconvActivation::none;  // none: there is no gate
};

struct MixconvBackward {
  MixconvTensor grad;                 // of y
  const float* stats_grad = nullptr;  // [2, C], of the statistics; nullptr: none, and without gate y is not read
  MixconvTensor y;                    // as the forward pass wrote it
  MixconvTensor x_grad;               // to be written; data nullptr: not wanted, then norm_grad must be nullptr too
  float* norm_grad = nullptr;         // [2, C]: of scale and shift, to be written; nullptr: not wanted
  MixconvGate gate{};                 // on the CPU
};

// Bytes of workspace that either pass of this call needs with this many threads.
std::size_t mixconv_workspace_bytes(const MixconvCall& call, int threads);

// Writes y [N, out_height, out_width, C] and, unless nullptr, stats [2, C]: sum and sum of squares over each channel
// of y as it is stored. The kernels are those of cpu::selected(). Throws std::invalid_argument on a call that is
// malformed in itself (kernel size, stride).
void mixconv_forward(const MixconvCall& call, const MixconvTensor& y, float* stats, const MixconvMoments& moments,
                     void* workspace, int threads);

// Writes the gradients that are wanted, in one sweep over x and grad.
void mixconv_backward(const MixconvCall& call, const MixconvBackward& backward, void* workspace, int threads);

}  // namespace greedynas::blocks
