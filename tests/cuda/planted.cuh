// Small kernels with every ingredient of the real ones, each right as it stands and wrong in one known way per Bug.
#pragma once
#include "cuda/device.h"

namespace planted {

enum class Bug {
  none,
  no_barrier_after_wait,
  no_barrier_before_refill,
  wait_one_too_few,
  no_wait,
  no_commit_at_end,
  barrier_in_a_branch,
  two_barriers,
  exit_before_barrier,
  collective_in_a_branch,
  shuffle_of_half_a_warp,
  left_of_the_row,
  right_of_the_row,
  tail_is_written,
  plain_read_far_outside,
  plain_write_past_the_end,
  past_shared_memory,
  misaligned_vector,
  unaligned_copy,
  copies_past_the_end,
  written_twice,
  read_back,
  no_warp_sync,
  no_proxy_fence,
  no_wgmma_fence,
  wgmma_not_waited_for,
  refill_under_wgmma,
  no_barrier_before_wgmma,
  no_barrier_after_wgmma,
  proxy_fence_after_barrier,
  sums_written_under_wgmma,
  sums_read_under_wgmma,
};

// out [16, 16] = a [16, K] b [K, 16], K = 32 * steps, on two warps of 8 columns each: copies in two stages, ldmatrix, mma.
// b is stored by column: bt [16, K]. Shared memory: per stage 16 rows of a and 16 of bt, 80 bytes apart (no bank conflicts).
template <Bug bug>
__global__ void product_kernel(const sk::bf16* a, const sk::bf16* bt, float* out, int steps) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, K = 32 * steps;
  constexpr uint32_t kRow = 80, kStage = 32 * kRow;
  const auto fetch = [&](int step) {
    for (int i = threadIdx.x; i < 32 * 4; i += 64) {
      const int row = i / 4, piece = i % 4;
      const sk::bf16* from = (row < 16 ? a + row * K : bt + (row - 16) * K) + step * 32 + piece * 8;
      sk::copy_async_16(step % 2 * kStage + row * kRow + piece * 16, bug == Bug::unaligned_copy ? from + 1 : from, 16);
    }
    if (bug != Bug::no_commit_at_end || step + 1 < steps) sk::copy_async_commit();
  };
  float sum[4] = {};
  fetch(0);
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) {
      fetch(step + 1);
      if (bug == Bug::wait_one_too_few)
        sk::copy_async_wait<2>();
      else if (bug != Bug::no_wait)
        sk::copy_async_wait<1>();
    } else if (bug != Bug::no_wait) {
      sk::copy_async_wait<0>();
    }
    if (bug == Bug::exit_before_barrier && threadIdx.x == 63 && step + 1 == steps) return;
    if (bug == Bug::barrier_in_a_branch) {
      if (warp == 0) __syncthreads();
    } else if (bug == Bug::two_barriers) {
      if (warp == 0)
        __syncthreads();
      else
        __syncthreads();
    } else if (bug != Bug::no_barrier_after_wait) {
      __syncthreads();
    }
    for (int k = 0; k < 32; k += 16) {
      const uint32_t stage = step % 2 * kStage + (bug == Bug::past_shared_memory && step == 1 ? kStage : 0);
      uint32_t left[4], right[4];
      sk::ldmatrix_x4<false>(left, stage + lane % 16 * kRow + (lane / 16) * 16 + k * 2);
      sk::ldmatrix_x4<false>(right, stage + (16 + warp * 8 + lane % 8) * kRow + (lane / 8 % 2) * 16 + k * 2);
      const uint32_t column[2] = {right[0], right[1]};
      if (bug != Bug::collective_in_a_branch || lane < 24) sk::mma_16x8x16<sk::bf16>(sum, left, column);
    }
    if (bug != Bug::no_barrier_before_refill) __syncthreads();
  }
  for (int q = 0; q < 4; ++q) sk::store(out + (lane / 4 + q / 2 * 8) * 16 + warp * 8 + lane % 4 * 2 + q % 2, sum[q]);
}

