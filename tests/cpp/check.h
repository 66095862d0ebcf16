// What the C++ tests share: naive comparison, an odd thread pool, and memory that ends at an unreadable page.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "core/core.h"
#include "thin.h"

namespace check {

// False (and says so) where this processor lacks the instruction set the test was asked for.
inline bool wanted_isa() {
  const char* wanted = std::getenv("SPARSEKERN_ISA");
  if (!wanted || !std::strcmp(wanted, sk::isa_name())) return true;
  std::printf("skip: %s is not supported here\n", wanted);
  return false;
}

#ifdef __SANITIZE_THREAD__
// Every range in pieces of odd size, dealt out to three threads: the sanitizer sees what two of them touch without an order.
inline sk::Pool odd_pool() {
  return {3, [](int64_t size, int64_t, sk::Pool::Body body, const void* context) {
            std::vector<std::thread> threads;
            for (int64_t first = 0; first < 9 && first < size; first += 3)
              threads.emplace_back([=] {
                for (int64_t begin = first; begin < size; begin += 9) body(context, begin, begin + 3 < size ? begin + 3 : size);
              });
            for (std::thread& thread : threads) thread.join();
          }};
}
#else
// Cuts every range into pieces of odd size and runs the last one first: results must not depend on it.
inline sk::Pool odd_pool() {
  return {3, [](int64_t size, int64_t, sk::Pool::Body body, const void* context) {
            for (int64_t end = size; end > 0;) {
              const int64_t begin = end > 3 ? end - 3 : 0;
              body(context, begin, end);
              end = begin;
            }
          }};
}

#endif

// `size` values right before a page that may not be touched.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t size) : size_(size) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    bytes_ = (size * sizeof(T) + page - 1) / page * page;
    base_ = static_cast<char*>(mmap(nullptr, bytes_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_ + bytes_, page, thin::guarded());
    data_ = reinterpret_cast<T*>(base_ + bytes_ - size * sizeof(T));
    bytes_ += page;
  }
  ~Guarded() { munmap(base_, bytes_); }
  Guarded(const Guarded&) = delete;
  T* data() { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  size_t size() const { return size_; }

 private:
  size_t size_, bytes_;
  char* base_;
  T* data_;
};

inline void fill(Guarded<float>& v, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < v.size(); ++i) v[i] = normal(random);
}

// |got - want| against the bound for a sum of `terms` float products of absolute sum `size`.
inline bool close(const char* what, double got, double want, double terms, double size) {
  if (std::fabs(got - want) <= (terms + 2) * 5.9604644775390625e-8 * size + 1e-30) return true;
  std::printf("FAIL %s (%s): got %.9g, want %.9g\n", what, sk::isa_name(), got, want);
  return false;
}

// Of products of `made_by_gathers` where a simulated processor gathers wrongly (thin.h), the values are not compared; how many were not.
inline int& not_compared() {
  static int products = 0;
  return products;
}
inline bool comparable(bool made_by_gathers) {
  if (!made_by_gathers || thin::gathers_right()) return true;
  ++not_compared();
  return false;
}
inline void say_not_compared() {
  if (not_compared()) std::printf("values of %d products were not compared: this simulated processor gathers wrongly\n", not_compared());
}

// ---- bf16
inline double value(uint16_t h) {
  const uint32_t u = uint32_t(h) << 16;
  float v;
  std::memcpy(&v, &u, 4);
  return v;
}

inline void fill(Guarded<uint16_t>& v, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < v.size(); ++i) {
    const float f = normal(random);
    uint32_t u;
    std::memcpy(&u, &f, 4);
    v[i] = uint16_t(u >> 16);
  }
}

}  // namespace check
