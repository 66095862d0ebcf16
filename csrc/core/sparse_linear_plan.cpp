// Building and checking the plan: counting sorts over the index table, O(kept + rows * blocks).
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "core/alike.h"
#include "core/seal.h"
#include "core/sparse_linear_balanced.h"
#include "core/sparse_linear_columns.h"

namespace sk {
namespace {

using Plan = SparseLinearPlan;

constexpr int64_t kMostBlocks = int64_t(1) << 28;  // a plan holds up to 7 int32 per block and addresses itself by int32

PlanError check(const SparseLinearShape& s, const int32_t* index) {
  if (s.OB * s.F > kMostBlocks) return {"of at most 2^28 blocks", 0, 0, s.OB * s.F};
  for (int64_t row = 0; row < s.OB; ++row)
    for (int64_t f = 0; f < s.F; ++f) {
      const int64_t value = index[row * s.F + f];
      if (value < 0 || value >= s.IB) return {"in [0, input blocks)", row, f, value};
      if (f > 0 && value <= index[row * s.F + f - 1]) return {"strictly increasing in each row", row, f, value};
    }
  return {nullptr, 0, 0, 0};
}

int begin_section(std::vector<int32_t>& plan, int section) {
  while (plan.size() % 16) plan.push_back(0);  // 64-byte aligned
  if (plan.size() > size_t(INT32_MAX)) throw std::length_error("sparse_linear: plan of more than 2^31 words");
  return plan[section] = int32_t(plan.size());
}

void append_sources(std::vector<int32_t>& plan, int section, const int32_t* source, int64_t count, bool wide) {
  const int at = begin_section(plan, section);
  plan.resize(at + (wide ? count : (count + 1) / 2) + 16);  // vector loads may look past the end
  if (wide) {
    std::copy(source, source + count, plan.begin() + at);
  } else {
    uint16_t* narrow = reinterpret_cast<uint16_t*>(plan.data() + at);
    for (int64_t k = 0; k < count; ++k) narrow[k] = uint16_t(source[k]);
  }
}

// Panels (sparse_linear_columns.h), segments of a list shortest first.
void append_panels(std::vector<int32_t>& plan, int section, const int32_t* ptr, const int32_t* source, int64_t rows, int64_t inputs) {
  constexpr int64_t kPanelRows = 256, kLeastRows = 64, kBlockInputs = 128, kMinLength = 8;  // 128 inputs x 64 columns x 4 bytes = 32 KB
  const int64_t kept = ptr[rows];
  int64_t block_inputs = kBlockInputs;  // longer blocks where rows are short: a run of 2 costs as much as one of 8
  if (kept > 0) block_inputs = std::max(block_inputs, kMinLength * rows * inputs / kept);
  block_inputs = std::min(block_inputs, std::max<int64_t>(1, inputs));
  const int64_t blocks = std::max<int64_t>(1, (inputs + block_inputs - 1) / block_inputs);
  int64_t panels = (rows + kPanelRows - 1) / kPanelRows;
  if (rows > kLeastRows) panels += panels % 2;  // two threads share them evenly
  const int64_t panel_rows = panels ? ((rows + panels - 1) / panels + 15) / 16 * 16 : 16;
  panels = (rows + panel_rows - 1) / panel_rows;
  const int table = begin_section(plan, section);
  plan.insert(plan.end(), {int32_t(panels), int32_t(blocks), int32_t(panel_rows), int32_t(block_inputs)});
  plan.resize(plan.size() + panels * blocks);
  std::vector<int32_t> next(panel_rows), length(panel_rows), by_length(panel_rows), lists;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t first = p * panel_rows, count = std::min(panel_rows, rows - first);
    for (int64_t r = 0; r < count; ++r) next[r] = ptr[first + r];
    for (int64_t b = 0; b < blocks; ++b) {
      plan[table + Panels::kHeader + p * blocks + b] = int32_t(plan.size()) - table;
      const int64_t limit = (b + 1) * block_inputs;
      for (int64_t r = 0; r < count; ++r) {
        int32_t k = next[r];
        while (k < ptr[first + r + 1] && source[k] < limit) ++k;
        length[r] = k - next[r];
        by_length[r] = int32_t(r);
      }
      std::stable_sort(by_length.begin(), by_length.begin() + count, [&](int32_t i, int32_t j) { return length[i] < length[j]; });
      const size_t runs = plan.size();
      plan.push_back(0);
      lists.clear();
      for (int64_t i = 0; i < count;) {
        int64_t j = i;
        while (j < count && length[by_length[j]] == length[by_length[i]]) ++j;
        if (const int32_t n = length[by_length[i]]; n > 0 || b == 0) {  // in the first block rows are written, not added to
          ++plan[runs];
          plan.insert(plan.end(), {n, int32_t(j - i)});
          for (int64_t r = i; r < j; ++r) lists.insert(lists.end(), {by_length[r], next[by_length[r]]});
        }
        i = j;
      }
      for (int i = 0; i < Panels::kAhead; ++i) lists.insert(lists.end(), {0, ptr[first]});
      plan.insert(plan.end(), lists.begin(), lists.end());
      for (int64_t r = 0; r < count; ++r) next[r] += length[r];
    }
  }
}

}  // namespace

