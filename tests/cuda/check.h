// What the tests on the emulator share: every way to run a launch, random buffers, derived bounds.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/fp32.h"

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

// A sum of products in double precision, and what the error of any other way to make it is derived from.
struct Sum {
  double value = 0, magnitude = 0;
  int terms = 0;
  void add(double a, double b) { value += a * b, magnitude += std::fabs(a * b), ++terms; }
};

// The rounding of a result that is stored as T.
template <class T>
double stored(double value) {
  const double half = sizeof(T) == 4 ? 0 : std::is_same_v<T, sk::bf16> ? std::ldexp(1.0, -8) : std::ldexp(1.0, -11);
  return half * std::fabs(value) + (std::is_same_v<T, sk::fp16> ? std::ldexp(1.0, -24) : 1e-37);
}
// On tensor cores: of the products (strict fp32 leaves out the product of two remainders and their roundings), of a sum in any order
// that truncates, of storing.
template <class T>
double allowed_on_tensor_cores(const Sum& sum, sk::Fp32 mode) {
  const double product = sizeof(T) == 2 ? 0 : mode == sk::Fp32::tf32 ? std::ldexp(1.0, -10) : 4 * std::ldexp(1.0, -22);
  return (product + (3.0 * sum.terms + 8) * std::ldexp(1.0, -23)) * sum.magnitude * 1.01 + stored<T>(sum.value);
}
// On plain cores: a sum of t products in any order is off by at most t + 1 halves of an ulp of the magnitudes; then it is stored.
template <class T>
double allowed_on_plain_cores(const Sum& sum) {
  return (sum.terms + 2) * std::ldexp(1.0, -24) * sum.magnitude * 1.01 + stored<T>(sum.value);
}

template <class T, class Allowed>
void compare(const std::string& what, const std::vector<Sum>& wanted, const emu::Buffer<T>& got, const Allowed& allowed) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double v = sk::to_float(got[i]), limit = allowed(wanted[i]);
    if (!(std::fabs(v - wanted[i].value) <= limit))
      return fail("%s: wrong at %zu of %zu: %g, wanted %g within %g", what.c_str(), i, wanted.size(), v, wanted[i].value, limit);
  }
}

template <class T>
const char* type_name(sk::Fp32 mode = sk::Fp32::strict) {
  return std::is_same_v<T, sk::bf16> ? "bf16" : std::is_same_v<T, sk::fp16> ? "fp16" : mode == sk::Fp32::tf32 ? "tf32" : "fp32";
}

// A random table of fixed fan-in, index [outputs, fan_in], and its connections by input, as sparse_linear takes them (in blocks).
struct Table {
  emu::Buffer<int32_t> index, indptr, output, place;

  Table(size_t outputs, size_t fan_in, size_t inputs)
      : index("index", outputs * fan_in, emu::Role::input),
        indptr("indptr", inputs + 1, emu::Role::input),
        output("output", outputs * fan_in, emu::Role::input),
        place("place", outputs * fan_in, emu::Role::input) {
    std::mt19937 random(5);
    std::vector<int> order(inputs);
    std::iota(order.begin(), order.end(), 0);
    std::vector<std::vector<int>> of_input(inputs);
    for (size_t o = 0; o < outputs; ++o) {
      std::shuffle(order.begin(), order.end(), random);
      std::sort(order.begin(), order.begin() + fan_in);  // rising, as every list is
      for (size_t f = 0; f < fan_in; ++f) index[o * fan_in + f] = order[f], of_input[order[f]].push_back(int(o * fan_in + f));
    }
    size_t e = 0;
    for (size_t i = 0; i < inputs; ++i) {
      indptr[i] = int(e);
      for (int connection : of_input[i]) place[e] = connection, output[e++] = connection / int(fan_in);
    }
    indptr[inputs] = int(e);
  }
};

inline int result(const char* name, int cases) {
  printf("%s: %d cases, %d failures\n", name, cases, failures);
  return failures != 0;
}

}  // namespace check
