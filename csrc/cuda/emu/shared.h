// Shared memory with a memory: every two bytes know who wrote and who read them last, so a race is found whatever the schedule.
//
// Each warp has a vector clock (Lamport's). A barrier joins the clocks of the warps that meet at it; a collective of a warp
// orders the lanes of that warp. Two accesses, one of them a write, that no chain of such meetings orders are a race.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "cuda/emu/machine.h"

namespace emu {

class SharedMemory {
 public:
  // New launch: `bytes` of dynamic shared memory for blocks of `threads`.
  void allocate(size_t bytes, int threads) {
    if (base_) munmap(base_, mapped_);
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    bytes_ = bytes, warps_ = threads / 32;
    mapped_ = (bytes + kCanary + page - 1) / page * page + page;
    base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_ + mapped_ - page, page, PROT_NONE);
    writers_.assign(bytes / 2 + 1, {});
    readers_.assign((bytes / 2 + 1) * warps_, {});
    clocks_.assign(size_t(warps_) * warps_, 0);
    for (int w = 0; w < warps_; ++w) clock(w, w) = 1;
  }

  // New block: nothing is left of the last one but its clocks, which go on.
  void poison() {
    memset(base_, 0xff, bytes_ + kCanary);  // NaN in every format
    for (Writer& w : writers_) w.copying = false, w.async_reads = 0;
    std::vector<int> all(warps_);
    for (int w = 0; w < warps_; ++w) all[w] = w;
    meet(all);
  }

  void check_canary() const {
    for (size_t i = 0; i < kCanary; ++i)
      if (base_[bytes_ + i] != char(0xff)) throw Fault(format("writes shared memory %zu bytes past its end", i));
  }

  char* at(uint32_t address) { return base_ + address; }
  size_t size() const { return bytes_; }

  void check(const char* what, uint32_t address, size_t bytes, size_t alignment, Site site) const {
    if (address % alignment) fault(format("%s at %s: shared address %u is not a multiple of %zu", what, name(site).c_str(), address, alignment));
    if (address + bytes > bytes_ || address + bytes < address)
      fault(format("%s at %s: shared bytes [%u, %zu) are outside [0, %zu)", what, name(site).c_str(), address, address + bytes, bytes_));
  }

  void read(const Lane& by, uint32_t address, size_t bytes, Site site) {
    const int w = warp_of(by);
    const uint32_t now = clock(w, w);
    for (size_t i = address / 2; i <= (address + bytes - 1) / 2; ++i) {
      const Writer& writer = writers_[i];
      if (writer.copying) fault(format("read at %s: shared byte %zu is being copied to (wait for the cp.async first)", name(site).c_str(), 2 * i));
      if (!ordered(by, writer.lane, writer.clock)) race("read", "written", writer.lane, i, site);
      Reader& reader = readers_[i * warps_ + w];
      reader.lane = reader.clock == now && reader.lane != by.id ? kSeveral : by.id;
      reader.clock = now;
    }
  }

  enum class Write { plain, copy_begins, copy_ends };
  void write(const Lane& by, uint32_t address, size_t bytes, Write kind, Site site) {
    for (size_t i = address / 2; i <= (address + bytes - 1) / 2; ++i) {
      Writer& writer = writers_[i];
      if (writer.async_reads) fault(format("write at %s: shared byte %zu is still read by a wgmma (wait for it first)", name(site).c_str(), 2 * i));
      if (kind == Write::copy_ends) {
        writer.copying = false;
      } else {
        if (writer.copying) fault(format("write at %s: shared byte %zu is being copied to (wait for the cp.async first)", name(site).c_str(), 2 * i));
        if (!ordered(by, writer.lane, writer.clock)) race("written", "written", writer.lane, i, site);
        for (int w = 0; w < warps_; ++w) {
          const Reader& reader = readers_[i * warps_ + w];
          if (!reader.clock || (w == warp_of(by) && reader.lane == by.id)) continue;
          if (!seen(warp_of(by), w, reader.clock)) race("written", "read", reader.lane < 0 ? w * 32 : reader.lane, i, site);
        }
        writer.copying = kind == Write::copy_begins;
      }
      writer.lane = by.id, writer.clock = clock(warp_of(by), warp_of(by)), writer.fences = uint32_t(by.proxy_fences.size());
    }
  }

  void proxy_fence(Lane& by) { by.proxy_fences.push_back(clock(warp_of(by), warp_of(by))); }

  // A wgmma reads through the asynchronous proxy, for all four warps: whoever wrote must have fenced before the barrier at which they
  // met, and nobody may write until it is waited for.
  void async_read_begins(int first_warp, uint32_t address, size_t bytes, const std::vector<Lane>& lanes, Site site) {
    for (int w = first_warp; w < first_warp + 4; ++w) read(lanes[w * 32], address, bytes, site);
    for (size_t i = address / 2; i <= (address + bytes - 1) / 2; ++i) {
      Writer& writer = writers_[i];
      const std::vector<uint32_t>& fences = lanes[writer.lane].proxy_fences;
      for (int w = first_warp; writer.clock && w < first_warp + 4; ++w)
        if (writer.fences >= fences.size() || !seen(w, writer.lane / 32, fences[writer.fences]))
          fault(format("wgmma at %s: shared byte %zu was written by thread %d, which did not fence the asynchronous proxy before warp %d met it",
                       name(site).c_str(), 2 * i, writer.lane, w));
      ++writer.async_reads;
    }
  }
  void async_read_ends(int first_warp, uint32_t address, size_t bytes) {
    for (size_t i = address / 2; i <= (address + bytes - 1) / 2; ++i) {
      --writers_[i].async_reads;
      for (int w = first_warp; w < first_warp + 4; ++w) readers_[i * warps_ + w] = {clock(w, w), kSeveral};
    }
  }

  // The lanes of these warps met: what each of them did before is ordered before what any of them does next.
  void meet(const std::vector<int>& warps) {
    if (warps.size() > 1) {
      std::vector<uint32_t> joined(warps_, 0);
      for (int w : warps)
        for (int v = 0; v < warps_; ++v) joined[v] = std::max(joined[v], clock(w, v));
      for (int w : warps) std::copy(joined.begin(), joined.end(), &clock(w, 0));
    }
    for (int w : warps) ++clock(w, w);
  }

 private:
  static constexpr size_t kCanary = 1024;
  static constexpr int kSeveral = -1;
  struct Writer {
    uint32_t clock = 0, fences = 0;
    int16_t lane = 0;
    bool copying = false;
    uint16_t async_reads = 0;
  };
  struct Reader {
    uint32_t clock = 0;
    int lane = 0;
  };

  uint32_t& clock(int warp, int of) { return clocks_[size_t(warp) * warps_ + of]; }
  bool seen(int warp, int of, uint32_t when) { return warp == of ? when < clock(warp, warp) : when <= clock(warp, of); }
  bool ordered(const Lane& by, int lane, uint32_t when) { return !when || by.id == lane || seen(warp_of(by), lane / 32, when); }
  [[noreturn]] static void race(const char* now, const char* before, int lane, size_t cell, Site site) {
    fault(format("race: shared byte %zu is %s at %s and %s by thread %d with no barrier between", 2 * cell, now, name(site).c_str(), before, lane));
  }

  char* base_ = nullptr;
  size_t bytes_ = 0, mapped_ = 0;
  int warps_ = 0;
  std::vector<Writer> writers_;
  std::vector<Reader> readers_;
  std::vector<uint32_t> clocks_;
};
inline SharedMemory shared;

}  // namespace emu
