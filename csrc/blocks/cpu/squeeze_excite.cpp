#include "blocks/squeeze_excite.h"

#include "blocks/cpu/bn_act_chunks.h"
#include "blocks/cpu/squeeze_excite_kernels.h"

namespace greedynas::norm {
namespace {

const SqueezeKernel& kernel_of(const SqueezeExcite& layer) {
  return squeeze_kernel_for(cpu::selected(), layer.image.channels);
}

// Small images are handed out several at a time.
std::int64_t images_together(const Shape& image) {
  return std::max<std::int64_t>(1, kChunkElements / std::max<std::int64_t>(image.rows * image.channels, 1));
}

// body(image, chunk of all chunks, first row of all rows, shape of the chunk) for every chunk of every image.
template <class Body>
void for_parts(const SqueezeExcite& layer, Order order, const Body& body) {
  const std::int64_t rows = chunk_rows(layer.image);
  const std::int64_t chunks = chunk_count(layer.image);
  const std::int64_t count = layer.images * chunks;
  cpu::team_for(count, images_together(layer.image), layer.threads, order,
                [&](int, std::int64_t begin, std::int64_t end) {
                  for (std::int64_t step = begin; step < end; ++step) {
                    const std::int64_t chunk = order == Order::forwards ? step : begin + end - 1 - step;
                    const std::int64_t image = chunk / chunks;
                    const std::int64_t row = chunk % chunks * rows;
                    Shape part = layer.image;
                    part.rows = std::min(rows, layer.image.rows - row);
                    body(image, chunk, image * layer.image.rows + row, part);
                  }
                });
}

// sums [images, channels] = the sums of the chunks of each image, times a factor.
void join_chunks(const SqueezeExcite& layer, const float* parts, double factor, float* sums) {
  const std::int64_t chunks = chunk_count(layer.image);
  const std::int64_t width = padded(layer.image.channels);
  for (std::int64_t image = 0; image < layer.images; ++image) {
    const float* const first = parts + image * chunks * width;
    for (int c = 0; c < layer.image.channels; ++c) {
      double sum = 0.0;
      for (std::int64_t chunk = 0; chunk < chunks; ++chunk) sum += static_cast<double>(first[chunk * width + c]);
      *sums++ = static_cast<float>(factor * sum);
    }
  }
}

void join_all(const SqueezeExcite& layer, const float* parts, float* sums) {
  const std::int64_t count = layer.images * chunk_count(layer.image);
  const std::int64_t width = padded(layer.image.channels);
  for (int c = 0; c < layer.image.channels; ++c) {
    double sum = 0.0;
    for (std::int64_t chunk = 0; chunk < count; ++chunk) sum += static_cast<double>(parts[chunk * width + c]);
    sums[c] = static_cast<float>(sum);
  }
}

}  // namespace

std::int64_t workspace_floats(const SqueezeExcite& layer) {
  return (2 * layer.images * chunk_count(layer.image) + layer.images) * padded(layer.image.channels);
}

void squeeze(const SqueezeExcite& layer, Input x, float* workspace, float* means) {
  const SqueezeKernel& own = kernel_of(layer);
  const std::int64_t width = padded(layer.image.channels);
  for_parts(layer, Order::forwards, [&](std::int64_t, std::int64_t chunk, std::int64_t row, const Shape& part) {
    own.squeeze(layer, part, from_row(x, row, part.storage), workspace + chunk * width);
  });
  join_chunks(layer, workspace, 1.0 / static_cast<double>(layer.image.rows), means);
}

void excite(const SqueezeExcite& layer, Input x, const float* gates, void* y) {
  const SqueezeKernel& own = kernel_of(layer);
  for_parts(layer, Order::backwards, [&](std::int64_t image, std::int64_t, std::int64_t row, const Shape& part) {
    own.excite(layer, part, from_row(x, row, part.storage), gates + image * part.channels, from_row(y, row, part));
  });
}

void excite_backward(const SqueezeExcite& layer, Input grad, Input x, float* workspace, float* grad_gates) {
  const SqueezeKernel& own = kernel_of(layer);
  const std::int64_t width = padded(layer.image.channels);
  for_parts(layer, Order::forwards, [&](std::int64_t, std::int64_t chunk, std::int64_t row, const Shape& part) {
    own.excite_backward(layer, part, from_row(grad, row, part.storage), from_row(x, row, part.storage),
                        workspace + chunk * width);
  });
  join_chunks(layer, workspace, 1.0, grad_gates);
}

void squeeze_backward(const SqueezeExcite& layer, Input grad, Input x, const float* gates, const float* grad_means,
                      float* workspace, void* grad_x, float* grad_scale, float* grad_shift) {
  const SqueezeKernel& own = kernel_of(layer);
  const std::int64_t width = padded(layer.image.channels);
  const std::int64_t count = layer.images * chunk_count(layer.image);
  float* const sums = workspace;
  float* const products = sums + count * width;
  float* const offsets = products + count * width;  // [images, channels]
  const auto share = static_cast<float>(1.0 / static_cast<double>(layer.image.rows));
  for (std::int64_t i = 0; i < layer.images * layer.image.channels; ++i) offsets[i] = grad_means[i] * share;
  for_parts(layer, Order::backwards, [&](std::int64_t image, std::int64_t chunk, std::int64_t row, const Shape& part) {
    own.squeeze_backward(layer, part, from_row(grad, row, part.storage), from_row(x, row, part.storage),
                         gates + image * part.channels, offsets + image * part.channels, from_row(grad_x, row, part),
                         sums + chunk * width, products + chunk * width);
  });
  if (layer.prologue == Prologue::none) return;
  join_all(layer, sums, grad_shift);
  join_all(layer, products, grad_scale);
}

void affine_gradients(const SqueezeExcite& layer, const float* gate_sums, const float* gates, const float* grad_means,
                      float* grad_scale, float* grad_shift) {
  const std::int64_t channels = layer.image.channels, size = layer.images * channels;
  const double share = 1.0 / static_cast<double>(layer.image.rows);
  for (std::int64_t c = 0; c < channels; ++c) {
    double scale = 0.0;
    double shift = 0.0;
    for (std::int64_t i = c; i < size; i += channels) {
      const auto of = [&](GateSum which) { return static_cast<double>(gate_sums[which * size + i]); };
      const auto gate = static_cast<double>(gates[i]);
      const double offset = static_cast<double>(grad_means[i]) * share;
      scale += gate * of(kGateGradX) + offset * of(kGateSlopeX);
      shift += gate * of(kGateGrad) + offset * of(kGateSlope);
    }
    grad_scale[c] = static_cast<float>(scale);
    grad_shift[c] = static_cast<float>(shift);
  }
}

}  // namespace greedynas::norm
