// Packs: weights in the order in which a kernel reads them. Condensed: rows interleaved 16 at a time for few rows of x, with their
// zeros if those are few (then also as they are, beside their mask), and, for many, the connections in the order of the plan's
// segments, so that weights and indices are two streams. Blocks: outputs contiguous for few rows (one broadcast of x serves a
// vector of outputs), natural order for many.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "core/seal.h"
#include "core/sparse_linear_balanced.h"
#include "core/sparse_linear_drive.h"
#include "core/sparse_linear_tiles.h"

namespace sk {
namespace {

using Plan = SparseLinearPlan;

struct Pack {
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
    kRowsWeight,  // 0: none, as the next; see pack_rows_of_16
    kRowsSource,
    kPanels,  // 0: none, as the next two; see packs_panels
    kSource,
    kWeight,
    kPtr,
    kEntries,
    kTileWeight,  // 0: none, as the next two
    kTileMask,
    kTilePtr,
    kDenseRows,  // 0: none; else it stands for kRowsWeight
    kNatural,    // 0: none, as the next: rows to expand
    kMask,
    kBalancedRuns,  // 0: none, as the next; then kRowsWeight and kRowsSource are in the order of the runs
    kBalancedWords,
    kBalancedHalves,  // 0: none
    kHalvesStep,
    kPlaces,  // 0: none, as the next; places per window, and what found none, see pack_windows
    kLeftOver,
    kWindowRuns,
    kWindowWords,
    kWindowWeight,
    kRestWeight,
    kRestSource,
    kSeal = 39,
    kHeader
  };
  static constexpr int32_t kMagicValue = 0x534b5031, kVersionValue = 7;
  const int32_t* data;
  const int32_t* at(int section) const { return data + data[section]; }
  const uint16_t* halves(int section) const { return reinterpret_cast<const uint16_t*>(at(section)); }
  const float* floats(int section) const { return reinterpret_cast<const float*>(at(section)); }
};

class Writer {
 public:
  explicit Writer(std::vector<int32_t>& pack) : pack_(pack) {}
  // `words` zeroed int32 for a section, 64-byte aligned, with room for a vector load that looks past its end
  int32_t* section(int which, int64_t words) {
    while (pack_.size() % 16) pack_.push_back(0);
    if (pack_.size() + words + 16 > size_t(INT32_MAX)) throw std::length_error("sparse_linear_packed: weight of too many connections to address");
    pack_[which] = int32_t(pack_.size());
    pack_.resize(pack_.size() + words + 16);
    return pack_.data() + pack_[which];
  }
  void sources(int which, const std::vector<int32_t>& source, bool wide) {
    int32_t* out = section(which, wide ? source.size() : (source.size() + 1) / 2);
    if (wide)
      std::copy(source.begin(), source.end(), out);
    else
      std::copy(source.begin(), source.end(), reinterpret_cast<uint16_t*>(out));
  }
  void weights(int which, const std::vector<float>& weight) { std::memcpy(section(which, weight.size()), weight.data(), weight.size() * 4); }
  void halves(int which, const std::vector<uint16_t>& values) {
    std::memcpy(section(which, (int64_t(values.size()) + 1) / 2), values.data(), values.size() * 2);
  }
  void table(int which, const int32_t* table, int64_t words) { std::copy(table, table + words, section(which, words)); }

