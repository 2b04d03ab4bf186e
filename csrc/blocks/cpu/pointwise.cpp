#include "blocks/pointwise.h"

#include <algorithm>
#include <type_traits>

#include "blocks/cpu/bn_act_chunks.h"
#include "blocks/cpu/bn_act_kernels.h"
#include "blocks/cpu/gemm_kernels.h"
#include "blocks/cpu/mixconv_vec.h"
#include "blocks/cpu/pointwise_blocks.h"
#include "blocks/cpu/squeeze_excite_kernels.h"

namespace greedynas::blocks {
namespace {

using norm::from_row;
using norm::Input;
using norm::padded;
using norm::Prologue;
using norm::Storage;

constexpr std::int64_t kNearWeights = 65536;        // 256 KB, of an L2 cache
constexpr std::int64_t kFarWeights = 131072;        // 512 KB: these and their gradients do not stay in an L2 cache
constexpr std::int64_t kLargeBlockFloats = 262144;  // 1 MB, of both sides

std::int64_t blocks_of(const Pointwise& layer, std::int64_t rows) { return (layer.rows + rows - 1) / rows; }

// Far weights and their gradients come into the caches anew for each block, so that large blocks are faster.
std::int64_t backward_rows(const Pointwise& layer) {
  if (weight_floats(layer) <= kFarWeights) return block_rows(layer.in, layer.out);
  return std::clamp(kLargeBlockFloats / (layer.in + layer.out) / kTileRows * kTileRows, kTileRows, kMaxBlockRows);
}

// In the forward pass what is written is done with a few columns at a time, so that only the rows that are read need
// stay in the caches.
constexpr int kColumns = 192;  // a multiple of the panels of all levels

// Of at least eight blocks, for the threads.
std::int64_t forward_rows(const Pointwise& layer) {
  const std::int64_t share = (layer.rows / 8 + kTileRows - 1) / kTileRows * kTileRows;
  return std::min(block_rows(layer.in, 1), std::max(share, kTileRows));
}

// body(first, columns) for ranges of the columns of a matrix.
template <class Body>
void for_columns(int columns, const Body& body) {
  for (int first = 0; first < columns; first += kColumns) body(first, std::min(kColumns, columns - first));
}

// Whether the gradient of the weight is added up as [in, out]: panels of few input channels would be narrow, and would
// load and store their sums often. The gradient of y must then be readable a little beyond its end.
bool turns_weight(const Pointwise& layer, const PointwiseGrad& grad) {
  constexpr int kFew = 24;
  return layer.group_in() <= kFew && layer.group_out() > kFew && grad.y.data != nullptr;
}

// Ranges of blocks that have a gradient of the weight of their own in the backward pass.
std::int64_t part_count(const Pointwise& layer) { return std::clamp<std::int64_t>(layer.rows / 192, 1, 8); }

struct Workspace {
  float *packed, *ones, *weights, *coefficients, *accumulators, *gate_sums;
  std::int64_t packed_group;  // floats of a group's packed matrix
  std::int64_t width;         // of an accumulator; each block has three
  std::int64_t gate_width;    // of one of an image's gate sums in a block
  std::int64_t floats;

