#include "cpu/team.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <vector>

#include "cpu/threads.h"

namespace greedynas::cpu {
namespace {

std::atomic<TeamRunner> team{nullptr};
std::atomic<TeamNumber> team_number{nullptr};

constexpr std::int64_t kMostRanges = std::int64_t{1} << 31;

// Ranges that are left of a thread's share: the first one in the lower half, the end in the upper one.
struct alignas(64) Share {
  std::atomic<std::uint64_t> left{0};

  void set(std::int64_t first, std::int64_t end) {
    left = static_cast<std::uint64_t>(first) | static_cast<std::uint64_t>(end) << 32;
  }
  // The first or the last range; -1: none is left.
  std::int64_t take(bool last) {
    std::uint64_t before = left;
    for (;;) {
      const auto first = static_cast<std::int64_t>(before & 0xFFFFFFFFU), end = static_cast<std::int64_t>(before >> 32);
      if (first >= end) return -1;
      const std::uint64_t after = last ? before - (std::uint64_t{1} << 32) : before + 1;
      if (left.compare_exchange_weak(before, after)) return last ? end - 1 : first;
    }
  }
};

struct Loop {
  Loop(std::int64_t of, std::int64_t at_a_time, int threads, Order in, const TeamBody& what)
      : count(of), grain(at_a_time), order(in), body(what), shares(static_cast<std::size_t>(threads)) {
    const std::int64_t ranges = (count + grain - 1) / grain;
    for (std::int64_t t = 0; t < threads; ++t) {
      shares[static_cast<std::size_t>(t)].set(ranges * t / threads, ranges * (t + 1) / threads);
    }
  }

  // Its own share in its order, and what is left of others' from the end that they come to last.
  void work(std::size_t worker) {
    for (std::size_t i = 0; i < shares.size(); ++i) {
      Share& share = shares[(worker + i) % shares.size()];
      const bool last = (order == Order::backwards) != (i > 0);
      for (std::int64_t range = share.take(last); range >= 0; range = share.take(last)) run(worker, range);
    }
  }
  void run(std::size_t worker, std::int64_t range) {
    try {
      body(static_cast<int>(worker), range * grain, std::min((range + 1) * grain, count));
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
      for (Share& share : shares) share.set(0, 0);
    }
  }

  const std::int64_t count, grain;
  const Order order;
  const TeamBody& body;
  std::vector<Share> shares;
  std::atomic<std::size_t> arrived{0};
  std::mutex mutex;
  std::exception_ptr error;
};

// On every thread of the team.
void work(void* data) {
  Loop& loop = *static_cast<Loop*>(data);
  const TeamNumber number = team_number;
  loop.work(number == nullptr ? loop.arrived++ : static_cast<std::size_t>(number()));
}

}  // namespace

void use_team(TeamRunner runner, TeamNumber number) {
  team = runner;
  team_number = number;
}

bool has_team() { return team != nullptr; }

void team_for(std::int64_t count, std::int64_t grain, int threads, Order order, const TeamBody& body) {
  if (count <= 0) return;
  grain = std::max({grain, std::int64_t{1}, count / kMostRanges});
  const auto workers = static_cast<int>(std::min<std::int64_t>(threads, (count + grain - 1) / grain));
  Loop loop(count, grain, std::max(workers, 1), order, body);
  const TeamRunner runner = team;
  if (workers <= 1) {
    loop.work(0);
  } else if (runner == nullptr) {
    parallel_for(workers, 1, workers, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t worker = begin; worker < end; ++worker) loop.work(static_cast<std::size_t>(worker));
    });
  } else {
    runner(&work, &loop, static_cast<unsigned>(workers), 0);
  }
  if (loop.error) std::rethrow_exception(loop.error);
}

void team_for(std::int64_t count, std::int64_t grain, int threads,
              const std::function<void(std::int64_t, std::int64_t)>& body) {
  team_for(count, grain, threads, Order::forwards,
           [&](int, std::int64_t begin, std::int64_t end) { body(begin, end); });
}

}  // namespace greedynas::cpu
