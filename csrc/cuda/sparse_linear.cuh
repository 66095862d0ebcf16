// Condensed fixed fan-in products. `source` [N, sources] is read, `target` [N, targets] is written: forward x and y, grad_x grad_out
// and grad_x on the connections listed by input.
//
// A block stages kRows rows of the source in shared memory, turned, as fp32: [source][row]. Then one 16-byte load gives four rows of
// a source, and kRows / 4 lanes make kRows sums of one target at a time. Granules of 16 bytes are swizzled by the source's number
// so that neither writing down a column nor reading across meets a bank twice.
#pragma once
#include "cuda/device.h"
#include "cuda/sparse_linear.h"

namespace sk {

constexpr int kLinearThreads = 256;

struct LinearJob {
  int64_t N;
  int sources, targets, fan_in;
  Strides source_at, target_at;
  const int32_t* indptr;  // [targets + 1], or null: target t has connections [t * fan_in, (t + 1) * fan_in)
  const int32_t* index;   // source of each connection
  const int32_t* place;   // its weight, or null: the connection's own number
  uint32_t results_at;    // shared bytes before the sums that wait to be written
};

template <int kRows>
SK_HD uint32_t granule_at(int source, int granule) {
  constexpr int kGranules = kRows / 4;
  return uint32_t(source) * (kRows * 4) + (granule ^ (source % kGranules)) * 16;
}

// Four rows of one source; rows behind the last are zero.
template <class T>
SK_DEVICE Four<float> four_rows(const T* source, Strides at, int64_t N, int64_t row, int column) {
  Four<float> v;
  SK_UNROLL
  for (int q = 0; q < 4; ++q) v.v[q] = row + q < N ? to_float(load(source + (row + q) * at.row + column * at.col)) : 0.0f;
  return v;
}

template <class T, int kRows>
SK_DEVICE void stage_rows(const T* source, Strides at, int64_t N, int64_t first_row, int sources) {
  constexpr int kGranules = kRows / 4;
  for (int i = threadIdx.x; i < sources * kGranules; i += kLinearThreads) {
    // neighbouring threads read along the dimension whose stride is 1
    const int column = at.col == 1 ? i % sources : i / kGranules, granule = at.col == 1 ? i / sources : i % kGranules;
    store_shared(granule_at<kRows>(column, granule), four_rows(source, at, N, first_row + granule * 4, column));
  }
}

// kStaged = false: more sources than shared memory holds, each is read where it lies.
template <class T, int kRows, bool kStaged>
__global__ void __launch_bounds__(kLinearThreads, 2) sparse_linear_kernel(const T* __restrict__ source, const T* __restrict__ weight,
                                                                          const T* __restrict__ bias, T* __restrict__ target, LinearJob job) {
  constexpr int kLanes = kRows / 4, kPitch = (kRows + 1) * 4;  // lanes per target; bytes of a target's results
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, granule = lane % kLanes;
  const int64_t first_row = int64_t(blockIdx.x) * kRows;
  const uint32_t results = job.results_at + warp * 32 * kPitch;
  if (kStaged) {
    stage_rows<T, kRows>(source, job.source_at, job.N, first_row, job.sources);
    __syncthreads();
  }
  // this warp owns 32 targets at a time
  for (int first = (int(blockIdx.y) * 8 + warp) * 32; first < job.targets; first += int(gridDim.y) * 8 * 32) {
    for (int pass = 0; pass < kLanes; ++pass) {
      const int local = pass * (32 / kLanes) + lane / kLanes, t = first + local;
      int64_t e = 0, end = 0;
      if (t < job.targets) {
        e = job.indptr ? load(job.indptr + t) : int64_t(t) * job.fan_in;
        end = job.indptr ? load(job.indptr + t + 1) : e + job.fan_in;
      }
      Four<float> sum{};
      for (; e < end; ++e) {
        const int from = load(job.index + e);
        const float w = to_float(load(weight + (job.place ? load(job.place + e) : e)));
        const Four<float> v = kStaged ? load_shared<Four<float>>(granule_at<kRows>(from, granule))
                                      : four_rows(source, job.source_at, job.N, first_row + granule * 4, from);
        SK_UNROLL
        for (int q = 0; q < 4; ++q) sum.v[q] += w * v.v[q];
      }
      SK_UNROLL
      for (int q = 0; q < 4; ++q) store_shared(results + local * kPitch + (granule * 4 + q) * 4, sum.v[q]);
    }
    __syncwarp();
    for (int i = lane; i < 32 * kRows; i += 32) {
      const int local = job.target_at.col == 1 ? i % 32 : i / kRows, row = job.target_at.col == 1 ? i / 32 : i % kRows, t = first + local;
      if (t >= job.targets || first_row + row >= job.N) continue;
      const float v = load_shared<float>(results + local * kPitch + row * 4) + (bias ? to_float(load(bias + t)) : 0.0f);
      store(target + (first_row + row) * job.target_at.row + t * job.target_at.col, from_float<T>(v));
    }
    __syncwarp();
  }
}

// Few rows: a warp makes one target of four rows, its lanes side by side along the connections, so that the weights, which are all
// the traffic there is, are read in whole lines.
template <class T, bool kStaged>
__global__ void __launch_bounds__(kLinearThreads, 2)
    sparse_linear_few_rows_kernel(const T* __restrict__ source, const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ target,
                                  LinearJob job) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first_row = int64_t(blockIdx.x) * 4;
  if (kStaged) {
    stage_rows<T, 4>(source, job.source_at, job.N, first_row, job.sources);
    __syncthreads();
  }
  for (int t = int(blockIdx.y) * 8 + warp; t < job.targets; t += int(gridDim.y) * 8) {
    const int64_t begin = job.indptr ? load(job.indptr + t) : int64_t(t) * job.fan_in,
                  end = job.indptr ? load(job.indptr + t + 1) : begin + job.fan_in;
    Four<float> sum{};
    for (int64_t e = begin + lane; e < end; e += 32) {
      const int from = load(job.index + e);
      const float w = to_float(load(weight + (job.place ? load(job.place + e) : e)));
      const Four<float> v = kStaged ? load_shared<Four<float>>(granule_at<4>(from, 0)) : four_rows(source, job.source_at, job.N, first_row, from);
      SK_UNROLL
      for (int q = 0; q < 4; ++q) sum.v[q] += w * v.v[q];
    }
    SK_UNROLL
    for (int q = 0; q < 4; ++q) {
      SK_UNROLL
      for (int with = 16; with; with /= 2) sum.v[q] += __shfl_xor_sync(~0u, sum.v[q], with);
      if (lane == 0 && first_row + q < job.N)
        store(target + (first_row + q) * job.target_at.row + t * job.target_at.col,
              from_float<T>(sum.v[q] + (bias ? to_float(load(bias + t)) : 0.0f)));
    }
  }
}