// out[i] = x[i-1] + x[i] + x[i+1] for i < size, outside counts as zero; one block takes 64 values.
template <Bug bug>
__global__ void neighbours_kernel(const float* x, float* out, int size) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  float sum = 0;
  if (bug == Bug::left_of_the_row ? i < size : i > 0 && i <= size) sum += sk::load(x + i - 1);
  if (i < size) sum += sk::load(x + i);
  if (bug == Bug::right_of_the_row ? i < size : i + 1 < size) sum += sk::load(x + i + 1);
  if (bug == Bug::misaligned_vector && i == 1) sum += sk::load(reinterpret_cast<const sk::Two<float>*>(x + 1)).v[0];
  if (bug == Bug::plain_read_far_outside && i == 0) sum += *static_cast<const volatile float*>(x + (1 << 20));
  if (bug == Bug::plain_write_past_the_end && i == 0) *static_cast<volatile float*>(out + size) = 1;
  if (bug == Bug::read_back && i > 0 && i < size) sum += sk::load(out + i - 1);
  if (i < size || bug == Bug::tail_is_written) sk::store(out + (bug == Bug::written_twice && i % 64 == 0 ? 0 : i), sum);
}

// out[0] = the sum of 64 values: lanes by shuffles, two warps through shared memory; and a warp-private exchange.
template <Bug bug>
__global__ void sum_kernel(const float* x, float* out) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  sk::store_shared(threadIdx.x * 4, sk::load(x + threadIdx.x));
  if (bug != Bug::no_warp_sync) __syncwarp();
  float sum = sk::load_shared<float>((threadIdx.x ^ 1) * 4);
  for (int with = 16; with; with /= 2)
    if (bug != Bug::shuffle_of_half_a_warp || lane < 16) sum += __shfl_xor_sync(~0u, sum, with);
  if (lane == 0) sk::store_shared(256 + warp * 4, sum);
  __syncthreads();
  if (threadIdx.x == 0) sk::store(out, sk::load_shared<float>(256) + sk::load_shared<float>(260));
}

// Copies that end inside the last piece: out[i] = x[i], 8 values of 2 bytes per piece, the rest of the last piece zero.
template <Bug bug>
__global__ void tail_kernel(const sk::bf16* x, sk::bf16* out, int size) {
  const int first = threadIdx.x * 8, left = size - first < 0 ? 0 : size - first > 8 ? 8 : size - first;
  sk::copy_async_16(threadIdx.x * 16, left ? x + first : x, bug == Bug::copies_past_the_end && left ? 16 : left * 2);
  sk::copy_async_commit();
  sk::copy_async_wait<0>();
  for (int i = 0; i < 8; ++i) sk::store(out + first + i, sk::load_shared<sk::bf16>(threadIdx.x * 16 + i * 2));
}

// out [64, 64] += a [64, 64 * rounds] b [64 * rounds, 64] on one warpgroup. Operands in shared memory with the 128-byte swizzle,
// written by ordinary stores.
template <Bug bug>
__global__ void warpgroup_kernel(const sk::bf16* a, const sk::bf16* b, float* out, int rounds) {
  const int t = threadIdx.x, K = rounds * 64;
  constexpr uint32_t kB = 64 * 128;
  float sum[32] = {};
  for (int round = 0; round < rounds; ++round) {
    if (round && bug != Bug::refill_under_wgmma) sk::wgmma_wait<0>();
    if (round && bug != Bug::no_barrier_after_wgmma) __syncthreads();
    for (int i = t; i < 64 * 64; i += 128) {
      const int row = i / 64, column = i % 64, swizzled = ((column / 8) ^ (row % 8)) * 16 + column % 8 * 2;
      sk::store_shared(row * 128 + swizzled, sk::load(a + row * K + round * 64 + column));          // row m, 64 k
      sk::store_shared(kB + row * 128 + swizzled, sk::load(b + (round * 64 + row) * 64 + column));  // row k, 64 n
    }
    if (bug != Bug::no_proxy_fence && bug != Bug::proxy_fence_after_barrier) sk::fence_async_proxy();
    if (bug != Bug::no_barrier_before_wgmma) __syncthreads();
    if (bug == Bug::proxy_fence_after_barrier) sk::fence_async_proxy();
    if (bug != Bug::no_wgmma_fence) sk::wgmma_fence();
    for (int k = 0; k < 4; ++k)
      sk::wgmma_64x64x16(sum, sk::wgmma_descriptor(sk::shared_pointer(k * 32), 16, 1024),
                         sk::wgmma_descriptor(sk::shared_pointer(kB + k * 16 * 128), 64 * 128, 1024));
    sk::wgmma_commit();
    if (bug == Bug::sums_written_under_wgmma) sum[0] = 0;
  }
  const float early = sum[5];
  if (bug != Bug::wgmma_not_waited_for) sk::wgmma_wait<0>();
  for (int i = 0; i < 32; ++i)
    sk::store(out + (t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8) * 64 + i / 4 * 8 + t % 4 * 2 + i % 2,
              bug == Bug::sums_read_under_wgmma && i == 5 ? early : sum[i]);
}

}  // namespace planted
