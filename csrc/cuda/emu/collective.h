// Barriers, and operations that all lanes of a warp (or of a warpgroup) do together.
#pragma once
#include "cuda/emu/counters.h"
#include "cuda/emu/shared.h"

namespace emu {

inline void wait(std::string for_what) {
  lane().state = Lane::waiting;
  lane().waits_for = std::move(for_what);
  pause();
}

// bar.sync: `threads` threads of the block meet at barrier `id`, all at the same line.
inline void barrier(int id, int threads, Site site) {
  Barrier& b = block->barriers[id];
  if (b.arrived == 0) b.site = site, b.wanted = threads;
  if (!(b.site == site)) fault(format("divergent barrier %d: some threads are at %s, this one at %s", id, name(b.site).c_str(), name(site).c_str()));
  if (b.wanted != threads || threads % 32 || threads > int(block->lanes.size()))
    fault(format("barrier %d at %s is for %d threads, others came for %d", id, name(site).c_str(), threads, b.wanted));
  b.lanes.push_back(lane().id);
  if (++b.arrived < b.wanted) return wait(format("barrier %d at %s", id, name(site).c_str()));
  std::vector<int> per_warp(block->lanes.size() / 32, 0), warps;
  for (int i : b.lanes)
    if (++per_warp[i / 32] == 32) warps.push_back(i / 32);
  if (int(warps.size()) * 32 != b.wanted) fault(format("barrier %d at %s: not all lanes of its warps came", id, name(site).c_str()));
  for (int w : warps) count_met(w);
  shared.meet(warps);
  for (int i : b.lanes) block->lanes[i].state = Lane::ready;
  b = Barrier{};
}

// `size` consecutive threads meet; the last one to come runs f(arguments of all) for them.
template <class F>
void meet(std::vector<Rendezvous>& places, int size, const char* what, void* argument, Site site, const F& f) {
  Lane& self = lane();
  Rendezvous& r = places[self.id / size];
  if (r.arrived == 0) r.site = site, r.what = what, r.arguments.assign(size, nullptr);
  if (std::string(r.what) != what || !(r.site == site))
    fault(format("divergent collective: some lanes are at %s (%s), this one at %s (%s)", name(r.site).c_str(), r.what, name(site).c_str(), what));
  r.arguments[self.id % size] = argument;
  if (++r.arrived < size) return wait(format("%s at %s", what, name(site).c_str()));
  const int first = self.id / size * size;
  if (first + size > int(block->lanes.size())) fault(format("%s at %s: the group of threads is not full", what, name(site).c_str()));
  f(r.arguments);
  // each warp for itself: an operation of a warpgroup is no barrier between its warps
  for (int w = first / 32; w < (first + size) / 32; ++w) count_met(w), shared.meet({w});
  for (int i = first; i < first + size; ++i) block->lanes[i].state = Lane::ready;
  r.arrived = 0;
}
template <class F>
void warp_meet(const char* what, void* argument, Site site, const F& f) {
  meet(block->warps, 32, what, argument, site, f);
}

}  // namespace emu
