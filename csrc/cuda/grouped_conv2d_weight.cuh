// Weight gradient of the grouped convolution:
//   grad_weight[k, j, ky, kx] = sum over n, oy, ox of grad_out[n, k, oy, ox] * x[n, g*C/G + j, oy*stride - pad + ky*dilation, ...]
//
// A matrix step of 16 x 8 sums: its rows are two pieces of 8 channels of x, each under some tap; its columns are 8 output channels;
// pixels are summed over. (piece, tap) pairs in order, two at a time, fill the steps of a set of 8 output channels. Each step is an
// accumulator that one warp keeps in registers while the block walks over tiles of 128 output pixels. In shared memory both
// operands lie by pixel.
//
// Block (z, y): the z-th part of the tiles; the y-th portion of the accumulators of 8 * sets output channels. Each part writes sums
// of its own, and a second kernel adds the parts in their order: no atomics, the same bits every time.
#pragma once
#include "cuda/conv_stage.cuh"
#include "cuda/matrix_step.cuh"

namespace sk {

constexpr int kWeightPiece = 8;  // channels of x
constexpr int kWeightSums = 12;  // accumulators of a warp, at the most
constexpr int kWeightSets = 4;   // sets of 8 output channels of a block, at the most
constexpr int kWeightPixels = 128;

struct WeightJob {
  ConvJob conv;       // of the forward convolution; its round is what a portion stages, in pieces of 16 bytes
  bool grad_vectors;  // pixels of grad_out are rows of whole, aligned 16-byte pieces
  int sets, sums, portions;
  uint32_t grad_pixel_bytes, grad_at, shared_bytes;
  int64_t weights;  // floats of a part
};

// Which (set, piece, tap) pairs the accumulators of a block stand for.
struct WeightSteps {
  const WeightJob& job;
  int taps, first_channel;

