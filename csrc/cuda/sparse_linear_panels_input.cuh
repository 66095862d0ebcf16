// grad_x of panels, by inputs:
//
//   grad_x[n, i] = sum over (ob, f) with index[ob, f] = i, over v, of grad_out[n, ob*V + v] * weight[ob, f, v]
//
// A block makes 64 rows of `inputs` neighbouring inputs and goes through the panels. A panel's list is rising, so that what it keeps of
// these inputs are neighbouring lines of the weight: a product of matrices as in grouped_mm.cuh, lines by rows over V. Each line of it is
// added to the sums of its input, in shared memory: lines of one panel are different inputs, and panels come one after the other.
#pragma once
#include "cuda/grouped_mm.cuh"
#include "cuda/sparse_linear.h"

namespace sk {

constexpr int kPanelPitch = (kMmTile + 8) * 4;  // bytes of an input's sums; the gap spreads inputs over the banks
constexpr int kPanelRangeBytes = kMmThreads * 8;
constexpr uint32_t kPanelSumsAt = kMmBytes + kPanelRangeBytes;

struct PanelInputJob {
  MmJob mm;  // lines and vectors of weight and grad_out
  int64_t N;
  int panels, width, fan_in;  // OB, V, F
  int inputs, all_inputs;     // of a block; of the layer
  Strides grad_x_at;
  const int32_t* index;
};

// The first connection of a panel whose input is not below `input`.
SK_DEVICE int first_connection(const int32_t* list, int count, int input) {
  int first = 0;
  while (count > 0) {
    const int half = count / 2;
    const bool below = load(list + first + half) < input;
    first = below ? first + half + 1 : first;
    count = below ? count - half - 1 : half;
  }
  return first;
}

template <class T, Fp32 mode>
__global__ void __launch_bounds__(kMmThreads, 2)
    sparse_linear_panels_input_kernel(const T* __restrict__ grad_out, const T* __restrict__ weight, T* __restrict__ grad_x, PanelInputJob job) {
  using Tile = MmTile<T, mode, false, false>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first_row = int64_t(blockIdx.x) * kMmTile;
  const int first_input = int(blockIdx.y) * job.inputs, rows = at_most(job.N - first_row, kMmTile);
  const int inputs = at_most(job.all_inputs - first_input, job.inputs);
  for (int i = threadIdx.x; i < inputs * kMmTile; i += kMmThreads) store_shared(kPanelSumsAt + i / kMmTile * kPanelPitch + i % kMmTile * 4, 0.0f);

  for (int panel = 0; panel < job.panels; ++panel) {
    const int of_batch = panel % kMmThreads;
    if (of_batch == 0) {  // where the lists of the next panels meet these inputs, a thread for each
      __syncthreads();    // nobody's ranges are still read
      if (const int mine = panel + int(threadIdx.x); mine < job.panels) {
        const int32_t* list = job.index + int64_t(mine) * job.fan_in;
        const int first = first_connection(list, job.fan_in, first_input), left = job.fan_in - first;
        store_shared(kMmBytes + threadIdx.x * 8, Two<int32_t>{{first, first + first_connection(list + first, left, first_input + inputs)}});
      }
      __syncthreads();  // the ranges are there, and the sums are zero
    }
    const Two<int32_t> range = load_shared<Two<int32_t>>(kMmBytes + of_batch * 8);
    for (int first = range.v[0]; first < range.v[1]; first += kMmTile) {
      const int64_t line = int64_t(panel) * job.fan_in + first;
      const MmPass<T> pass{weight + line * job.width,
                           grad_out + first_row * job.mm.b_line + int64_t(panel) * job.width,
                           0,
                           at_most(range.v[1] - first, kMmTile),
                           rows,
                           job.width};
      int input[2][2];  // of this lane's lines
      SK_UNROLL
      for (int m = 0; m < 2; ++m) SK_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int at = warp / 2 * 32 + m * 16 + half * 8 + lane / 4;
        input[m][half] = at < pass.height ? load(job.index + line + at) - first_input : -1;
      }
      float sum[2][4][4] = {};
      Tile{job.mm}.multiply(sum, pass);
      SK_UNROLL
      for (int m = 0; m < 2; ++m) SK_UNROLL
      for (int half = 0; half < 2; ++half) {
        if (input[m][half] < 0) continue;
        const uint32_t sums = kPanelSumsAt + input[m][half] * kPanelPitch + (warp % 2 * 32 + lane % 4 * 2) * 4;
        SK_UNROLL
        for (int j = 0; j < 4; ++j) {
          Two<float> values = load_shared<Two<float>>(sums + j * 32);
          SK_UNROLL
          for (int q = 0; q < 2; ++q) values.v[q] += sum[m][j][half * 2 + q];
          store_shared(sums + j * 32, values);
        }
      }
    }
  }

  __syncthreads();  // all sums are there
  for (int i = threadIdx.x; i < inputs * rows; i += kMmThreads) {
    const bool by_row = job.grad_x_at.col == 1;  // neighbouring threads write neighbours
    const int at = by_row ? i % inputs : i / rows, row = by_row ? i / inputs : i % rows;
    store(grad_x + (first_row + row) * job.grad_x_at.row + (first_input + at) * job.grad_x_at.col,
          from_float<T>(load_shared<float>(kPanelSumsAt + at * kPanelPitch + row * 4)));
  }
}

}  // namespace sk
