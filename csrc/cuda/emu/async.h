// cp.async: copies from global to shared memory that run until they are waited for.
#pragma once
#include "cuda/emu/collective.h"
#include "cuda/emu/global.h"

namespace emu {

inline void run(const Copy& c) {
  if (c.valid) memcpy(shared.at(c.to), c.from, c.valid);
  memset(shared.at(c.to) + c.valid, 0, c.bytes - c.valid);
}

// Copies `valid` bytes and fills up with zeros. Until the wait the destination is NaN (lazy) or the new values (eager); a kernel
// that reads it, or writes over it, is at fault either way.
inline void copy_begins(uint32_t to, const void* from, int bytes, int valid, Site site) {
  Lane& self = lane();
  shared.check("cp.async", to, bytes, bytes, site);
  if (valid < 0 || valid > bytes) fault(format("cp.async at %s: %d of %d bytes", name(site).c_str(), valid, bytes));
  if (reinterpret_cast<uintptr_t>(from) % bytes) fault(format("cp.async at %s: the source is not a multiple of %d", name(site).c_str(), bytes));
  if (valid) check_load(from, valid, 1, site);
  count(Space::global, reinterpret_cast<uintptr_t>(from), valid, site);
  shared.write(self, to, bytes, SharedMemory::Write::copy_begins, site);
  self.open.push_back({to, from, bytes, valid});
  if (options.lazy_async)
    memset(shared.at(to), 0xff, bytes);
  else
    run(self.open.back());
}
inline void copy_commit() {
  lane().groups.push_back(std::move(lane().open));
  lane().open.clear();
}
inline void copy_wait(int groups_left, Site site) {
  Lane& self = lane();
  const int finished = int(self.groups.size()) - groups_left;
  for (int i = 0; i < finished; ++i)
    for (const Copy& c : self.groups[i]) {
      if (options.lazy_async) run(c);
      shared.write(self, c.to, c.bytes, SharedMemory::Write::copy_ends, site);
    }
  if (finished > 0) self.groups.erase(self.groups.begin(), self.groups.begin() + finished);
}

}  // namespace emu