  SK_HD Span set_pieces(int set) const { return pieces_of(job.conv, first_channel + set * 8, first_channel + set * 8 + 8, kWeightPiece); }
  SK_HD int steps(int set) const { return (taps * set_pieces(set).size() + 1) / 2; }
  SK_HD int all_steps() const {
    int count = 0;
    for (int set = 0; set < job.sets; ++set) count += steps(set);
    return count;
  }
  // The pieces that steps [begin, end) read.
  SK_HD Span pieces(int begin, int end) const {
    Span all{1 << 30, 0};
    for (int set = 0, base = 0; set < job.sets; base += steps(set), ++set) {
      const Span here = overlap({begin - base, end - base}, {0, steps(set)}), of_set = set_pieces(set);
      if (!here.size()) continue;
      const int last = here.end * 2 - 1 < taps * of_set.size() ? here.end * 2 - 1 : taps * of_set.size() - 1;
      const int from = of_set.first + here.first * 2 / taps, to = of_set.first + last / taps + 1;
      all = {from < all.first ? from : all.first, to > all.end ? to : all.end};
    }
    return all.end ? all : Span{0, 0};
  }
  struct Entry {
    int set, piece, tap;
    bool counts;  // false: behind the last step, or the half that an odd last step repeats
  };
  SK_HD Entry entry(int step, int half) const {
    int set = 0;
    for (; set < job.sets && step >= steps(set); ++set) step -= steps(set);
    if (set == job.sets) return {set, 0, 0, false};
    const Span of_set = set_pieces(set);
    const bool odd = step * 2 + half >= taps * of_set.size();
    const int e = odd ? step * 2 : step * 2 + half;
    return {set, of_set.first + e / taps, e % taps, !odd};
  }
};

// grad_out [pixel, channel] of a tile into shared memory; zero beyond its edges.
template <class T>
SK_DEVICE void load_grad(const WeightJob& job, const T* grad_out, int tile, int first_channel) {
  constexpr int E = kPerPiece<T>;
  const ConvJob& c = job.conv;
  const int channels = c.groups * c.target_group, pieces = job.sets * 8 / E;
  for (int i = threadIdx.x; i < kWeightPixels * pieces; i += kConvThreads) {
    const int pixel = c.target_at.c == 1 ? i / pieces : i % kWeightPixels, piece = c.target_at.c == 1 ? i % pieces : i / kWeightPixels;
    const TargetPixel p = target_pixel(c, tile, pixel, 0, 0);
    const int channel = first_channel + piece * E;
    const int64_t at = p.n * c.target_at.n + p.y * c.target_at.y + p.x * c.target_at.x;
    const uint32_t to = job.grad_at + pixel * job.grad_pixel_bytes + piece * 16;
    if (job.grad_vectors) {
      const bool inside = p.inside && channel < channels;
      copy_async_16(to, inside ? grad_out + at + channel : grad_out, inside ? 16 : 0);
    } else {
      alignas(16) T values[E];
      SK_UNROLL
      for (int e = 0; e < E; ++e) values[e] = p.inside && channel + e < channels ? load(grad_out + at + (channel + e) * c.target_at.c) : T{};
      store_shared(to, bit_cast<Four<uint32_t>>(values));
    }
  }
}

// The two operands of 16-bit numbers, 32 pixels at a time: ldmatrix turns them from [pixel][channel].
template <class T, Fp32 mode>
struct WeightStep {
  static constexpr int kPixels = 32;
  using Right = uint32_t[4];
  // The pixels whose rows of x this lane gives to ldmatrix, for the first and the second 16 pixels.
  SK_DEVICE static int pixel(int k) { return k * 16 + threadIdx.x % 8 + threadIdx.x % 32 / 16 * 8; }
  SK_DEVICE static void right(Right& b, uint32_t grad, uint32_t pixel_bytes) { ldmatrix_x4<true>(b, grad + threadIdx.x % 32 * pixel_bytes); }
  SK_DEVICE static void add(float (&sum)[4], const uint32_t (&row)[2], const uint32_t (&piece)[2], const Right& b) {
    const uint32_t of_half = threadIdx.x / 8 % 2 ? piece[1] : piece[0];
    SK_UNROLL
    for (int k = 0; k < 2; ++k) {
      uint32_t left[4];
      ldmatrix_x4<true>(left, row[k] + of_half);
      const uint32_t of_k[2] = {b[2 * k], b[2 * k + 1]};
      mma_16x8x16<T>(sum, left, of_k);
    }
  }
};
// fp32, 8 pixels at a time: ldmatrix does not turn words, so each lane picks its own.
template <Fp32 mode>
struct WeightStep<float, mode> {
  static constexpr int kPixels = 8;
  using Right = Two<uint32_t>;
  SK_DEVICE static int pixel(int k) { return k * 4 + threadIdx.x % 4; }
  SK_DEVICE static void right(Right& b, uint32_t grad, uint32_t pixel_bytes) {
    SK_UNROLL
    for (int k = 0; k < 2; ++k) b.v[k] = load_shared<uint32_t>(grad + pixel(k) * pixel_bytes + threadIdx.x % 32 / 4 * 4);
  }
  SK_DEVICE static void add(float (&sum)[4], const uint32_t (&row)[2], const uint32_t (&piece)[2], const Right& b) {
    uint32_t raw[4];
    SK_UNROLL
    for (int q = 0; q < 4; ++q) raw[q] = load_shared<uint32_t>(row[q / 2] + piece[q % 2] + threadIdx.x % 32 / 4 * 4);
    typename MatrixStep<float, mode>::Left left;
    MatrixStep<float, mode>::prepare(raw, left);
    MatrixStep<float, mode>::add(sum, left, b);
  }
};

template <class T, Fp32 mode>
__global__ void __launch_bounds__(kConvThreads)
    grouped_conv2d_weight_kernel(const T* __restrict__ x, const T* __restrict__ grad_out, float* __restrict__ parts, WeightJob job) {
  using Step = WeightStep<T, mode>;
  constexpr int kPieceBytes = kWeightPiece * int(sizeof(T));
  const ConvJob& c = job.conv;
  const TapPlane taps{c.y.taps(0), c.x.taps(0)};
  const WeightSteps list{job, taps.count(), int(blockIdx.y) / job.portions * job.sets * 8};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int portion = int(blockIdx.y) % job.portions * 4 * job.sums, first = portion + warp * job.sums;
  const Span pieces = list.pieces(portion, portion + 4 * job.sums);

  float sum[kWeightSums][4];
  int set_of[kWeightSums];         // job.sets: nothing to do
  uint32_t piece[kWeightSums][2];  // bytes from a pixel's row to the two pieces
  SK_UNROLL
  for (int i = 0; i < kWeightSums; ++i) {
    SK_UNROLL
    for (int half = 0; half < 2; ++half) {
      const WeightSteps::Entry e = list.entry(first + i, half);
      set_of[i] = i < job.sums ? e.set : job.sets;
      piece[i][half] = set_of[i] < job.sets ? taps.pixel(c, e.tap) * c.pixel_bytes + (e.piece - pieces.first) * kPieceBytes : 0;
    }
    SK_UNROLL
    for (int q = 0; q < 4; ++q) sum[i][q] = 0;
  }

  const Span staged{pieces.first * kPieceBytes / 16, pieces.end * kPieceBytes / 16};
  for (int tile = blockIdx.x; tile < c.tiles; tile += gridDim.x) {
    load_source(c, x, tile, taps, staged, 0);
    load_grad(job, grad_out, tile, list.first_channel);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    for (int pixel = 0; pixel < kWeightPixels; pixel += Step::kPixels) {
      uint32_t row[2];
      SK_UNROLL
      for (int k = 0; k < 2; ++k) row[k] = halo_pixel(c, pixel + Step::pixel(k)) * c.pixel_bytes;
      typename Step::Right right;
      SK_UNROLL
      for (int i = 0; i < kWeightSums; ++i) {
        if (set_of[i] == job.sets) continue;  // the same for the whole warp
        if (i == 0 || set_of[i] != set_of[i ? i - 1 : 0])
          Step::right(right, job.grad_at + pixel * job.grad_pixel_bytes + set_of[i] * kPieceBytes, job.grad_pixel_bytes);
        Step::add(sum[i], row, piece[i], right);
      }
    }
    __syncthreads();  // nobody refills a tile that is still read
  }

  // this lane holds channel lane/4 of both pieces, and output channels lane%4*2 and the next
  float* part = parts + blockIdx.x * job.weights;
  SK_UNROLL
  for (int i = 0; i < kWeightSums; ++i) SK_UNROLL
  for (int half = 0; half < 2; ++half) {
    const WeightSteps::Entry e = list.entry(first + i, half);
    if (set_of[i] == job.sets || !e.counts) continue;
    SK_UNROLL
    for (int q = 0; q < 2; ++q) {
      const int target = list.first_channel + e.set * 8 + lane % 4 * 2 + q, group = target / c.target_group;
      const int source = e.piece * kWeightPiece + lane / 4 - group * c.source_group;
      if (group >= c.groups || source < 0 || source >= c.source_group) continue;
      store(part + group * c.weight_group + (target - group * c.target_group) * c.weight_target + source * c.weight_source + taps.weight(c, e.tap),
            sum[i][half * 2 + q]);
    }
  }
}

// out[i] = parts[0][i] + parts[1][i] + ..., in this order.
template <class T>
__global__ void __launch_bounds__(256) add_parts_kernel(const float* __restrict__ parts, T* __restrict__ out, int64_t size, int count) {
  for (int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x; i < size; i += int64_t(gridDim.x) * 256) {
    float sum = 0;
    for (int p = 0; p < count; ++p) sum += load(parts + p * size + i);
    store(out + i, from_float<T>(sum));
  }
}

}  // namespace sk