  Workspace(const Pointwise& layer, float* workspace) {
    Pieces pieces(workspace);
    const std::int64_t widest = std::max(layer.in, layer.out);
    width = padded(widest);
    packed_group = std::max(gemm_packed_floats(layer.group_in(), layer.group_out()),
                            gemm_packed_floats(layer.group_out(), layer.group_in()));
    packed = pieces.take(layer.groups * packed_group);
    ones = pieces.take(widest);
    weights = pieces.take(part_count(layer) * weight_floats(layer));
    coefficients = pieces.take(norm::kCoefficients * padded(layer.out));
    accumulators = pieces.take(
        3 * std::max(blocks_of(layer, forward_rows(layer)), blocks_of(layer, backward_rows(layer))) * width);
    gate_width = padded(layer.in);
    const std::int64_t most = blocks_of(layer, backward_rows(layer)) + layer.gate_images;
    gate_sums = pieces.take(layer.gate_images == 0 ? 0 : most * norm::kGateSums * gate_width);
    floats = pieces.taken();
  }
  float* accumulator(std::int64_t block, int which) const { return accumulators + (3 * block + which) * width; }
  // Of the rows of an image in a block: each step to another block or image is one to other sums.
  float* gate_sum(std::int64_t block, std::int64_t image, int which) const {
    return gate_sums + ((block + image) * norm::kGateSums + which) * gate_width;
  }
};

// A layer of one piece of some rows, for the kernels of squeeze-and-excitation; these write what is read again at once.
norm::SqueezeExcite squeeze_layer(Storage storage, const PointwiseInput& input, int channels, std::int64_t rows) {
  return {{storage, rows, channels, false}, 1, input.prologue, input.scale, input.shift, 1};
}

// What differs between float32 and bf16 tensors.
template <class Element>
struct OfElement;

template <>
struct OfElement<float> {
  static constexpr Storage storage = Storage::float32;
  static constexpr bool reads_beyond = true;  // the sums over rows
  static const GemmKernel& kernel() { return gemm_kernel_for(cpu::selected()); }
  static void accumulate(const GemmKernel& kernel, GemmRows g, GemmRows x, std::int64_t rows, int out, int in, float* c,
                         GemmAhead& ahead) {
    kernel.accumulate(g, x, rows, out, in, c, in, ahead);
  }
};

template <>
struct OfElement<Bf16Bits> {
  static constexpr Storage storage = Storage::bf16;
  static constexpr bool reads_beyond = false;
  static const GemmBf16Kernel& kernel() { return gemm_bf16_kernel_for(cpu::selected()); }
  static void accumulate(const GemmBf16Kernel& kernel, GemmBf16Rows g, GemmBf16Rows x, std::int64_t rows, int out,
                         int in, float* c, GemmAhead& ahead) {
    constexpr int kFree = 3;  // of `scratch`: expand_depthwise.cpp has it, which is float32
    float* const memory = scratch(kFree, gemm_bf16_floats(rows, out, in));
    kernel.accumulate(g, x, rows, out, in, c, in, memory, ahead);
  }
};

// One call's kernels and workspace; methods work on blocks of rows.
template <class Element>
class Call {
  using Of = OfElement<Element>;
  using Rows = GemmRowsOf<Element>;

 public:
  Call(const Pointwise& layer, const PointwiseInput& input, float* workspace)
      : layer_(layer),
        input_(input),
        space_(layer, workspace),
        gemm_(Of::kernel()),
        squeeze_(norm::squeeze_kernel_for(cpu::selected(), layer.in)),
        norm_(norm::kernel_for(cpu::selected(), layer.out)) {
    std::fill_n(space_.ones, space_.width, 1.0F);
  }

  const Workspace& space() const { return space_; }

  void pack(const float* weight, bool transposed) const {
    const int in = layer_.group_in(), out = layer_.group_out();
    for (int g = 0; g < layer_.groups; ++g) {
      const float* const from = weight + static_cast<std::int64_t>(g) * out * in;
      float* const to = space_.packed + g * space_.packed_group;
      if (transposed) {
        gemm_.pack(from, in, 1, out, in, to);
      } else {
        for_columns(out, [&](int first, int columns) {
          gemm_.pack(from + static_cast<std::int64_t>(first) * in, 1, in, in, columns,
                     to + static_cast<std::int64_t>(first) * in);
        });
      }
    }
  }

  // c [rows, groups * columns] = init + a [rows, groups * depth] times the groups' packed matrices [depth, columns].
  void multiply(Rows a, std::int64_t rows, int depth, int columns, Rows init, Element* c, GemmAhead& ahead) const {
    for (int g = 0; g < layer_.groups; ++g) {
      gemm_.multiply(a.after(g * depth), rows, depth, space_.packed + g * space_.packed_group, columns,
                     init.after(g * columns), c + g * columns, layer_.groups * columns, ahead);
    }
  }

