// A bounded pool of threads that sleep when there is nothing to do, after they have looked out for more for 200
// microseconds in which they give way to others.
//
// Callers work too: a call with T threads uses at most T - 1 of the pool. Several callers may be at work at once; they
// share the pool. After a fork the child starts with an empty pool; one that was forked inside a body may use it, but
// must not return from that body.
#pragma once

#include <cstdint>
#include <functional>

namespace greedynas::cpu {

// Threads to use: GREEDYNAS_NUM_THREADS, or the number of CPUs that this process may run on. Read at every call.
// Throws std::invalid_argument if the variable is not a whole number from 1 to 1024.
int num_threads();

// Calls body(begin, end) for consecutive ranges of at most `grain` that cover 0 .. count, on up to `threads` threads.
// Which thread takes which range is not defined. The first exception of a body is rethrown after all ranges that were
// begun have ended; ranges not begun by then are left out. A call from inside a body runs on its own thread alone.
void parallel_for(std::int64_t count, std::int64_t grain, int threads,
                  const std::function<void(std::int64_t, std::int64_t)>& body);

}  // namespace greedynas::cpu
