// The sparse convolution on the plain cores, for any mask: forward and grad_x (conv_job.h), and the weight's gradient.
//
// Forward: a block stages a tile's source pixels as fp32 [channel][pixel], a round of channels at a time. A warp makes 128 pixels
// of `V` target channels that share a list: its lanes fetch 32 kept weights and where their pixels stand, then all of them go through
// these, one word of shared memory per multiplication and pixel. Sums wait in shared memory, so that neighbours are written together.
#pragma once
#include "cuda/device.h"
#include "cuda/sparse_conv2d_job.h"

namespace sk {

constexpr int kListThreads = 256, kListWarps = kListThreads / 32, kListPixels = 4;  // pixels of a lane
constexpr int kSumPitch = 129;                                                      // floats of a target's sums
template <int V>
constexpr int kListTable = 32 * 4 * (1 + V);  // bytes of a warp's table: 32 offsets, then 32 x V weights

// Channels [channels.first, channels.end) of all halo pixels of `tile`, as fp32 [channel][pixel] from shared byte 0 on.
template <class T>
SK_DEVICE void stage_channels(const ConvJob& c, uint32_t pitch, const T* source, int tile, int low_y, int low_x, Span channels) {
  const Divider by_channels = Divider::by(channels.size());
  for (int i = threadIdx.x; i < channels.size() * c.pixels; i += kListThreads) {
    int channel, pixel;  // neighbouring threads read neighbours in memory
    if (c.source_at.c == 1)
      pixel = by_channels.divide(i), channel = i - pixel * channels.size();
    else
      channel = c.by_pixels.divide(i), pixel = i - channel * c.pixels;
    const SourcePixel p = source_pixel(c, tile, pixel, low_y, low_x);
    const T* from = source + p.n * c.source_at.n + (channels.first + channel) * c.source_at.c + p.y * c.source_at.y + p.x * c.source_at.x;
    store_shared((channel * pitch + pixel) * 4, p.inside ? to_float(load(from)) : 0.0f);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kListThreads, 2) sparse_conv2d_list_kernel(const T* __restrict__ source, const T* __restrict__ weight,
                                                                             const T* __restrict__ bias, T* __restrict__ target, KeptJob job) {
  const ConvJob& c = job.conv;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, targets = c.groups * c.target_group;
  const int phases_x = c.x.target_step(), phase_y = int(blockIdx.z) / phases_x, phase_x = int(blockIdx.z) % phases_x;
  const int low_y = c.y.taps(phase_y).low(), low_x = c.x.taps(phase_x).low(), tile = int(blockIdx.x);
  const int first_target = int(blockIdx.y) * job.chunk, runs = (job.target_block + V - 1) / V;  // of V targets of a block
  const uint32_t table = job.tables_at + warp * kListTable<V>;
  uint32_t pixel[kListPixels];  // where this lane's target pixels stand, in bytes
  SK_UNROLL
  for (int q = 0; q < kListPixels; ++q) pixel[q] = halo_pixel(c, q * 32 + lane) * 4;

  for (int number = 0; number < job.rounds; ++number) {
    const Round round = round_of(job, number);
    const Span staged = staged_channels(job, round);
    stage_channels(c, job.pitch, source, tile, low_y, low_x, staged);
    __syncthreads();
    const int per_entry = round.channels.size() * job.taps;
    for (int run = warp; run < job.chunk / job.target_block * runs; run += kListWarps) {
      const int tb = first_target / job.target_block + run / runs, first = run % runs * V, width = job.target_block - first;
      const int local = run / runs * job.target_block + first;
      if (tb * job.target_block >= targets) break;
      float sum[V][kListPixels];
      SK_UNROLL
      for (int v = 0; v < V; ++v) SK_UNROLL
      for (int q = 0; q < kListPixels; ++q)
        sum[v][q] = number && v < width ? load_shared<float>(job.sums_at + ((local + v) * kSumPitch + q * 32 + lane) * 4) : 0.0f;

      const Span entries = entries_of(job, tb, round);
      const int64_t items = int64_t(entries.size()) * per_entry;
      for (int64_t base = 0; base < items; base += 32) {
        const int count = int(items - base < 32 ? items - base : 32);
        if (lane < count) {
          const int k = int((base + lane) / per_entry), rest = int((base + lane) % per_entry);
          const Entry e = entry_of(job, entries.first + k);
          const int i = round.channels.first + rest / job.taps, t = rest % job.taps, tap = e.tap_block * job.taps + t;
          const Reach y = reach(c.y, phase_y, tap / c.x.kernel, low_y), x = reach(c.x, phase_x, tap % c.x.kernel, low_x);
          const int channel = e.source * job.source_block + i - staged.first;
          const bool reaches = y.reaches && x.reaches;  // else a tap of another phase
          store_shared(table + lane * 4, reaches ? (channel * job.pitch + y.at * c.halo_w + x.at) * 4 : ~0u);
          const T* from = weight + e.place * job.weight_entry + i * job.weight_source + t;
          SK_UNROLL
          for (int v = 0; v < V; ++v)
            store_shared(table + 128 + (lane * V + v) * 4, reaches && v < width ? to_float(load(from + (first + v) * job.weight_target)) : 0.0f);
        }
        __syncwarp();
        SK_UNROLL_2
        for (int j = 0; j < count; ++j) {
          const uint32_t at = load_shared<uint32_t>(table + j * 4);
          if (at == ~0u) continue;  // the same for the whole warp
          float w[V];
          SK_UNROLL
          for (int v = 0; v < V; ++v) w[v] = load_shared<float>(table + 128 + (j * V + v) * 4);
          SK_UNROLL
          for (int q = 0; q < kListPixels; ++q) {
            const float value = load_shared<float>(at + pixel[q]);
            SK_UNROLL
            for (int v = 0; v < V; ++v) sum[v][q] += w[v] * value;
          }
        }
        __syncwarp();  // nobody fetches over weights that are still read
      }
      SK_UNROLL
      for (int v = 0; v < V; ++v) SK_UNROLL
      for (int q = 0; q < kListPixels; ++q)
        if (v < width) store_shared(job.sums_at + ((local + v) * kSumPitch + q * 32 + lane) * 4, sum[v][q]);
    }
    __syncthreads();  // nobody refills what is still read; sums are there
  }
  for (int i = threadIdx.x; i < job.chunk * 128; i += kListThreads) {
    const int local = c.target_at.c == 1 ? i % job.chunk : i / 128, o = c.target_at.c == 1 ? i / job.chunk : i % 128;
    const TargetPixel p = target_pixel(c, tile, o, phase_y, phase_x);
    const int t = first_target + local;
    if (!p.inside || t >= targets) continue;
    const float v = load_shared<float>(job.sums_at + (local * kSumPitch + o) * 4) + (bias ? to_float(load(bias + t)) : 0.0f);
    store(target + p.n * c.target_at.n + t * c.target_at.c + p.y * c.target_at.y + p.x * c.target_at.x, from_float<T>(v));
  }
}

// grad_weight[e, o, i, t] = sum over the target pixels of grad_out[row[e] * BO + o] * x[source of (e, i, t)]. Weights in the order
// (o, e, i, t), 32 of them to a warp, each a sum per lane over its pixels; at the end the lanes are added. Block (y, x): the
// y-th part of the tiles, 256 weights. Parts are added by a second kernel, in their order.
struct KeptWeightJob {
  KeptJob kept;        // of the forward convolution
  const int32_t* row;  // [nnz]
  int64_t per_output;  // weights of one o: nnz * BI * BT
  int64_t weights;
};

template <class T>
__global__ void __launch_bounds__(kListThreads, 2)
    sparse_conv2d_list_weight_kernel(const T* __restrict__ x, const T* __restrict__ grad_out, float* __restrict__ parts, KeptWeightJob job) {
  const KeptJob& kept = job.kept;
  const ConvJob& c = kept.conv;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, low_y = c.y.taps(0).low(), low_x = c.x.taps(0).low();
  const uint32_t table = kept.tables_at + warp * 32 * 16;  // of each weight: channel, bytes to its tap's pixel, output channel
  const int64_t first = (int64_t(blockIdx.x) * kListWarps + warp) * 32, mine = first + lane;
  int64_t place = 0;
  Four<int> item{{-1, 0, 0, 0}};
  if (mine < job.weights) {
    const int o = int(mine / job.per_output);
    const int64_t rest = mine % job.per_output;
    const int per_entry = kept.source_block * kept.taps, e = int(rest / per_entry), i = int(rest % per_entry) / kept.taps, t = int(rest % kept.taps);
    const int code = load(kept.index + e), tap = code % kept.tap_blocks * kept.taps + t;
    place = e * kept.weight_entry + o * kept.weight_target + i * kept.weight_source + t;
    item.v[0] = code / kept.tap_blocks * kept.source_block + i;
    item.v[1] = (reach(c.y, 0, tap / c.x.kernel, low_y).at * c.halo_w + reach(c.x, 0, tap % c.x.kernel, low_x).at) * 4;
    item.v[2] = load(job.row + e) * kept.target_block + o;
  }
  store_shared(table + lane * 16, item);
  __syncwarp();
  uint32_t pixel[kListPixels];
  SK_UNROLL
  for (int q = 0; q < kListPixels; ++q) pixel[q] = halo_pixel(c, q * 32 + lane) * 4;
  float sum[32];
  SK_UNROLL
  for (int j = 0; j < 32; ++j) sum[j] = 0;

  for (int tile = int(blockIdx.y); tile < c.tiles; tile += int(gridDim.y)) {
    int64_t from[kListPixels];  // of grad_out; -1: outside
    SK_UNROLL
    for (int q = 0; q < kListPixels; ++q) {
      const TargetPixel p = target_pixel(c, tile, q * 32 + lane, 0, 0);
      from[q] = p.inside ? p.n * c.target_at.n + p.y * c.target_at.y + p.x * c.target_at.x : -1;
    }
    for (int number = 0; number < kept.rounds; ++number) {
      const Span staged = staged_channels(kept, round_of(kept, number));
      stage_channels(c, kept.pitch, x, tile, low_y, low_x, staged);
      __syncthreads();
      float grad[kListPixels] = {};
      int of = -1;
      SK_UNROLL
      for (int j = 0; j < 32; ++j) {
        const Four<int> it = load_shared<Four<int>>(table + j * 16);
        if (it.v[0] < staged.first || it.v[0] >= staged.end) continue;  // the same for the whole warp
        if (it.v[2] != of) {
          of = it.v[2];
          SK_UNROLL
          for (int q = 0; q < kListPixels; ++q) grad[q] = from[q] < 0 ? 0.0f : to_float(load(grad_out + from[q] + of * c.target_at.c));
        }
        const uint32_t at = (it.v[0] - staged.first) * kept.pitch * 4 + it.v[1];
        SK_UNROLL
        for (int q = 0; q < kListPixels; ++q)
          if (from[q] >= 0) sum[j] += grad[q] * load_shared<float>(at + pixel[q]);
      }
      __syncthreads();  // nobody stages over pixels that are still read
    }
  }
  float total = 0;
  SK_UNROLL
  for (int j = 0; j < 32; ++j) {
    SK_UNROLL
    for (int with = 16; with; with /= 2) sum[j] += __shfl_xor_sync(~0u, sum[j], with);
    if (lane == j) total = sum[j];
  }
  if (mine < job.weights) store(parts + blockIdx.y * job.weights + place, total);
}

}  // namespace sk
