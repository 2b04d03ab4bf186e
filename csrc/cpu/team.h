// Parallel loops for work that alternates with that of torch, on the threads of the program's own OpenMP runtime or on
// the pool of threads.h.
//
// Two pools on the same cores get in each other's way where OpenMP's threads go on spinning for milliseconds after
// their work, on the cores that the other pool's threads need: a training step has hundreds of such changes. Where they
// soon sleep, the pool is the better one: its threads are awake when the next loop begins.
#pragma once

#include <cstdint>
#include <functional>

namespace greedynas::cpu {

// OpenMP's entry point for compiled code, GOMP_parallel: calls body(data) on `threads` threads, this one included, and
// returns when all have returned.
using TeamRunner = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
// OpenMP's omp_get_thread_num: this thread's number in its team, from 0 on, which is the same in every loop.
using TeamNumber = int (*)();

// What team_for runs on from now on; nullptr, as at the beginning: the pool of threads.h. Without a function that
// numbers them, threads are numbered as they arrive.
void use_team(TeamRunner runner, TeamNumber number);
bool has_team();

// Which way a thread goes through its ranges. A pass goes backwards where the pass before it went forwards: what that
// one met last is in the caches.
enum class Order { forwards, backwards };

// worker: a number from 0 to threads - 1 that no other thread has in this loop.
using TeamBody = std::function<void(int worker, std::int64_t begin, std::int64_t end)>;

// Calls body(worker, begin, end) for consecutive ranges of `grain`, the last one perhaps shorter, that cover 0 ..
// count, on up to `threads` threads; exceptions and nested calls as with parallel_for of threads.h. A thread begins
// with ranges that lie together, the same ones in every loop over as many: what it left in its caches is there for the
// next loop. Then it takes ranges that others have not come to.
// Unlike the pool, a team does not survive a fork in which it has been used: there, as with torch itself, only one
// thread may be asked for.
void team_for(std::int64_t count, std::int64_t grain, int threads, Order order, const TeamBody& body);

// The same, forwards, for bodies that need not know the worker.
void team_for(std::int64_t count, std::int64_t grain, int threads,
              const std::function<void(std::int64_t, std::int64_t)>& body);

}  // namespace greedynas::cpu