 private:
  std::vector<int32_t>& pack_;
};

// Rows 16 at a time: [groups][fan_in][16] sources and weights, in the order of the runs if the table is balanced; or, where most connections are
// kept, the weights alone, with their zeros, [groups][inputs][16].
void pack_rows_of_16(const SparseLinearShape& s, const Plan& plan, const float* weight, bool wide, Writer& out) {
  constexpr int64_t L = Interleaved::kLanes;
  static_assert(L == DenseRows::kLanes, "one order of rows");
  const bool zeros = packs_zeros(s);
  const int64_t groups = (s.OB + L - 1) / L;
  std::vector<int32_t> source(zeros ? 0 : groups * s.F * L);
  std::vector<float> values(groups * (zeros ? s.IB : s.F) * L);
  const int32_t* order = s.balanced && !zeros ? plan.at(Plan::kBalancedOrder) : nullptr;
  for (int64_t row = 0; row < s.OB; ++row)
    for (int64_t f = 0; f < s.F; ++f) {
      const int32_t i = plan.index(row * s.F + f);
      const int64_t place = (row / L * s.F + (order ? order[f] : f)) * L + row % L;
      if (!zeros) source[place] = i;
      values[zeros ? (row / L * s.IB + i) * L + row % L : place] = weight[row * s.F + f];
    }
  out.weights(zeros ? Pack::kDenseRows : Pack::kRowsWeight, values);
  if (!zeros && !s.balanced) out.sources(Pack::kRowsSource, source, wide);
}

// Rows as they are, and their mask, to be expanded.
void pack_natural(const SparseLinearShape& s, const Plan& plan, const float* weight, Writer& out) {
  out.weights(Pack::kNatural, std::vector<float>(weight, weight + s.kept()));
  out.table(Pack::kMask, reinterpret_cast<const int32_t*>(plan.mask()), s.OB * mask_words(s));
}

// What a balanced table needs beside its rows of 16: runs and positions; bf16 weights, 16 rows at a time, in the order of the runs too.
void pack_balanced(const SparseLinearShape& s, const Plan& plan, const uint16_t* bf16, Writer& out, int32_t& halves_step) {
  constexpr int64_t L = BalancedRows::kLanes;
  const int32_t *runs = plan.at(Plan::kBalancedRuns), *order = plan.at(Plan::kBalancedOrder);
  const int64_t groups = (s.OB + L - 1) / L;
  out.table(Pack::kBalancedRuns, runs, plan.data[Plan::kBalancedOrder] - plan.data[Plan::kBalancedRuns]);
  out.table(Pack::kBalancedWords, plan.at(Plan::kBalancedWords), groups * runs[0] * L);
  if (!bf16) return;
  std::vector<int64_t> place;  // [F] of each connection in the order of the runs: steps begin with a pair of connections
  int64_t at = 0;
  const int32_t* run = runs + 2;
  for (int32_t r = 0; r < runs[1]; ++r, run += 3 + run[1] * run[2])
    for (int32_t step = 0; step < run[2]; ++step) {
      for (int32_t k = 0; k < run[0] * run[1]; ++k) place.push_back(at + k);
      at += (run[0] * run[1] + 1) / 2 * 2;
    }
  halves_step = int32_t(at * L);
  std::vector<uint16_t> values(groups * halves_step);
  for (int64_t row = 0; row < s.OB; ++row)
    for (int64_t f = 0; f < s.F; ++f) {
      const int64_t k = place[order[f]];
      values[row / L * halves_step + (k / 2 * L + row % L) * 2 + k % 2] = bf16[row * s.F + f];
    }
  out.halves(Pack::kBalancedHalves, values);
}

// Most connections of a table that is not balanced, made balanced: every output gets the same number of places in each window of 32
// inputs, with weight zero where it has fewer connections; those beyond are gathered.
void pack_windows(const SparseLinearShape& s, const Plan& plan, const float* weight, bool wide, Writer& out, int32_t* header) {
  constexpr int64_t L = BalancedRows::kLanes, kWindow = BalancedPlan::kWindow, kMost = 12;
  if (s.IB < 2 * kWindow || !isa_supported(Isa::avx512)) return;
  const int64_t windows = (s.IB + kWindow - 1) / kWindow, groups = (s.OB + L - 1) / L;
  std::vector<int64_t> left_over(kMost + 1), in_window(windows);
  for (int64_t row = 0; row < s.OB; ++row) {
    std::fill(in_window.begin(), in_window.end(), 0);
    for (int64_t f = 0; f < s.F; ++f) ++in_window[plan.index(row * s.F + f) / kWindow];
    for (int64_t places = 1; places <= kMost; ++places) {
      int64_t left = 0;
      for (int64_t count : in_window) left += std::max<int64_t>(0, count - places);
      left_over[places] = std::max(left_over[places], left);
    }
  }
  const int64_t places = sparse_linear_places(s, left_over), rest = left_over[places], F = places * windows;
  if (!places) return;
  std::vector<int32_t> index(s.OB * F), sources(groups * rest * L);
  std::vector<float> values(s.OB * F), others(sources.size());
  for (int64_t row = 0; row < s.OB; ++row) {
    int64_t f = row * s.F, beyond = 0;
    const int64_t end = f + s.F, group = row / L * rest * L + row % L;
    for (int64_t w = 0; w < windows; ++w) {
      int64_t place = row * F + w * places;
      const int64_t stop = place + places;
      // an empty place reads an input that the output reads anyway, if there is one in the window
      const int32_t empty = f < end && plan.index(f) / kWindow == w ? plan.index(f) : int32_t(w * kWindow);
      for (; f < end && plan.index(f) / kWindow == w; ++f) {
        if (place < stop) {
          index[place] = plan.index(f), values[place++] = weight[f];
        } else {
          sources[group + beyond * L] = plan.index(f), others[group + beyond++ * L] = weight[f];
        }
      }
      for (; place < stop; ++place) index[place] = empty;
    }
    for (; beyond < rest; ++beyond) sources[group + beyond * L] = plan.index(row * s.F);
  }
  const BalancedPlan balanced = balanced_plan(s.OB, F, s.IB, index.data());
  std::vector<float> ordered(groups * F * L);
  for (int64_t row = 0; row < s.OB; ++row)
    for (int64_t f = 0; f < F; ++f) ordered[(row / L * F + balanced.order[f]) * L + row % L] = values[row * F + f];
  out.table(Pack::kWindowRuns, balanced.runs.data(), int64_t(balanced.runs.size()));
  out.table(Pack::kWindowWords, reinterpret_cast<const int32_t*>(balanced.words.data()), int64_t(balanced.words.size()));
  out.weights(Pack::kWindowWeight, ordered);
  out.weights(Pack::kRestWeight, others);
  out.sources(Pack::kRestSource, sources, wide);
  header[0] = int32_t(places), header[1] = int32_t(rest);
}

// The plan's segments, with connections renumbered in the order in which they are visited.
void pack_panels(const Plan& plan, const float* weight, bool wide, Writer& out) {
  const int32_t* from = plan.at(Plan::kPanels);
  const int64_t next_section = plan.data[Plan::kPanelsT], words = next_section - plan.data[Plan::kPanels];
  std::vector<int32_t> table(from, from + words);
  std::vector<int32_t> source;
  std::vector<float> values;
  const Panels panels{from};
  for (int64_t p = 0; p < panels.count(); ++p)
    for (int64_t block = 0; block < panels.blocks(); ++block) {
      const int32_t* run = panels.segments(p, block);
      int32_t* at = table.data() + (run - from) + 1 + 2 * *run;
      for (int32_t runs = *run++; runs > 0; --runs, run += 2)
        for (int32_t r = 0; r < run[1]; ++r, at += 2) {
          const int32_t first = at[1];
          at[1] = int32_t(source.size());
          for (int32_t k = first; k < first + run[0]; ++k) {
            source.push_back(plan.index(k));
            values.push_back(weight[k]);
          }
        }
      for (int i = 0; i < Panels::kAhead; ++i) at[2 * i + 1] = 0;
    }
  out.table(Pack::kPanels, table.data(), words);
  out.sources(Pack::kSource, source, wide);
  out.weights(Pack::kWeight, values);
}

// The right factors of tile products, [16 outputs][inputs] at a time: for pairs of inputs, the 16 outputs.
void pack_block_tiles(const SparseLinearShape& s, const uint16_t* weight, Writer& out) {
  const int64_t kept = s.OB * s.F, area = s.BO * s.BI;
  std::vector<uint16_t> tiles(kept * area);
  for (int64_t e = 0; e < kept; ++e)
    for (int64_t o = 0; o < s.BO; ++o)
      for (int64_t i = 0; i < s.BI; ++i)
        tiles[e * area + (o / kTile * s.BI + i / 2 * 2) * kTile + o % kTile * 2 + i % 2] = weight[(e * s.BO + o) * s.BI + i];
  out.halves(Pack::kTileWeight, tiles);
}

// The left ones for panels, [panels][outputs / 16][inputs / 32][16][32], zero behind the last input.
void pack_panel_tiles(const SparseLinearShape& s, const uint16_t* weight, Writer& out) {
  const int64_t k_tiles = (s.F + kTileDepth - 1) / kTileDepth, area = s.BO * k_tiles * kTileDepth;
  std::vector<uint16_t> tiles(s.OB * area);
  for (int64_t panel = 0; panel < s.OB; ++panel)
    for (int64_t f = 0; f < s.F; ++f)
      for (int64_t o = 0; o < s.BO; ++o) {
        const int64_t tile = o / kTile * k_tiles + f / kTileDepth;
        tiles[panel * area + (tile * kTile + o % kTile) * kTileDepth + f % kTileDepth] = weight[(panel * s.F + f) * s.BO + o];
      }
  out.halves(Pack::kTileWeight, tiles);
}

// The same for unstructured rows, without the zeros: a bit per element of a tile [inputs / 32][16 pairs][16 outputs][2].
void pack_row_tiles(const SparseLinearShape& s, const Plan& plan, const uint16_t* weight, Writer& out) {
  const int64_t groups = (s.OB + kTile - 1) / kTile, words = mask_words(s) * kTile, columns = mask_words(s) * kTileDepth;
  std::vector<uint32_t> mask(groups * words);
  std::vector<uint16_t> values;
  std::vector<int32_t> ptr, position(columns * kTile);
  values.reserve(s.kept());
  for (int64_t g = 0; g < groups; ++g) {
    ptr.push_back(int32_t(values.size()));
    std::fill(position.begin(), position.end(), -1);
    for (int64_t o = 0; o < std::min(kTile, s.OB - g * kTile); ++o)
      for (int64_t k = (g * kTile + o) * s.F, end = k + s.F; k < end; ++k) {
        const int64_t i = Bf16Rows::position(plan.index(k), s.IB);
        position[(i / 2 * kTile + o) * 2 + i % 2] = int32_t(k);
      }
    for (int64_t at = 0; at < columns * kTile; ++at)
      if (position[at] >= 0) {
        mask[g * words + at / 32] |= 1u << (at % 32);
        values.push_back(weight[position[at]]);
      }
  }
  out.halves(Pack::kTileWeight, values);
  out.table(Pack::kTileMask, reinterpret_cast<const int32_t*>(mask.data()), int64_t(mask.size()));
  out.table(Pack::kTilePtr, ptr.data(), int64_t(ptr.size()));
}

void pack_blocks(const SparseLinearShape& s, const Plan& plan, const float* weight, Writer& out) {
  const int64_t kept = s.OB * s.F, area = s.BO * s.BI;
  out.weights(Pack::kWeight, std::vector<float>(weight, weight + kept * area));
  out.table(Pack::kPtr, plan.at(Plan::kPtr), s.OB + 1);
  out.table(Pack::kEntries, plan.at(Plan::kEntries), 2 * kept);
  std::vector<float> values(kept * area);  // outputs contiguous: one broadcast of x serves a vector of them
  for (int64_t e = 0; e < kept; ++e)
    for (int64_t i = 0; i < s.BI; ++i)
      for (int64_t o = 0; o < s.BO; ++o) values[(e * s.BI + i) * s.BO + o] = weight[(e * s.BO + o) * s.BI + i];
  out.weights(Pack::kRowsWeight, values);
}

// Without `bias`, y is added to, where its columns are side by side.
void interleaved_product(int64_t N, const Interleaved& c, int64_t in_features, const float* x, Strides x_s, const float* const* bias, float* y,
                         Strides y_s, const Pool& pool) {
  constexpr int64_t L = Interleaved::kLanes;
  const Scratch scratch(size_t(x_s.col == 1 ? 0 : N * in_features) * sizeof(float));
  const float* rows = natural_rows(x, x_s, N, in_features, scratch);
  parallel(pool, (c.rows + L - 1) / L, std::max<int64_t>(1, 2048 / c.fan_in), [&](int64_t begin, int64_t end) {
    for (int64_t n = 0; n < N; ++n) {
      float* to = y + n * y_s.row;
      SK_PICK_KERNELS(sparse_linear).interleaved(c, rows + n * x_s.row, bias ? *bias : to, to, y_s.col, begin, end);
    }
  });
}

}  // namespace

