// Driver of sparse_linear: which kernel, which piece of work on which thread. The kernels are in sparse_linear*.isa.cpp.
#include "core/sparse_linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/sparse_linear_drive.h"

namespace sk {
namespace {

using Plan = SparseLinearPlan;

const SparseLinearKernels& kernels() { return SK_PICK_KERNELS(sparse_linear); }
bool natural(Strides s) { return s.col == 1; }

}  // namespace

// Rows [N][features] as they lie, or copied into `scratch` when x is feature-major.
const float* natural_rows(const float* x, Strides& stride, int64_t rows, int64_t features, const Scratch& scratch) {
  if (natural(stride)) return x;
  float* copy = scratch.as<float>();
  if (stride.row == 1)
    kernels().from_feature_major(x, stride.col, rows, features, copy, features);
  else
    for (int64_t n = 0; n < rows; ++n)
      for (int64_t i = 0; i < features; ++i) copy[n * features + i] = x[n * stride.row + i * stride.col];
  stride = {features, 1};
  return copy;
}

Chunk chunk_of(const float* x, Strides s, int64_t first, int64_t count, int64_t features, int64_t width, float* buffer, const Pool& pool,
               bool must_copy) {
  if (!natural(s) && s.row == 1 && count == width && !must_copy) return {x + first, s.col};  // already there
  const SparseLinearKernels& k = kernels();
  if (natural(s)) {
    const int64_t step = 128;
    parallel(pool, (features + step - 1) / step, 4, [&](int64_t begin, int64_t end) {
      const int64_t f = begin * step;
      k.to_feature_major(x + first * s.row + f, s.row, count, std::min(features, end * step) - f, buffer + f * width, width);
    });
  } else {
    parallel(pool, features, 256, [&](int64_t begin, int64_t end) {
      for (int64_t f = begin; f < end; ++f) {
        for (int64_t n = 0; n < count; ++n) buffer[f * width + n] = x[(first + n) * s.row + f * s.col];
        std::fill(buffer + f * width + count, buffer + (f + 1) * width, 0.0f);
      }
    });
  }
  return {buffer, width};
}

namespace {

// Runs unit(chunk of the input, rows of the output [panel_rows][width] holding the bias, vectors, panel) over all chunks of
// columns and panels of output rows; threads share panels, and chunks where there are too few panels.
template <class Unit>
void by_panel(int64_t N, const float* in, Strides in_s, int64_t in_features, float* out, Strides out_s, int64_t out_features, const float* bias,
              int64_t panels, int64_t panel_rows, const Pool& pool, const Unit& unit) {
  const SparseLinearKernels& k = kernels();
  const int64_t full = 4 * k.width, chunks = (N + full - 1) / full;
  const int64_t wave = pool.threads <= 1 ? 1 : std::min(chunks, std::max<int64_t>(1, 3 * pool.threads / panels));
  Scratch buffer(size_t(wave * in_features * full) * sizeof(float));
  std::vector<Chunk> inputs(wave);
  for (int64_t c0 = 0; c0 < chunks; c0 += wave) {
    const int64_t here = std::min(wave, chunks - c0);
    const auto columns = [&](int64_t c) { return std::min(full, N - (c0 + c) * full); };
    const auto width = [&](int64_t c) { return (columns(c) + k.width - 1) / k.width * k.width; };
    for (int64_t c = 0; c < here; ++c)
      inputs[c] = chunk_of(in, in_s, (c0 + c) * full, columns(c), in_features, width(c), buffer.as<float>() + c * in_features * full, pool);
    parallel(pool, here * panels, 1, [&](int64_t begin, int64_t end) {
      Scratch rows_scratch(size_t(panel_rows * full) * sizeof(float));
      for (int64_t item = begin; item < end; ++item) {
        const int64_t c = item / panels, panel = item % panels, first = panel * panel_rows;
        const int64_t rows = std::min(panel_rows, out_features - first), w = width(c), n0 = (c0 + c) * full;
        const bool in_place = !natural(out_s) && columns(c) == w && out_s.row == 1;
        float* rows_out = in_place ? out + first * out_s.col + n0 : rows_scratch.as<float>();
        const int64_t stride = in_place ? out_s.col : w;
        for (int64_t r = 0; r < rows; ++r) std::fill(rows_out + r * stride, rows_out + r * stride + w, bias ? bias[first + r] : 0.0f);
        unit(inputs[c], rows_out, stride, w / k.width, panel);
        if (in_place) continue;
        if (natural(out_s)) {
          k.from_feature_major(rows_out, w, columns(c), rows, out + n0 * out_s.row + first, out_s.row);
        } else {
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t n = 0; n < columns(c); ++n) out[(n0 + n) * out_s.row + (first + r) * out_s.col] = rows_out[r * w + n];
        }
      }
    });
  }
}

bool is_condensed(const SparseLinearShape& s) { return s.BO * s.BI == 1; }

}  // namespace

