// mixconv of an x that is never in memory: its rows are made when they are needed, and rows of its gradient are used as
// soon as they are there. float32. Everything else is as in blocks/mixconv.h; the call's x and the backward pass's
// x_grad are not looked at.
#pragma once

#include <memory>

#include "blocks/cpu/mixconv_kernels.h"

namespace greedynas::blocks {

class MixconvMaker {
 public:
  virtual ~MixconvMaker() = default;
  // For a task. In the backward pass the blocks of a chunk of images have their turn one after the other, in the order
  // of their channels and on one thread; chunks may run at the same time.
  virtual std::unique_ptr<MixconvRows> rows(std::int64_t chunk, const MixconvBlock& block) const = 0;
};

// Chunks of images of the backward pass.
std::int64_t mixconv_made_chunks(const MixconvCall& call);

// For both passes.
std::size_t mixconv_made_workspace_bytes(const MixconvCall& call, int threads);

void mixconv_forward_made(const MixconvCall& call, const MixconvMaker& maker, const MixconvTensor& y,
                          const MixconvMoments& moments, void* workspace, int threads);
void mixconv_backward_made(const MixconvCall& call, const MixconvBackward& backward, const MixconvMaker& maker,
                           void* workspace, int threads);

}  // namespace greedynas::blocks
