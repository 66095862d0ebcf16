// wgmma: products of a warpgroup that read both operands from shared memory through the asynchronous proxy.
// Operands have the 128-byte swizzle; a is K-major, b is N-major (PTX manual, "Asynchronous warpgroup level matrix instructions").
#pragma once
#include "cuda/emu/matrix.h"

namespace emu {

// Shared byte of element (mn, k) of a 16-bit matrix behind a descriptor.
inline uint32_t wgmma_element(uint64_t descriptor, bool mn_major, int mn, int k) {
  const auto field = [&](int shift) { return uint32_t(descriptor >> shift & 0x3fff) << 4; };
  const uint32_t start = field(0), leading = field(16), stride = field(32);
  const uint32_t plain = mn_major ? start + mn / 64 * leading + k / 8 * stride + k % 8 * 128 + mn % 64 * 2  // atoms of 64 mn x 8 k
                                  : start + mn / 8 * stride + mn % 8 * 128 + k * 2;                         // atoms of 8 mn x 64 k
  return plain ^ ((plain >> 7 & 7) << 4);
}

// Columns of d: N. d[64, N] += a[64, 16] b[16, N]; thread t holds rows t/32*16 + t%32/4 and that + 8.
template <class T, int N>
void wgmma(float* d, uint64_t a, uint64_t b, Site site) {
  struct Argument {
    float* d;
    uint64_t a, b;
  } mine{d, a, b};
  if (a >> 62 != 1 || b >> 62 != 1) fault(format("wgmma at %s: the descriptor does not ask for the 128-byte swizzle", name(site).c_str()));
  meet(block->warpgroups, 128, "wgmma", &mine, site, [&](const std::vector<void*>& lanes) {
    Products& products = block->products[lane().id / 128];
    if (!products.fenced) fault(format("wgmma at %s: no wgmma.fence since the accumulators were last touched", name(site).c_str()));
    std::vector<float*> sums;
    for (void* l : lanes) {
      const Argument& x = *static_cast<Argument*>(l);
      if (x.a != a || x.b != b) fault(format("wgmma at %s: the descriptors differ between threads", name(site).c_str()));
      sums.push_back(x.d);
    }
    std::vector<uint32_t> rows;  // 16-byte pieces that are read
    for (int k = 0; k < 16; k += 8)
      for (int m = 0; m < 64; ++m) rows.push_back(wgmma_element(a, false, m, k));
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < N; n += 8) rows.push_back(wgmma_element(b, true, n, k));
    for (uint32_t r : rows) {
      shared.check("wgmma", r, 16, 16, site);
      shared.async_read_begins(lane(), r, 16, block->lanes, site);
    }
    auto run = [=, first = lane().id / 128 * 128] {
      static float left[64][16], right[16][N];
      const auto element = [](uint64_t descriptor, bool mn_major, int mn, int k) {
        T value;
        memcpy(&value, shared.at(wgmma_element(descriptor, mn_major, mn, k)), 2);
        return sk::to_float(value);
      };
      for (int k = 0; k < 16; ++k) {
        for (int m = 0; m < 64; ++m) left[m][k] = element(a, false, m, k);
        for (int n = 0; n < N; ++n) right[k][n] = element(b, true, n, k);
      }
      for (int t = 0; t < 128; ++t)
        for (int i = 0; i < N / 2; ++i) {
          const int m = t / 32 * 16 + t % 32 / 4 + (i / 2 % 2) * 8, n = i / 4 * 8 + t % 4 * 2 + i % 2;
          for (int k = 0; k < 16; ++k) sums[t][i] += left[m][k] * right[k][n];
        }
      for (uint32_t r : rows) shared.async_read_ends(first / 32, r, 16);
    };
    products.open.push_back(run);
  });
}

inline void wgmma_fence(Site site) {
  meet(block->warpgroups, 128, "wgmma.fence", nullptr, site, [](const std::vector<void*>&) { block->products[lane().id / 128].fenced = true; });
}
inline void wgmma_commit(Site site) {
  meet(block->warpgroups, 128, "wgmma.commit_group", nullptr, site, [](const std::vector<void*>&) {
    Products& p = block->products[lane().id / 128];
    p.groups.push_back(std::move(p.open));
    p.open.clear();
  });
}
inline void wgmma_wait(int groups_left, Site site) {
  meet(block->warpgroups, 128, "wgmma.wait_group", nullptr, site, [groups_left](const std::vector<void*>&) {
    Products& p = block->products[lane().id / 128];
    while (int(p.groups.size()) > groups_left) {
      for (const auto& run : p.groups.front()) run();
      p.groups.erase(p.groups.begin());
    }
    p.fenced = false;
  });
}

}  // namespace emu

namespace sk {

inline void fence_async_proxy() { ++emu::lane().proxy_fences; }
inline void wgmma_fence(emu::Site at = emu::Site::here()) { emu::wgmma_fence(at); }
inline void wgmma_commit(emu::Site at = emu::Site::here()) { emu::wgmma_commit(at); }
template <int Left>
void wgmma_wait(emu::Site at = emu::Site::here()) {
  emu::wgmma_wait(Left, at);
}
inline void wgmma_64x64x16(float (&d)[32], uint64_t a, uint64_t b, emu::Site at = emu::Site::here()) { emu::wgmma<bf16, 64>(d, a, b, at); }
inline uint32_t shared_pointer(uint32_t address) { return address; }

}  // namespace sk
