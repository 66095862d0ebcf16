// Drives the feature-major kernels: which columns and panels on which thread, and what of x is transposed when.
//
// A piece of work is 64 rows of x (4 vectors of 16) times a group of panels. Where the input is the larger side it is streamed: a
// block is transposed into L1, used by all panels of the group, and forgotten, so that neither x^T nor its blocks travel through
// L2 again; the output waits in L2, transposed. Where the output is larger, all of the input is transposed first, and a panel of
// the output leaves L1 finished.
#include "core/sparse_linear_columns.h"

#include <algorithm>

namespace sk {
namespace {

const SparseLinearKernels& layouts() { return SK_PICK_KERNELS(sparse_linear); }
const LinearColumnKernels& kernels() { return SK_PICK_KERNELS(linear_columns); }
bool natural(Strides s) { return s.col == 1; }

constexpr int64_t kMostStreamedRows = 4096;  // of the output: 1 MB of sums
constexpr double kLeastWork = 4e6;           // FLOPs worth another thread

// Up to 4 vectors of rows of x.
struct Columns {
  int64_t first, count, width;  // width: count in whole vectors
  int64_t vectors() const {     // 0: half of one
    return width / layouts().width;
  }
};
struct Cut {
  int64_t N, full, chunks, least;  // least: columns that are computed where there are fewer
  explicit Cut(int64_t n, bool halves = false)
      : N(n), full(4 * layouts().width), chunks((n + full - 1) / full), least(layouts().width / (halves && kernels().halves ? 2 : 1)) {}
  Columns columns(int64_t chunk) const {
    const int64_t first = chunk * full, count = std::min(full, N - first), w = layouts().width;
    return {first, count, count <= least ? least : (count + w - 1) / w * w};
  }
};

struct Matrix {
  const float* data;
  Strides strides;
};
// Feature-major rows, `stride` apart.
struct Features {
  const float* data;
  int64_t stride;
};
// Whole vectors of columns that lie feature-major can be used where they are. Rows far apart share few sets of the first-level cache.
bool in_place(Strides s, const Columns& c) { return s.row == 1 && c.count == c.width; }
constexpr int64_t kWorthCopying = 4;  // uses of a feature

// Features [first, first + count), zero behind the last column.
void transpose_in(const Matrix& m, const Columns& c, int64_t first, int64_t count, float* out) {
  const Strides s = m.strides;
  const float* from = m.data + c.first * s.row + first * s.col;
  if (natural(s)) return layouts().to_feature_major(from, s.row, c.count, count, out, c.width);
  for (int64_t f = 0; f < count; ++f) {
    if (s.row == 1)
      std::copy(from + f * s.col, from + f * s.col + c.count, out + f * c.width);
    else
      for (int64_t n = 0; n < c.count; ++n) out[f * c.width + n] = from[n * s.row + f * s.col];
    std::fill(out + f * c.width + c.count, out + (f + 1) * c.width, 0.0f);
  }
}
// The same, or where it lies if it lies so and, with rows far apart, each feature is not used often.
Features feature_major(const Matrix& m, const Columns& c, int64_t first, int64_t count, int64_t uses, float* buffer) {
  if (in_place(m.strides, c) && (m.strides.col == c.width || uses < kWorthCopying)) return {m.data + c.first + first * m.strides.col, m.strides.col};
  transpose_in(m, c, first, count, buffer);
  return {buffer, c.width};
}

void transpose_out(const float* rows, const Columns& c, int64_t first, int64_t count, float* out, Strides s) {
  float* to = out + c.first * s.row + first * s.col;
  if (natural(s)) return layouts().from_feature_major(rows, c.width, c.count, count, to, s.row);
  for (int64_t r = 0; r < count; ++r)
    if (s.row == 1)
      std::copy(rows + r * c.width, rows + r * c.width + c.count, to + r * s.col);
    else
      for (int64_t n = 0; n < c.count; ++n) to[n * s.row + r * s.col] = rows[r * c.width + n];
}

// Into how many groups panels are cut, so that threads and caches have their share.
int64_t panel_groups(Panels panels, int64_t chunks, double flops, int64_t most_rows, const Pool& pool) {
  const int64_t fit = (panels.count() * panels.rows() + most_rows - 1) / most_rows;
  const int64_t busy = std::max<int64_t>(1, std::min<int64_t>(pool.threads, int64_t(flops / kLeastWork)));
  const int64_t shared = chunks % busy == 0 || chunks >= 4 * busy ? 1 : busy;
  return std::min(panels.count(), std::max(fit, shared));
}
// f(group, first panel, end panel)
struct Group {
  int64_t begin, end;
  Group(Panels panels, int64_t groups, int64_t g) : begin(panels.count() * g / groups), end(panels.count() * (g + 1) / groups) {}
};

}  // namespace

void feature_major_product(int64_t N, const Connections& c, Panels panels, const float* in, Strides in_s, int64_t in_features,
                           const ColumnWeights& weights, const float* bias, float* out, Strides out_s, int64_t out_features, const Pool& pool) {
  const Cut cut(N, true);
  const Matrix x{in, in_s};
  const int64_t blocks = panels.blocks(), kept = c.kept, uses = kept / std::max<int64_t>(1, in_features);
  const bool streamed = in_features > out_features;
  const int64_t groups = panel_groups(panels, cut.chunks, 2.0 * double(kept) * double(N), streamed ? kMostStreamedRows : int64_t(1) << 40, pool);
  const int64_t group_rows = (panels.count() + groups - 1) / groups * panels.rows();
  const double chunk_flops = 2.0 * double(kept) * double(cut.full) / double(groups);
  parallel(pool, cut.chunks * groups, 1 + int64_t(kLeastWork / (1 + chunk_flops)), [&](int64_t begin, int64_t end) {
    const Scratch in_scratch(size_t((streamed ? std::min(panels.features(), in_features) : in_features) * cut.full) * sizeof(float));
    const Scratch out_scratch(size_t((streamed ? group_rows : panels.rows()) * cut.full) * sizeof(float));
    for (int64_t item = begin; item < end; ++item) {
      const Columns columns = cut.columns(item / groups);
      const Group group(panels, groups, item % groups);
      const bool out_in_place = in_place(out_s, columns) && (out_s.col == columns.width || blocks == 1);
      const int64_t width = columns.width, out_stride = out_in_place ? out_s.col : width;
      const auto panel_rows = [&](int64_t panel) { return std::min(panels.rows(), out_features - panel * panels.rows()); };
      const auto rows_at = [&](int64_t panel, int64_t first) {
        return out_in_place ? out + columns.first + panel * panels.rows() * out_s.col
                            : out_scratch.as<float>() + (panel - first) * panels.rows() * width;
      };
      const auto bias_at = [&](int64_t panel) { return bias ? bias + panel * panels.rows() : nullptr; };
      const auto run = [&](int64_t panel, int64_t block, Features features, float* rows) {
        kernels().panel[weights.rank != nullptr][c.wide][columns.vectors()]({panels.segments(panel, block), c.source, weights, features.data,
                                                                             features.stride, block * panels.features(), rows, out_stride, block == 0,
                                                                             bias_at(panel)});
      };
      const auto finish = [&](int64_t panel, const float* rows) {
        if (!out_in_place) transpose_out(rows, columns, panel * panels.rows(), panel_rows(panel), out, out_s);
      };
      const auto block_features = [&](int64_t block) { return std::min(panels.features(), in_features - block * panels.features()); };
      if (streamed) {
        for (int64_t b = 0; b < blocks; ++b) {
          const Features features = feature_major(x, columns, b * panels.features(), block_features(b), uses, in_scratch.as<float>());
          for (int64_t p = group.begin; p < group.end; ++p) run(p, b, features, rows_at(p, group.begin));
        }
        for (int64_t p = group.begin; p < group.end; ++p) finish(p, rows_at(p, group.begin));
      } else {
        const Features features = feature_major(x, columns, 0, in_features, uses, in_scratch.as<float>());
        for (int64_t p = group.begin; p < group.end; ++p) {
          float* rows = rows_at(p, p);
          for (int64_t b = 0; b < blocks; ++b) run(p, b, {features.data + b * panels.features() * features.stride, features.stride}, rows);
          finish(p, rows);
        }
      }
    }
  });
}

void feature_major_grad_weight(int64_t N, const Connections& c, Panels panels, const float* grad, Strides g_s, int64_t out_features, const float* in,
                               Strides in_s, int64_t in_features, float* grad_weight, const Pool& pool) {
  const Cut cut(N);
  const Matrix x{in, in_s}, g{grad, g_s};
  const int64_t uses = c.kept / std::max<int64_t>(1, in_features);
  const int64_t groups = panel_groups(panels, 1, 2.0 * double(c.kept) * double(N), kMostStreamedRows, pool);
  const int64_t group_rows = (panels.count() + groups - 1) / groups * panels.rows();
  parallel(pool, groups, 1, [&](int64_t begin, int64_t end) {
    const Scratch in_scratch(size_t(std::min(panels.features(), in_features) * cut.full) * sizeof(float));
    const Scratch grad_scratch(size_t(group_rows * cut.full) * sizeof(float));
    for (int64_t item = begin; item < end; ++item) {
      const Group group(panels, groups, item);
      const int64_t first_row = group.begin * panels.rows(), rows = std::min(group.end * panels.rows(), out_features) - first_row;
      for (int64_t chunk = 0; chunk < cut.chunks; ++chunk) {  // rows of x in a fixed order: the sum does not depend on the threads
        const Columns columns = cut.columns(chunk);
        const Features grads = feature_major(g, columns, first_row, rows, 1, grad_scratch.as<float>());
        for (int64_t b = 0; b < panels.blocks(); ++b) {
          const int64_t first = b * panels.features();
          const Features features = feature_major(x, columns, first, std::min(panels.features(), in_features - first), uses, in_scratch.as<float>());
          for (int64_t p = group.begin; p < group.end; ++p) {
            const float* grad_rows = grads.data + (p - group.begin) * panels.rows() * grads.stride;
            kernels().sampled[c.wide][columns.vectors() - 1](
                {panels.segments(p, b), c.source, grad_rows, grads.stride, features.data, features.stride, first, chunk > 0, grad_weight});
          }
        }
      }
    }
  });
}

}  // namespace sk
