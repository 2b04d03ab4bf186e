// Rejection sampling in bulk (Alg. 1, lines 2-5): propose, score, compare, keep, until enough are accepted.
//
// Proposals are numbered, acceptance is decided for each on its own, and the accepted are returned in the order of
// their number: so the result is a function of (model, request) whatever the chunking, the threads or the device.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "filter/model.h"

namespace greedynas::filter {

struct RejectionRequest {
  const std::uint8_t* allowed;  // [L, N] bytes, non-zero where an operation may be drawn
  std::uint64_t seed = 0;
  std::uint32_t stream = 0;
  std::uint64_t start = 0;      // number of the first proposal to look at
  std::int64_t wanted = 0;      // accepted paths asked for
  std::int64_t limit = 0;       // proposals that may be looked at
  double threshold = 0;         // accepted where log Phi <= threshold
  bool want_fallbacks = false;  // remember the best rejected proposals in case the limit is reached
};

// A faster model of the same filter that judges proposals first; the model itself judges those within `band` of the
// threshold. So decisions are those of the model, unless the two differ by more than the band somewhere.
struct Screen {
  const Model& model;
  double band;
};

struct RejectionResult {
  std::vector<std::uint64_t> accepted;  // numbers of the accepted proposals, ascending
  // If `limit` did not suffice and they were asked for: the rejected proposals of lowest (log Phi, number), in that
  // order, as many as are missing.
  std::vector<std::uint64_t> fallbacks;
  std::int64_t proposals = 0;  // looked at: up to the last accepted one, or `limit`
};

// On up to `threads` threads. `between_rounds` is called from the calling thread several times a second; what it throws
// ends the loop. A screen whose scores turn out to be off by more than half its band is not used any further. Throws
// std::invalid_argument for a mask that leaves a layer empty or allows an operation that the model does not have, for a
// threshold that is NaN, and for negative counts.
RejectionResult reject(const Model& model, const RejectionRequest& request, int threads,
                       const std::function<void()>& between_rounds, const Screen* screen = nullptr);

}  // namespace greedynas::filter
