// The plan of sparse_linear: one flat int32 array made from the index table alone. It holds its own, validated copy of every
// index that a kernel reads, so a table changed afterwards can never send a kernel out of bounds.
#pragma once
#include "core/sparse_linear.h"
#include "core/sparse_linear_bf16.h"
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
    kRankT,
    kPanels,
    kPanelsT,
    kEntries,
    kEntriesT,
    kMask,          // 0: none
    kBalancedRuns,  // 0: none, as the next two: see sparse_linear_balanced.h
    kBalancedOrder,
    kBalancedWords,
    kRowsOf16,  // 0: none; sources of 16 rows side by side, [groups][F][16], see few_connections
    kSeal = 23,
    kHeader
  };
  static constexpr int32_t kMagicValue = 0x534b4c31, kVersionValue = 5;

  const int32_t* data;
  explicit SparseLinearPlan(const int32_t* plan) : data(plan) {}
  const int32_t* at(int section) const { return data + data[section]; }
  // condensed tables
  int64_t kept() const { return int64_t(data[kOB]) * data[kF]; }
  Connections forward() const { return {at(kPtr), at(kSource), data[kWide] != 0, kept()}; }       // rows: outputs
  Connections transposed() const { return {at(kPtrT), at(kSourceT), data[kWide] != 0, kept()}; }  // rows: inputs
  const void* rank_t() const { return at(kRankT); }  // [kept] like the sources: the place of a transposed connection in its row of the weight
  const uint32_t* mask() const { return data[kMask] ? reinterpret_cast<const uint32_t*>(at(kMask)) : nullptr; }  // [rows][mask_words]
  bool balanced() const { return data[kBalancedRuns] != 0; }
  const uint32_t* balanced_words() const { return reinterpret_cast<const uint32_t*>(at(kBalancedWords)); }
  int32_t index(int64_t k) const { return data[kWide] ? at(kSource)[k] : reinterpret_cast<const uint16_t*>(at(kSource))[k]; }
};

// Condensed tables dense enough for it also keep a bit per position, 32 inputs in a word, for kernels that expand rows; for others
// the words are made at every call.
inline int64_t mask_words(const SparseLinearShape& s) { return (s.IB + 31) / 32; }
template <class Index>  // Index: connection -> input
void fill_mask(const SparseLinearShape& s, const Index& index, int64_t first_row, int64_t end_row, uint32_t* mask) {
  const int64_t words = mask_words(s);
  for (int64_t row = first_row; row < end_row; ++row) {
    for (int64_t i = 0; i < words; ++i) mask[row * words + i] = 0;
    for (int64_t k = row * s.F; k < (row + 1) * s.F; ++k) {
      const int64_t at = Bf16Rows::position(index(k), s.IB);
      mask[row * words + at / 32] |= 1u << (at % 32);
    }
  }
}
inline bool has_mask(const SparseLinearShape& s) {
  return s.BO * s.BI == 1 && s.F * 32 >= s.IB && s.kept() <= int64_t(1) << 27 && isa_supported(Isa::avx512);
}

// Packs keep the zeros of such weights: 4 bytes a position, where the connections would take 6 to 8 each; of few inputs, where windows would
// have many empty places, from a quarter kept on.
inline bool packs_zeros(const SparseLinearShape& s) {
  return s.BO * s.BI == 1 && s.F * (s.IB <= 64 ? 4 : 3) >= s.IB && !(s.balanced && s.F * 4 < s.IB * 3);
}
// From a sixth kept on, and for few outputs, packs also hold the natural rows and their mask, for the expanding kernel.
inline bool packs_natural(const SparseLinearShape& s) { return has_mask(s) && (s.F * 6 >= s.IB || s.OB <= 4); }
// Where two thirds are kept, those serve any number of rows, and the connections in the order of segments are left out.
inline bool packs_panels(const SparseLinearShape& s) { return !(packs_zeros(s) && packs_natural(s) && s.F * 3 >= s.IB * 2); }
// Rows of so few connections are turned side by side for few rows of x.
inline bool few_connections(const SparseLinearShape& s) { return s.BO * s.BI == 1 && s.F <= 32 && isa_supported(Isa::avx512); }
inline bool can_turn(const SparseLinearShape& s) { return few_connections(s) && has_avx512(); }
inline bool can_expand(const SparseLinearShape& s) { return has_mask(s) && has_avx512(); }
constexpr int64_t kMostExpandedDots = 48;  // rows of x for which 16 outputs at a time are expanded into the caches
inline bool expands_for_dots(int64_t rows, int64_t outputs) { return rows > 12 && rows <= kMostExpandedDots && outputs >= 16; }
inline bool can_balance(const SparseLinearShape& s) { return s.balanced && has_avx512(); }

}  // namespace sk
