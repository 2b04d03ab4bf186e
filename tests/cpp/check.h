// The few lines of test support that the C++ tests need: a failed check prints where and makes the program fail.
#pragma once

#include <cstdio>

#ifdef __has_feature  // Clang, which has no such macro of its own
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__
#endif
#endif

inline int failed_checks = 0;

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      std::printf("%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
      ++failed_checks;                                                          \
    }                                                                           \
  } while (false)

#define CHECK_THROWS(expression, type) \
  do {                                 \
    bool thrown = false;               \
    try {                              \
      expression;                      \
    } catch (const type&) {            \
      thrown = true;                   \
    }                                  \
    CHECK(thrown && #expression);      \
  } while (false)