// grad_weight[o, f] = sum over n of grad_out[n, o] * x[n, index[o, f]]. A thread owns up to kPairs connections of the block's run of
// them and walks with the block over all rows; both operands are staged by row, four rows per load.
struct LinearWeightJob {
  int64_t N, connections;
  int sources, outputs, fan_in, pairs;  // pairs: connections of a thread
  Strides x_at, grad_at;
  const int32_t* index;
  uint32_t grad_shared;  // shared bytes before grad_out [output of this block][row]
};

template <class T, int kRows, bool kStaged>
__global__ void __launch_bounds__(kLinearThreads, 2)
    sparse_linear_weight_kernel(const T* __restrict__ grad_out, const T* __restrict__ x, T* __restrict__ grad_weight, LinearWeightJob job) {
  constexpr int kPairs = 4, kGranules = kRows / 4, kPitch = kRows * 4 + 16;
  const int64_t first = int64_t(blockIdx.x) * kLinearThreads * job.pairs, behind = first + int64_t(kLinearThreads) * job.pairs;
  const int64_t end = behind < job.connections ? behind : job.connections;
  const int first_output = int(first / job.fan_in), outputs = int((end - 1) / job.fan_in) - first_output + 1;
  float sum[kPairs];
  int source[kPairs], output[kPairs];
  SK_UNROLL
  for (int i = 0; i < kPairs; ++i) {
    const int64_t e = first + i * kLinearThreads + threadIdx.x;
    const bool mine = i < job.pairs && e < end;
    sum[i] = 0, source[i] = mine ? load(job.index + e) : -1, output[i] = mine ? int(e / job.fan_in) - first_output : 0;
  }
  for (int64_t row = 0; row < job.N; row += kRows) {
    if (kStaged) stage_rows<T, kRows>(x, job.x_at, job.N, row, job.sources);
    for (int i = threadIdx.x; i < outputs * kGranules; i += kLinearThreads) {
      const int o = job.grad_at.col == 1 ? i % outputs : i / kGranules, granule = job.grad_at.col == 1 ? i / outputs : i % kGranules;
      store_shared(job.grad_shared + o * kPitch + granule * 16, four_rows(grad_out, job.grad_at, job.N, row + granule * 4, first_output + o));
    }
    __syncthreads();
    SK_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      if (source[i] < 0) continue;
      SK_UNROLL
      for (int granule = 0; granule < kGranules; ++granule) {
        const Four<float> v =
            kStaged ? load_shared<Four<float>>(granule_at<kRows>(source[i], granule)) : four_rows(x, job.x_at, job.N, row + granule * 4, source[i]);
        const Four<float> g = load_shared<Four<float>>(job.grad_shared + output[i] * kPitch + granule * 16);
        SK_UNROLL
        for (int q = 0; q < 4; ++q) sum[i] += v.v[q] * g.v[q];
      }
    }
    __syncthreads();  // nobody stages over rows that are still read
  }
  SK_UNROLL
  for (int i = 0; i < kPairs; ++i)
    if (source[i] >= 0) store(grad_weight + first + i * kLinearThreads + threadIdx.x, from_float<T>(sum[i]));
}

}  // namespace sk
