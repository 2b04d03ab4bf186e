#include "cpu/team.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

#include "cpu/threads.h"

namespace greedynas::cpu {
namespace {

std::atomic<TeamRunner> team{nullptr};

struct Loop {
  std::int64_t count, grain;
  const std::function<void(std::int64_t, std::int64_t)>* body;
  std::atomic<std::int64_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;
};

// Takes ranges of the loop until none is left; on every thread of the team.
void work(void* data) {
  Loop& loop = *static_cast<Loop*>(data);
  for (;;) {
    const std::int64_t begin = loop.next.fetch_add(loop.grain);
    if (begin >= loop.count) return;
    try {
      (*loop.body)(begin, std::min(begin + loop.grain, loop.count));
    } catch (...) {
      const std::lock_guard lock(loop.mutex);
      if (!loop.error) loop.error = std::current_exception();
      loop.next = loop.count;
    }
  }
}

}  // namespace

void use_team(TeamRunner runner) { team = runner; }

bool has_team() { return team != nullptr; }

void team_for(std::int64_t count, std::int64_t grain, int threads,
              const std::function<void(std::int64_t, std::int64_t)>& body) {
  const TeamRunner runner = team;
  const std::int64_t ranges = (count + std::max<std::int64_t>(grain, 1) - 1) / std::max<std::int64_t>(grain, 1);
  if (runner == nullptr || threads <= 1 || ranges <= 1) return parallel_for(count, grain, threads, body);
  Loop loop;
  loop.count = count;
  loop.grain = std::max<std::int64_t>(grain, 1);
  loop.body = &body;
  runner(&work, &loop, static_cast<unsigned>(std::min<std::int64_t>(threads, ranges)), 0);
  if (loop.error) std::rethrow_exception(loop.error);
}

}  // namespace greedynas::cpu