  // a of some rows; `beyond`: as memory that may be read a little beyond its end.
  Rows read(std::int64_t row, std::int64_t rows, bool beyond) const {
    const bool plain = input_.prologue == Prologue::none && input_.gates == nullptr;
    const Input x = from_row(input_.x, row, Of::storage);
    if (plain && !(beyond && layer_.group_in() % kBeyond != 0)) return rows_of<Element>(x);
    Element* const a = elements(0, kMaxBlockRows * layer_.in + kBeyond);
    for_images(row, rows, [&](std::int64_t image, std::int64_t first, std::int64_t count) {
      const norm::SqueezeExcite part = squeeze_layer(Of::storage, input_, layer_.in, count);
      const float* const gates = input_.gates == nullptr ? space_.ones : input_.gates + image * layer_.in;
      squeeze_.excite(part, part.image, from_row(input_.x, first, Of::storage), gates, a + (first - row) * layer_.in);
    });
    return {a, layer_.in};
  }

  void forward(std::int64_t block, std::int64_t row, std::int64_t rows, void* y, bool moments) const {
    Element* const to = static_cast<Element*>(y) + row * layer_.out;
    GemmAhead ahead;
    add_block(input_.x, row + rows, rows, layer_.in, ahead);
    add_block({y, layer_.out}, row + rows, rows, layer_.out, ahead);
    const Rows a = read(row, rows, false);
    const int in = layer_.group_in(), out = layer_.group_out();
    for (int g = 0; g < layer_.groups; ++g) {
      for_columns(out, [&](int first, int columns) {
        const int channel = g * out + first;
        gemm_.multiply(a.after(g * in), rows, in,
                       space_.packed + g * space_.packed_group + static_cast<std::int64_t>(first) * in, columns,
                       {nullptr, 0}, to + channel, layer_.out, ahead);
        if (moments && layer_.groups == 1) take_moments(block, to, rows, channel, columns);
      });
    }
    if (moments && layer_.groups > 1) take_moments(block, to, rows, 0, layer_.out);
  }

  void take_moments(std::int64_t block, const Element* y, std::int64_t rows, int channel, int channels) const {
    const Element* const first = y + channel;  // what the means are relative to
    for (int c = 0; c < channels; ++c) space_.accumulator(block, 2)[channel + c] = number_of(first[c]);
    norm::kernel_for(cpu::selected(), channels)
        .moments({Of::storage, rows, channels, false}, {first, layer_.out}, first,
                 space_.accumulator(block, 0) + channel, space_.accumulator(block, 1) + channel);
  }

  // The gradient of y of some rows.
  Rows read(const PointwiseGrad& grad, const norm::Coefficients& c, std::int64_t row, std::int64_t rows) const {
    const Input from = from_row(grad.grad, row, Of::storage);
    if (grad.y.data == nullptr) return rows_of<Element>(from);
    Element* const through = elements(1, kMaxBlockRows * layer_.out + kBeyond);
    const Input y = from_row(grad.y, row, Of::storage);
    const norm::BnAct plain{{Of::storage, rows, layer_.out, false}, norm::Activation::identity, false, 1};
    norm_.backward(plain, from, y, c, y, through, nullptr);
    return {through, layer_.out};
  }