void block_tile_product(int64_t N, const Blocks& b, const float* in, Strides in_s, int64_t in_features, const float* weight, const float* bias,
                        float* out, Strides out_s, const Pool& pool) {
  by_panel(N, in, in_s, in_features, out, out_s, b.count * b.rows, bias, b.count, b.rows, pool,
           [&](Chunk chunk, float* rows, int64_t stride, int64_t vectors, int64_t block) {
             kernels().block_tile[vectors - 1](b.work(block, weight, chunk.data, chunk.stride, rows, stride));
           });
}

namespace {

// The weights in the order of the transposed structure: they change every step, so this is a gather per call.
const float* ordered(const Connections& c, const ColumnWeights& weights, float* out, const Pool& pool) {
  parallel(pool, c.kept, 16384, [&](int64_t begin, int64_t end) { SK_PICK_KERNELS(linear_columns).in_order(c, weights, out, begin, end); });
  return out;
}

// One fixed fan-in product: rows of `out` read `in` through `c`. Serves forward and, on the transposed structure, grad_x.
void condensed(bool gathers, int64_t N, const Connections& c, Panels panels, const float* in, Strides in_s, int64_t in_features,
               const ColumnWeights& weights, const float* bias, float* out, Strides out_s, int64_t out_features, const Pool& pool) {
  const SparseLinearKernels& k = kernels();
  if (gathers) {
    const Scratch in_order(weights.rank ? size_t(c.kept) * sizeof(float) : 0);
    const float* weight = weights.rank ? ordered(c, weights, in_order.as<float>(), pool) : weights.weight;
    const Scratch scratch(size_t(natural(in_s) ? 0 : N * in_features) * sizeof(float));
    const float* rows = natural_rows(in, in_s, N, in_features, scratch);
    const int64_t grain = std::max<int64_t>(8, 32768 / std::max<int64_t>(1, c.ptr[out_features] / std::max<int64_t>(1, out_features)));
    parallel(pool, out_features, grain, [&](int64_t begin, int64_t end) {
      for (int64_t n = 0; n < N; ++n) k.gather(c, rows + n * in_s.row, weight, bias, out + n * out_s.row, out_s.col, begin, end);
    });
    return;
  }
  if (weights.rank && N > 4 * k.width) {  // a second pass over the columns pays for the order
    const Scratch in_order(size_t(c.kept) * sizeof(float));
    return feature_major_product(N, c, panels, in, in_s, in_features, {ordered(c, weights, in_order.as<float>(), pool)}, bias, out, out_s,
                                 out_features, pool);
  }
  feature_major_product(N, c, panels, in, in_s, in_features, weights, bias, out, out_s, out_features, pool);
}

ExpandedRows expanded_rows(const SparseLinearShape& s, const Plan& plan, const float* weight) {
  return {plan.mask(), mask_words(s), s.in(), weight, s.F};
}

// Few rows of x and few connections a row.
void turned(const SparseLinearShape& s, const Plan& plan, const float* x, Strides x_s, const float* weight, const float* bias, float* y, Strides y_s,
            const Pool& pool) {
  constexpr int64_t L = Interleaved::kLanes;
  const Scratch scratch(size_t(natural(x_s) ? 0 : s.N * s.in()) * sizeof(float));
  const float* rows = natural_rows(x, x_s, s.N, s.in(), scratch);
  const Interleaved c{weight, plan.at(Plan::kRowsOf16), plan.data[Plan::kWide] != 0, s.OB, s.F, s.in()};
  parallel(pool, (s.OB + L - 1) / L, std::max<int64_t>(1, 2048 / s.F), [&](int64_t begin, int64_t end) {
    for (int64_t n = 0; n < s.N; ++n) kernels().turned(c, rows + n * x_s.row, bias, y + n * y_s.row, y_s.col, begin, end);
  });
}

Blocks forward_blocks(const SparseLinearShape& s, const Plan& plan) {
  return {plan.at(Plan::kPtr), plan.at(Plan::kEntries), s.OB, s.BO, s.BI, s.BI, 1, s.BO * s.BI};
}

void blocked(int64_t N, const Blocks& b, const float* in, Strides in_s, int64_t in_features, const float* weight, const float* bias, float* out,
             Strides out_s, const Pool& pool) {
  if (!block_natural_product(N, b, in, in_s, in_features, weight, bias, out, out_s, pool))
    block_tile_product(N, b, in, in_s, in_features, weight, bias, out, out_s, pool);
}

}  // namespace

