#include "cpu/threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

namespace greedynas::cpu {
namespace {

constexpr int kMaxThreads = 1024;

thread_local bool inside_body = false;

// Marks the thread as being inside a body, also where the body throws.
class Inside {
 public:
  Inside() { inside_body = true; }
  ~Inside() { inside_body = before_; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

 private:
  const bool before_ = inside_body;
};

struct Job {
  std::int64_t count, grain;
  const std::function<void(std::int64_t, std::int64_t)>* body;
  // All changed under the pool's mutex: a range costs tens of microseconds or more, so the lock is not felt.
  std::int64_t next = 0;
  int helpers_wanted = 0;
  std::atomic<int> at_work{0};
  std::exception_ptr error;
  std::condition_variable done;
};

// To wake a thread that sleeps takes tens of microseconds, and in the loops of a training step the next one usually
// follows sooner: so threads look out for it before they sleep. They give way to whatever else wants their core.
template <class Condition>
void look_out(const Condition& met) {
  constexpr std::chrono::microseconds kLongest{200};
  const auto begin = std::chrono::steady_clock::now();
  while (!met() && std::chrono::steady_clock::now() - begin < kLongest) std::this_thread::yield();
}

class Pool {
 public:
  explicit Pool(Pool* before_fork) : before_fork_(before_fork) {}

  void run(Job& job, int threads) {
    std::unique_lock lock(mutex_);
    const auto ranges = (job.count + job.grain - 1) / job.grain;
    job.helpers_wanted = static_cast<int>(std::min<std::int64_t>(threads, ranges)) - 1;
    start(job.helpers_wanted);
    jobs_.push_back(&job);
    ++posted_;
    for (int i = 0; i < job.helpers_wanted; ++i) wake_.notify_one();
    work(job, lock);
    std::erase(jobs_, &job);  // from here on no other thread can join
    lock.unlock();
    look_out([&] { return job.at_work == 0; });
    lock.lock();
    job.done.wait(lock, [&] { return job.at_work == 0; });
  }

 private:
  // A system that gives no more threads is no error: the caller works through all ranges itself if need be.
  void start(int helpers) try {
    while (workers_ < std::min(helpers, kMaxThreads)) {
      std::thread([this] { serve(); }).detach();
      ++workers_;
    }
  } catch (const std::system_error&) {
  }

  [[noreturn]] void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      Job* job = waiting_job();
      if (job == nullptr) {
        const std::uint64_t posted = posted_;
        lock.unlock();
        look_out([&] { return posted_ != posted; });
        lock.lock();
        wake_.wait(lock, [&] { return (job = waiting_job()) != nullptr; });
      }
      --job->helpers_wanted;
      work(*job, lock);
    }
  }

  Job* waiting_job() {
    for (Job* job : jobs_) {
      if (job->helpers_wanted > 0 && job->next < job->count) return job;
    }
    return nullptr;
  }

  // Takes ranges of `job` until none is left. Holds the lock but while a body runs.
  static void work(Job& job, std::unique_lock<std::mutex>& lock) {
    ++job.at_work;
    while (job.next < job.count) {
      const std::int64_t begin = job.next;
      const std::int64_t end = std::min(begin + job.grain, job.count);
      job.next = end;
      lock.unlock();
      std::exception_ptr error;
      try {
        const Inside inside;
        (*job.body)(begin, end);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (error && !job.error) job.error = error;
      if (error) job.next = job.count;
    }
    if (--job.at_work == 0) job.done.notify_all();
  }

  [[maybe_unused]] Pool* const before_fork_;  // kept so that leak checkers see it
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job*> jobs_;
  std::atomic<std::uint64_t> posted_{0};  // jobs so far
  int workers_ = 0;
};

// Never destroyed: its threads sleep in it until the process ends.
Pool* pool = nullptr;

Pool& the_pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool = new Pool(nullptr);
    // Threads do not survive a fork, and a lock held by one of them would never be released: the child starts anew.
    pthread_atfork(nullptr, nullptr, [] {
      pool = new Pool(pool);
      inside_body = false;
    });
  });
  return *pool;
}

int available_cpus() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

int num_threads() {
  const char* text = std::getenv("GREEDYNAS_NUM_THREADS");
  if (text == nullptr || *text == '\0') return std::min(available_cpus(), kMaxThreads);
  char* end = nullptr;
  errno = 0;
  const long value = std::strtol(text, &end, 10);
  if (errno != 0 || *end != '\0' || value < 1 || value > kMaxThreads) {
    throw std::invalid_argument(std::string("GREEDYNAS_NUM_THREADS must be a whole number from 1 to ") +
                                std::to_string(kMaxThreads) + ", got " + text);
  }
  return static_cast<int>(value);
}

void parallel_for(std::int64_t count, std::int64_t grain, int threads,
                  const std::function<void(std::int64_t, std::int64_t)>& body) {
  if (count <= 0) return;
  grain = std::max<std::int64_t>(grain, 1);
  if (threads <= 1 || inside_body || count <= grain) {
    const Inside inside;
    for (std::int64_t begin = 0; begin < count; begin += grain) body(begin, std::min(begin + grain, count));
    return;
  }
  Job job;
  job.count = count;
  job.grain = grain;
  job.body = &body;
  the_pool().run(job, threads);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace greedynas::cpu
