// sparse_conv2d: the three products in single precision. Channels_last tensors are transposed a few images at a time.
#include "core/sparse_conv2d.h"

#include <cstring>

#include "core/sparse_conv2d_walk.h"

namespace sk {
namespace {

// [N, channels, pixels] <-> [N, pixels, channels]
void to_planes(const float* in, int64_t N, int64_t channels, int64_t pixels, float* out, bool back, const Pool& pool) {
  constexpr int64_t kPiece = 64;  // pixels
  const SparseConvCopyKernels& kernels = SK_PICK_KERNELS(sparse_conv_copy_kernels);
  const int64_t pieces = sparse_conv_ceil(pixels, kPiece);
  parallel(pool, N * pieces, 8, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) {
      const int64_t n = begin / pieces, p = begin % pieces * kPiece, size = std::min(kPiece, pixels - p);
      const int64_t image = n * channels * pixels;
      if (back)
        kernels.transpose(in + image + p, pixels, channels, size, out + image + p * channels, channels);
      else
        kernels.transpose(in + image + p * channels, channels, size, channels, out + image + p, pixels);
    }
  });
}

int64_t images_at_a_time(const SparseConv2dShape& s, const Pool& pool) {
  const int64_t bytes = 4 * (s.C * s.H * s.W + s.K * s.OH() * s.OW());
  return std::max<int64_t>(1, std::min(s.N, std::max<int64_t>(pool.threads, (1 << 20) / std::max<int64_t>(1, bytes))));
}

void run(const SparseConvJob& job) {
  const SparseConv2dShape& s = job.shape;
  const auto walk = [&](const SparseConvWalk& w) {
    if (w.rows <= 0 || w.cols <= 0) return;
    if (sparse_conv_tiled(s))
      sparse_conv_tile_run(job, w);
    else
      sparse_conv_list_run(job, w);
  };
  if (!job.grad) return walk(sparse_conv_forward_walk(s));
  for (int64_t y = 0; y < s.stride_h; ++y)
    for (int64_t x = 0; x < s.stride_w; ++x) walk(sparse_conv_grad_walk(s, y, x));
}

void add_grad_weight(const SparseConv2dShape& s, const SparseConvPlan& plan, const float* x, const float* grad_out, float* grad_weight,
                     const Pool& pool) {
  if (sparse_conv_tiled(s))
    sparse_conv_tile_grad_weight(s, plan, x, grad_out, grad_weight, pool);
  else
    sparse_conv_list_grad_weight(s, plan, x, grad_out, grad_weight, pool);
}

// Calls f(shape of a few images, first image, planes of a, planes of b); a and b are [N, pixels, channels].
template <class F>
void for_each_chunk(SparseConv2dShape s, const Pool& pool, const F& f) {
  const int64_t total = s.N, chunk = images_at_a_time(s, pool);
  const Scratch x(sizeof(float) * chunk * s.C * s.H * s.W), out(sizeof(float) * chunk * s.K * s.OH() * s.OW());
  for (int64_t n = 0; n < total; n += chunk) {
    s.N = std::min(chunk, total - n);
    f(s, n, x.as<float>(), out.as<float>());
  }
}

}  // namespace

void sparse_conv2d(const SparseConv2dShape& s, const float* x, const float* weight, const int32_t* plan, const float* bias, float* out,
                   const Pool& pool) {
  const SparseConvPlan view(s, plan);
  if (s.N == 0 || s.K == 0) return;
  if (!s.channels_last) return run({s, view, weight, bias, false, x, out, s.OH(), s.OW(), pool});
  const int64_t in_pixels = s.H * s.W, out_pixels = s.OH() * s.OW();
  for_each_chunk(s, pool, [&](const SparseConv2dShape& c, int64_t n, float* planes, float* out_planes) {
    to_planes(x + n * s.C * in_pixels, c.N, s.C, in_pixels, planes, false, pool);
    run({c, view, weight, bias, false, planes, out_planes, s.OH(), s.OW(), pool});
    to_planes(out_planes, c.N, s.K, out_pixels, out + n * s.K * out_pixels, true, pool);
  });
}

void sparse_conv2d_grad_x(const SparseConv2dShape& s, const float* grad_out, const float* weight, const int32_t* plan, float* grad_x,
                          const Pool& pool) {
  const SparseConvPlan view(s, plan);
  if (s.N == 0 || s.C == 0) return;
  if (!s.channels_last) return run({s, view, weight, nullptr, true, grad_out, grad_x, s.H, s.W, pool});
  const int64_t in_pixels = s.H * s.W, out_pixels = s.OH() * s.OW();
  for_each_chunk(s, pool, [&](const SparseConv2dShape& c, int64_t n, float* planes, float* out_planes) {
    to_planes(grad_out + n * s.K * out_pixels, c.N, s.K, out_pixels, out_planes, false, pool);
    run({c, view, weight, nullptr, true, out_planes, planes, s.H, s.W, pool});
    to_planes(planes, c.N, s.C, in_pixels, grad_x + n * s.C * in_pixels, true, pool);
  });
}

void sparse_conv2d_grad_weight(const SparseConv2dShape& s, const float* x, const float* grad_out, const int32_t* plan, float* grad_weight,
                               const Pool& pool) {
  const SparseConvPlan view(s, plan);
  if (s.nnz == 0) return;
  std::memset(grad_weight, 0, sizeof(float) * s.nnz * s.BO * s.BI * s.BT);
  if (s.N == 0 || s.OH() <= 0 || s.OW() <= 0) return;
  if (!s.channels_last) return add_grad_weight(s, view, x, grad_out, grad_weight, pool);
  const int64_t in_pixels = s.H * s.W, out_pixels = s.OH() * s.OW();
  for_each_chunk(s, pool, [&](const SparseConv2dShape& c, int64_t n, float* planes, float* out_planes) {
    to_planes(x + n * s.C * in_pixels, c.N, s.C, in_pixels, planes, false, pool);
    to_planes(grad_out + n * s.K * out_pixels, c.N, s.K, out_pixels, out_planes, false, pool);
    add_grad_weight(c, view, planes, out_planes, grad_weight, pool);
  });
}

}  // namespace sk