void sparse_linear_fwd(const SparseLinearShape& sizes, const int32_t* plan_data, const float* x, Strides x_s, const float* weight, const float* bias,
                       float* y, Strides y_s, const Pool& pool) {
  if (sizes.N == 0 || sizes.out() == 0) return;
  const Plan plan(plan_data);
  SparseLinearShape s = sizes;
  s.balanced = plan.balanced();
  const LinearKernel kernel = sparse_linear_plain_kernel(s, Product::forward);
  if (kernel == LinearKernel::balanced)
    balanced_product(s.N, {plan.at(Plan::kBalancedRuns), plan.balanced_words(), weight, plan.at(Plan::kBalancedOrder), nullptr, 0, s.OB, s.F}, s.in(),
                     x, x_s, bias, y, y_s, pool);
  else if (kernel == LinearKernel::gather && can_turn(s))
    turned(s, plan, x, x_s, weight, bias, y, y_s, pool);
  else if (kernel == LinearKernel::expanded_strips)
    expanded_strips(s.N, expanded_rows(s, plan, weight), s.out(), x, x_s, bias, y, y_s, pool);
  else if (kernel == LinearKernel::expanded)
    expanded_product(s.N, expanded_rows(s, plan, weight), s.out(), x, x_s, bias, y, y_s, pool);
  else if (is_condensed(s))
    condensed(kernel == LinearKernel::gather, s.N, plan.forward(), {plan.at(Plan::kPanels)}, x, x_s, s.in(), {weight}, bias, y, y_s, s.out(), pool);
  else
    blocked(s.N, forward_blocks(s, plan), x, x_s, s.in(), weight, bias, y, y_s, pool);
}

bool sparse_linear_expand_to_dense(const SparseLinearShape& s, const int32_t* plan_data, const float* weight, float* dense, const Pool& pool) {
  const Plan plan(plan_data);
  if (!can_expand(s) || !plan.mask()) return false;
  const ExpandedRows w = expanded_rows(s, plan, weight);
  parallel(pool, s.OB, 1 + 65536 / (1 + s.in()),
           [&](int64_t begin, int64_t end) { kernels().expand_block(w, 0, w.words, nullptr, dense, w.inputs, begin, end); });
  return true;
}

void sparse_linear_grad_x(const SparseLinearShape& s, const int32_t* plan_data, const float* grad_out, Strides g_s, const float* weight,
                          float* grad_x, Strides gx_s, const Pool& pool) {
  if (s.N == 0 || s.in() == 0) return;
  const Plan plan(plan_data);
  if (!is_condensed(s)) {
    blocked(s.N, {plan.at(Plan::kPtrT), plan.at(Plan::kEntriesT), s.IB, s.BI, s.BO, 1, s.BI, s.BO * s.BI}, grad_out, g_s, s.out(), weight, nullptr,
            grad_x, gx_s, pool);
    return;
  }
  condensed(s.N <= kFewRows, s.N, plan.transposed(), {plan.at(Plan::kPanelsT)}, grad_out, g_s, s.out(), {weight, plan.rank_t(), s.F}, nullptr, grad_x,
            gx_s, s.in(), pool);
}

