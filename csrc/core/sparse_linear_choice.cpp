// What serves which sizes. Closed estimates, in microseconds of one core, from rates measured on an AVX-512 server core
// (rates of smaller instruction sets scale by vector width on both sides). They are compared, printed by explain(), and
// meant to be right about the order, not about the time.
#include <algorithm>

#include "core/sparse_linear_plan.h"
#include "core/sparse_linear_tiles.h"

namespace sk {
namespace {

constexpr double kStaysInCache = 1.6e6;  // bytes of weights that are read over and over again

// per microsecond
constexpr double kGathered = 5500;                                                // connections, x in L1 or L2
constexpr double kScattered = 900;                                                // weights written into a dense matrix
constexpr double kExpanded[] = {0, 1030, 900, 815, 690, 615, 560, 470, 440};      // vectors of positions expanded for 1 to 8 rows of x
constexpr double kExpandedToCache = 1000, kExpandedFromMemory = 400;              // into a strip
constexpr double kExpandedDots = 4500;                                            // vectors of positions in the caches, times a row of x
constexpr double kStripFlops[] = {0, 110e3, 140e3, 155e3, 176e3};                 // its products, by vectors of columns
constexpr double kDenseRows[] = {0, 1800, 1500, 1300, 1200, 800, 800, 800, 750};  // vectors of positions for 1 to 8 rows of x
constexpr double kDenseRowsFlops = 165e3;                                         // for more
constexpr double kTurnedPermute = 440;                                            // the same where x fits registers
constexpr double kTurnedGather = 235;                                             // vectors of connections turned and gathered
constexpr double kSums = 650;                                                     // vectors summed to one number
constexpr double kSumsOf16 = 900;                                                 // 16 of them side by side
constexpr double kExpandedToDense = 150;  // vectors of positions written into a dense matrix, and read back by the product
constexpr double kRead = 52e3;            // bytes of activations that are used once
constexpr double kMemory = 9000;          // bytes of fresh memory zeroed or of activations transposed
// feature-major, by vectors of columns (0: half of one)
constexpr double kPanelFlops[] = {32e3, 49e3, 78e3, 91e3, 97e3};
constexpr double kPanelFlopsT[] = {17e3, 31e3, 52e3, 62e3, 67e3};  // grad_x: the weights lie in the order of the outputs
constexpr double kKeptFlops[] = {39e3, 39e3, 59e3, 72e3, 79e3};    // grad_weight, at kept connections
constexpr double kTransposed = 28e3;                               // bytes of activations
constexpr double kSampledFlops = 45e3;                             // grad_weight of blocks
constexpr double kBalanced[] = {0, 1250, 830, 680, 600};           // vectors of 16 connections for 1 to 4 rows of x
constexpr double kBalancedBf16[] = {0, 1600, 850, 640, 540};       // the same for rows in bf16 on a packed weight
constexpr double kTurned = 710;                                    // vectors of a natural weight turned for them
constexpr double kBeyondCache = 35e3;                              // bytes of weights from behind the second-level cache
constexpr double kBlockFlops = 130e3;                              // blocks, on activations as they lie or feature-major
constexpr double kBlockPanelFlops = 110e3;                         // blocks one input wide, feature-major
constexpr double kSingleFlops = 45e3;                              // grad_x of those
constexpr double kBlockSampledFlops = 100e3;                       // grad_weight
constexpr double kBlockDots = 28e3;                                // weights of blocks multiplied by 1 or 2 rows of x
constexpr double kBlockTransposes = 12e3;                          // weights of blocks transposed
constexpr double kBlockMemory = 16e3;                              // bytes of activations transposed for blocks
// matrix tiles (AMX), per microsecond
constexpr double kTileProducts = 85;    // 16 x 32 by 32 x 16, operands in L1 and L2
constexpr double kTileTransposes = 37;  // of 16 x 32 values in registers, with their loads and stores
// unstructured, in 16 x 32 positions; part of what is done with a mask hides behind the products
constexpr double kRowProducts = 90;                            // with 16 rows of x
constexpr double kExpandedNatural = 48, kExpandedPacked = 87;  // from a mask
constexpr double kExpandedPairs = 21;                          // for grad_x: from two rows at a time
constexpr double kPicked = 26;                                 // of a gradient, by a mask

// panels, per microsecond
constexpr double kPanelFactors = 25;  // weight tiles transposed
constexpr double kPanelGathers = 24;  // tiles of inputs, 16 pairs x 16 rows of x
constexpr double kPanelCopies = 350;  // 32 rows of x of an input
constexpr double kPanelAdds = 450;    // the same, added to grad_x
constexpr double kPanelResults = 60;  // tiles of grad_weight

constexpr double kMasked = 600;  // connections made into bits

constexpr int64_t kMostBalancedRows = 32, kMostWindowRows = 8;

double dense_flops(int64_t N, double weight_bytes, bool half_precision) {  // F.linear, measured at 1, 8, 32, 64, 256 rows
  if (half_precision) return N <= 1 ? 11e3 : N <= 8 ? 80e3 : N <= 64 ? 500e3 : 1000e3;
  const bool cached = weight_bytes <= 1.5e6;  // for few rows the weight is what is read
  return N <= 1 ? 12e3 : N <= 8 ? (cached ? 80e3 : 37e3) : N < 64 ? 115e3 : N == 64 ? 138e3 : 172e3;
}

int64_t groups(int64_t n) { return (n + kTile - 1) / kTile; }

// The balanced kernel, 4 rows of x at a time. `natural`: the weight is turned first; `bf16`: packed, and x and y are not converted.
double balanced_us(const SparseLinearShape& s, bool natural, bool bf16) {
  constexpr double kCache = 2 << 20;
  const double vectors = double(groups(s.OB)) * s.F, bytes = vectors * kTile * (bf16 ? 3 : 5);
  const double* rates = bf16 ? kBalancedBf16 : kBalanced;
  const double products_us = vectors * ((s.N / 4) / rates[4] + (s.N % 4 ? 1 / rates[s.N % 4] : 0.0) + (natural ? 1 / kTurned : 0.0));
  const double us = std::max(products_us, s.N * double(std::min(s.in(), 32 * s.F)) * 4 / kRead);
  const double memory_us = bytes > kCache ? bytes / kBeyondCache : 0.0;
  return natural ? us + memory_us / 2 : std::max(us, memory_us);  // half of it hides behind the products
}

// The same for most connections, and a gather for the others.
double windows_us(const SparseLinearShape& s) {
  constexpr double kCache = 1.1e6;  // what stays in the second-level cache beside all else
  SparseLinearShape places = s;
  places.F = s.places * ((s.IB + 31) / 32);
  const double rows = double(groups(s.OB)) * kTile, bytes = rows * double(5 * places.F + 6 * s.left_over);
  return balanced_us(places, false, false) + s.N * rows * s.left_over / kGathered + std::max(0.0, bytes - kCache) / kBeyondCache;
}

// Blocks in fp32: what is transposed, if anything, follows sparse_linear_blocks.cpp on 16 lanes.
double blocks_us(const SparseLinearShape& s, Product product) {
  const double flops = 2.0 * s.kept(), columns = double(groups(s.N) * 16);
  const double transposed_us = double(s.in() + s.out()) * columns * 4 / kBlockMemory;
  const bool vectors_in = s.BI % 16 == 0;
  if (product == Product::grad_weight) {
    if (vectors_in && s.BO >= 4) return flops * s.N / kBlockSampledFlops;
    return flops * columns / (s.BI == 1 && s.BO % 16 == 0 ? kBlockSampledFlops : kSampledFlops) + transposed_us;
  }
  if (product == Product::grad_x) {
    if (vectors_in && s.BO > 1) return flops * s.N / kBlockFlops;
    return s.BI == 1 && s.BO % 16 == 0 ? flops * s.N / kSingleFlops : flops * columns / kBlockFlops + transposed_us;
  }
  const bool dots = vectors_in && s.BO % 4 == 0;
  if (s.N <= 2) return s.N * double(s.kept()) / (dots || (s.BI == 1 && s.BO % 16 == 0) ? kBlockDots : 2 * kGathered);
  if (dots && s.N < 24) return flops * s.N / kBlockFlops;
  if (s.BO % 16 == 0 && s.BO >= 32 && s.BI > 1 && s.N > 16) return flops * s.N / kBlockFlops + double(s.kept()) / kBlockTransposes;
  return flops * columns / (s.BI == 1 ? kBlockPanelFlops : kBlockFlops) + transposed_us;
}

double gather_us(const SparseLinearShape& s) { return s.N * double(s.kept()) / kGathered + s.N * s.OB / kSums; }

// The time it takes, or that it takes to read weights from behind the second-level cache.
double at_least_read(double us, double weight_bytes) { return weight_bytes > kStaysInCache ? std::max(us, weight_bytes / kBeyondCache) : us; }

double dense_rows_us(const SparseLinearShape& s) {
  const double vectors = double(groups(s.OB)) * s.IB, bytes = vectors * kTile * 4;
  if (s.N <= 8) return at_least_read(vectors / kDenseRows[s.N], bytes);
  return 2.0 * vectors * kTile * s.N / kDenseRowsFlops + (bytes > kStaysInCache ? bytes / kBeyondCache : 0.0);  // little of it hides
}

// Up to 8 rows of x at a time, or into the caches for all of them.
double expanded_us(const SparseLinearShape& s) {
  if (expands_for_dots(s.N, s.OB)) {
    const double vectors = 2.0 * s.OB * mask_words(s);
    return vectors / (4.0 * s.kept() <= kStaysInCache ? kExpandedToCache : kExpandedFromMemory) + vectors * s.N / kExpandedDots +
           s.N * s.OB / kSumsOf16;
  }
  const double passes = double(s.N / 8) / kExpanded[8] + (s.N % 8 ? 1 / kExpanded[s.N % 8] : 0.0);
  const double us = 2.0 * s.OB * mask_words(s) * passes + s.N * s.OB / kSumsOf16;
  return std::max(at_least_read(us, 4.0 * s.kept()), s.N * double(s.in()) * 4 / kRead);
}

double expanded_strips_us(const SparseLinearShape& s) {
  const int64_t columns = groups(s.N) * 16, waves = (s.N + 255) / 256;
  const double vectors = 2.0 * s.OB * mask_words(s);
  const bool from_cache = 4.0 * s.kept() <= kStaysInCache;
  return vectors * double(waves) / (from_cache ? kExpandedToCache : kExpandedFromMemory) +
         2.0 * 16 * vectors * double(columns) / kStripFlops[std::min<int64_t>(4, groups(s.N))] + double(s.in() + s.out()) * columns * 4 / kTransposed;
}

// Our fp32 kernels, conversions of half types included.
double plain_us(const SparseLinearShape& s, Product product, LinearKernel kernel, bool half_precision) {
  const double kept = double(s.kept());
  const int64_t vectors = std::min<int64_t>(4, groups(s.N)), columns = groups(s.N) * 16;
  double us = 2.0;
  if (kernel == LinearKernel::gather)
    us += product == Product::forward && can_turn(s) ? s.N * double(groups(s.OB)) * s.F / (s.in() <= 64 ? kTurnedPermute : kTurnedGather)
                                                     : gather_us(s);
  else if (kernel == LinearKernel::balanced)
    us += balanced_us(s, true, false);
  else if (kernel == LinearKernel::dense_rows)
    us += dense_rows_us(s);
  else if (kernel == LinearKernel::expanded)
    us += expanded_us(s);
  else if (kernel == LinearKernel::expanded_strips)
    us += expanded_strips_us(s);
  else if (s.BO * s.BI > 1)
    us += blocks_us(s, product);
  else {  // feature_major
    const int64_t v = s.N * 2 <= 16 && product != Product::grad_weight ? 0 : vectors;
    const double width = v == 0 ? 8.0 : double(columns);
    const double* flops = product == Product::forward ? kPanelFlops : product == Product::grad_x ? kPanelFlopsT : kKeptFlops;
    us += 2.0 * kept * width / flops[v] + double(s.in() + s.out()) * width * 4 / kTransposed;
  }
  if (product == Product::grad_x && kernel == LinearKernel::gather) us += kept / 2500;  // weights put in transposed order
  if (half_precision) us += (kept + double(s.in() + s.out()) * s.N) / 4000;             // to fp32 and back
  return us;
}

// Panels on matrix tiles, where rows of x come 32 at a time.
double panel_tiles_us(const SparseLinearShape& s, Product product, bool packed) {
  const double pieces = double((s.N + 31) / 32), x_tiles = double(groups(s.in())) * pieces, y_tiles = double(groups(s.out())) * pieces;
  const double k_tiles = double(s.OB) * double((s.F + 31) / 32), across = double(s.BO / kTile);
  if (product == Product::grad_x) {
    const double short_tiles = s.BO % kTileDepth ? 1.0 : 0.5;
    return 3.0 + (y_tiles + 2 * x_tiles) / kTileTransposes + double(s.OB) * double(groups(s.F)) * across * short_tiles * 2 * pieces / kTileProducts +
           double(s.OB) * s.F * pieces / kPanelAdds;
  }
  if (product == Product::grad_weight)
    return 3.0 + (x_tiles + y_tiles) / kTileTransposes + k_tiles * 32 * pieces / kPanelCopies + k_tiles * 2 * across * pieces / kTileProducts +
           double(s.kept()) / (kTile * kTile) / kPanelResults;
  return 3.0 + (x_tiles + 2 * y_tiles) / kTileTransposes + (packed ? 0.0 : k_tiles * across / kPanelFactors) + k_tiles * 2 * pieces / kPanelGathers +
         k_tiles * across * 2 * pieces / kTileProducts;
}

// The same on matrix tiles. `packed`: the weight stands ready.
double tiles_us(const SparseLinearShape& s, Product product, bool packed) {
  const double row_groups = double(groups(s.N)), tile = kTile * kTileDepth;
  if (s.BO * s.BI == 1) {
    const double positions = double(groups(s.OB)) * double((s.IB + 31) / 32), moved = row_groups * kTile / tile;
    const double mask_us = packed || s.F * 32 >= s.IB ? 0.0 : double(s.kept()) / kMasked;
    if (product == Product::grad_x) return 2.0 + mask_us + positions / kExpandedPairs + positions * row_groups / kRowProducts;
    if (product == Product::grad_weight)
      return 3.0 + mask_us + positions / kPicked + positions * 2 * double((s.N + 31) / 32) / kRowProducts +
             moved * double(s.in() + s.out()) / kTileTransposes;
    const double transposed = packed ? 0.0 : transpose_rows(s) ? positions : moved * double(s.in() + 2 * s.out());
    return 2.0 + mask_us + positions / (packed ? kExpandedPacked : kExpandedNatural) + positions * row_groups / kRowProducts +
           transposed / kTileTransposes;
  }
  if (s.BI == 1) return panel_tiles_us(s, product, packed);
  const double short_tiles = s.BI % kTileDepth ? 2.0 : 1.0, weight_tiles = double(s.kept()) / tile;
  const double x_tiles = row_groups * kTile * double(s.in() + 2 * s.out()) / tile;
  if (product == Product::grad_weight) {
    const double results = double(s.kept()) / (kTile * kTile);
    return 3.0 + x_tiles / kTileTransposes + results * (double((s.N + 31) / 32) / kTileProducts + 1.0 / kTileTransposes);
  }
  const double transposed = packed ? 0.0 : product == Product::forward ? std::min(x_tiles, 1.5 * weight_tiles) : 1.5 * weight_tiles;
  return 2.0 + weight_tiles * short_tiles * row_groups / kTileProducts + transposed / kTileTransposes;
}

}  // namespace

int64_t sparse_linear_places(const SparseLinearShape& s, const std::vector<int64_t>& left_over) {
  SparseLinearShape one = s;
  one.N = 1;
  int64_t best = 0;
  double best_us = 0.9 * (2.0 + gather_us(one));  // it costs memory
  for (one.places = 1; one.places < int64_t(left_over.size()); ++one.places) {
    one.left_over = left_over[one.places];
    if (windows_us(one) < best_us) best_us = windows_us(one), best = one.places;
  }
  return best;
}

LinearKernel sparse_linear_plain_kernel(const SparseLinearShape& s, Product product) {
  const bool few = s.N <= 2;
  if (s.BO * s.BI > 1) return few && product == Product::forward ? LinearKernel::block_dot : LinearKernel::block_tile;
  LinearKernel kernel = few ? LinearKernel::gather : LinearKernel::feature_major;
  if (product != Product::forward) return kernel;
  const auto faster = [&](LinearKernel other) { return plain_us(s, product, other, false) < plain_us(s, product, kernel, false); };
  if (!few && plain_us(s, product, LinearKernel::gather, false) < 0.8 * plain_us(s, product, kernel, false))
    kernel = LinearKernel::gather;  // also for many rows, where outputs are few
  if (can_expand(s) && faster(LinearKernel::expanded)) kernel = LinearKernel::expanded;
  if (can_expand(s) && s.N > 8 && faster(LinearKernel::expanded_strips)) kernel = LinearKernel::expanded_strips;
  if (can_balance(s) && (s.N <= kMostBalancedRows || s.OB <= kTile) && faster(LinearKernel::balanced)) kernel = LinearKernel::balanced;
  return kernel;
}

LinearChoice sparse_linear_choice(const SparseLinearShape& s, Product product, LinearType type, int threads) {
  const bool blocks = s.BO * s.BI > 1, half_precision = type != LinearType::fp32;
  const double kept = double(s.kept()), dense = double(s.in()) * double(s.out());
  LinearKernel kernel = sparse_linear_plain_kernel(s, product);
  double sparse_us = plain_us(s, product, kernel, half_precision);
  if (type == LinearType::bf16 && sparse_linear_tiles(s, product)) {
    const double us = tiles_us(s, product, false);
    if (us < sparse_us) sparse_us = us, kernel = blocks ? LinearKernel::block_amx : LinearKernel::expanded_amx;
  }
  double dense_us = 4.0 + std::max(2.0 * dense * s.N / dense_flops(s.N, dense * 4, half_precision), s.N * double(s.in()) * 4 / kRead);
  if (half_precision) dense_us += double(s.in() + s.out()) * s.N / 12000;  // thin matrices: x and y moved, not the products, take the time
  // grad_weight writes a dense gradient and picks the kept entries; the others fill a dense weight
  if (!half_precision && product != Product::grad_weight && can_expand(s))
    dense_us += 6.0 + 2.0 * s.OB * mask_words(s) / kExpandedToDense;
  else
    dense_us += dense * (half_precision ? 2 : 4) / kMemory + kept / kScattered;
  if (threads > 1) sparse_us /= std::min(threads, 4), dense_us /= std::min(threads, 4);
  return {use_dense(dense_us < sparse_us) ? LinearKernel::dense : kernel, sparse_us, dense_us};
}

LinearKernel sparse_linear_packed_choice(const SparseLinearShape& s, LinearType type) {
  const bool blocks = s.BO * s.BI > 1, few = s.N <= 2, tiles = type == LinearType::bf16 && isa() == Isa::amx;
  LinearKernel plain = !packs_panels(s)                  ? LinearKernel::dense_rows
                       : few && !s.places && !s.balanced ? LinearKernel::gather
                                                         : LinearKernel::feature_major;
  if (blocks) plain = few ? LinearKernel::block_dot : LinearKernel::block_tile;
  const bool half_precision = type != LinearType::fp32;
  if (blocks && tiles && tile_panels(s)) {
    const double plain_panels_us = plain_us(s, Product::forward, plain, true) - double(s.kept()) / 4000;  // converted when it was packed
    return tiles_us(s, Product::forward, true) < plain_panels_us ? LinearKernel::block_amx : plain;
  }
  if (blocks) return tiles && tile_blocks(s) ? LinearKernel::block_amx : plain;
  const double weight_conversion_us = half_precision ? double(s.kept()) / 4000 : 0.0;  // done when it was packed
  const auto us_of = [&](LinearKernel kernel) {
    if (kernel == LinearKernel::gather) return 2.0 + gather_us(s) + (half_precision ? double(s.in() + s.out()) * s.N / 4000 : 0.0);
    if (kernel != LinearKernel::balanced) return plain_us(s, Product::forward, kernel, half_precision) - weight_conversion_us;
    return 2.0 + balanced_us(s, false, tiles) + (half_precision && !tiles ? double(s.in() + s.out()) * s.N / 4000 : 0.0);
  };
  if (plain == LinearKernel::feature_major && !s.places && !s.balanced && !packs_zeros(s)) {  // many rows, but few outputs
    SparseLinearShape whole = s;
    whole.OB = groups(s.OB) * kTile;
    if (2.0 + gather_us(whole) < 0.8 * us_of(plain)) plain = LinearKernel::gather;
  }
  if (packs_zeros(s) && (few || us_of(LinearKernel::dense_rows) < us_of(plain))) plain = LinearKernel::dense_rows;
  if (packs_natural(s) && can_expand(s) && us_of(LinearKernel::expanded) < us_of(plain)) plain = LinearKernel::expanded;
  if (can_balance(s) && (s.N <= kMostBalancedRows || s.OB <= kTile) && us_of(LinearKernel::balanced) < us_of(plain)) plain = LinearKernel::balanced;
  if (s.places && has_avx512() && s.N <= kMostWindowRows && 2.0 + windows_us(s) < us_of(plain)) plain = LinearKernel::windows;
  const double plain_us =
      plain == LinearKernel::windows ? 2.0 + windows_us(s) + (half_precision ? double(s.in() + s.out()) * s.N / 4000 : 0.0) : us_of(plain);
  return tiles && pack_rows(s) && tiles_us(s, Product::forward, true) < plain_us ? LinearKernel::expanded_amx : plain;
}

}  // namespace sk
