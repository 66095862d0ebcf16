// A tile of a product of 16-bit matrices by wgmma (compute capability 9.x only): d[m, n] = sum over k of left[m, k] * right[n, k].
//
// cp.async brings 64 k of both operands a stage, while the products of two stages are under way. Two warpgroups share a tile, each with
// 64 lines of d. In shared memory an operand has the 128-byte swizzle and comes in atoms of 64 by 64 numbers: `turned` with a line for
// each k, along which neighbours of d lie side by side, else with a line for each m or n, of its 64 k.
#pragma once
#include "cuda/device.h"
#include "cuda/piece.cuh"

namespace sk {

constexpr int kWgmmaThreads = 256, kWgmmaDepth = 64, kWgmmaStages = 4;  // kWgmmaDepth: of the sum, in a stage
constexpr int kWgmmaAtom = 64 * 128;                                    // bytes

// `Count` m or n of a stage.
template <int Count, bool Turned>
struct WgmmaOperand {
  static constexpr int kBytes = Count / 64 * kWgmmaAtom;
  static constexpr int kLines = Turned ? kWgmmaDepth : Count, kPieces = Turned ? Count / 8 : 8;  // of 16 bytes, in a line
  // Every thread brings one piece of every so-manieth line: a multiple of 8, so that it has one place in the swizzle.
  static constexpr int kStep = kWgmmaThreads / kPieces, kEach = kLines / kStep;
  static_assert(kStep % 8 == 0 && kLines % kStep == 0, "WgmmaOperand");

  SK_DEVICE static int line() { return threadIdx.x / kPieces; }  // this thread's first
  SK_DEVICE static int piece() { return threadIdx.x % kPieces; }
  SK_DEVICE static uint32_t at(int line, int piece) { return piece / 8 * kWgmmaAtom + line * 128 + ((piece ^ line) & 7) * 16; }
  // from(p): where this thread's piece of its p-th line begins in memory, and how many bytes of it there are
  template <class From>
  SK_DEVICE static void bring(uint32_t to, const From& from) {
    SK_UNROLL
    for (int p = 0; p < kEach; ++p) {
      const auto [source, bytes] = from(p);
      copy_async_16(to + at(line(), piece()) + p * kStep * 128, source, bytes);
    }
  }
  // 16 k, from the `step`-th on, of 64 or more m or n, from `first` on, a multiple of 64.
  SK_DEVICE static uint64_t descriptor(uint32_t operand, int first, int step) {
    return wgmma_descriptor(shared_pointer(operand + first / 64 * kWgmmaAtom + step * (Turned ? 16 * 128 : 16 * 2)), kWgmmaAtom, 1024);
  }
};
template <class T>
struct WgmmaPiece {
  const T* from;
  int bytes;
};

template <class T, int Left, int Right, bool LeftTurned, bool RightTurned>
struct WgmmaTile {
  using L = WgmmaOperand<Left, LeftTurned>;
  using R = WgmmaOperand<Right, RightTurned>;
  static constexpr int kColumns = Right * Left / 128;  // of d, that a warpgroup makes
  static constexpr uint32_t kRightAt = L::kBytes, kStageBytes = L::kBytes + R::kBytes;
  static constexpr int kBytes = kWgmmaStages * int(kStageBytes), kSums = kColumns / 2;
  static_assert((Left == 64 || Left == 128) && kBytes <= 227 * 1024, "WgmmaTile");

  SK_DEVICE static int group_left() { return threadIdx.x / 128 % (Left / 64) * 64; }
  SK_DEVICE static int group_right() { return threadIdx.x / 128 / (Left / 64) * kColumns; }

  // bring(stage, left, right): this thread's copies of a stage to where its operands stand
  template <class Bring>
  SK_DEVICE static void multiply(float (&sum)[kSums], int stages, const Bring& bring) {
    SK_UNROLL
    for (int i = 0; i < kSums; ++i) sum[i] = 0;
    const auto fetch = [&](int stage) {
      const uint32_t to = stage % kWgmmaStages * kStageBytes;
      if (stage < stages) bring(stage, to, to + kRightAt);
      copy_async_commit();
    };
    fetch(0);
    fetch(1);
    if (stages > 0) {  // a loop of at least one turn, and the wait behind it: else registers move while products are under way
      int stage = 0;
      do {
        copy_async_wait<1>();
        fence_async_proxy();
        __syncthreads();  // everybody's copies are there, and everybody has waited for the products of the stage before the last
        wgmma_fence();
        const uint32_t at = stage % kWgmmaStages * kStageBytes;
        SK_UNROLL
        for (int step = 0; step < kWgmmaDepth / 16; ++step)
          wgmma<T, kColumns, LeftTurned, RightTurned>(sum, L::descriptor(at, group_left(), step), R::descriptor(at + kRightAt, group_right(), step));
        wgmma_commit();
        fetch(stage + 2);  // takes the place of the stage before the last
        wgmma_wait<1>();
      } while (++stage < stages);
      wgmma_wait<0>();
    }
    copy_async_wait<0>();
    __syncthreads();  // the tile takes the place of the stages
  }

  // Through shared memory, so that memory is written in whole lines: of neighbours along m (`along_left`) or along n, of which there are
  // `lefts` and `rights`. place(line, i): where the i-th number of a line belongs; added(m) is added; `vectors`: eight at a time.
  template <class Added, class Place>
  SK_DEVICE static void write(const float (&sum)[kSums], bool along_left, int lefts, int rights, bool vectors, const Added& added,
                              const Place& place) {
    const int thread = threadIdx.x, m = group_left() + thread / 32 % 4 * 16 + thread % 32 / 4, n = group_right() + thread % 4 * 2;
    const int pitch = (along_left ? Left : Right) * 2 + 16;  // the gap between lines spreads them over the banks
    SK_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int line = m + half * 8;
      const float more = added(line);
      SK_UNROLL
      for (int j = 0; j < kColumns / 8; ++j) {
        const Two<T> pair{{from_float<T>(sum[j * 4 + half * 2] + more), from_float<T>(sum[j * 4 + half * 2 + 1] + more)}};
        if (along_left) {
          store_shared((n + j * 8) * pitch + line * 2, pair.v[0]);
          store_shared((n + j * 8 + 1) * pitch + line * 2, pair.v[1]);
        } else {
          store_shared(line * pitch + (n + j * 8) * 2, pair);
        }
      }
    }
    __syncthreads();  // the tile is there

    const int lines = along_left ? rights : lefts, length = along_left ? lefts : rights;
    if (vectors) {
      const int pieces = length / 8;
      for (int i = thread; i < lines * pieces; i += kWgmmaThreads)
        store(reinterpret_cast<Four<uint32_t>*>(place(i / pieces, i % pieces * 8)),
              load_shared<Four<uint32_t>>(i / pieces * pitch + i % pieces * 16));
    } else {
      for (int i = thread; i < lines * length; i += kWgmmaThreads)
        store(place(i / length, i % length), load_shared<T>(i / length * pitch + i % length * 2));
    }
  }
};

// Whether a piece at p and every `line` elements behind it is aligned.
template <class T>
SK_HD bool whole_pieces_of(const T* p, int64_t line) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && line % 8 == 0;
}

}  // namespace sk
