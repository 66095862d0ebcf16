// sparse_conv2d in double precision: plain loops, any block shape, either layout.
#include <cstring>

#include "core/sparse_conv2d_walk.h"

namespace sk {
namespace {

// One tensor [N, channels, h, w] in either layout.
struct Layout {
  int64_t image, channel, row, col;
  Layout(int64_t channels, int64_t h, int64_t w, bool last)
      : image(channels * h * w), channel(last ? 1 : h * w), row(last ? w * channels : w), col(last ? channels : 1) {}
};

// f(entry's weight offset, output channel, input channel, tap) for every kept weight of output block `ob`
template <class F>
void for_each_weight(const SparseConv2dShape& s, const SparseConvPlan& plan, int64_t ob, const F& f) {
  for (int64_t e = plan.indptr[ob]; e < plan.indptr[ob + 1]; ++e)
    for (int64_t o = 0; o < s.BO; ++o)
      for (int64_t i = 0; i < s.BI; ++i)
        for (int64_t t = 0; t < s.BT; ++t)
          f(((e * s.BO + o) * s.BI + i) * s.BT + t, ob * s.BO + o, plan.index[e] / s.TB() * s.BI + i, plan.index[e] % s.TB() * s.BT + t);
}

// f(output offset, input offset, count) for the runs of pixels that tap `t` connects
template <class F>
void for_each_run(const SparseConv2dShape& s, const SparseConvWalk& w, const Layout& x, const Layout& out, int64_t t, const F& f) {
  for (int64_t y = 0; y < w.rows; ++y) {
    const int64_t sy = y * s.stride_h + w.dy[t];
    if (sy < 0 || sy >= s.H) continue;
    const int64_t x0 = w.dx[t] >= 0 ? 0 : sparse_conv_ceil(-w.dx[t], s.stride_w);
    const int64_t x1 = w.dx[t] >= s.W ? 0 : std::min(w.cols, (s.W - 1 - w.dx[t]) / s.stride_w + 1);
    if (x0 < x1) f(y * out.row + x0 * out.col, sy * x.row + (x0 * s.stride_w + w.dx[t]) * x.col, x1 - x0);
  }
}

}  // namespace

void sparse_conv2d(const SparseConv2dShape& s, const double* x, const double* weight, const int32_t* plan, const double* bias, double* out,
                   const Pool& pool) {
  const SparseConvPlan view(s, plan);
  const SparseConvWalk w = sparse_conv_forward_walk(s);
  const Layout in(s.C, s.H, s.W, s.channels_last), to(s.K, w.rows, w.cols, s.channels_last);
  parallel(pool, s.N * s.OB(), 1, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) {
      const int64_t n = begin / s.OB(), ob = begin % s.OB();
      for (int64_t k = ob * s.BO; k < (ob + 1) * s.BO; ++k)
        for (int64_t y = 0; y < w.rows; ++y)
          for (int64_t c = 0; c < w.cols; ++c) out[n * to.image + k * to.channel + y * to.row + c * to.col] = bias ? bias[k] : 0.0;
      for_each_weight(s, view, ob, [&](int64_t at, int64_t k, int64_t c, int64_t t) {
        const double value = weight[at];
        double* o = out + n * to.image + k * to.channel;
        const double* i = x + n * in.image + c * in.channel;
        for_each_run(s, w, in, to, t, [&](int64_t oo, int64_t io, int64_t count) {
          for (int64_t p = 0; p < count; ++p) o[oo + p * to.col] += value * i[io + p * in.col * s.stride_w];
        });
      });
    }
  });
}

void sparse_conv2d_grad_x(const SparseConv2dShape& s, const double* grad_out, const double* weight, const int32_t* plan, double* grad_x,
                          const Pool& pool) {
  const SparseConvPlan view(s, plan);
  const SparseConvWalk w = sparse_conv_forward_walk(s);
  const Layout in(s.C, s.H, s.W, s.channels_last), from(s.K, w.rows, w.cols, s.channels_last);
  parallel(pool, s.N, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      std::memset(grad_x + n * in.image, 0, sizeof(double) * in.image);
      for (int64_t ob = 0; ob < s.OB(); ++ob)
        for_each_weight(s, view, ob, [&](int64_t at, int64_t k, int64_t c, int64_t t) {
          const double value = weight[at];
          const double* o = grad_out + n * from.image + k * from.channel;
          double* i = grad_x + n * in.image + c * in.channel;
          for_each_run(s, w, in, from, t, [&](int64_t oo, int64_t io, int64_t count) {
            for (int64_t p = 0; p < count; ++p) i[io + p * in.col * s.stride_w] += value * o[oo + p * from.col];
          });
        });
    }
  });
}

void sparse_conv2d_grad_weight(const SparseConv2dShape& s, const double* x, const double* grad_out, const int32_t* plan, double* grad_weight,
                               const Pool& pool) {
  const SparseConvPlan view(s, plan);
  const SparseConvWalk w = sparse_conv_forward_walk(s);
  const Layout in(s.C, s.H, s.W, s.channels_last), from(s.K, w.rows, w.cols, s.channels_last);
  parallel(pool, s.OB(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t ob = begin; ob < end; ++ob)
      for_each_weight(s, view, ob, [&](int64_t at, int64_t k, int64_t c, int64_t t) {
        double sum = 0;
        for (int64_t n = 0; n < s.N; ++n) {
          const double* o = grad_out + n * from.image + k * from.channel;
          const double* i = x + n * in.image + c * in.channel;
          for_each_run(s, w, in, from, t, [&](int64_t oo, int64_t io, int64_t count) {
            for (int64_t p = 0; p < count; ++p) sum += o[oo + p * from.col] * i[io + p * in.col * s.stride_w];
          });
        }
        grad_weight[at] = sum;
      });
  });
}

}  // namespace sk