void sparse_linear_pack(const SparseLinearShape& sizes, const int32_t* plan_data, const float* weight, const uint16_t* bf16,
                        std::vector<int32_t>& pack) {
  const Plan plan(plan_data);
  SparseLinearShape s = sizes;
  s.balanced = plan.balanced();
  pack.assign(Pack::kHeader, 0);
  pack[Pack::kMagic] = Pack::kMagicValue;
  pack[Pack::kVersion] = Pack::kVersionValue;
  std::copy(plan_data + Plan::kOB, plan_data + Plan::kIB + 1, pack.begin() + Pack::kOB);
  pack[Pack::kWide] = plan_data[Plan::kWide];
  Writer out(pack);
  if (s.BO * s.BI > 1) {
    pack_blocks(s, plan, weight, out);
  } else {
    const bool wide = plan_data[Plan::kWide] != 0;
    int32_t halves_step = 0;
    if (s.balanced && !packs_zeros(s)) pack_balanced(s, plan, isa_supported(Isa::amx) ? bf16 : nullptr, out, halves_step);
    pack[Pack::kHalvesStep] = halves_step;
    int32_t places[2] = {0, 0};
    if (!s.balanced && !packs_zeros(s)) pack_windows(s, plan, weight, wide, out, places);
    pack[Pack::kPlaces] = places[0], pack[Pack::kLeftOver] = places[1];
    if (!places[0]) pack_rows_of_16(s, plan, weight, wide, out);  // windows take their place
    if (packs_natural(s)) pack_natural(s, plan, weight, out);
    if (packs_panels(s)) pack_panels(plan, weight, wide, out);
  }
  if (bf16 && pack_rows(s) && isa_supported(Isa::amx)) pack_row_tiles(s, plan, bf16, out);
  if (bf16 && tile_blocks(s) && isa_supported(Isa::amx)) pack_block_tiles(s, bf16, out);
  if (bf16 && tile_panels(s) && isa_supported(Isa::amx)) pack_panel_tiles(s, bf16, out);
  pack[Pack::kLength] = int32_t(pack.size());
  pack[Pack::kSeal] = int32_t(seal_of(pack.data(), int64_t(pack.size()), Pack::kSeal));
}

