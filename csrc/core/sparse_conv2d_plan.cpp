// Planning for sparse_conv2d: the tables are checked once, transposed once, and copied next to each other.
#include "core/sparse_conv2d_plan.h"

#include <algorithm>
#include <cstring>

#include "core/alike.h"
#include "core/seal.h"

namespace sk {
namespace {

using Fault = SparseConv2dFault;

SparseConv2dStatus check(const SparseConv2dShape& s, const int32_t* indptr, const int32_t* index) {
  const int64_t rows = s.OB(), codes = s.IB() * s.TB();
  if (indptr[0] != 0) return {Fault::indptr_start, 0};
  for (int64_t r = 0; r < rows; ++r)
    if (indptr[r + 1] < indptr[r]) return {Fault::indptr_order, r + 1};
  if (indptr[rows] != s.nnz) return {Fault::indptr_end, rows};
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t e = indptr[r]; e < indptr[r + 1]; ++e) {
      if (index[e] < 0 || index[e] >= codes) return {Fault::index_range, e};
      if (e > indptr[r] && index[e] <= index[e - 1]) return {Fault::index_order, e};
    }
  return {Fault::none, 0};
}

void fill_header(const SparseConv2dShape& s, int32_t* h) {
  const int64_t header[SparseConvPlan::kHeader] = {
      SparseConvPlan::kMagic, SparseConvPlan::kVersion, s.K, s.C, s.KH, s.KW, s.BO, s.BI, s.BT, s.nnz, sparse_conv_tiled(s), 0};
  for (int64_t i = 0; i < SparseConvPlan::kHeader; ++i) h[i] = int32_t(header[i]);
}

}  // namespace

int64_t sparse_conv2d_plan_size(const SparseConv2dShape& s) {
  return SparseConvPlan::kHeader + s.OB() + 1 + SparseConvPlan::columns(s) + 1 + 3 * s.nnz;
}

bool sparse_conv2d_plan_matches(const SparseConv2dShape& s, const int32_t* plan, int64_t size) {
  if (size != sparse_conv2d_plan_size(s)) return false;
  int32_t header[SparseConvPlan::kHeader];
  fill_header(s, header);
  return std::memcmp(header, plan, SparseConvPlan::kSeal * sizeof *header) == 0 && sealed(plan, size, SparseConvPlan::kSeal);
}

bool sparse_conv2d_plan_is_of(const SparseConv2dShape& s, const int32_t* plan, const int32_t* indptr, const int32_t* index) {
  const SparseConvPlan p(s, plan);
  return alike(indptr, s.OB() + 1, [&](int64_t i) { return p.indptr[i]; }) && alike(index, s.nnz, [&](int64_t i) { return p.index[i]; });
}

SparseConv2dStatus sparse_conv2d_plan(const SparseConv2dShape& s, const int32_t* indptr, const int32_t* index, int32_t* plan) {
  const SparseConv2dStatus status = check(s, indptr, index);
  if (status.fault != Fault::none) return status;
  fill_header(s, plan);
  const SparseConvPlan view(s, plan);
  const auto writable = [](const int32_t* p) { return const_cast<int32_t*>(p); };
  std::memcpy(writable(view.indptr), indptr, sizeof(int32_t) * (s.OB() + 1));
  if (s.nnz > 0) std::memcpy(writable(view.index), index, sizeof(int32_t) * s.nnz);

  // A counting sort by column keeps the order of the rows, so that codes increase inside a column.
  const int64_t columns = SparseConvPlan::columns(s), TB = s.TB();
  const bool tiled = sparse_conv_tiled(s);
  const auto column = [&](int64_t e) -> int64_t { return tiled ? index[e] : index[e] / TB; };
  int32_t *start = writable(view.t_indptr), *code = writable(view.t_code), *entry = writable(view.t_entry);
  std::memset(start, 0, sizeof(int32_t) * (columns + 1));
  for (int64_t e = 0; e < s.nnz; ++e) ++start[column(e) + 1];
  for (int64_t c = 0; c < columns; ++c) start[c + 1] += start[c];
  for (int64_t r = 0; r < s.OB(); ++r)
    for (int64_t e = indptr[r]; e < indptr[r + 1]; ++e) {
      const int32_t place = start[column(e)]++;
      code[place] = int32_t(tiled ? r : r * TB + index[e] % TB);
      entry[place] = int32_t(e);
    }
  for (int64_t c = columns; c > 0; --c) start[c] = start[c - 1];
  start[0] = 0;
  plan[SparseConvPlan::kSeal] = int32_t(seal_of(plan, sparse_conv2d_plan_size(s), SparseConvPlan::kSeal));
  return status;
}

