#include "blocks/expand_depthwise.h"

#include "blocks/cpu/bn_act_chunks.h"
#include "blocks/cpu/gemm_kernels.h"
#include "blocks/cpu/pointwise_blocks.h"
#include "blocks/cpu/squeeze_excite_kernels.h"

namespace greedynas::blocks {
namespace {

using norm::from_row;
using norm::Input;
using norm::padded;
using norm::Storage;

constexpr std::int64_t kExpandedFloats = 65536;  // of images that are expanded together: 256 KB, of an L2 cache
constexpr int kBeyond = 16;                      // floats that products may read beyond the last row
enum Scratch { kCentred = 0, kExpanded = 3, kMixconv = 4 };

struct MomentsSpace {
  float *moments, *mean, *variance, *ones, *minus_mean, *sums, *packed, *products;
  std::int64_t floats;

  MomentsSpace(const Pointwise& layer, std::int64_t parts, float* workspace) {
    Pieces pieces(workspace);
    const std::int64_t square = static_cast<std::int64_t>(layer.in) * layer.in;
    moments = pieces.take(norm::workspace_floats(norm::Shape{Storage::float32, layer.rows, layer.in, false}));
    mean = pieces.take(layer.in);
    variance = pieces.take(layer.in);
    ones = pieces.take(padded(layer.in));
    minus_mean = pieces.take(layer.in);
    sums = pieces.take(parts * square);
    packed = pieces.take(gemm_packed_floats(layer.in, layer.in));
    products = pieces.take(static_cast<std::int64_t>(layer.out) * layer.in);
    floats = pieces.taken();
  }
};

// Ranges of rows whose sums are kept apart.
std::int64_t part_count(const Pointwise& layer) { return std::clamp<std::int64_t>(layer.rows / 1024, 1, 8); }

// The sums over rows of products of centred channels of x, added up in sums [in, in].
void add_covariance(const Pointwise& layer, Input x, const MomentsSpace& space, std::int64_t begin, std::int64_t end,
                    float* sums) {
  const norm::SqueezeKernel& centre = norm::squeeze_kernel_for(cpu::selected(), layer.in);
  const GemmKernel& gemm = gemm_kernel_for(cpu::selected());
  float* const centred = scratch(kCentred, kMaxBlockRows * layer.in + kBeyond);
  const std::int64_t block = block_rows(layer.in, layer.in);
  for (std::int64_t row = begin; row < end; row += block) {
    const std::int64_t rows = std::min(block, end - row);
    const norm::SqueezeExcite part{
        {Storage::float32, rows, layer.in, false}, 1, norm::Prologue::affine, space.ones, space.minus_mean, 1};
    centre.excite(part, part.image, from_row(x, row, Storage::float32), space.ones, centred);
    GemmAhead ahead;
    add_rows(x, row + rows, std::min(block, end - row - rows), layer.in, ahead);
    gemm.accumulate({centred, layer.in}, {centred, layer.in}, rows, layer.in, layer.in, sums, ahead);
  }
}

}  // namespace

std::int64_t expanded_moments_floats(const Pointwise& layer) {
  return MomentsSpace(layer, part_count(layer), nullptr).floats;
}

void expanded_moments(const Pointwise& layer, Input x, const float* weight, float* workspace, float* mean,
                      float* variance) {
  const std::int64_t parts = part_count(layer);
  const MomentsSpace space(layer, parts, workspace);
  norm::moments({Storage::float32, layer.rows, layer.in, false}, x, layer.threads, space.moments, space.mean,
                space.variance);
  std::fill_n(space.ones, padded(layer.in), 1.0F);
  for (int k = 0; k < layer.in; ++k) space.minus_mean[k] = -space.mean[k];
  const std::int64_t square = static_cast<std::int64_t>(layer.in) * layer.in;
  std::fill_n(space.sums, parts * square, 0.0F);
  cpu::team_for(parts, 1, layer.threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t part = begin; part < end; ++part) {
      add_covariance(layer, x, space, layer.rows * part / parts, layer.rows * (part + 1) / parts,
                     space.sums + part * square);
    }
  });
  for (std::int64_t i = 0; i < square; ++i) {
    double sum = 0.0;
    for (std::int64_t part = 0; part < parts; ++part) sum += static_cast<double>(space.sums[part * square + i]);
    space.sums[i] = static_cast<float>(sum / static_cast<double>(layer.rows));
  }
  const GemmKernel& gemm = gemm_kernel_for(cpu::selected());
  gemm.pack(space.sums, layer.in, 1, layer.in, layer.in, space.packed);
  GemmAhead nothing;
  gemm.multiply({weight, layer.in}, layer.out, layer.in, space.packed, layer.in, {nullptr, 0}, space.products, layer.in,
                nothing);
  for (int n = 0; n < layer.out; ++n) {
    const std::int64_t first = static_cast<std::int64_t>(n) * layer.in;
    double total = 0.0;
    double form = 0.0;
    for (std::int64_t k = 0; k < layer.in; ++k) {
      const auto w = static_cast<double>(weight[first + k]);
      total += w * static_cast<double>(space.mean[k]);
      form += w * static_cast<double>(space.products[first + k]);
    }
    mean[n] = static_cast<float>(total);
    variance[n] = static_cast<float>(std::max(form, 0.0));  // rounding may leave a little less than nothing
  }
}