SparseLinearShape sparse_linear_pack_shape(const int32_t* pack, int64_t length) {
  if (length < Pack::kHeader || pack[Pack::kMagic] != Pack::kMagicValue || pack[Pack::kVersion] != Pack::kVersionValue ||
      pack[Pack::kLength] != length || !sealed(pack, length, Pack::kSeal))
    return {0, 0, 0, 0, 0, 0};
  return {0,
          pack[Pack::kOB],
          pack[Pack::kF],
          pack[Pack::kBO],
          pack[Pack::kBI],
          pack[Pack::kIB],
          pack[Pack::kBalancedRuns] != 0,
          pack[Pack::kPlaces],
          pack[Pack::kLeftOver]};
}

void sparse_linear_packed_fwd(const SparseLinearShape& sizes, const int32_t* pack_data, const float* x, Strides x_s, const float* bias, float* y,
                              Strides y_s, const Pool& pool) {
  if (sizes.N == 0 || sizes.out() == 0) return;
  const Pack pack{pack_data};
  SparseLinearShape s = sizes;
  s.balanced = pack_data[Pack::kBalancedRuns] != 0;
  s.places = pack_data[Pack::kPlaces], s.left_over = pack_data[Pack::kLeftOver];
  const bool wide = pack_data[Pack::kWide] != 0;
  if (s.BO * s.BI > 1) {
    const int32_t *ptr = pack.at(Pack::kPtr), *entries = pack.at(Pack::kEntries);
    const Blocks contiguous{ptr, entries, s.OB, s.BO, s.BI, 1, s.BO, s.BO * s.BI}, natural{ptr, entries, s.OB, s.BO, s.BI, s.BI, 1, s.BO * s.BI};
    if (!block_natural_product(s.N, contiguous, x, x_s, s.in(), pack.floats(Pack::kRowsWeight), bias, y, y_s, pool))
      block_tile_product(s.N, natural, x, x_s, s.in(), pack.floats(Pack::kWeight), bias, y, y_s, pool);
    return;
  }
  const LinearKernel kernel = sparse_linear_packed_choice(s, LinearType::fp32);
  if (kernel == LinearKernel::balanced) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(pack.at(Pack::kBalancedWords));
    return balanced_product(s.N, {pack.at(Pack::kBalancedRuns), words, pack.floats(Pack::kRowsWeight), nullptr, nullptr, 0, s.OB, s.F}, s.in(), x,
                            x_s, bias, y, y_s, pool);
  }
  if (kernel == LinearKernel::windows && y_s.col == 1) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(pack.at(Pack::kWindowWords));
    const int64_t F = s.places * ((s.IB + BalancedPlan::kWindow - 1) / BalancedPlan::kWindow);
    balanced_product(s.N, {pack.at(Pack::kWindowRuns), words, pack.floats(Pack::kWindowWeight), nullptr, nullptr, 0, s.OB, F}, s.in(), x, x_s, bias,
                     y, y_s, pool);
    if (s.left_over == 0) return;
    const Interleaved rest{pack.floats(Pack::kRestWeight), pack.at(Pack::kRestSource), wide, s.OB, s.left_over};
    return interleaved_product(s.N, rest, s.in(), x, x_s, nullptr, y, y_s, pool);  // onto the sums
  }
  if (kernel == LinearKernel::expanded && pack_data[Pack::kMask]) {
    const uint32_t* mask = reinterpret_cast<const uint32_t*>(pack.at(Pack::kMask));
    return expanded_product(s.N, {mask, mask_words(s), s.in(), pack.floats(Pack::kNatural), s.F}, s.OB, x, x_s, bias, y, y_s, pool);
  }
  if (pack_data[Pack::kDenseRows] && (!pack_data[Pack::kPanels] || s.N <= kFewRows || (kernel == LinearKernel::dense_rows && y_s.col == 1))) {
    const Scratch scratch(size_t(x_s.col == 1 ? 0 : s.N * s.in()) * sizeof(float));
    const float* rows = natural_rows(x, x_s, s.N, s.in(), scratch);
    const DenseRows d{pack.floats(Pack::kDenseRows), s.OB, s.IB};
    parallel(pool, (s.OB + DenseRows::kLanes - 1) / DenseRows::kLanes, 1 + 4096 / s.in(), [&](int64_t begin, int64_t end) {
      SK_PICK_KERNELS(sparse_linear).dense_rows(d, rows, x_s.row, s.N, bias, y, y_s.row, y_s.col, begin, end);
    });
    return;
  }
  if (kernel != LinearKernel::gather || !pack_data[Pack::kRowsSource]) {
    const Connections c{nullptr, pack.at(Pack::kSource), wide, s.kept()};
    return feature_major_product(s.N, c, {pack.at(Pack::kPanels)}, x, x_s, s.in(), {pack.floats(Pack::kWeight)}, bias, y, y_s, s.out(), pool);
  }
  const Interleaved c{pack.floats(Pack::kRowsWeight), pack.at(Pack::kRowsSource), wide, s.OB, s.F};
  interleaved_product(s.N, c, s.in(), x, x_s, &bias, y, y_s, pool);
}