void sparse_linear_grad_weight(const SparseLinearShape& s, const int32_t* plan_data, const float* grad_out, Strides g_s, const float* x, Strides x_s,
                               float* grad_weight, const Pool& pool) {
  const int64_t kept = s.kept();
  if (kept == 0) return;
  if (s.N == 0) {
    std::fill(grad_weight, grad_weight + kept, 0.0f);
    return;
  }
  const Plan plan(plan_data);
  const SparseLinearKernels& k = kernels();
  const Connections c = plan.forward();
  if (is_condensed(s) && s.N <= kFewRows) {
    Scratch gs(size_t(s.N * s.out()) * sizeof(float)), xs(size_t(s.N * s.in()) * sizeof(float));
    const float* g = natural_rows(grad_out, g_s, s.N, s.out(), gs);
    const float* rows = natural_rows(x, x_s, s.N, s.in(), xs);
    parallel(pool, s.OB, std::max<int64_t>(1, 16384 / s.F),
             [&](int64_t begin, int64_t end) { k.outer(c, g, g_s.row, rows, x_s.row, s.N, grad_weight, begin, end); });
    return;
  }
  if (is_condensed(s)) return feature_major_grad_weight(s.N, c, {plan.at(Plan::kPanels)}, grad_out, g_s, s.out(), x, x_s, s.in(), grad_weight, pool);
  if (block_natural_grad_weight(s.N, forward_blocks(s, plan), grad_out, g_s, x, x_s, s.in(), grad_weight, pool)) return;
  const int64_t full = 4 * k.width;
  Scratch gs(size_t(s.out() * full) * sizeof(float)), xs(size_t(s.in() * full) * sizeof(float));
  for (int64_t n0 = 0; n0 < s.N; n0 += full) {  // rows of x in a fixed order: the sum does not depend on the threads
    const int64_t columns = std::min(full, s.N - n0), width = (columns + k.width - 1) / k.width * k.width;
    const bool panels = s.BI == 1 && !is_condensed(s) && s.BO % k.width == 0 && natural(g_s);
    const float* g = panels ? nullptr : chunk_of(grad_out, g_s, n0, columns, s.out(), width, gs.as<float>(), pool, true).data;
    const float* rows = chunk_of(x, x_s, n0, columns, s.in(), width, xs.as<float>(), pool, true).data;
    const bool accumulate = n0 > 0;
    if (panels) {
      const int32_t* entries = plan.at(Plan::kEntries);
      parallel(pool, s.OB, 1, [&](int64_t begin, int64_t end) {
        for (int64_t ob = begin; ob < end; ++ob)
          k.panel_outer(
              {entries + 2 * ob * s.F, s.F, s.BO, grad_out + n0 * g_s.row + ob * s.BO, g_s.row, rows, width, columns, accumulate, grad_weight});
      });
    } else {
      parallel(pool, s.OB * s.F, 4, [&](int64_t begin, int64_t end) {
        for (int64_t e = begin; e < end; ++e)
          k.block_sampled(g + e / s.F * s.BO * width, rows + plan.index(e) * s.BI * width, width, s.BO, s.BI, accumulate,
                          grad_weight + e * s.BO * s.BI);
      });
    }
  }
}

// ---- fp64: plain loops over the validated table
namespace {
template <class F>
void each_connection(const SparseLinearShape& s, const Plan& plan, int64_t ob, const F& f) {
  for (int64_t e = ob * s.F; e < (ob + 1) * s.F; ++e) f(plan.index(e) * s.BI, e * s.BO * s.BI);
}
}  // namespace

void sparse_linear_fwd(const SparseLinearShape& s, const int32_t* plan_data, const double* x, const double* weight, const double* bias, double* y,
                       const Pool& pool) {
  const Plan plan(plan_data);
  parallel(pool, s.N, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t ob = 0; ob < s.OB; ++ob)
        for (int64_t o = 0; o < s.BO; ++o) {
          double sum = bias ? bias[ob * s.BO + o] : 0.0;
          each_connection(s, plan, ob, [&](int64_t in, int64_t w) {
            for (int64_t i = 0; i < s.BI; ++i) sum += x[n * s.in() + in + i] * weight[w + o * s.BI + i];
          });
          y[n * s.out() + ob * s.BO + o] = sum;
        }
  });
}

void sparse_linear_grad_x(const SparseLinearShape& s, const int32_t* plan_data, const double* grad_out, const double* weight, double* grad_x,
                          const Pool& pool) {
  const Plan plan(plan_data);
  parallel(pool, s.N, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      double* gx = grad_x + n * s.in();
      std::fill(gx, gx + s.in(), 0.0);
      for (int64_t ob = 0; ob < s.OB; ++ob)
        each_connection(s, plan, ob, [&](int64_t in, int64_t w) {
          for (int64_t o = 0; o < s.BO; ++o)
            for (int64_t i = 0; i < s.BI; ++i) gx[in + i] += grad_out[n * s.out() + ob * s.BO + o] * weight[w + o * s.BI + i];
        });
    }
  });
}

void sparse_linear_grad_weight(const SparseLinearShape& s, const int32_t* plan_data, const double* grad_out, const double* x, double* grad_weight,
                               const Pool& pool) {
  const Plan plan(plan_data);
  parallel(pool, s.OB, 1, [&](int64_t begin, int64_t end) {
    for (int64_t ob = begin; ob < end; ++ob)
      each_connection(s, plan, ob, [&](int64_t in, int64_t w) {
        for (int64_t o = 0; o < s.BO; ++o)
          for (int64_t i = 0; i < s.BI; ++i) {
            double sum = 0.0;
            for (int64_t n = 0; n < s.N; ++n) sum += grad_out[n * s.out() + ob * s.BO + o] * x[n * s.in() + in + i];
            grad_weight[w + o * s.BI + i] = sum;
          }
      });
  });
}

}  // namespace sk