PlanError sparse_linear_plan(const SparseLinearShape& s, const int32_t* index, std::vector<int32_t>& plan) {
  if (const PlanError error = check(s, index); error.rule) return error;
  const int64_t kept = s.OB * s.F;  // in blocks
  const bool blocks = s.BO * s.BI > 1, wide = std::max(s.IB, s.OB) > 65536;
  plan.assign(Plan::kHeader, 0);
  plan[Plan::kMagic] = Plan::kMagicValue;
  plan[Plan::kVersion] = Plan::kVersionValue;
  plan[Plan::kOB] = int32_t(s.OB);
  plan[Plan::kF] = int32_t(s.F);
  plan[Plan::kBO] = int32_t(s.BO);
  plan[Plan::kBI] = int32_t(s.BI);
  plan[Plan::kIB] = int32_t(s.IB);
  plan[Plan::kWide] = wide;

  begin_section(plan, Plan::kPtr);
  for (int64_t row = 0; row <= s.OB; ++row) plan.push_back(int32_t(row * s.F));
  append_sources(plan, Plan::kSource, index, kept, wide);

  // the transposed structure: for each input, the outputs that read it, in rising order
  std::vector<int32_t> ptr(s.IB + 1), source(kept), order(kept);  // order: the place in the table; where blocks are elements, in its row
  for (int64_t k = 0; k < kept; ++k) ++ptr[index[k] + 1];
  for (int64_t i = 0; i < s.IB; ++i) ptr[i + 1] += ptr[i];
  std::vector<int32_t> next(ptr.begin(), ptr.end() - 1);
  for (int64_t row = 0; row < s.OB; ++row)
    for (int64_t f = 0; f < s.F; ++f) {
      const int32_t to = next[index[row * s.F + f]]++;
      source[to] = int32_t(row);
      order[to] = int32_t(blocks ? row * s.F + f : f);
    }
  begin_section(plan, Plan::kPtrT);
  plan.insert(plan.end(), ptr.begin(), ptr.end());
  if (!blocks) {
    append_sources(plan, Plan::kSourceT, source.data(), kept, wide);
    append_sources(plan, Plan::kRankT, order.data(), kept, wide);
    const std::vector<int32_t> forward_ptr(plan.begin() + plan[Plan::kPtr], plan.begin() + plan[Plan::kPtr] + s.OB + 1);
    append_panels(plan, Plan::kPanels, forward_ptr.data(), index, s.OB, s.IB);
    append_panels(plan, Plan::kPanelsT, ptr.data(), source.data(), s.IB, s.OB);
    if (has_mask(s)) {
      const int64_t at = begin_section(plan, Plan::kMask);
      plan.resize(at + s.OB * mask_words(s));
      fill_mask(s, [&](int64_t k) { return index[k]; }, 0, s.OB, reinterpret_cast<uint32_t*>(plan.data() + at));
    }
    if (few_connections(s)) {
      constexpr int64_t L = Interleaved::kLanes;
      std::vector<int32_t> side_by_side((s.OB + L - 1) / L * L * s.F);
      for (int64_t row = 0; row < s.OB; ++row)
        for (int64_t f = 0; f < s.F; ++f) side_by_side[(row / L * s.F + f) * L + row % L] = index[row * s.F + f];
      append_sources(plan, Plan::kRowsOf16, side_by_side.data(), int64_t(side_by_side.size()), wide);
    }
    if (isa_supported(Isa::avx512) && is_balanced(s.OB, s.F, s.IB, index)) {
      const BalancedPlan balanced = balanced_plan(s.OB, s.F, s.IB, index);
      begin_section(plan, Plan::kBalancedRuns);
      plan.insert(plan.end(), balanced.runs.begin(), balanced.runs.end());
      begin_section(plan, Plan::kBalancedOrder);
      plan.insert(plan.end(), balanced.order.begin(), balanced.order.end());
      begin_section(plan, Plan::kBalancedWords);
      plan.insert(plan.end(), balanced.words.begin(), balanced.words.end());
    }
  } else {
    begin_section(plan, Plan::kEntries);
    for (int64_t k = 0; k < kept; ++k) plan.insert(plan.end(), {index[k], int32_t(k)});
    begin_section(plan, Plan::kEntriesT);
    for (int64_t k = 0; k < kept; ++k) plan.insert(plan.end(), {source[k], order[k]});
  }
  if (plan.size() > size_t(INT32_MAX)) throw std::length_error("sparse_linear: plan of more than 2^31 words");
  plan[Plan::kLength] = int32_t(plan.size());
  plan[Plan::kSeal] = int32_t(seal_of(plan.data(), int64_t(plan.size()), Plan::kSeal));
  return {nullptr, 0, 0, 0};
}

bool sparse_linear_plan_fits(const SparseLinearShape& s, const int32_t* plan, int64_t length) {
  return length >= Plan::kHeader && plan[Plan::kMagic] == Plan::kMagicValue && plan[Plan::kVersion] == Plan::kVersionValue &&
         plan[Plan::kOB] == s.OB && plan[Plan::kF] == s.F && plan[Plan::kBO] == s.BO && plan[Plan::kBI] == s.BI && plan[Plan::kIB] == s.IB &&
         plan[Plan::kLength] == length && sealed(plan, length, Plan::kSeal);
}

bool sparse_linear_plan_is_of(const int32_t* plan, const int32_t* index) {
  const Plan p(plan);
  return alike(index, p.kept(), [&](int64_t k) { return p.index(k); });
}

bool sparse_linear_plan_complete(const SparseLinearShape& s, const int32_t* plan) {
  return (!has_mask(s) || plan[Plan::kMask]) && (!few_connections(s) || plan[Plan::kRowsOf16]);
}

bool sparse_linear_plan_balanced(const int32_t* plan) { return Plan(plan).balanced(); }

}  // namespace sk
