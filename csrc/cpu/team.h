// Parallel loops on the threads of the program's own OpenMP runtime, for work that alternates with that of torch.
//
// Two pools on the same cores get in each other's way: OpenMP's threads go on spinning for milliseconds after their
// work, on the cores that the other pool's threads need. A training step has hundreds of such changes.
#pragma once

#include <cstdint>
#include <functional>

namespace greedynas::cpu {

// OpenMP's entry point for compiled code, GOMP_parallel: calls body(data) on `threads` threads, this one included, and
// returns when all have returned.
using TeamRunner = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// What team_for runs on from now on; nullptr, as at the beginning: the pool of threads.h.
void use_team(TeamRunner runner);
bool has_team();

// parallel_for of threads.h on the team. Unlike the pool, a team does not survive a fork in which it has been used:
// there, as with torch itself, only one thread may be asked for.
void team_for(std::int64_t count, std::int64_t grain, int threads,
              const std::function<void(std::int64_t, std::int64_t)>& body);

}  // namespace greedynas::cpu
