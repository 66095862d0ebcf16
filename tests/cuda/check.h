// What the tests on the emulator share: every way to run a launch, random buffers, a derived bound.
#pragma once
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>

#include "cuda/device.h"

namespace check {

inline int failures = 0;

// Runs f under schedules and completions of asynchronous work that a device could show; f gets a name to print.
inline void in_every_way(const std::function<void(const char*)>& f) {
  const emu::Options before = emu::options;
  const char* names[] = {"in order", "shuffled", "greedy"};
  for (emu::Schedule schedule : {emu::Schedule::in_order, emu::Schedule::shuffled, emu::Schedule::greedy})
    for (bool lazy : {true, false}) {
      emu::options.schedule = schedule, emu::options.lazy_async = lazy, emu::options.seed += 7;
      f((std::string(names[int(schedule)]) + (lazy ? ", lazy" : ", eager")).c_str());
    }
  emu::options = before;
}

template <class T>
void fill(emu::Buffer<T>& buffer, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (size_t i = 0; i < buffer.size(); ++i) buffer[i] = sk::from_float<T>(uniform(random));
}

__attribute__((format(printf, 1, 2))) inline void fail(const char* text, ...) {
  va_list arguments;
  va_start(arguments, text);
  if (++failures <= 20) vprintf(text, arguments), printf("\n");
  va_end(arguments);
}

inline int result(const char* name, int cases) {
  printf("%s: %d cases, %d failures\n", name, cases, failures);
  return failures != 0;
}

}  // namespace check
