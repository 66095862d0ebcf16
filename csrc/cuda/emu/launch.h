// Runs a grid: block after block in an order drawn from the seed, each block under the chosen schedule.
#pragma once
#include <signal.h>

#include <numeric>
#include <random>
#include <tuple>

#include "cuda/emu/async.h"

namespace emu {

// A plain dereference that ran into a guard page. Checked loads and stores are found before.
inline void catch_segmentation_faults() {
#if !defined(__SANITIZE_ADDRESS__)
  static bool done = false;
  if (done) return;
  done = true;
  static char stack[64 * 1024];
  stack_t alternative{};
  alternative.ss_sp = stack, alternative.ss_size = sizeof stack;
  sigaltstack(&alternative, nullptr);
  struct sigaction action{};
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  action.sa_sigaction = [](int signal, siginfo_t* info, void*) {
    if (block && block->current) fault(format("plain access to address %p, outside every buffer", info->si_addr));
    ::signal(signal, SIG_DFL);
  };
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
#endif
}

inline void thread_main() {
  Fiber::arrived(lane().fiber);
  block->body();
  const Products& products = block->products[lane().id / 128];
  if (!products.open.empty() || !products.groups.empty()) fault("a thread ends while a wgmma of its own is not waited for");
  for (const auto& group : lane().groups)
    if (!group.empty()) fault("a thread ends while a cp.async of its own is not waited for");
  if (!lane().open.empty()) fault("a thread ends with a cp.async that it did not commit");
  lane().state = Lane::done;
  --block->alive;
  pause();
}

inline void resume(Lane& l) {
  block->current = &l;
  threadIdx = l.index;
  Fiber::switch_to(block->main, l.fiber);
  if (!block->fault.empty()) throw Fault(block->fault);
}

inline std::string who_waits() {
  std::vector<std::pair<std::string, int>> reasons;
  for (const Lane& l : block->lanes) {
    const std::string& reason = l.state == Lane::done ? "the end of the kernel" : l.waits_for;
    auto known = std::find_if(reasons.begin(), reasons.end(), [&](const auto& r) { return r.first == reason; });
    if (known == reasons.end()) known = reasons.insert(known, {reason, 0});
    ++known->second;
  }
  std::string text;
  for (const auto& [reason, threads] : reasons) text += format("%s%d threads at %s", text.empty() ? "" : ", ", threads, reason.c_str());
  return text;
}

inline void run_block(std::mt19937& random) {
  const int threads = int(block->lanes.size());
  std::vector<int> order(options.schedule == Schedule::greedy ? threads / 32 : threads);
  std::iota(order.begin(), order.end(), 0);
  while (block->alive) {
    bool moved = false;
    if (options.schedule != Schedule::in_order) std::shuffle(order.begin(), order.end(), random);
    for (int i : order) {
      if (options.schedule == Schedule::greedy) {
        for (bool again = true; again;) {
          again = false;
          for (int t = i * 32; t < i * 32 + 32; ++t)
            if (block->lanes[t].state == Lane::ready) resume(block->lanes[t]), again = moved = true;
        }
      } else if (block->lanes[i].state == Lane::ready) {
        resume(block->lanes[i]), moved = true;
      }
    }
    if (!moved && block->alive) throw Fault("deadlock: " + who_waits() + format("; block (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z));
  }
}

template <class Kernel, class... Arguments>
void launch(dim3 grid, dim3 threads, size_t shared_bytes, const Kernel& kernel, const Arguments&... arguments) {
  const int count = int(threads.x * threads.y * threads.z);
  if (count < 32 || count % 32 || count > 1024) throw Fault(format("launch: %d threads per block", count));
  if (shared_bytes > options.shared_limit)
    throw Fault(format("launch: %zu bytes of shared memory, %zu are there", shared_bytes, options.shared_limit));
  if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535) throw Fault(format("launch: grid (%u, %u, %u)", grid.x, grid.y, grid.z));
  catch_segmentation_faults();
  Block here;
  block = &here;
  struct Leave {
    ~Leave() { block = nullptr; }
  } leave;
  blockDim = threads, gridDim = grid;
  ++launch_number;
  here.lanes.resize(count);
  here.warps.resize(count / 32), here.warpgroups.resize((count + 127) / 128), here.products.resize((count + 127) / 128);
  here.body = [&] { kernel(arguments...); };
  shared.allocate(shared_bytes, count);
  open_instructions.assign(count / 32, {});
  std::mt19937 random(options.seed);
  std::vector<uint64_t> blocks(uint64_t(grid.x) * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (options.schedule != Schedule::in_order) std::shuffle(blocks.begin(), blocks.end(), random);
  for (uint64_t b : blocks) {
    blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
    shared.poison();
    here.alive = count;
    for (int i = 0; i < count; ++i) {
      Lane& l = here.lanes[i];
      l.id = i, l.index = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
      l.state = Lane::ready, l.open.clear(), l.groups.clear(), l.visits.clear();
      l.fiber.reset(thread_main);
    }
    run_block(random);
    for (int w = 0; w < count / 32; ++w) count_met(w);
    shared.check_canary();
  }
  for (const Memory* m : Memory::all()) m->check_canary();
}

}  // namespace emu
