// Who serves a product of grouped_conv2d. The rules hold what was measured against torch's own convolution in the same layout; a null reason
// means ours. `in` and `out` are the channels per group that the product's kernel reads and writes.
#include <algorithm>

#include "core/grouped_conv2d_bf16.h"
#include "core/grouped_conv2d_impl.h"

namespace sk {
namespace {

constexpr double kSmallMacs = 1 << 19;  // a call of torch's convolution costs 15 to 60 us before it computes
constexpr const char* kNoTile = "kernel size or dilation without a channels_last tile: torch is faster";
constexpr const char* kStrided = "stride above 1: torch is faster";

double macs_of(const Conv2dShape& s) { return double(s.N) * s.OH * s.OW * s.K * (s.C / s.groups) * s.KH * s.KW; }

double megabytes_of(const Conv2dShape& s) { return 4e-6 * double(s.N) * double(std::max(s.C * s.H * s.W, s.K * s.OH * s.OW)); }

bool is_square(const Conv2dShape& s) { return s.KH == s.KW && s.stride_h == s.stride_w && s.dilation_h == s.dilation_w; }

// Of the pixels that the tiles of a row compute, those that are there: tiles are 7 or 8 wide.
double tile_share(int64_t columns) {
  const auto share = [&](int64_t wide) { return double(columns) / double((columns + wide - 1) / wide * wide); };
  return std::max(share(7), share(8));
}

// Groups of channels_last images, several of them: torch computes those well that fill its vectors, while our tiles are as wide as they are.
const char* torch_reason_shape(const Conv2dShape& s, int64_t in, int64_t out_columns) {
  if (s.N == 1) return nullptr;
  if (s.K < 16 && megabytes_of(s) > 1) return "fewer channels than a vector on large maps: torch is faster";
  if (in > 8 && tile_share(out_columns) < 0.75) return "rows that fill no tile: torch is faster";
  if (s.H == 1 && in <= 8) return "maps of one row: torch is faster";
  return nullptr;
}

// Square filters of stride 2 have row kernels for groups; other strided ones read a padded copy: that pays for one image, for whole filter
// rows of few channels, or where the weights outweigh the map.
const char* torch_reason_strided_nhwc(const Conv2dShape& s) {
  const int64_t in = s.C / s.groups;
  const double megabytes = megabytes_of(s);
  if (!has_avx512()) return kStrided;
  if (s.groups > 1 && (s.N == 1 || (s.KW == 1 && s.KH > 1 && in <= 8))) return nullptr;
  if (s.groups > 1 && is_square(s) && s.stride_h == 2 && s.dilation_h == 1 && in > 1) {
    const bool fits = s.OW % 7 == 0, small = in > 16 && megabytes <= 3.5;
    if (in == 12 && (s.KH == 3 || s.KH == 5)) return nullptr;  // torch unfolds these
    if (s.KH == 3 && ((in < 16 && megabytes <= 8) || (in == 16 && fits && s.OW <= 14) || small)) return torch_reason_shape(s, in, s.OW);
    if (s.KH == 5 && ((in < 16 && (in != 8 || fits)) || (in == 16 && fits && megabytes <= 2) || (small && fits && in <= 24)))
      return torch_reason_shape(s, in, s.OW);
  }
  // a loop over taps has tiles of every width: as narrow groups
  if (s.groups > 1 && (in == 2 || (in > 2 && in % 8 != 0 && macs_of(s) <= 4 * kSmallMacs))) return torch_reason_shape(s, 2, s.OW);
  const bool few = s.groups == 1 && s.C * s.KW <= 48 && s.dilation_w == 1 && megabytes_of(s) <= 4;
  const bool heavy = s.groups == 1 && s.C >= 32 && (s.N * s.OH * s.OW <= 200 || s.OH * s.OW <= 64);
  return few || heavy ? nullptr : kStrided;
}

// Images whose channels fill its vectors torch reorders on the way, which pays for many small ones; others it unfolds.
const char* torch_reason_strided_nchw(const Conv2dShape& s) {
  const int64_t in = s.C / s.groups;
  if (!has_avx512() || s.W < 4 || s.groups == 1) return kStrided;
  if (s.N == 1) return nullptr;
  if (in == 1) return kStrided;
  if (in % 8 != 0) return in < 8 || s.OH * s.OW >= 49 ? nullptr : kStrided;
  if (in == 8) return s.OW >= 14 ? nullptr : kStrided;
  return s.N == 2 || (s.OH * s.OW >= 196 && (s.KH * s.KW <= 9 || in > 16)) ? nullptr : kStrided;
}

const char* torch_reason_strided_nchw_gradient(const Conv2dShape& s, ConvProduct product) {
  const int64_t in = s.C / s.groups, out = s.K / s.groups;
  const bool one = s.KH * s.KW == 1;
  if (!has_avx512() || s.W < 4 || s.groups == 1) return kStrided;
  if (in == 1) return s.KH == 5 ? nullptr : kStrided;
  if (product == ConvProduct::grad_x) return one || in % 8 != 0 || out % 8 != 0 ? nullptr : kStrided;
  return !one && s.KH < 7 && (in < 16 || in % 8 != 0) ? nullptr : kStrided;
}

const char* torch_reason_nhwc(const Conv2dShape& s, int64_t in, int64_t out, bool backward) {
  const bool square = is_square(s) && s.dilation_h == 1;
  const double megabytes = megabytes_of(s);
  if (!has_avx512()) return "channels_last without AVX-512: torch is faster";
  if (in == 1 && out == 1) {
    if (backward && s.dilation_h > 1) return nullptr;
    return is_square(s) && s.KH == 3 && s.dilation_h <= 2 && megabytes < 1 && (square || s.K <= 128) ? nullptr : "depthwise: torch is faster";
  }
  if (s.KH == 1 && s.KW == 1) {
    // strided pixels, or pixels a page apart, are copied; a map that outgrows the caches waits for that, or for its pages
    const bool strided = s.stride_h > 1 || s.stride_w > 1;
    const bool waits =
        (strided && megabytes > 8 && s.OH * s.OW > 400) || (s.C % 1024 == 0 && megabytes > 8 && s.K <= s.C) || (s.K > s.C && megabytes > 48);
    return s.groups == 1 && (backward || waits) ? "dense 1x1 bound by memory: torch is faster" : nullptr;
  }
  const int64_t columns = backward ? s.W : s.OW;
  if (square && (s.KH == 3 || s.KH == 5)) {
    if (s.groups > 1) return torch_reason_shape(s, in, columns);
    return in < 8 && megabytes > 4 ? "few input channels, large maps: torch is faster" : nullptr;
  }
  if (s.groups > 1 && s.KH == 3 && s.KW == 3 && s.dilation_h == 2 && s.dilation_w == 2) {
    const bool one_vector = in == 16 && columns < 56 && (s.C >= 128 || megabytes > 1.5);
    return s.N > 1 && !backward && (in == 1 || one_vector || (in > 24 && megabytes > 1.5)) ? "dilation of groups that suit torch: torch is faster"
                                                                                           : torch_reason_shape(s, in, columns);
  }
  if (s.groups > 1 && (s.N == 1 ? s.KH * s.KW <= 16 : s.KW == 1)) return nullptr;
  if (s.groups > 1 && !backward && square && s.KH == 7 && s.N == 1) return in == 8 && s.OH * s.OW > 100 ? kNoTile : nullptr;
  if (s.groups > 1 && !backward && square && s.KH == 7 && (in == 2 || ((in == 3 || in == 4 || in == 12) && tile_share(columns) >= 0.75)))
    return nullptr;
  // one group: a filter row is one long sum, if the map's rows are whole tiles
  if (!backward && s.groups == 1 && megabytes < 0.5 && (s.OW % 7 == 0 || s.OW <= 8)) return nullptr;
  return in % 4 == 0 || s.N > 1 ? kNoTile : nullptr;
}

const char* torch_reason_nchw(const Conv2dShape& s, int64_t in, bool backward) {
  const bool one = s.KH == 1 && s.KW == 1;
  if (isa() == Isa::base) return "no vector instructions beyond the baseline: torch is faster";
  if (isa() == Isa::avx2) return in <= 16 && s.groups > 1 ? nullptr : "wide groups without AVX-512: torch is faster";
  if (one && s.groups == 1 && s.N < 8 && (backward || s.H * s.W >= 512 || (s.K <= 64 && s.C >= 128)))
    return "dense 1x1 of few images: torch is faster";
  if (!one && s.N >= 8 && s.H * s.W <= 256 && in >= (s.H * s.W <= 64 ? 32 : 96)) return "wide groups on small maps: torch is faster";
  if (s.N >= 8 && s.dilation_h > 1 && s.H * s.W <= 64 && in >= 16) return "dilated filters on small maps: torch is faster";
  if (s.N > 1 && ((s.KH - 1) * s.dilation_h >= s.H || (s.KW - 1) * s.dilation_w >= s.W)) return "filters wider than the map: torch is faster";
  return nullptr;
}

// torch multiplies 4, 8 or a multiple of 16 channels per group well, other widths by im2col or with padding; it spreads dilated filters.
const char* torch_reason_grad_weight(const Conv2dShape& s, int64_t in) {
  const bool square = is_square(s) && (s.KH == 3 || s.KH == 5) && s.dilation_h == 1;
  const char* wide = "weight gradient of wide groups: torch is faster";
  if (s.channels_last) {
    const bool depthwise = in == 1 && s.K == s.groups;
    if (has_avx512() && s.dilation_h > 1 && (depthwise || (in <= 16 && s.KH != 3))) return nullptr;
    if (!has_avx512() || !square) return "weight gradient without a channels_last tile: torch is faster";
    if (depthwise) return s.KH == 5 || megabytes_of(s) < 1 ? nullptr : "depthwise: torch is faster";
    if (in % 4 == 2 && s.KH == 3 && s.N >= 8 && megabytes_of(s) > 2) return "weight gradient of narrow groups on large maps: torch is faster";
    return in < 16 || s.N < 8 || in % 16 != 0 ? nullptr : wide;
  }
  if (!has_avx512()) return in <= 8 ? nullptr : wide;
  if (s.KH >= 7 && s.dilation_h == 1 && s.N > 1 && s.H * s.W <= 100) return "weight gradient of large filters on small maps: torch is faster";
  if (in < 16 || (in < 32 && in % 16 != 0)) return nullptr;
  return in == 16 && (s.H * s.W >= 784 || s.dilation_h > 1 || s.KH * s.KW == 1) ? nullptr : wide;
}

// torch multiplies bf16 with AMX, at several times the speed of fp32, except where groups are too narrow for a tile
const char* torch_reason_bf16(const Conv2dShape& s, int64_t in, double macs) {
  const int64_t narrow = s.KH * s.KW > 9 ? 4 : s.channels_last ? 4 : 8;
  return in <= narrow && in > 1 ? nullptr : macs < 8 * kSmallMacs ? nullptr : "bfloat16: torch is faster";
}

// Whether our matrix tiles beat torch's, which fill theirs better and are slower to begin: groups for one image, narrow ones for more.
bool tiles_win(const Conv2dShape& s, ConvProduct product) {
  const int64_t in = (product == ConvProduct::grad_x ? s.K : s.C) / s.groups, pixels = s.OH * s.OW;
  const bool one = s.KH * s.KW == 1, plain = s.stride_h == 1 && s.stride_w == 1, small = s.KH * s.KW <= 9;
  if (s.groups == 1 || in > 128 || !(product == ConvProduct::grad_x ? grouped_conv2d_grad_x_on_tiles(s) : grouped_conv2d_on_tiles(s))) return false;
  if (product == ConvProduct::grad_weight) {
    if (in == 1 && s.K == s.C) return s.N == 1;
    if (s.N == 1) return !one || in <= 64;
    if (!plain) return !one && small && in <= 8;
    return !one && (in <= 8 || (small && (pixels <= 64 || (in <= 16 && pixels <= 256) || (in <= 32 && s.N <= 8))));
  }
  if (s.N == 1) return true;
  if (in == 1 && s.K == s.C) return product == ConvProduct::grad_x;
  if (!plain) return small && !one && (in <= 8 || (s.N <= 8 && (in <= 32 || s.N <= 2 || pixels <= 64)));
  if (one) return in <= 16 || (s.N <= 8 && product == ConvProduct::forward);
  if (in <= 4) return true;
  const bool turned = !s.weight_channels_last;  // by torch, before it multiplies
  if (!small) return in < 12 || (in == 12 && (product == ConvProduct::grad_x || s.N <= 16)) || (turned && in > 12 && s.N <= 8);
  return in <= 16 || (in <= 48 && in % 32 != 0) || (in <= 64 && s.N <= 8) ||
         (turned && (s.N <= 8 || pixels <= (product == ConvProduct::forward ? 256 : 64)));
}

}  // namespace

ConvChoice grouped_conv2d_choice(const Conv2dShape& s, ConvProduct product, ConvType type) {
  const bool backward = product != ConvProduct::forward, strided = s.stride_h > 1 || s.stride_w > 1;
  const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups;
  const double macs = macs_of(s);
  const char* reason = nullptr;
  if (dense_policy() != Dense::automatic) return {dense_policy() == Dense::never, "asked for"};
  const bool copied = strided && !s.channels_last && s.W < 4, pixel = backward && s.N > 1 && s.H * s.W == 1;  // not small: mostly moved
  if (macs < kSmallMacs && !copied && !pixel) return {true, "small: less work than a call of torch's convolution"};
  const bool depthwise = in_group == 1 && out_group == 1;
  if (type == ConvType::bf16 && tiles_win(s, product)) return {true, "own kernel on matrix tiles"};
  if (strided && !backward && !s.channels_last && type == ConvType::fp32)
    reason = torch_reason_strided_nchw(s);
  else if (strided && !s.channels_last && type == ConvType::fp32)
    reason = torch_reason_strided_nchw_gradient(s, product);
  else if (strided && (backward || !s.channels_last))
    reason = kStrided;
  else if (strided && s.KH * s.KW > 1 && type == ConvType::fp32)
    reason = torch_reason_strided_nhwc(s);
  else if (strided && s.KH * s.KW > 1)
    reason = kStrided;
  else if (type == ConvType::bf16)
    reason = torch_reason_bf16(s, product == ConvProduct::grad_x ? out_group : in_group, macs);
  else if (type == ConvType::fp16 && has_avx512())  // torch converts it slowly, except where it has no sums
    reason = depthwise && s.channels_last ? "depthwise: torch is faster" : nullptr;
  else if (product == ConvProduct::grad_weight)
    reason = torch_reason_grad_weight(s, in_group);
  else if (s.channels_last)
    reason = torch_reason_nhwc(s, backward ? out_group : in_group, backward ? in_group : out_group, backward);
  else
    reason = torch_reason_nchw(s, backward ? out_group : in_group, backward);
  return reason ? ConvChoice{false, reason} : ConvChoice{true, "own kernel"};
}

}  // namespace sk