  void backward(std::int64_t block, std::int64_t row, std::int64_t rows, Rows grad, Input add, void* grad_x,
                float* grad_weight, const PointwiseGrad& from, bool gate_sums) const {
    const int in = layer_.group_in(), out = layer_.group_out();
    GemmAhead ahead;
    add_block(from.grad, row + rows, rows, layer_.out, ahead);
    add_block(from.y, row + rows, rows, layer_.out, ahead);
    add_block(input_.x, row + rows, rows, layer_.in, ahead);
    add_block({grad_x, layer_.in}, row + rows, rows, layer_.in, ahead);
    Element* const to = grad_x == nullptr ? nullptr : static_cast<Element*>(grad_x) + row * layer_.in;
    const bool through_prologue = input_.prologue != Prologue::none && input_.gates == nullptr;
    Element* const grad_a = through_prologue ? elements(2, kMaxBlockRows * layer_.in) : to;
    const Rows init = rows_of<Element>(add).from(row);
    if (grad_a != nullptr) multiply(grad, rows, out, in, init, grad_a, ahead);
    const bool turned = turns_weight(layer_, from);
    Rows a{};
    if (through_prologue || gate_sums) {
      // What needs the activation or its slope at one place is done in one pass.
      Element* const read = elements(0, kMaxBlockRows * layer_.in + kBeyond);
      for_images(row, rows, [&](std::int64_t image, std::int64_t first, std::int64_t count) {
        const norm::SqueezeExcite part = squeeze_layer(Of::storage, input_, layer_.in, count);
        const Input own_grad{grad_a + (first - row) * layer_.in, layer_.in};
        const Input x = from_row(input_.x, first, Of::storage);
        Element* const own_a = read + (first - row) * layer_.in;
        if (gate_sums) {
          squeeze_.gate_sums(part, part.image, own_grad, x, input_.gates + image * layer_.in,
                             space_.gate_sum(block, image, 0), own_a);
        } else {
          squeeze_.prologue_backward(part, part.image, own_grad, x, own_a, to, space_.accumulator(block, 0),
                                     space_.accumulator(block, 1));
        }
      });
      a = {read, layer_.in};
    } else {
      a = this->read(row, rows, Of::reads_beyond && !turned);
    }
    for (int g = 0; g < layer_.groups; ++g) {
      float* const sums = grad_weight + static_cast<std::int64_t>(g) * out * in;
      const Rows own_grad = grad.after(g * out), own_a = a.after(g * in);
      if (turned) {
        Of::accumulate(gemm_, own_a, own_grad, rows, in, out, sums, ahead);
      } else {
        Of::accumulate(gemm_, own_grad, own_a, rows, out, in, sums, ahead);
      }
    }
  }

  // body(block, first row, rows)
  template <class Body>
  void for_blocks(std::int64_t rows, std::int64_t begin, std::int64_t end, const Body& body) const {
    for (std::int64_t block = begin; block < end; ++block) {
      body(block, block * rows, std::min(rows, layer_.rows - block * rows));
    }
  }

 private:
  static Element* elements(int which, std::int64_t count) {
    const auto per_float = static_cast<std::int64_t>(sizeof(float) / sizeof(Element));
    return reinterpret_cast<Element*>(scratch(which, (count + per_float - 1) / per_float));
  }

  // body(image, first row, rows) for the images that some rows belong to; without gates all are one.
  template <class Body>
  void for_images(std::int64_t row, std::int64_t rows, const Body& body) const {
    const std::int64_t pixels = input_.gates == nullptr ? layer_.rows : input_.pixels;
    const std::int64_t end = row + rows;
    while (row < end) {
      const std::int64_t image = row / pixels, next = std::min(end, (image + 1) * pixels);
      body(image, row, next - row);
      row = next;
    }
  }

  // The block from this row on. Not beside large weights: they would be driven out of the cache, and their products
  // take so long that memory matters little.
  void add_block(Input x, std::int64_t row, std::int64_t block, int channels, GemmAhead& ahead) const {
    if (weight_floats(layer_) > kNearWeights) return;
    add_rows(x, row, std::min(block, layer_.rows - row), channels, ahead, Of::storage);
  }

