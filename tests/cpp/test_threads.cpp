#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/team.h"
#include "cpu/threads.h"

using greedynas::cpu::num_threads;
using greedynas::cpu::parallel_for;

namespace {

void pause_briefly() { std::this_thread::sleep_for(std::chrono::microseconds(200)); }

// The sum of 0 .. count - 1, in parallel.
std::int64_t sum_below(std::int64_t count, int threads) {
  std::atomic<std::int64_t> sum = 0;
  parallel_for(count, 7, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) sum += i;
  });
  return sum;
}

void test_every_index_is_met_once_in_ranges_of_a_grain() {
  for (const std::int64_t count : {-5, 0, 1, 7, 100, 1000, 4097}) {
    for (const std::int64_t grain : {-1, 0, 1, 3, 64, 5000}) {
      for (const int threads : {-1, 0, 1, 2, 4, 9}) {
        std::vector<std::atomic<int>> met(static_cast<std::size_t>(std::max<std::int64_t>(count, 0)));
        const std::int64_t step = std::max<std::int64_t>(grain, 1);
        std::atomic<int> bad = 0;
        parallel_for(count, grain, threads, [&](std::int64_t begin, std::int64_t end) {
          if (begin % step != 0 || end != std::min(begin + step, count) || begin >= end) ++bad;
          for (std::int64_t i = begin; i < end; ++i) ++met[static_cast<std::size_t>(i)];
        });
        CHECK(bad == 0);
        for (const auto& times : met) CHECK(times == 1);
      }
    }
  }
  std::int64_t ranges = 0;
  parallel_for(10, std::numeric_limits<std::int64_t>::max(), 4, [&](std::int64_t, std::int64_t) { ++ranges; });
  CHECK(ranges == 1);
}

void test_no_more_threads_work_than_asked_for() {
  std::atomic<int> working = 0;
  std::atomic<int> most = 0;
  std::mutex mutex;
  std::set<std::thread::id> ids;
  parallel_for(64, 1, 3, [&](std::int64_t, std::int64_t) {
    const int now = ++working;
    for (int known = most; now > known && !most.compare_exchange_weak(known, now);) {
    }
    {
      const std::lock_guard lock(mutex);
      ids.insert(std::this_thread::get_id());
    }
    pause_briefly();
    --working;
  });
  CHECK(most <= 3);
  CHECK(most >= 2);  // 64 pauses: a helper wakes during the first ones
  CHECK(ids.size() <= 3);
}

void test_an_exception_comes_back_when_all_ranges_have_ended() {
  for (const int threads : {1, 4}) {
    std::atomic<int> working = 0;
    std::atomic<int> begun = 0;
    std::string message;
    try {
      parallel_for(10'000, 1, threads, [&](std::int64_t begin, std::int64_t) {
        ++begun;
        ++working;
        pause_briefly();
        --working;
        if (begin == 20) throw std::runtime_error("range 20");
      });
    } catch (const std::runtime_error& error) {
      message = error.what();
      CHECK(working == 0);
    }
    CHECK(message == "range 20");
    CHECK(begun >= 21 && begun < 10'000);
    CHECK(sum_below(1000, 4) == 499'500);
  }
  // When all of them throw, one comes back.
  CHECK_THROWS(parallel_for(100, 1, 4, [](std::int64_t, std::int64_t) { throw std::invalid_argument("each"); }),
               std::invalid_argument);
}

void test_a_nested_call_stays_on_its_thread() {
  for (const int threads : {1, 4}) {
    for (const std::int64_t count : {1, 8}) {
      std::atomic<int> elsewhere = 0;
      std::atomic<int> inner = 0;
      parallel_for(count, 1, threads, [&](std::int64_t, std::int64_t) {
        const std::thread::id id = std::this_thread::get_id();
        parallel_for(20, 1, 4, [&](std::int64_t, std::int64_t) {
          if (std::this_thread::get_id() != id) ++elsewhere;
          ++inner;
          pause_briefly();
        });
      });
      CHECK(elsewhere == 0);
      CHECK(inner == 20 * count);
    }
  }
  // A body that threw leaves no trace: the next call is shared again.
  CHECK_THROWS(parallel_for(1, 1, 1, [](std::int64_t, std::int64_t) { throw std::runtime_error("body"); }),
               std::runtime_error);
  test_no_more_threads_work_than_asked_for();
}

void test_several_callers_share_the_pool() {
  std::atomic<int> wrong = 0;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int round = 0; round < 200; ++round) {
        const std::int64_t count = 50 + 31 * caller + round;
        if (sum_below(count, 1 + (round + caller) % 5) != count * (count - 1) / 2) ++wrong;
        try {
          parallel_for(50, 1, 3, [&](std::int64_t begin, std::int64_t) {
            if (begin == caller) throw caller;
          });
          ++wrong;
        } catch (int thrown) {
          if (thrown != caller) ++wrong;
        }
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
}

// In a child process: 0 if the pool works there. A child that hangs is ended by the alarm.
int exit_code_of_child() {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    const bool right = sum_below(3000, 4) == 4'498'500 && sum_below(100, 3) == 4950;
    _exit(right ? 0 : 1);
  }
  int status = -1;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
}

