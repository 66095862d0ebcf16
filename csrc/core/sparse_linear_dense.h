// Between the kept weights and their dense twin [out, in], for sizes where torch's dense product is the faster one.
#pragma once
#include "core/sparse_linear_plan.h"

namespace sk {

// dense[ob*BO + o][index*BI + i] = weight[ob, f, o, i], zero elsewhere
template <class T>
void sparse_linear_to_dense(const SparseLinearShape& s, const int32_t* plan_data, const T* weight, T* dense, const Pool& pool) {
  const SparseLinearPlan plan(plan_data);
  parallel(pool, s.OB, 1 + 65536 / (1 + s.BO * s.in()), [&](int64_t begin, int64_t end) {
    __builtin_memset(static_cast<void*>(dense + begin * s.BO * s.in()), 0, size_t((end - begin) * s.BO * s.in()) * sizeof(T));
    for (int64_t ob = begin; ob < end; ++ob)
      for (int64_t e = ob * s.F; e < (ob + 1) * s.F; ++e)
        for (int64_t o = 0; o < s.BO; ++o)
          for (int64_t i = 0; i < s.BI; ++i) dense[(ob * s.BO + o) * s.in() + plan.index(e) * s.BI + i] = weight[(e * s.BO + o) * s.BI + i];
  });
}

// The kept entries of a dense [out, in] matrix.
template <class T>
void sparse_linear_from_dense(const SparseLinearShape& s, const int32_t* plan_data, const T* dense, T* weight, const Pool& pool) {
  const SparseLinearPlan plan(plan_data);
  parallel(pool, s.OB * s.F, 1 + 16384 / (s.BO * s.BI), [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e)
      for (int64_t o = 0; o < s.BO; ++o)
        for (int64_t i = 0; i < s.BI; ++i) weight[(e * s.BO + o) * s.BI + i] = dense[(e / s.F * s.BO + o) * s.in() + plan.index(e) * s.BI + i];
  });
}

}  // namespace sk