bool sparse_linear_packed_tiles(const SparseLinearShape& s, const int32_t* pack) {
  const LinearKernel kernel = sparse_linear_packed_choice(s, LinearType::bf16);
  if (kernel == LinearKernel::balanced) return pack[Pack::kBalancedHalves] && isa() == Isa::amx;
  return pack[Pack::kTileWeight] && (kernel == LinearKernel::block_amx || kernel == LinearKernel::expanded_amx);
}

void sparse_linear_packed_fwd(const SparseLinearShape& s, const int32_t* pack_data, const uint16_t* x, Strides x_s, const uint16_t* bias, uint16_t* y,
                              Strides y_s, const Pool& pool) {
  const Pack pack{pack_data};
  if (sparse_linear_packed_choice(s, LinearType::bf16) == LinearKernel::balanced) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(pack.at(Pack::kBalancedWords));
    const uint16_t* halves = pack.halves(Pack::kBalancedHalves);
    return balanced_product(s.N, {pack.at(Pack::kBalancedRuns), words, nullptr, nullptr, halves, pack_data[Pack::kHalvesStep], s.OB, s.F}, s.in(), x,
                            x_s, bias, y, y_s, pool);
  }
  const Bf16Matrix in{x, s.N, s.in(), x_s.row, x_s.col};
  const Bf16Out out{y, y_s.row, y_s.col, bias, s.N};
  if (s.BO > 1 && s.BI == 1)
    panels_on_tiles({pack.at(Pack::kEntries), s.F, s.BO, pack.halves(Pack::kTileWeight), true}, s.OB, in, out, pool);
  else if (s.BO * s.BI > 1)
    blocks_on_tiles({pack.at(Pack::kPtr), pack.at(Pack::kEntries), s.BO, s.BI, pack.halves(Pack::kTileWeight), true}, s.OB, in, out, pool);
  else
    rows_on_tiles(s,
                  {reinterpret_cast<const uint32_t*>(pack.at(Pack::kTileMask)), pack.halves(Pack::kTileWeight), pack.at(Pack::kTilePtr), s.OB, s.F,
                   mask_words(s)},
                  in, out, pool);
}

}  // namespace sk
