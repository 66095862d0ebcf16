// wgmma: products of a warpgroup that read both operands from shared memory through the asynchronous proxy.
// Operands have the 128-byte swizzle; a is K-major or M-major, b K-major or N-major (PTX manual, "Asynchronous warpgroup level matrix instructions").
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

// The matrices behind two descriptors: d [64, N] += a [64, 16] b [16, N].
template <class T, int N, bool ATurned, bool BTurned>
struct WgmmaOperands {
  uint64_t a, b;

  std::vector<uint32_t> pieces() const {  // of 16 bytes that are read
    std::vector<uint32_t> found;
    for (int k = 0; k < 16; k += ATurned ? 1 : 8)
      for (int m = 0; m < 64; m += ATurned ? 8 : 1) found.push_back(wgmma_element(a, ATurned, m, k));
    for (int k = 0; k < 16; k += BTurned ? 1 : 8)
      for (int n = 0; n < N; n += BTurned ? 8 : 1) found.push_back(wgmma_element(b, BTurned, n, k));
    return found;
  }
  // Thread t holds rows t/32*16 + t%32/4 and that + 8, two neighbouring columns of every eight.
  void multiply(std::vector<std::vector<float>>& sums) const {
    static float left[64][16], right[16][N], d[64][N];
    const auto element = [](uint64_t descriptor, bool mn_major, int mn, int k) {
      T value;
      memcpy(&value, shared.at(wgmma_element(descriptor, mn_major, mn, k)), 2);
      return sk::to_float(value);
    };
    const auto each = [&](const auto& f) {
      for (int t = 0; t < 128; ++t)
        for (int i = 0; i < N / 2; ++i) f(sums[t][i], d[t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8][i / 4 * 8 + t % 4 * 2 + i % 2]);
    };
    for (int k = 0; k < 16; ++k) {
      for (int m = 0; m < 64; ++m) left[m][k] = element(a, ATurned, m, k);
      for (int n = 0; n < N; ++n) right[k][n] = element(b, BTurned, n, k);
    }
    each([](float& sum, float& at) { at = sum; });
    for (int m = 0; m < 64; ++m) {
      if (options.hardware_sums) {
        for (int n = 0; n < N; ++n) {
          double products[16];
          for (int k = 0; k < 16; ++k) products[k] = double(left[m][k]) * right[k][n];
          d[m][n] = hardware_sum(d[m][n], products, 16);
        }
      } else {
        for (int k = 0; k < 16; ++k)
          for (int n = 0; n < N; ++n) d[m][n] += left[m][k] * right[k][n];
      }
    }
    each([](float& sum, float& at) { sum = at; });
  }
};

// Until they are waited for, accumulators are NaN in the registers: what reads or writes them there is found.
inline bool untouched(const Accumulators& a) {
  for (size_t t = 0; t < a.registers.size(); ++t)
    for (size_t i = 0; i < a.sums[t].size(); ++i)
      if (sk::bit_cast<uint32_t>(a.registers[t][i]) != ~0u) return false;
  return true;
}
inline Accumulators& take(Products& products, const std::vector<float*>& registers, size_t count, Site site) {
  for (Accumulators& a : products.accumulators)
    if (a.registers == registers) {
      if (!untouched(a)) fault(format("wgmma at %s: its accumulators were written while a wgmma adds to them", name(site).c_str()));
      return a;
    }
  Accumulators& a = products.accumulators.emplace_back();
  a.registers = registers;
  for (float* r : registers) a.sums.emplace_back(r, r + count), memset(r, 0xff, count * sizeof(float));
  return a;
}

// Columns of d: N. `ATurned`: a is M-major, its rows side by side; `BTurned`: b is N-major.
template <class T, int N, bool ATurned, bool BTurned>
void wgmma(float* d, uint64_t a, uint64_t b, Site site) {
  struct Argument {
    float* d;
    uint64_t a, b;
  } mine{d, a, b};
  if (a >> 62 != 1 || b >> 62 != 1) fault(format("wgmma at %s: the descriptor does not ask for the 128-byte swizzle", name(site).c_str()));
  meet(block->warpgroups, 128, "wgmma", &mine, site, [&](const std::vector<void*>& lanes) {
    Products& products = block->products[lane().id / 128];
    if (!products.fenced) fault(format("wgmma at %s: no wgmma.fence since the accumulators were last touched", name(site).c_str()));
    std::vector<float*> registers;
    for (void* l : lanes) {
      const Argument& x = *static_cast<Argument*>(l);
      if (x.a != a || x.b != b) fault(format("wgmma at %s: the descriptors differ between threads", name(site).c_str()));
      registers.push_back(x.d);
    }
    const WgmmaOperands<T, N, ATurned, BTurned> operands{a, b};
    const int first_warp = lane().id / 128 * 4;
    const std::vector<uint32_t> pieces = operands.pieces();
    for (uint32_t p : pieces) {
      shared.check("wgmma", p, 16, 16, site);
      shared.async_read_begins(first_warp, p, 16, block->lanes, site);
    }
    Accumulators& sums = take(products, registers, N / 2, site);
    ++sums.products;
    if (!options.lazy_async) operands.multiply(sums.sums);
    products.open.push_back([=, &sums, lazy = options.lazy_async] {
      if (lazy) operands.multiply(sums.sums);
      for (uint32_t p : pieces) shared.async_read_ends(first_warp, p, 16);
      --sums.products;
    });
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
  meet(block->warpgroups, 128, "wgmma.wait_group", nullptr, site, [=](const std::vector<void*>&) {
    Products& p = block->products[lane().id / 128];
    while (int(p.groups.size()) > groups_left) {
      for (const auto& run : p.groups.front()) run();
      p.groups.erase(p.groups.begin());
    }
    p.accumulators.remove_if([&](const Accumulators& a) {
      if (a.products) return false;
      if (!untouched(a)) fault(format("wgmma.wait_group at %s: accumulators were written while a wgmma added to them", name(site).c_str()));
      for (size_t t = 0; t < a.registers.size(); ++t) std::copy(a.sums[t].begin(), a.sums[t].end(), a.registers[t]);
      return true;
    });
    p.fenced = false;
  });
}

}  // namespace emu

namespace sk {

inline void fence_async_proxy() { emu::shared.proxy_fence(emu::lane()); }
inline void wgmma_fence(emu::Site at = emu::Site::here()) { emu::wgmma_fence(at); }
inline void wgmma_commit(emu::Site at = emu::Site::here()) { emu::wgmma_commit(at); }
template <int Left>
void wgmma_wait(emu::Site at = emu::Site::here()) {
  emu::wgmma_wait(Left, at);
}
inline void wgmma_64x64x16(float (&d)[32], uint64_t a, uint64_t b, emu::Site at = emu::Site::here()) {
  emu::wgmma<bf16, 64, false, true>(d, a, b, at);
}
template <class T, int N, bool ATurned, bool BTurned>
void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, emu::Site at = emu::Site::here()) {
  emu::wgmma<T, N, ATurned, BTurned>(d, a, b, at);
}
inline uint32_t shared_pointer(uint32_t address) { return address; }

}  // namespace sk
