// sparse_linear in bf16 on matrix tiles: which operand stands on which side, who prepares it, which piece of work on which thread.
#include "core/sparse_linear_tiles.h"

#include <algorithm>
#include <cstdlib>

#include "core/sparse_linear_plan.h"

namespace sk {

#ifdef SK_HAVE_amx
static const TileKernels& tiles() { return amx::tile_kernels; }
static const RowKernels& rows() { return amx::row_kernels; }
static const PanelKernels& panels() { return amx::panel_kernels; }
#else
static const TileKernels& tiles() { std::abort(); }  // sparse_linear_tiles() said no
static const RowKernels& rows() { std::abort(); }
static const PanelKernels& panels() { std::abort(); }
#endif

namespace {

using Plan = SparseLinearPlan;

int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How often a tile of rows must be multiplied until copying it into one piece pays: late, but earlier where its rows are not
// aligned, or lie about a multiple of the page size apart and share few sets of the first-level cache.
double uses_until_copied(int64_t row_bytes) {
  const int64_t in_page = row_bytes % 4096;
  return in_page < 64 || in_page > 4032 ? 4 : row_bytes % 64 ? 8 : 16;
}

// Rows of x as one factor of every tile product: prepared in `scratch`, or where x is if that will do. `uses`: how often a tile of
// it is multiplied.
Tiles factor(const Bf16Matrix& x, int64_t tile_depth, bool pairs, int64_t columns, double uses, const Scratch& scratch, const Pool& pool) {
  const char* data = reinterpret_cast<const char*>(x.data);
  if (x.col == 1 && (x.depth % tile_depth == 0 || x.overlap)) {
    const int64_t row = x.row * 2, last = x.count - columns, last_step = (x.depth - tile_depth) * 2;
    if (pairs && columns == 1) return {data, row, tile_depth * 2, 4, last, last_step};
    if (!pairs && (columns < kTile || uses <= uses_until_copied(row))) return {data, row, tile_depth * 2, row, last, last_step};
  }
  uint16_t* out = scratch.as<uint16_t>();
  parallel(pool, up(x.count, kTile), 4, [&](int64_t begin, int64_t end) { tiles().prepare(x, tile_depth, pairs, columns, out, begin, end); });
  const int64_t across = pairs ? columns : kTile, last = (up(x.count, kTile) - 1) * kTile;
  const int64_t group = up(x.depth, tile_depth) * tile_depth * across * 2;
  return {reinterpret_cast<const char*>(out), group / kTile, tile_depth * across * 2, pairs ? columns * 4 : tile_depth * 2, last};
}
size_t factor_bytes(int64_t count, int64_t depth) { return size_t(up(count, kTile) * kTile * up(depth, kTileDepth) * kTileDepth * 2); }

// What is behind rows [0, end) of x, `chunk` rows at most: to be fetched where the rows do not wait in the second-level cache anyway.
Bf16Ahead behind(const Bf16Matrix& x, int64_t end, int64_t chunk) {
  constexpr int64_t kCached = 3 << 18;
  if (x.col != 1 || end >= x.count || x.count * x.depth * 2 <= kCached) return {};
  return {x.data + end * x.row, std::min(chunk, x.count - end), x.row, x.depth};
}

// f(rows [n, n + count) of x as a factor, columns, their part of y, the next rows), a chunk of rows at a time.
template <class F>
void by_chunk(const Bf16Matrix& x, int64_t chunk, int64_t tile_depth, bool pairs, double uses, const Bf16Out& out, const Pool& pool, const F& f) {
  if (x.count == 0) return;
  const int64_t columns = std::min(kTile, x.count);
  const Scratch scratch(factor_bytes(std::min(chunk, x.count), x.depth));
  for (int64_t n = 0; n < x.count; n += chunk) {
    const int64_t count = std::min(chunk, x.count - n);
    const Bf16Matrix part{x.data + n * x.row, count, x.depth, x.row, x.col, x.overlap};
    f(factor(part, tile_depth, pairs, columns, uses, scratch, pool), columns, Bf16Out{out.y + n * out.row, out.row, out.col, out.bias, count},
      behind(x, n + count, chunk));
  }
}

// Every weight block as right factors, [block][rows/16][depth/2][16][2]; block e lies at weight + e*rows*depth with these strides.
const uint16_t* paired_blocks(const uint16_t* weight, int64_t kept, int64_t rows, int64_t depth, int64_t row, int64_t col, int64_t tile_depth,
                              const Scratch& scratch, const Pool& pool) {
  uint16_t* out = scratch.as<uint16_t>();
  const int64_t area = rows * depth;
  parallel(pool, kept, 1 + 65536 / area, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e)
      tiles().prepare({weight + e * area, rows, depth, row, col}, tile_depth, true, kTile, out + e * area, 0, rows / kTile);
  });
  return out;
}