// Estimated time over that of the dense convolution of the same layout, on the same machine. Both parts were fitted to measurements of 3x3
// and 5x5 layers at kept fractions of 0.07, 0.25 and 0.5: what each kept weight costs, and what is paid whatever is kept (copies of the
// input, and turning pixels into planes and back, against the K*KH or so multiply-adds that a dense convolution makes with each element).
SparseConv2dChoice sparse_conv2d_choice(const SparseConv2dShape& s, SparseConv2dProduct product, bool half_precision) {
  const bool tiled = sparse_conv_tiled(s), patches = s.BO * s.BI * s.BT == 1 && product != SparseConv2dProduct::grad_weight;
  const double weights = double(s.K) * double(s.C) * double(s.taps());
  const double density = weights > 0 ? double(s.nnz) * double(s.BO) * double(s.BI) * double(s.BT) / weights : 0;
  const int64_t shared = product == SparseConv2dProduct::grad_x ? s.BI : s.BO;  // sums that share each input that is read
  const bool small_map = s.H * s.W < 128 * s.stride_h * s.stride_w;             // sums of few vectors: one by one their additions wait for each other
  double per_weight, fixed;
  if (tiled) {
    per_weight = product == SparseConv2dProduct::grad_x ? 1.5 : 1.25;
    fixed = 0.05 + 8.0 / double(s.K * s.KH);
  } else {
    per_weight = shared >= 4 ? 1.4 : product == SparseConv2dProduct::grad_x && s.BO > 1 ? 2.3 : small_map ? 1.9 : 1.55;
    if (product == SparseConv2dProduct::grad_weight) per_weight = s.BO > 1 ? 2.9 : 2.1;  // one sum over lanes per weight
    fixed = 0.05 + 20.0 / double(s.K * s.KH) + (small_map ? 0.08 : 0.0);
  }
  if (s.channels_last && !patches) fixed += 16.0 / double(s.taps()) * (1.0 / double(s.K) + 1.0 / double(s.C));
  if (s.stride_h * s.stride_w > 1) per_weight *= 1.2;
  double cost = fixed + per_weight * density;
  if (s.C < 16) cost *= 0.6;      // dense kernels waste lanes on the first layer's few channels
  if (half_precision) cost *= 6;  // matrix units serve bf16, not fp32
  // dense first needs its weight filled (or, for grad_weight, its gradient picked): so many multiply-adds' time per weight
  const double pixels = std::max(1.0, double(s.N) * double(s.OH()) * double(s.OW()));
  const double dense_cost = 1.0 + (tiled ? 50.0 : 100.0) / pixels;
  const SparseConv2dKernel ours = tiled ? SparseConv2dKernel::tile : SparseConv2dKernel::list;
  return {use_dense(cost >= 0.95 * dense_cost) ? SparseConv2dKernel::dense : ours, cost};
}

// ---- the dense weight

namespace {

// f(offset in weight, offset in dense) for each run of BT weights of output block `ob`
template <class F>
void for_each_run(const SparseConv2dShape& s, const SparseConvPlan& plan, int64_t ob, const F& f) {
  const int64_t TB = s.TB();
  for (int64_t e = plan.indptr[ob]; e < plan.indptr[ob + 1]; ++e) {
    const int64_t channel = plan.index[e] / TB * s.BI, tap = plan.index[e] % TB * s.BT;
    for (int64_t o = 0; o < s.BO; ++o)
      for (int64_t i = 0; i < s.BI; ++i) f(((e * s.BO + o) * s.BI + i) * s.BT, ((ob * s.BO + o) * s.C + channel + i) * s.taps() + tap);
  }
}

template <class T>
void to_dense(const SparseConv2dShape& s, const int32_t* plan, const T* weight, T* dense, const Pool& pool) {
  const SparseConvPlan view(s, plan);
  const int64_t row = s.BO * s.C * s.taps();
  parallel(pool, s.OB(), 1, [&](int64_t begin, int64_t end) {
    std::memset(static_cast<void*>(dense + begin * row), 0, sizeof(T) * (end - begin) * row);
    for (int64_t ob = begin; ob < end; ++ob)
      for_each_run(s, view, ob, [&](int64_t from, int64_t to) {
        for (int64_t t = 0; t < s.BT; ++t) dense[to + t] = weight[from + t];
      });
  });
}

template <class T>
void from_dense(const SparseConv2dShape& s, const int32_t* plan, const T* dense, T* weight, const Pool& pool) {
  const SparseConvPlan view(s, plan);
  parallel(pool, s.OB(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t ob = begin; ob < end; ++ob)
      for_each_run(s, view, ob, [&](int64_t to, int64_t from) {
        for (int64_t t = 0; t < s.BT; ++t) weight[to + t] = dense[from + t];
      });
  });
}

}  // namespace

void sparse_conv2d_to_dense(const SparseConv2dShape& s, const int32_t* plan, const float* weight, float* dense, const Pool& pool) {
  to_dense(s, plan, weight, dense, pool);
}
void sparse_conv2d_to_dense(const SparseConv2dShape& s, const int32_t* plan, const uint16_t* weight, uint16_t* dense, const Pool& pool) {
  to_dense(s, plan, weight, dense, pool);
}
void sparse_conv2d_from_dense(const SparseConv2dShape& s, const int32_t* plan, const float* dense, float* weight, const Pool& pool) {
  from_dense(s, plan, dense, weight, pool);
}
void sparse_conv2d_from_dense(const SparseConv2dShape& s, const int32_t* plan, const uint16_t* dense, uint16_t* weight, const Pool& pool) {
  from_dense(s, plan, dense, weight, pool);
}

}  // namespace sk
