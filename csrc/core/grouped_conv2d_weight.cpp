// grad_weight from planes, for NCHW and for what the NHWC kernels leave: grad_weight[k, j, tap] is the inner product of an output-gradient plane and
// a shifted input plane. Images are taken in chunks that fit L2; sums run chunk by chunk, so the order is fixed by the sizes alone. Work is cut by
// (group, block of output channels).
#include "core/grouped_conv2d_planes.h"

namespace sk {
namespace {

constexpr int64_t kChunkBytes = 1 << 20;
constexpr int64_t kBlockRows = 32;  // output channels per unit: the input is copied once for each block

}  // namespace

void grouped_conv2d_grad_weight(const Conv2dShape& shape, const float* grad_out, const float* x, float* grad_weight, const Pool& pool) {
  const ConvJob job{shape};
  const int64_t in_group = job.C / job.groups, out_group = job.K / job.groups, taps = job.KH * job.KW;
  const int64_t pairs = in_group * taps;
  if (job.K * pairs == 0) return;
  if (job.N * job.OH * job.OW == 0) {
    std::memset(grad_weight, 0, size_t(job.K * pairs) * sizeof(float));
    return;
  }
  if (job.channels_last && conv_nhwc_grad_weight(job, grad_out, x, grad_weight, pool)) return;
  const ConvPlaneKernels& kernels = SK_PICK_KERNELS(conv_plane_kernels);
  const Planes planes(job, kernels, /*may_be_direct=*/false);
  // the gradient in the same flat positions: an image [K, OH, OW] without padding, but with the row stride of x
  const int64_t grad_plane = (planes.vectors * kernels.lanes + 15) / 16 * 16;
  const int64_t grad_pixel = job.channels_last ? job.K : 1, grad_channel = job.channels_last ? 1 : job.OH * job.OW;
  const int64_t blocks = (out_group + kBlockRows - 1) / kBlockRows;
  const int64_t image_floats = in_group * planes.plane + std::min(out_group, kBlockRows) * grad_plane;
  const int64_t chunk = std::max<int64_t>(1, std::min<int64_t>(job.N, kChunkBytes / (4 * image_floats)));

  const double macs = double(std::min(out_group, kBlockRows)) * pairs * planes.positions * job.N;
  parallel(pool, job.groups * blocks, conv_grain(macs), [&](int64_t begin, int64_t end) {
    Scratch scratch(size_t(chunk * image_floats) * sizeof(float));
    float* xs = scratch.as<float>();                      // [chunk][in_group][plane]
    float* grads = xs + chunk * in_group * planes.plane;  // [chunk][rows][grad_plane]
    planes.clear(xs, chunk * in_group);
    std::memset(grads, 0, size_t(chunk * std::min(out_group, kBlockRows) * grad_plane) * sizeof(float));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t g = unit / blocks, first = out_group * (unit % blocks) / blocks;
      const int64_t rows = out_group * (unit % blocks + 1) / blocks - first, k = g * out_group + first;
      float* out = grad_weight + k * pairs;
      for (int64_t n0 = 0; n0 < job.N; n0 += chunk) {
        const int64_t images = std::min(chunk, job.N - n0);
        for (int64_t n = 0; n < images; ++n) {
          planes.copy(x, n0 + n, g * in_group, in_group, xs + n * in_group * planes.plane);
          const float* grad = grad_out + (n0 + n) * job.K * job.OH * job.OW + k * grad_channel;
          float* to = grads + n * rows * grad_plane;
          if (job.channels_last)
            kernels.copy_rows_nhwc(grad, grad_pixel, job.OW * grad_pixel, job.OH, job.OW, rows, to, planes.row, grad_plane);
          else
            for (int64_t r = 0; r < rows; ++r) kernels.copy_rows(grad + r * grad_channel, job.OW, job.OH, job.OW, to + r * grad_plane, planes.row);
        }
        PlaneWeightTile tile{};
        tile.grad_out_plane = grad_plane;
        tile.grad_out_image = rows * grad_plane;
        tile.x_image = in_group * planes.plane;
        tile.images = images;
        tile.vectors = planes.vectors;
        for (int64_t i0 = 0; i0 < pairs; i0 += kWeightTileX) {
          const int64_t count = std::min<int64_t>(kWeightTileX, pairs - i0);
          for (int64_t i = 0; i < kWeightTileX; ++i) {  // past the end the last pair again, result dropped
            const int64_t pair = i0 + std::min(i, count - 1);
            tile.x[i] = xs + pair / taps * planes.plane + planes.tap_offset[pair % taps];
          }
          for (int64_t r0 = 0; r0 < rows; r0 += 4) {
            const int64_t height = std::min<int64_t>(4, rows - r0);
            tile.grad_out = grads + r0 * grad_plane;
            kernels.weight_tile[height](tile);
            for (int64_t r = 0; r < height; ++r)
              for (int64_t i = 0; i < count; ++i) {
                float& sum = out[(r0 + r) * pairs + i0 + i];
                sum = n0 == 0 ? tile.sums[r][i] : sum + tile.sums[r][i];
              }
          }
        }
      }
    }
  });
}

}  // namespace sk