// The bits of an unstructured table: the plan's, or made now where it has none.
struct RowMask {
  const Scratch made;
  const uint32_t* data;
  RowMask(const SparseLinearShape& s, const Plan& plan, const Pool& pool)
      : made(plan.mask() ? 0 : size_t(s.OB * mask_words(s)) * sizeof(uint32_t)), data(plan.mask()) {
    if (data) return;
    data = made.as<uint32_t>();
    parallel(pool, s.OB, 1 + 16384 / (s.F + mask_words(s)),
             [&](int64_t begin, int64_t end) { fill_mask(s, [&](int64_t k) { return plan.index(k); }, begin, end, made.as<uint32_t>()); });
  }
};

void rows_grad_x(const Bf16Rows& w, int64_t inputs, const Bf16Matrix& grad, const Bf16Out& out, const Pool& pool) {
  constexpr int64_t kMostRows = 256;  // that share an expansion; only a strip of them is in use at a time
  by_chunk(grad, kMostRows, kTileDepth, false, double(w.k_tiles), out, pool,
           [&](const Tiles& g, int64_t columns, const Bf16Out& gx, const Bf16Ahead&) {
             parallel(pool, w.k_tiles, kInputPanels, [&](int64_t begin, int64_t end) {
               const Scratch room(size_t(grad_x_bytes(w, gx.count)));
               rows().grad_x(w, inputs, g, columns, gx, room.as<void>(), begin, end);
             });
           });
}

// grad [outputs][N], x [inputs][N]
void rows_grad_weight(const Bf16Rows& w, const Bf16Matrix& grad, const Bf16Matrix& x, const Pool& pool) {
  constexpr int64_t kPanel = 2 * kTile;
  const int64_t outputs = up(w.rows, kPanel) * kPanel, inputs = w.k_tiles * kPanel, depth = up(x.depth, kTileDepth) * kTileDepth;
  const Scratch gs(factor_bytes(outputs, depth)), xs(factor_bytes(inputs, depth));
  uint16_t *g = gs.as<uint16_t>(), *in = xs.as<uint16_t>();
  parallel(pool, outputs / kTile, 4, [&](int64_t begin, int64_t end) { tiles().prepare(grad, kTileDepth, false, kTile, g, begin, end); });
  // the last panel of inputs ends where they end
  const int64_t whole = inputs - kPanel, last = std::min(whole, std::max<int64_t>(0, x.count - kPanel));
  parallel(pool, whole / kTile, 4, [&](int64_t begin, int64_t end) { tiles().prepare(x, kTileDepth, true, kTile, in, begin, end); });
  const Bf16Matrix rest{x.data + last * x.row, x.count - last, x.depth, x.row, x.col};
  tiles().prepare(rest, kTileDepth, true, kTile, in + whole * depth, 0, 2);
  const auto tiles_at = [&](const uint16_t* data, int64_t count) {
    return Tiles{reinterpret_cast<const char*>(data), depth * 2, kTile * kTileDepth * 2, 64, count - kTile};
  };
  parallel(pool, outputs / kPanel, 1, [&](int64_t begin, int64_t end) {
    const Scratch places(size_t((end - begin) * kPanel) * sizeof(void*));
    rows().grad_weight(w, tiles_at(g, outputs), tiles_at(in, inputs), depth / kTileDepth, places.as<uint16_t*>(), begin, end);
  });
}

// ---- panels

// x [N][inputs], feature-major.
Bf16Columns columns_of(const Bf16Matrix& x, const Scratch& scratch, const Pool& pool) {
  uint16_t* out = scratch.as<uint16_t>();
  const Bf16Matrix turned{x.data, x.depth, x.count, x.col, x.row};
  parallel(pool, up(x.depth, kTile), 4, [&](int64_t begin, int64_t end) { tiles().prepare(turned, kTileDepth, false, kTile, out, begin, end); });
  return {out, up(x.count, kTileDepth)};
}

void panels_grad_x(const Bf16Panels& w, int64_t count, int64_t inputs, const Bf16Matrix& grad, const Bf16Out& out, const Pool& pool) {
  const int64_t depth = w.outputs % kTileDepth ? kTile : kTileDepth, pieces = up(grad.count, 2 * kTile);
  const Scratch scratch(factor_bytes(pieces * 2 * kTile, grad.depth));
  uint16_t* g = scratch.as<uint16_t>();
  parallel(pool, 2 * pieces, 2, [&](int64_t begin, int64_t end) { tiles().prepare(grad, depth, true, kTile, g, begin, end); });
  const Tiles factors{reinterpret_cast<const char*>(g), grad.depth * 2, depth * kTile * 2, 4 * kTile, INT64_MAX};
  parallel(pool, pieces, 1, [&](int64_t begin, int64_t end) {
    const Scratch room(size_t(2 * up(inputs, kTile) * kTile * kTile) * sizeof(float));
    panels().grad_x(w, count, inputs, factors, out, room.as<void>(), begin, end);
  });
}

