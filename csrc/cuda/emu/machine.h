// The emulated machine: one block at a time, one fiber per thread. Everything else in this folder hangs on these few structures.
//
// The emulator runs the kernels' own source, compiled with g++. It knows nothing about time. What it knows is the contract of the
// CUDA execution model, and it ends a launch with a Fault where a kernel breaks it: a race on shared memory, a collective that
// not all threads reach, an access outside a buffer, shared memory used before its copy was waited for.
#pragma once
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <list>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/emu/fiber.h"

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x, y, z;
};
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emu {

// What a kernel did wrong. Thrown by launch(); the block's fibers are abandoned.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Schedule {
  in_order,  // thread after thread
  shuffled,  // threads in an order drawn anew for every round
  greedy,    // adversary: one warp runs as far as it can before any other moves
};

struct Options {
  Schedule schedule = Schedule::in_order;
  unsigned seed = 1;
  bool lazy_async = true;      // asynchronous copies and products happen at their wait; false: at their issue
  bool hardware_sums = false;  // tensor cores align and truncate the terms of a sum; false: plain fp32, quicker
  bool count = false;          // sectors and bank conflicts, see counters.h
  int multiprocessors = 3;     // what a launcher is told; few, so that blocks walk over several tiles
  int compute_capability = 9;  // the major number
  size_t shared_limit = 227 * 1024;
};
inline Options options;

// Where in the source an operation stands. As a default argument it names the caller's line.
struct Site {
  const char* file;
  int line;
  bool operator==(const Site& o) const { return file == o.file && line == o.line; }
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};
inline std::string name(Site site) {
  const std::string file(site.file);
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line);
}

struct Copy {  // one cp.async
  uint32_t to;
  const void* from;
  int bytes, valid;
};
struct Visit {
  Site site;
  int count;
};
struct Lane {  // one thread
  Fiber fiber;
  uint3 index{};
  int id = 0;
  enum State { ready, waiting, done } state = ready;
  std::string waits_for;
  std::vector<Copy> open;                 // copies issued, not yet committed
  std::vector<std::vector<Copy>> groups;  // committed, not yet waited for
  std::vector<uint32_t> proxy_fences;     // the clock of its warp at each of them
  std::vector<Visit> visits;              // counters: how often each line ran since the warp last met
};

struct Rendezvous {  // lanes that wait for the others of their warp (or warpgroup)
  int arrived = 0;
  Site site{};
  const char* what = nullptr;
  std::vector<void*> arguments;
};
struct Accumulators {             // registers that a wgmma adds to: NaN while one is under way, the sums are kept here
  std::vector<float*> registers;  // of each thread
  std::vector<std::vector<float>> sums;
  int products = 0;  // under way
};
struct Products {  // wgmma of one warpgroup
  bool fenced = false;
  std::list<Accumulators> accumulators;
  std::vector<std::function<void()>> open;
  std::vector<std::vector<std::function<void()>>> groups;
};
struct Barrier {
  int arrived = 0, wanted = 0;
  Site site{};
  std::vector<int> lanes;
};

struct Block {
  std::vector<Lane> lanes;
  std::vector<Rendezvous> warps, warpgroups;
  Barrier barriers[16];
  std::vector<Products> products;
  std::function<void()> body;
  Fiber main;
  Lane* current = nullptr;
  int alive = 0;
  std::string fault;
};
inline Block* block = nullptr;

inline Lane& lane() { return *block->current; }
inline int warp_of(const Lane& l) { return l.id / 32; }

inline void pause() {  // back to the scheduler
  Lane& self = lane();
  Fiber::switch_to(self.fiber, block->main);
}

__attribute__((format(printf, 1, 2))) inline std::string format(const char* text, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, text);
  vsnprintf(line, sizeof line, text, arguments);
  va_end(arguments);
  return line;
}

[[noreturn]] inline void fault(const std::string& what) {
  const uint3 t = lane().index;
  block->fault = what + format("; block (%u, %u, %u) thread (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z, t.x, t.y, t.z);
  pause();
  __builtin_unreachable();
}

}  // namespace emu
