// sparse_conv2d: the three products in single precision, and how channels_last pixels become planes and planes pixels.
#include "core/sparse_conv2d.h"

#include <cstring>

#include "core/sparse_conv2d_walk.h"

namespace sk {
namespace {

// in [pixels, in_stride] -> out [channels, out_stride], a piece at a time: its lines follow each other in memory
void to_planes(const float* in, int64_t in_stride, int64_t channels, int64_t pixels, float* out, int64_t out_stride, const Pool& pool) {
  constexpr int64_t kPiece = 64;  // pixels
  const SparseConvCopyKernels& kernels = SK_PICK_KERNELS(sparse_conv_copy_kernels);
  parallel(pool, sparse_conv_ceil(pixels, kPiece), 8, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) {
      const int64_t p = begin * kPiece;
      kernels.transpose(in + p * in_stride, in_stride, std::min(kPiece, pixels - p), channels, out + p, out_stride);
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

}  // namespace

SparseConvPlanes SparseConvJob::planes(const SparseConvWalk& w, int64_t n, int64_t channel, int64_t channels, int64_t first, int64_t last,
                                       float* room) const {
  const int64_t pixels = w.src_h * w.src_w;
  if (!shape.channels_last) return {src + (n * src_channels() + channel) * pixels, pixels};
  const int64_t stride = sparse_conv_odd_lines(last - first);
  to_planes(src + (n * pixels + first) * src_channels() + channel, src_channels(), channels, last - first, room, stride, kSerial);
  return {room - first, stride};
}

void SparseConvJob::scatter(const float* sums, int64_t stride, int64_t n, int64_t first, int64_t last) const {
  const int64_t channels = dst_channels();
  SK_PICK_KERNELS(sparse_conv_copy_kernels).transpose(sums, stride, channels, last - first, dst + (n * dst_h * dst_w + first) * channels, channels);
}

void SparseConvJob::scatter(const SparseConvWalk& w, const float* sums, int64_t stride, int64_t row_floats, int64_t n, int64_t channel,
                            int64_t channels, int64_t row, int64_t rows) const {
  const SparseConvCopyKernels& kernels = SK_PICK_KERNELS(sparse_conv_copy_kernels);
  const bool one_run = flat(w, row_floats);
  const int64_t runs = one_run ? 1 : rows, cols = one_run ? rows * w.cols : w.cols;
  for (int64_t r = 0; shape.channels_last && r < runs; ++r) {
    const int64_t pixel = (n * dst_h + w.dst_y + (row + r) * w.dst_step_h) * dst_w + w.dst_x;
    kernels.transpose(sums + r * row_floats, stride, channels, cols, dst + pixel * dst_channels() + channel, w.dst_step_w * dst_channels());
  }
  for (int64_t c = 0; !shape.channels_last && c < channels; ++c)
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = sums + c * stride + r * row_floats;
      float* to = dst + ((n * dst_channels() + channel + c) * dst_h + w.dst_y + (row + r) * w.dst_step_h) * dst_w + w.dst_x;
      if (w.dst_step_w == 1)
        std::memcpy(to, from, sizeof(float) * w.cols);
      else
        for (int64_t x = 0; x < w.cols; ++x) to[x * w.dst_step_w] = from[x];
    }
}

void sparse_conv2d(const SparseConv2dShape& s, const float* x, const float* weight, const int32_t* plan, const float* bias, float* out,
                   const Pool& pool) {
  const SparseConvPlan view(s, plan);
  if (s.N > 0 && s.K > 0) run({s, view, weight, bias, false, x, out, s.OH(), s.OW(), pool});
}

void sparse_conv2d_grad_x(const SparseConv2dShape& s, const float* grad_out, const float* weight, const int32_t* plan, float* grad_x,
                          const Pool& pool) {
  const SparseConvPlan view(s, plan);
  if (s.N > 0 && s.C > 0) run({s, view, weight, nullptr, true, grad_out, grad_x, s.H, s.W, pool});
}

void sparse_conv2d_grad_weight(const SparseConv2dShape& s, const float* x, const float* grad_out, const int32_t* plan, float* grad_weight,
                               const Pool& pool) {
  const SparseConvPlan view(s, plan);
  if (s.nnz == 0) return;
  std::memset(grad_weight, 0, sizeof(float) * s.nnz * s.BO * s.BI * s.BT);
  const int64_t in_pixels = s.H * s.W, out_pixels = s.OH() * s.OW();
  if (s.N == 0 || s.OH() <= 0 || s.OW() <= 0) return;
  if (!s.channels_last) return add_grad_weight(s, view, x, grad_out, grad_weight, pool);
  // grad_out is turned a few images at a time; x only for the list kernels, the tiles of the others are pixels of channels already
  const bool turn_x = !sparse_conv_tiled(s);
  SparseConv2dShape few = s;
  few.channels_last = !turn_x;
  const int64_t chunk = images_at_a_time(s, pool);
  const Scratch planes(turn_x ? sizeof(float) * chunk * s.C * in_pixels : 0), out_planes(sizeof(float) * chunk * s.K * out_pixels);
  for (int64_t n = 0; n < s.N; n += chunk) {
    const float* from = x + n * s.C * in_pixels;
    few.N = std::min(chunk, s.N - n);
    for (int64_t i = 0; i < few.N; ++i) {
      if (turn_x) to_planes(from + i * s.C * in_pixels, s.C, s.C, in_pixels, planes.as<float>() + i * s.C * in_pixels, in_pixels, pool);
      to_planes(grad_out + (n + i) * s.K * out_pixels, s.K, s.K, out_pixels, out_planes.as<float>() + i * s.K * out_pixels, out_pixels, pool);
    }
    add_grad_weight(few, view, turn_x ? planes.as<float>() : from, out_planes.as<float>(), grad_weight, pool);
  }
}

}  // namespace sk
