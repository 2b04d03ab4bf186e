#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/memory.h"

using namespace greedynas::cpu;

namespace {

constexpr std::int64_t kMegabyte = std::int64_t{1} << 20;

bool on_a_line(const void* memory) { return reinterpret_cast<std::uintptr_t>(memory) % 64 == 0; }

void test_arrays_of_all_sizes_can_be_written() {
  std::vector<void*> arrays;
  for (const std::int64_t bytes : {std::int64_t{0}, std::int64_t{1}, std::int64_t{65535}, std::int64_t{65536},
                                   std::int64_t{65537}, 3 * kMegabyte}) {
    void* const memory = take_memory(bytes);
    CHECK(memory != nullptr && on_a_line(memory));
    std::memset(memory, 1, static_cast<std::size_t>(bytes));
    arrays.push_back(memory);
  }
  for (void* const memory : arrays) give_back_memory(memory);
  release_memory();
  CHECK(memory_use().taken == 0 && memory_use().kept == 0);
}

void test_an_array_is_used_again_where_at_least_half_of_it_is_needed() {
  void* const first = take_memory(4 * kMegabyte);
  CHECK(memory_use().taken == 4 * kMegabyte && memory_use().kept == 0);
  give_back_memory(first);
  CHECK(memory_use().taken == 0 && memory_use().kept == 4 * kMegabyte);
  for (const std::int64_t bytes : {4 * kMegabyte, 2 * kMegabyte}) {
    void* const again = take_memory(bytes);
    CHECK(again == first);
    CHECK(memory_use().taken == 4 * kMegabyte && memory_use().kept == 0);
    give_back_memory(again);
  }
  for (const std::int64_t bytes : {4 * kMegabyte + 1, 2 * kMegabyte - 1}) {
    void* const other = take_memory(bytes);
    CHECK(memory_use().taken == bytes);
    give_back_memory(other);
  }
  release_memory();
}

void test_the_smallest_array_that_fits_is_taken() {
  void* const large = take_memory(5 * kMegabyte);
  void* const small = take_memory(4 * kMegabyte);
  give_back_memory(small);
  give_back_memory(large);
  void* const again = take_memory(3 * kMegabyte);
  CHECK(again == small);
  give_back_memory(again);
  release_memory();
}

// A training whose steps take other sizes than before: what is kept does not grow with their number.
void test_not_much_more_is_kept_than_was_once_taken() {
  for (std::int64_t size = kMegabyte; size < 200 * kMegabyte; size = size * 9 / 4) {
    std::vector<void*> step;
    for (int i = 0; i < 4; ++i) {
      step.push_back(take_memory(size));
      const MemoryUse use = memory_use();
      CHECK(use.taken == (i + 1) * size);
      CHECK(use.taken + use.kept <= 8 * size);
    }
    for (void* const memory : step) give_back_memory(memory);
    CHECK(memory_use().taken == 0 && memory_use().kept <= 8 * size);
  }
  release_memory();
  CHECK(memory_use().kept == 0);
}

void test_steps_that_repeat_take_nothing_new() {
  const std::vector<std::int64_t> sizes{9 * kMegabyte, 5 * kMegabyte, 9 * kMegabyte, 2 * kMegabyte, 3 * kMegabyte};
  std::vector<void*> known;
  for (int step = 0; step < 5; ++step) {
    std::vector<void*> taken;
    for (const std::int64_t size : sizes) taken.push_back(take_memory(size));
    for (void* const memory : taken) give_back_memory(memory);
    std::sort(taken.begin(), taken.end());
    if (step > 0) CHECK(taken == known);
    known = taken;
  }
  release_memory();
}

void test_threads_never_share_an_array() {
  std::atomic<int> torn = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const std::int64_t bytes = kMegabyte / 8 * (1 + (i * 7 + t) % 3);
        auto* const memory = static_cast<unsigned char*>(take_memory(bytes));
        std::memset(memory, t, static_cast<std::size_t>(bytes));
        std::this_thread::yield();
        if (memory[0] != t || memory[bytes / 2] != t || memory[bytes - 1] != t) ++torn;
        give_back_memory(memory);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(torn == 0);
  CHECK(memory_use().taken == 0);
  release_memory();
}

void test_a_forked_child_can_go_on() {
#ifdef __SANITIZE_THREAD__
  std::printf("not checked: ThreadSanitizer cannot follow the child of a process with several threads\n");
  return;
#endif
  std::atomic<bool> done = false;
  std::thread busy([&] {
    while (!done) give_back_memory(take_memory(kMegabyte));
  });
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);  // a lock that nobody opens
      give_back_memory(take_memory(kMegabyte));
      _exit(0);
    }
    int status = 1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  done = true;
  busy.join();
  release_memory();
}

void test_a_workspace_is_given_back() {
  {
    const Workspace workspace(kMegabyte);
    CHECK(on_a_line(workspace.floats()));
    CHECK(memory_use().taken == 4 * kMegabyte);
  }
  CHECK(memory_use().taken == 0 && memory_use().kept == 4 * kMegabyte);
  release_memory();
}

}  // namespace

int main() {
  test_arrays_of_all_sizes_can_be_written();
  test_an_array_is_used_again_where_at_least_half_of_it_is_needed();
  test_the_smallest_array_that_fits_is_taken();
  test_not_much_more_is_kept_than_was_once_taken();
  test_steps_that_repeat_take_nothing_new();
  test_threads_never_share_an_array();
  test_a_forked_child_can_go_on();
  test_a_workspace_is_given_back();
  std::printf(failed_checks == 0 ? "all checks passed\n" : "%d checks failed\n", failed_checks);
  return failed_checks == 0 ? 0 : 1;
}
