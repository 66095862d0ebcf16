// The plan of sparse_linear: one flat int32 array made from the index table alone. It holds its own, validated copy of every
// index that a kernel reads, so a table changed afterwards can never send a kernel out of bounds.
#pragma once
#include "core/sparse_linear.h"
#include "core/sparse_linear_kernels.h"

namespace sk {

struct SparseLinearPlan {
  // header: identity, then the offset of each section
  enum : int {
    kMagic,
    kVersion,
    kOB,
    kF,
    kBO,
    kBI,
    kIB,
    kLength,
    kWide,
    kPtr,
    kSource,
    kPtrT,
    kSourceT,
    kOrderT,
    kPanels,
    kPanelsT,
    kEntries,
    kEntriesT,
    kHeader = 24
  };
  static constexpr int32_t kMagicValue = 0x534b4c31, kVersionValue = 1;

  const int32_t* data;
  explicit SparseLinearPlan(const int32_t* plan) : data(plan) {}
  const int32_t* at(int section) const { return data + data[section]; }
  // condensed tables
  Connections forward() const { return {at(kPtr), at(kSource), data[kWide] != 0}; }       // rows: outputs
  Connections transposed() const { return {at(kPtrT), at(kSourceT), data[kWide] != 0}; }  // rows: inputs
  const int32_t* order_t() const { return at(kOrderT); }                                  // [kept] position of each transposed connection in `weight`
  int32_t index(int64_t k) const { return data[kWide] ? at(kSource)[k] : reinterpret_cast<const uint16_t*>(at(kSource))[k]; }
};

// Rows cut into panels (what one thread does), inputs cut into blocks (what stays in L1): [panels, blocks, panel_rows, offset of each panel ...]
struct Panels {
  const int32_t* table;
  int64_t count() const { return table[0]; }
  int64_t blocks() const { return table[1]; }
  int64_t rows() const { return table[2]; }
  const int32_t* segments(int64_t panel) const { return table + table[3 + panel]; }
};

}  // namespace sk
