// Between the kept weights and their dense twin [out, in], for sizes where torch's dense product is the faster one.
#pragma once
#include "core/sparse_linear_plan.h"

namespace sk {

// f(position of a run of BI weights in `weight`, its position in the dense row-major matrix), for the output blocks [begin, end).
// A row of the matrix at a time, so that it is filled while it is in the first-level cache.
template <class Begin, class F>
void each_dense_run(const SparseLinearShape& s, const SparseLinearPlan& plan, int64_t begin, int64_t end, const Begin& begin_row, const F& f) {
  const bool wide = plan.data[SparseLinearPlan::kWide] != 0;
  const int32_t* source32 = plan.at(SparseLinearPlan::kSource);
  const uint16_t* source16 = reinterpret_cast<const uint16_t*>(source32);
  for (int64_t ob = begin; ob < end; ++ob)
    for (int64_t o = 0; o < s.BO; ++o) {
      const int64_t row = (ob * s.BO + o) * s.in();
      begin_row(row);
      for (int64_t e = ob * s.F; e < (ob + 1) * s.F; ++e) f((e * s.BO + o) * s.BI, row + (wide ? source32[e] : source16[e]) * s.BI);
    }
}

// dense[ob*BO + o][index*BI + i] = weight[ob, f, o, i], zero elsewhere
template <class T>
void sparse_linear_to_dense(const SparseLinearShape& s, const int32_t* plan, const T* weight, T* dense, const Pool& pool) {
  parallel(pool, s.OB, 1 + 65536 / (1 + s.BO * s.in()), [&](int64_t begin, int64_t end) {
    const auto clear = [&](int64_t row) { __builtin_memset(static_cast<void*>(dense + row), 0, size_t(s.in()) * sizeof(T)); };
    each_dense_run(s, SparseLinearPlan(plan), begin, end, clear, [&](int64_t from, int64_t to) {
      for (int64_t i = 0; i < s.BI; ++i) dense[to + i] = weight[from + i];
    });
  });
}

// The kept entries of a dense [out, in] matrix.
template <class T>
void sparse_linear_from_dense(const SparseLinearShape& s, const int32_t* plan, const T* dense, T* weight, const Pool& pool) {
  parallel(pool, s.OB, 1 + 16384 / (1 + s.F * s.BO * s.BI), [&](int64_t begin, int64_t end) {
    each_dense_run(
        s, SparseLinearPlan(plan), begin, end, [](int64_t) {},
        [&](int64_t to, int64_t from) {
          for (int64_t i = 0; i < s.BI; ++i) weight[to + i] = dense[from + i];
        });
  });
}

}  // namespace sk