void panels_grad_weight(const Bf16Panels& w, int64_t count, const Bf16Matrix& grad, const Bf16Matrix& x, uint16_t* grad_weight, const Pool& pool) {
  const Scratch xs(factor_bytes(x.depth, x.count)), gs(factor_bytes(grad.depth, grad.count));
  const Bf16Columns columns = columns_of(x, xs, pool);
  const Tiles factors = factor({grad.data, grad.depth, grad.count, grad.col, grad.row}, kTileDepth, true, kTile, 99, gs, pool);
  parallel(pool, count, 1, [&](int64_t begin, int64_t end) {
    const Scratch room(size_t(columns.k_tiles * 2 * kTile * kTileDepth) * sizeof(uint16_t));
    panels().grad_weight(w, columns, factors, grad_weight, room.as<void>(), begin, end);
  });
}

}  // namespace

void panels_on_tiles(const Bf16Panels& w, int64_t count, const Bf16Matrix& x, const Bf16Out& out, const Pool& pool) {
  if (x.count == 0) return;
  const int64_t chunk = chunk_rows(x.count, x.depth), depth = up(w.fan_in, kTileDepth) * kTileDepth;
  const Scratch scratch(factor_bytes(x.depth, std::min(chunk, x.count)));
  for (int64_t n = 0; n < x.count; n += chunk) {
    const int64_t rows = std::min(chunk, x.count - n);
    const Bf16Columns columns = columns_of({x.data + n * x.row, rows, x.depth, x.row, x.col}, scratch, pool);
    const Bf16Out y{out.y + n * out.row, out.row, out.col, out.bias, rows};
    parallel(pool, count, 1, [&](int64_t begin, int64_t end) {
      const Scratch room(size_t(depth * (w.outputs + 2 * kTile)) * sizeof(uint16_t) + size_t(w.fan_in) * sizeof(void*));
      panels().panels(w, columns, y, room.as<void>(), begin, end);
    });
  }
}

void blocks_on_tiles(Bf16Blocks w, int64_t count, const Bf16Matrix& x, const Bf16Out& out, const Pool& pool) {
  const double uses = double(w.ptr[count]) * up(w.rows, 2 * kTile) * w.depth / x.depth;
  // Where the weights stay in the second-level cache too, little else should: they are read once per chunk.
  const bool cached = int64_t(w.ptr[count]) * w.rows * w.depth * 2 <= 5 << 18;
  const int64_t chunk_bytes = cached ? 1 << 18 : 1 << 20;
  // Most of x, then, and no weights are driven out for it. Where a block takes more than a line of a row the hardware fetches by itself.
  const bool fetch = cached && uses >= 2 && w.depth <= kTileDepth;
  by_chunk(x, chunk_rows(x.count, x.depth, chunk_bytes), w.tile_depth(), !w.pairs, uses, out, pool,
           [&](const Tiles& in, int64_t columns, const Bf16Out& y, const Bf16Ahead& ahead) {
             parallel(pool, count, 1,
                      [&](int64_t begin, int64_t end) { tiles().blocks(w, in, columns, y, fetch ? ahead : Bf16Ahead{}, begin, end); });
           });
}

void rows_on_tiles(const SparseLinearShape& s, const Bf16Rows& w, Bf16Matrix x, const Bf16Out& out, const Pool& pool) {
  const bool transposed = !w.ptr && x.col == 1 && transpose_rows(s);
  x.overlap = x.depth > kTileDepth && x.depth % kTileDepth;
  by_chunk(x, chunk_rows(s), kTileDepth, !w.ptr && !transposed, double(up(w.rows, 2 * kTile)), out, pool,
           [&](const Tiles& in, int64_t columns, const Bf16Out& y, const Bf16Ahead&) {
             parallel(pool, up(w.rows, 2 * kTile), 1,
                      [&](int64_t begin, int64_t end) { rows().expanded(w, transposed, in, columns, y, begin, end); });
           });
}

bool sparse_linear_tiles(const SparseLinearShape& s, Product product) {
  if (isa() != Isa::amx || s.N == 0 || s.kept() == 0) return false;
  // grad_weight prepares all rows at once, grad_x of panels holds the sums of 32 rows
  if (product == Product::grad_x && tile_panels(s) && (s.N * s.out() >= int64_t(1) << 27 || s.in() > 1 << 16)) return false;
  return (s.BO * s.BI == 1 || tile_blocks(s) || tile_panels(s)) && (product != Product::grad_weight || s.N * (s.in() + s.out()) < int64_t(1) << 27);
}