void test_a_forked_child_has_a_pool() {
#ifdef __SANITIZE_THREAD__
  std::printf("not checked: ThreadSanitizer cannot follow the child of a process with several threads\n");
  return;
#endif
  CHECK(sum_below(1000, 4) == 499'500);
  CHECK(exit_code_of_child() == 0);
  std::atomic<bool> stop = false;
  std::atomic<int> wrong = 0;
  std::vector<std::thread> busy;
  for (int i = 0; i < 2; ++i) {
    busy.emplace_back([&] {
      while (!stop) wrong += sum_below(500, 4) != 124'750;
    });
  }
  for (int i = 0; i < 20; ++i) CHECK(exit_code_of_child() == 0);
  stop = true;
  for (std::thread& thread : busy) thread.join();
  CHECK(wrong == 0);
  // Even out of a body, on whichever thread it runs.
  std::atomic<int> bad = 0;
  parallel_for(4, 1, 4, [&](std::int64_t, std::int64_t) { bad += exit_code_of_child() != 0; });
  CHECK(bad == 0);
  CHECK(sum_below(1000, 4) == 499'500);
}

void test_the_number_of_threads() {
  unsetenv("GREEDYNAS_NUM_THREADS");
  const int found = num_threads();
  CHECK(found >= 1 && found <= 1024);
  setenv("GREEDYNAS_NUM_THREADS", "", 1);
  CHECK(num_threads() == found);
  for (const int value : {1, 3, 1024}) {
    setenv("GREEDYNAS_NUM_THREADS", std::to_string(value).c_str(), 1);
    CHECK(num_threads() == value);
  }
  for (const char* bad : {"0", "-1", "1025", "two", "2x", "2.5", " ", "99999999999999999999"}) {
    setenv("GREEDYNAS_NUM_THREADS", bad, 1);
    std::string message;
    try {
      num_threads();
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    CHECK(message == std::string("GREEDYNAS_NUM_THREADS must be a whole number from 1 to 1024, got ") + bad);
  }
  unsetenv("GREEDYNAS_NUM_THREADS");
}

thread_local int own_number = 0;

int number_in_team() { return own_number; }

// A team as OpenMP would make one: of new threads and the caller.
void run_team(void (*body)(void*), void* data, unsigned threads, unsigned) {
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) {
    others.emplace_back([=] {
      own_number = static_cast<int>(i);
      body(data);
    });
  }
  body(data);
  for (std::thread& other : others) other.join();
}

// Every range once, and no two threads with one number.
void check_workers(std::int64_t count, int threads, greedynas::cpu::Order order) {
  std::mutex mutex;
  std::vector<std::thread::id> of_number(static_cast<std::size_t>(threads));
  std::vector<int> met(static_cast<std::size_t>(count));
  greedynas::cpu::team_for(count, 7, threads, order, [&](int worker, std::int64_t begin, std::int64_t end) {
    const std::lock_guard lock(mutex);
    CHECK(begin % 7 == 0 && (end == begin + 7 || end == count) && worker >= 0 && worker < threads);
    std::thread::id& known = of_number[static_cast<std::size_t>(worker)];
    CHECK(known == std::thread::id() || known == std::this_thread::get_id());
    known = std::this_thread::get_id();
    for (std::int64_t i = begin; i < end; ++i) ++met[static_cast<std::size_t>(i)];
  });
  CHECK(std::count(met.begin(), met.end(), 1) == count);
}

// Where no thread is late, each has the ranges of its own share, and goes through them in the order that was asked for.
void test_shares_of_a_team() {
  using greedynas::cpu::Order;
  greedynas::cpu::use_team(&run_team, &number_in_team);
  for (const Order order : {Order::forwards, Order::backwards}) {
    std::vector<std::vector<std::int64_t>> found(3);
    std::atomic<int> begun = 0, done = 0;
    greedynas::cpu::team_for(13, 1, 3, order, [&](int worker, std::int64_t begin, std::int64_t) {
      std::vector<std::int64_t>& own = found[static_cast<std::size_t>(worker)];
      own.push_back(begin);
      const auto wait_for_all = [](std::atomic<int>& count) {
        ++count;
        while (count < 3) std::this_thread::yield();
      };
      if (own.size() == 1) wait_for_all(begun);
      if (own.size() == (worker == 2 ? 5U : 4U)) wait_for_all(done);
    });
    if (order == Order::backwards) {
      for (std::vector<std::int64_t>& own : found) std::reverse(own.begin(), own.end());
    }
    CHECK((found[0] == std::vector<std::int64_t>{0, 1, 2, 3}));
    CHECK((found[1] == std::vector<std::int64_t>{4, 5, 6, 7}));
    CHECK((found[2] == std::vector<std::int64_t>{8, 9, 10, 11, 12}));
  }
  greedynas::cpu::use_team(nullptr, nullptr);
}

void test_loops_of_a_team() {
  CHECK(!greedynas::cpu::has_team());
  for (const int kind : {0, 1, 2}) {  // no team, one whose threads are not numbered, one whose are
    if (kind > 0) greedynas::cpu::use_team(&run_team, kind == 2 ? &number_in_team : nullptr);
    for (const int threads : {1, 2, 5}) {
      for (const std::int64_t count : {0, 1, 6, 7, 8, 1000}) {
        check_workers(count, threads, greedynas::cpu::Order::forwards);
        check_workers(count, threads, greedynas::cpu::Order::backwards);
        std::atomic<std::int64_t> sum = 0;
        greedynas::cpu::team_for(count, 7, threads, [&](std::int64_t begin, std::int64_t end) {
          CHECK(begin < end && end <= count && end - begin <= 7);
          for (std::int64_t i = begin; i < end; ++i) sum += i;
        });
        CHECK(sum == count * (count - 1) / 2);
      }
    }
    bool thrown = false;
    try {
      greedynas::cpu::team_for(50, 1, 3, [](std::int64_t begin, std::int64_t) {
        if (begin == 20) throw std::runtime_error("20");
      });
    } catch (const std::runtime_error& error) {
      thrown = std::string(error.what()) == "20";
    }
    CHECK(thrown);
  }
  CHECK(greedynas::cpu::has_team());
  greedynas::cpu::use_team(nullptr, nullptr);
}

}  // namespace

int main() {
  test_loops_of_a_team();
  test_shares_of_a_team();
  test_every_index_is_met_once_in_ranges_of_a_grain();
  test_no_more_threads_work_than_asked_for();
  test_an_exception_comes_back_when_all_ranges_have_ended();
  test_a_nested_call_stays_on_its_thread();
  test_several_callers_share_the_pool();
  test_a_forked_child_has_a_pool();
  test_the_number_of_threads();
  std::printf(failed_checks == 0 ? "all checks passed\n" : "%d checks failed\n", failed_checks);
  return failed_checks == 0 ? 0 : 1;
}