  const Pointwise& layer_;
  const PointwiseInput& input_;
  Workspace space_;
  const std::remove_reference_t<decltype(Of::kernel())>& gemm_;
  const norm::SqueezeKernel& squeeze_;
  const norm::Kernel& norm_;
};

void join_sums(const Workspace& space, std::int64_t blocks, int which, int channels, float* sums) {
  for (int c = 0; c < channels; ++c) {
    double sum = 0.0;
    for (std::int64_t block = 0; block < blocks; ++block) {
      sum += static_cast<double>(space.accumulator(block, which)[c]);
    }
    sums[c] = static_cast<float>(sum);
  }
}

// sums [norm::kGateSums, images, in] from those of blocks of `full` rows.
void join_gate_sums(const Pointwise& layer, std::int64_t pixels, const Workspace& space, std::int64_t full,
                    float* sums) {
  std::vector<double> joined(static_cast<std::size_t>(layer.in));
  for (int which = 0; which < norm::kGateSums; ++which) {
    for (std::int64_t image = 0; image < layer.gate_images; ++image) {
      std::fill(joined.begin(), joined.end(), 0.0);
      const std::int64_t last = ((image + 1) * pixels - 1) / full;
      for (std::int64_t block = image * pixels / full; block <= last; ++block) {
        const float* const own = space.gate_sum(block, image, which);
        for (std::size_t c = 0; c < joined.size(); ++c) joined[c] += static_cast<double>(own[c]);
      }
      for (const double sum : joined) *sums++ = static_cast<float>(sum);
    }
  }
}

template <class Element>
void forward_of(const Pointwise& layer, const PointwiseInput& input, const float* weight, float* workspace, void* y,
                float* mean, float* variance) {
  const Call<Element> call(layer, input, workspace);
  call.pack(weight, false);
  const std::int64_t full = forward_rows(layer);
  const std::int64_t blocks = blocks_of(layer, full);
  cpu::team_for(blocks, 1, layer.threads, [&](std::int64_t begin, std::int64_t end) {
    call.for_blocks(full, begin, end, [&](std::int64_t block, std::int64_t row, std::int64_t rows) {
      call.forward(block, row, rows, y, mean != nullptr);
    });
  });
  if (mean == nullptr) return;
  norm::join_moments(
      blocks, layer.out, mean, variance, [&](std::int64_t block) { return std::min(full, layer.rows - block * full); },
      [&](std::int64_t block, int c) -> norm::PartMoments {
        const auto of = [&](int which) { return static_cast<double>(call.space().accumulator(block, which)[c]); };
        return {of(2) + of(0), of(1)};
      });
}

template <class Element>
void backward_of(const Pointwise& layer, const PointwiseGrad& grad, const PointwiseInput& input, const float* weight,
                 Input add, float* workspace, const PointwiseGradients& gradients) {
  const Call<Element> call(layer, input, workspace);
  const Workspace& space = call.space();
  call.pack(weight, true);
  norm::Coefficients coefficients{};
  if (grad.y.data != nullptr) {
    coefficients = norm::known_coefficients(layer.rows, layer.out, *grad.norm, grad.known, space.coefficients);
  }
  const std::int64_t parts = part_count(layer);
  const std::int64_t full = backward_rows(layer);
  const std::int64_t blocks = blocks_of(layer, full);
  const std::int64_t size = weight_floats(layer);
  const bool turned = turns_weight(layer, grad);
  const auto weight_of = [&](std::int64_t part) {
    return part == 0 && !turned ? gradients.weight : space.weights + part * size;
  };
  cpu::team_for(parts, 1, layer.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t part = begin; part < end; ++part) {
      float* const sums = weight_of(part);
      std::fill_n(sums, size, 0.0F);
      call.for_blocks(full, blocks * part / parts, blocks * (part + 1) / parts,
                      [&](std::int64_t block, std::int64_t row, std::int64_t rows) {
                        call.backward(block, row, rows, call.read(grad, coefficients, row, rows), add, gradients.x,
                                      sums, grad, gradients.gate_sums != nullptr);
                      });
    }
  });
  if (turned) add_turned_weights(layer, parts, space.weights, gradients.weight);
  for (std::int64_t part = 1; part < parts && !turned; ++part) {
    const float* const sums = weight_of(part);
    for (std::int64_t i = 0; i < size; ++i) gradients.weight[i] += sums[i];
  }
  if (gradients.gate_sums != nullptr) join_gate_sums(layer, input.pixels, space, full, gradients.gate_sums);
  if (input.prologue == Prologue::none || input.gates != nullptr) return;
  join_sums(space, blocks, 0, layer.in, gradients.shift);
  join_sums(space, blocks, 1, layer.in, gradients.scale);
}

}  // namespace

std::int64_t workspace_floats(const Pointwise& layer) { return Workspace(layer, nullptr).floats; }

void pointwise(const Pointwise& layer, const PointwiseInput& input, const float* weight, float* workspace, void* y,
               float* mean, float* variance) {
  const auto run = layer.storage == Storage::float32 ? &forward_of<float> : &forward_of<Bf16Bits>;
  run(layer, input, weight, workspace, y, mean, variance);
}

void pointwise_backward(const Pointwise& layer, const PointwiseGrad& grad, const PointwiseInput& input,
                        const float* weight, Input add, float* workspace, const PointwiseGradients& gradients) {
  const auto run = layer.storage == Storage::float32 ? &backward_of<float> : &backward_of<Bf16Bits>;
  run(layer, grad, input, weight, add, workspace, gradients);
}

}  // namespace greedynas::blocks