namespace {

// How the images are divided.
struct Chunks {
  std::int64_t images, count;

  explicit Chunks(const ExpandDepthwise& layer) {
    const MixconvCall& call = layer.depthwise;
    images = std::clamp<std::int64_t>(kExpandedFloats / (call.height * call.width * layer.expand.out), 1, call.batch);
    count = (call.batch + images - 1) / images;
  }
};

struct ExpandSpace {
  float *packed, *all_moments;
  std::int64_t width, floats;

  ExpandSpace(const ExpandDepthwise& layer, float* workspace) {
    Pieces pieces(workspace);
    width = padded(layer.expand.out);
    packed = pieces.take(gemm_packed_floats(layer.expand.in, layer.expand.out));
    all_moments = pieces.take(2 * Chunks(layer).count * width);
    floats = pieces.taken();
  }
  // Means of a chunk, or variances.
  float* moments(std::int64_t chunk, int which) const { return all_moments + (2 * chunk + which) * width; }
};

// Expands some rows of x into memory of this thread.
const float* expanded(const ExpandDepthwise& layer, const float* packed, std::int64_t first, std::int64_t rows) {
  const Pointwise& expand = layer.expand;
  const GemmKernel& gemm = gemm_kernel_for(cpu::selected());
  float* const z = scratch(kExpanded, rows * expand.out);
  const std::int64_t block = block_rows(expand.in, expand.out);
  for (std::int64_t row = 0; row < rows; row += block) {
    const Input x = from_row(layer.x, first + row, Storage::float32);
    GemmAhead ahead;
    gemm.multiply({static_cast<const float*>(x.data), x.stride}, std::min(block, rows - row), expand.in, packed,
                  expand.out, {nullptr, 0}, z + row * expand.out, expand.out, ahead);
  }
  return z;
}

}  // namespace

std::int64_t expand_depthwise_floats(const ExpandDepthwise& layer) { return ExpandSpace(layer, nullptr).floats; }

void expand_depthwise(const ExpandDepthwise& layer, float* workspace, float* y, float* mean, float* variance) {
  const Pointwise& expand = layer.expand;
  const MixconvCall& whole = layer.depthwise;
  const ExpandSpace space(layer, workspace);
  const Chunks chunks(layer);
  const std::int64_t pixels = whole.height * whole.width, out_pixels = whole.out_height() * whole.out_width();
  gemm_kernel_for(cpu::selected()).pack(layer.weight, 1, expand.in, expand.in, expand.out, space.packed);
  const auto images_of = [&](std::int64_t chunk) {
    return std::min(chunks.images, whole.batch - chunk * chunks.images);
  };
  cpu::team_for(chunks.count, 1, expand.threads, [&](std::int64_t begin, std::int64_t end) {
    MixconvCall some = whole;
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      some.batch = images_of(chunk);
      const float* const z = expanded(layer, space.packed, chunk * chunks.images * pixels, some.batch * pixels);
      some.x = {const_cast<float*>(z), pixels * expand.out, whole.width * expand.out, expand.out};
      float* const to = y + chunk * chunks.images * out_pixels * expand.out;
      const auto bytes = static_cast<std::int64_t>(mixconv_workspace_bytes(some, 1));
      MixconvMoments moments;
      if (mean != nullptr) moments = {space.moments(chunk, 0), space.moments(chunk, 1)};
      mixconv_forward(some, {to, out_pixels * expand.out, whole.out_width() * expand.out, expand.out}, nullptr, moments,
                      scratch(kMixconv, bytes / 4 + 1), 1);
    }
  });
  if (mean == nullptr) return;
  const auto rows = [&](std::int64_t chunk) { return images_of(chunk) * out_pixels; };
  norm::join_moments(chunks.count, expand.out, mean, variance, rows,
                     [&](std::int64_t chunk, int c) -> norm::PartMoments {
                       const auto of = [&](int which) { return static_cast<double>(space.moments(chunk, which)[c]); };
                       return {of(0), of(1) * static_cast<double>(rows(chunk))};
                     });
}

}  // namespace greedynas::blocks