void sparse_linear_fwd(const SparseLinearShape& s, const int32_t* plan_data, const uint16_t* x, Strides x_s, const uint16_t* weight,
                       const uint16_t* bias, uint16_t* y, Strides y_s, const Pool& pool) {
  const Plan plan(plan_data);
  const Bf16Matrix in{x, s.N, s.in(), x_s.row, x_s.col};
  const Bf16Out out{y, y_s.row, y_s.col, bias, s.N};
  if (s.BO * s.BI == 1) {
    const RowMask mask(s, plan, pool);
    return rows_on_tiles(s, {mask.data, weight, nullptr, s.OB, s.F, mask_words(s)}, in, out, pool);
  }
  if (s.BI == 1) return panels_on_tiles({plan.at(Plan::kEntries), s.F, s.BO, weight, false}, s.OB, in, out, pool);
  Bf16Blocks w{plan.at(Plan::kPtr), plan.at(Plan::kEntries), s.BO, s.BI, weight, false};
  // Either x and y are transposed, tile by tile, or the weight is, in smaller portions.
  const bool natural = x_s.col == 1, transpose_weight = natural && 2 * s.N * (s.in() + 2 * s.out()) > 3 * s.kept();
  const Scratch scratch(transpose_weight ? size_t(s.kept()) * 2 : 0);
  if (transpose_weight) w.weight = paired_blocks(weight, s.OB * s.F, s.BO, s.BI, s.BI, 1, w.tile_depth(), scratch, pool), w.pairs = true;
  blocks_on_tiles(w, s.OB, in, out, pool);
}

void sparse_linear_grad_x(const SparseLinearShape& s, const int32_t* plan_data, const uint16_t* grad_out, Strides g_s, const uint16_t* weight,
                          uint16_t* grad_x, Strides gx_s, const Pool& pool) {
  const Plan plan(plan_data);
  if (s.BO * s.BI == 1) {
    const RowMask mask(s, plan, pool);
    return rows_grad_x({mask.data, weight, nullptr, s.OB, s.F, mask_words(s)}, s.in(), {grad_out, s.N, s.out(), g_s.row, g_s.col},
                       {grad_x, gx_s.row, gx_s.col, nullptr, s.N}, pool);
  }
  if (s.BI == 1)
    return panels_grad_x({plan.at(Plan::kEntries), s.F, s.BO, weight, false}, s.OB, s.in(), {grad_out, s.N, s.out(), g_s.row, g_s.col},
                         {grad_x, gx_s.row, gx_s.col, nullptr, s.N}, pool);
  Bf16Blocks w{plan.at(Plan::kPtrT), plan.at(Plan::kEntriesT), s.BI, s.BO, nullptr, true};
  const Scratch scratch(size_t(s.kept()) * 2);
  w.weight = paired_blocks(weight, s.OB * s.F, s.BI, s.BO, 1, s.BI, w.tile_depth(), scratch, pool);
  blocks_on_tiles(w, s.IB, {grad_out, s.N, s.out(), g_s.row, g_s.col}, {grad_x, gx_s.row, gx_s.col, nullptr, s.N}, pool);
}

void sparse_linear_grad_weight(const SparseLinearShape& s, const int32_t* plan_data, const uint16_t* grad_out, Strides g_s, const uint16_t* x,
                               Strides x_s, uint16_t* grad_weight, const Pool& pool) {
  const Plan plan(plan_data);
  if (s.BO * s.BI == 1) {
    const RowMask mask(s, plan, pool);
    Bf16Rows w{mask.data, nullptr, nullptr, s.OB, s.F, mask_words(s)};
    w.grad_weight = grad_weight;
    return rows_grad_weight(w, {grad_out, s.out(), s.N, g_s.col, g_s.row}, {x, s.in(), s.N, x_s.col, x_s.row}, pool);
  }
  if (s.BI == 1)
    return panels_grad_weight({plan.at(Plan::kEntries), s.F, s.BO, nullptr, false}, s.OB, {grad_out, s.N, s.out(), g_s.row, g_s.col},
                              {x, s.N, s.in(), x_s.row, x_s.col}, grad_weight, pool);
  const Scratch gs(factor_bytes(s.out(), s.N)), xs(factor_bytes(s.in(), s.N));
  const Tiles g = factor({grad_out, s.out(), s.N, g_s.col, g_s.row}, kTileDepth, false, kTile, 99, gs, pool);
  const Tiles in = factor({x, s.in(), s.N, x_s.col, x_s.row}, kTileDepth, true, kTile, 99, xs, pool);
  const Bf16Blocks w{plan.at(Plan::kPtr), plan.at(Plan::kEntries), s.BO, s.BI, nullptr, false};
  parallel(pool, s.OB * s.F, 4,
           [&](int64_t begin, int64_t end) { tiles().blocks_grad_weight(w, s.F, g, in, up(s.N, kTileDepth), grad_weight, begin, end); });
}

}  // namespace sk
