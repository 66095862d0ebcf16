// A grouped convolution and the 1x1 behind it: out = act(weight2 @ act(conv(x, weight1) + bias1) + bias2), tile by tile.
//
// A block walks over tiles of 128 output pixels. For each it makes the channels between, 64 at a time as grouped_conv2d.cuh does, rounds
// them to T and leaves them in shared memory, pixel by pixel. They are the left side of the second product; its weights go by in stages of
// 64 outputs by eight pieces. A warp has 32 of the pixels in both.
#pragma once
#include "cuda/grouped_conv2d.cuh"
#include "cuda/piece.cuh"

namespace sk {

constexpr int kRootTiles = 8, kRootPieces = 8, kRootLine = (kRootPieces + 1) * 16;  // a stage of weight2: 64 lines
constexpr uint32_t kRootStage = kRootTiles * 8 * kRootLine;

struct RootJob {
  ConvJob conv;        // of the first convolution; one round, weights made for each 64 channels
  int channels, outs;  // between, and behind
  uint32_t pixel_bytes, between_at, weights_at, shared_bytes;
  bool last_relu, vectors, pairs;  // weight2's lines are whole pieces; out can be written two channels at a time
  Strides4 out_at;
};

template <class T, Fp32 mode>
__global__ void __launch_bounds__(kConvThreads, 2)
    root_conv2d_kernel(const T* __restrict__ x, const T* __restrict__ weight1, const T* __restrict__ bias1, const T* __restrict__ weight2,
                       const T* __restrict__ bias2, T* __restrict__ out, RootJob job) {
  using Kernel = ConvKernel<T, mode, kRootTiles, 1>;
  using Step = MatrixStep<T, mode>;
  constexpr int kPixelTiles = Kernel::kPixelTiles, E = kPerPiece<T>;
  const ConvJob& c = job.conv;
  const TapPlane taps{c.y.taps(0), c.x.taps(0)};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t row[kPixelTiles];
  SK_UNROLL
  for (int m = 0; m < kPixelTiles; ++m) row[m] = halo_pixel(c, (warp * kPixelTiles + m) * 16 + lane % 16) * c.pixel_bytes;
  float sum[kPixelTiles][kRootTiles][4];
  const auto begin = [&] {
    SK_UNROLL
    for (int m = 0; m < kPixelTiles; ++m) SK_UNROLL
    for (int j = 0; j < kRootTiles; ++j) SK_UNROLL
    for (int q = 0; q < 4; ++q) sum[m][j][q] = 0;
  };

  for (int tile = int(blockIdx.x); tile < c.tiles; tile += int(gridDim.x)) {
    for (int first = 0; first < job.channels; first += kRootTiles * 8) {
      const Kernel k{c, taps, first};
      const Span pieces = pieces_of(c, first, first + kRootTiles * 8, E);
      load_source(c, x, tile, taps, pieces, 0);
      copy_async_commit();
      copy_async_wait<0>();
      k.prepare(weight1, pieces, 0);
      __syncthreads();
      begin();
      k.multiply(sum, row, pieces, 0);
      SK_UNROLL
      for (int m = 0; m < kPixelTiles; ++m) SK_UNROLL
      for (int j = 0; j < kRootTiles; ++j) SK_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int channel = first + j * 8 + lane % 4 * 2, pixel = (warp * kPixelTiles + m) * 16 + half * 8 + lane / 4;
        if (channel >= (job.channels + E - 1) / E * E) continue;
        Two<T> values;
        SK_UNROLL
        for (int q = 0; q < 2; ++q) {
          const bool there = channel + q < job.channels;  // what fills up the last piece is zero
          const float v = there ? sum[m][j][half * 2 + q] + (bias1 ? to_float(load(bias1 + channel + q)) : 0.0f) : 0.0f;
          values.v[q] = from_float<T>(c.relu && v < 0 ? 0.0f : v);
        }
        store_shared(job.between_at + pixel * job.pixel_bytes + channel * int(sizeof(T)), values);
      }
      __syncthreads();  // nobody refills what is still read; the channels between are there
    }
    const int all = (job.channels + E - 1) / E;  // pieces between
    for (int first = 0; first < job.outs; first += kRootTiles * 8) {
      begin();
      for (int piece = 0; piece < all; piece += kRootPieces) {
        for (int i = threadIdx.x; i < kRootTiles * 8 * kRootPieces; i += kConvThreads) {
          const int line = i / kRootPieces, p = piece + i % kRootPieces, left = job.channels - p * E;
          const bool there = first + line < job.outs && left > 0;
          load_piece(job.weights_at + line * kRootLine + i % kRootPieces * 16,
                     there ? weight2 + int64_t(first + line) * job.channels + p * E : weight2, 1, there ? left : 0, job.vectors);
        }
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
        SK_UNROLL
        for (int step = 0; step < kRootPieces / 2; ++step) {
          if (piece + step * 2 >= all) break;
          const int half = piece + step * 2 + lane / 16;  // behind the last piece its own again, without weights
          typename Step::Left left[kPixelTiles];
          SK_UNROLL
          for (int m = 0; m < kPixelTiles; ++m) {
            uint32_t raw[4];
            ldmatrix_x4<false>(raw,
                               job.between_at + ((warp * kPixelTiles + m) * 16 + lane % 16) * job.pixel_bytes + (half < all ? half : all - 1) * 16);
            Step::prepare(raw, left[m]);
          }
          SK_UNROLL
          for (int j = 0; j < kRootTiles; j += 2) {
            uint32_t raw[4];
            ldmatrix_x4<false>(raw, job.weights_at + (j * 8 + lane / 16 * 8 + lane % 8) * kRootLine + (step * 2 + lane / 8 % 2) * 16);
            SK_UNROLL
            for (int n = 0; n < 2; ++n) {
              const Two<uint32_t> right{{raw[2 * n], raw[2 * n + 1]}};
              SK_UNROLL
              for (int m = 0; m < kPixelTiles; ++m) Step::add(sum[m][j + n], left[m], right);
            }
          }
        }
        __syncthreads();  // nobody stages over weights that are still read
      }
      SK_UNROLL
      for (int m = 0; m < kPixelTiles; ++m) SK_UNROLL
      for (int half = 0; half < 2; ++half) {
        const TargetPixel p = target_pixel(c, tile, (warp * kPixelTiles + m) * 16 + half * 8 + lane / 4, 0, 0);
        if (!p.inside) continue;
        T* at = out + p.n * job.out_at.n + p.y * job.out_at.y + p.x * job.out_at.x;
        SK_UNROLL
        for (int j = 0; j < kRootTiles; ++j) {
          const int channel = first + j * 8 + lane % 4 * 2;
          Two<T> values;
          SK_UNROLL
          for (int q = 0; q < 2; ++q) {
            const float v = sum[m][j][half * 2 + q] + (bias2 && channel + q < job.outs ? to_float(load(bias2 + channel + q)) : 0.0f);
            values.v[q] = from_float<T>(job.last_relu && v < 0 ? 0.0f : v);
          }
          if (job.pairs) {
            if (channel < job.outs) store(reinterpret_cast<Two<T>*>(at + channel), values);
          } else {
            SK_UNROLL
            for (int q = 0; q < 2; ++q)
              if (channel + q < job.outs) store(at + (channel + q) * job.out_at.c, values.v[q]);
          }
        }
      }
    }
  }
}

}  // namespace sk
