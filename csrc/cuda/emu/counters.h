// What a memory instruction of a warp costs, apart from time: 32-byte sectors of global memory, passes over the banks of shared
// memory. The n-th run of one source line by each lane, since the warp last met, is taken for one instruction.
#pragma once
#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "cuda/emu/machine.h"

namespace emu {

struct Cost {                           // of all memory instructions, or of one line's
  long sectors = 0, sectors_least = 0;  // least: as few as the bytes touched could need
  long passes = 0, passes_least = 0;
  double global_waste() const { return sectors_least ? double(sectors) / sectors_least : 1; }
  double bank_conflicts() const { return passes_least ? double(passes) / passes_least : 1; }
};
struct Counters {
  std::map<std::pair<std::string, int>, Cost> lines;
  Cost all() const {
    Cost sum;
    for (const auto& [line, c] : lines)
      sum.sectors += c.sectors, sum.sectors_least += c.sectors_least, sum.passes += c.passes, sum.passes_least += c.passes_least;
    return sum;
  }
};
inline Counters counters;

enum class Space { global, shared };
struct Touch {
  int lane;
  uintptr_t address;
  int bytes;
};
// Passes over the 32 banks of 4 bytes: a pass serves one word of every bank, and at most 128 bytes.
inline void count_shared(Cost& cost, const std::vector<Touch>& touches) {
  const size_t lanes_at_once = touches[0].bytes > 8 ? 8 : touches[0].bytes > 4 ? 16 : 32;
  for (size_t first = 0; first < touches.size(); first += lanes_at_once) {
    std::set<uintptr_t> words;
    for (size_t i = first; i < std::min(touches.size(), first + lanes_at_once); ++i)
      for (uintptr_t w = touches[i].address / 4; w <= (touches[i].address + touches[i].bytes - 1) / 4; ++w) words.insert(w);
    int bank[32] = {}, worst = 0;
    for (uintptr_t w : words) worst = std::max(worst, ++bank[w % 32]);
    cost.passes += worst;
    cost.passes_least += 1;
  }
}
inline void count_global(Cost& cost, const std::vector<Touch>& touches) {
  std::set<uintptr_t> bytes, sectors;
  for (const Touch& t : touches)
    for (int i = 0; i < t.bytes; ++i) bytes.insert(t.address + i), sectors.insert((t.address + i) / 32);
  cost.sectors += long(sectors.size());
  cost.sectors_least += long((bytes.size() + 31) / 32);
}

using Instruction = std::tuple<const char*, int, int, Space>;  // file, line, visit
inline std::vector<std::map<Instruction, std::vector<Touch>>> open_instructions;

inline void count(Space space, uintptr_t address, int bytes, Site site) {
  if (!options.count || !bytes) return;
  Lane& self = lane();
  auto visit = std::find_if(self.visits.begin(), self.visits.end(), [&](const Visit& v) { return v.site == site; });
  if (visit == self.visits.end()) visit = self.visits.insert(visit, {site, 0});
  open_instructions[warp_of(self)][{site.file, site.line, visit->count++, space}].push_back({self.id, address, bytes});
}
// The lanes of a warp met: what comes is a new instruction.
inline void count_met(int warp) {
  if (!options.count) return;
  for (auto& [key, touches] : open_instructions[warp]) {
    std::sort(touches.begin(), touches.end(), [](const Touch& a, const Touch& b) { return a.lane < b.lane; });  // lanes came in any order
    (std::get<3>(key) == Space::global ? count_global : count_shared)(counters.lines[{std::get<0>(key), std::get<1>(key)}], touches);
  }
  open_instructions[warp].clear();
  for (int i = warp * 32; i < warp * 32 + 32; ++i) block->lanes[i].visits.clear();
}

}  // namespace emu
