// sparse_conv2d, list family: channel blocks, strips, threads. See sparse_conv2d_list.isa.cpp for the products.
#include <cstring>
#include <stdexcept>

#include "core/sparse_conv2d_walk.h"

namespace sk {
namespace {

constexpr int64_t kChannelBytes = 4096;    // copies of one channel: several fit a first-level cache
constexpr int64_t kBlockBytes = 32 << 10;  // copies of a channel block
constexpr int64_t kMaxBlockBytes = 512 << 10;
constexpr int64_t kFillBytes = 384 << 10;  // patches of the channels of a strip
constexpr int64_t kRowsAhead = 3;          // whose entries are prefetched
constexpr double kBlockWeights = 10;       // weights per filter and channel block that pay for loading and storing its sums, and some more
constexpr double kDotBlockWeights = 6;     // the same for grad_weight, which only loads its row of grad_out anew

// What a list walk needs besides the pixels; the same for forward, grad_x and grad_weight.
struct ListGeometry {
  int64_t lanes, src_block, src_blocks, dst_block, dst_blocks;
  SparseConvCopies copies;
  int64_t strip_rows = 0, above = 0;  // of patches
  int64_t strips, channel_block;      // source blocks per channel block
  bool in_patches = false;
  SparseConvPatches patches{};
  int64_t fill_block = 0;  // source blocks copied at a time, whole channel blocks
  std::vector<int32_t> table, inner_x, inner_weight;

  // `block_weights`: wanted per row and channel block
  ListGeometry(const SparseConv2dShape& s, const SparseConvWalk& w, bool grad, double block_weights, bool may_patch)
      : lanes(SK_PICK_KERNELS(sparse_conv_tile_kernels).lanes),
        src_block(grad ? s.BO : s.BI),
        src_blocks(grad ? s.OB() : s.IB()),
        dst_block(grad ? s.BI : s.BO),
        dst_blocks(grad ? s.IB() : s.OB()),
        copies(strip_of(w)) {
    if (may_patch && s.BO * s.BI * s.BT == 1) use_patches(w, s.channels_last);
    strips = in_patches ? sparse_conv_ceil(patches.side_h, strip_rows) : sparse_conv_ceil(w.rows, copies.strip);
    if (copies.channel_floats > INT32_MAX / src_block) throw std::length_error("sparse_conv2d: x must be of rows that fit a cache");
    const int64_t block_bytes = 4 * copies.channel_floats * src_block;
    const double row_weights = double(s.nnz) * src_block * s.BT / std::max<int64_t>(1, dst_blocks);
    const double weights_per_block = std::max(1e-9, row_weights / src_blocks);
    const int64_t wanted = int64_t(std::min(1e9, block_weights / weights_per_block)) + 1;
    channel_block = std::max(kBlockBytes / block_bytes, std::min(wanted, kMaxBlockBytes / block_bytes));
    channel_block = std::min(std::max<int64_t>(1, channel_block), std::max<int64_t>(1, src_blocks));
    // channels_last pixels become patches 16 channels at a time, and stay in a second-level cache
    fill_block = channel_block;
    if (in_patches && s.channels_last)
      fill_block = std::min(src_blocks, sparse_conv_ceil(std::max(channel_block, kFillBytes / block_bytes), 16) * 16);

    const int64_t TB = s.TB();
    const auto short_offset = [](int64_t o) { return o == kAbsentTap ? kAbsentOffset : int32_t(o); };
    for (int64_t b = 0; b < fill_block; ++b)
      for (int64_t t = 0; t < TB; ++t) {
        const int64_t tap = s.BT == 1 ? copies.tap_offset[t] : 0;
        table.push_back(short_offset(tap == kAbsentTap ? tap : b * src_block * copies.channel_floats + tap));
      }
    for (int64_t c = 0; c < src_block; ++c)
      for (int64_t t = 0; t < s.BT; ++t) {
        const int64_t tap = s.BT == 1 ? 0 : copies.tap_offset[t];
        inner_x.push_back(short_offset(tap == kAbsentTap ? tap : c * copies.channel_floats + tap));
        inner_weight.push_back(int32_t(grad ? c * s.BI * s.BT + t : c * s.BT + t));
      }
  }

  // Rows are rounded up to whole vectors where that costs little, so that loads are aligned; strips keep a channel small.
  SparseConvCopies strip_of(const SparseConvWalk& w) const {
    const int64_t rounded = sparse_conv_ceil(w.cols, lanes) * lanes;
    const int64_t row_floats = dst_block <= 2 && rounded * 4 <= w.cols * 5 ? rounded : w.cols;
    const SparseConvCopies whole(w, w.rows, row_floats);
    const int64_t halo = whole.plane_rows - w.rows;
    const int64_t row_bytes = std::max<int64_t>(1, 4 * int64_t(whole.shift.size() * whole.phase.size()) * row_floats);
    // fill the registers: one filter's sums, or those of the filters that share a mask
    const int64_t least = sparse_conv_ceil(16 * lanes, row_floats);
    const int64_t shared = sparse_conv_ceil(31 / (std::min<int64_t>(dst_block, 8) + 1) * lanes, row_floats);
    int64_t strip = std::min(w.rows, std::max(least, kChannelBytes / row_bytes - halo));
    if (dst_block >= 4 && row_floats % lanes == 0 && shared > halo) strip = std::min(strip, shared);  // more channels fit the cache
    strip = sparse_conv_ceil(w.rows, sparse_conv_ceil(w.rows, strip));
    return SparseConvCopies(w, strip, row_floats);
  }

  // Sees the map as patches if those take fewer vectors than rows do, or as few and are as quickly made; as rows of patches in strips that fill the
  // registers.
  void use_patches(const SparseConvWalk& w, bool channels_last) {
    if (SK_PICK_KERNELS(sparse_conv_patch_copy_kernels).fill == nullptr || w.step_h * w.step_w * w.dst_step_h * w.dst_step_w != 1) return;
    const auto [top, bottom] = std::minmax_element(w.dy.begin(), w.dy.end());
    const auto [left, right] = std::minmax_element(w.dx.begin(), w.dx.end());
    const bool small_square = w.rows == w.cols && (w.rows == 8 || w.rows == 16);
    const int64_t most = sparse_conv_ceil(w.rows * copies.row_floats, lanes) - !(channels_last || small_square);
    double least = 1e30;
    for (int64_t lanes_x : {1, 2, 4, 8, 16}) {
      SparseConvPatches p{};
      p.lanes_x = lanes_x;
      p.side_h = sparse_conv_ceil(w.rows, 16 / lanes_x), p.side_w = sparse_conv_ceil(w.cols, lanes_x);
      p.map_h = w.rows, p.map_w = w.cols, p.src_h = w.src_h, p.src_w = w.src_w;
      if (p.side_w > kMaxPatchSums || p.side_h * p.side_w > most) continue;
      int64_t rows = std::min(p.side_h, kMaxPatchSums / p.side_w);
      rows = sparse_conv_ceil(p.side_h, sparse_conv_ceil(p.side_h, rows));
      p.rows = rows + *bottom - *top;
      p.first_col = *left, p.cols = p.side_w + *right - *left;
      if (p.rows * p.cols > kMaxPatchVectors) continue;
      const double tile = double(rows * p.side_w), sums = double(p.side_h * p.side_w);
      const double cost = sums * (1 + 4 / tile + 0.03 * double(p.rows * p.cols) / tile);
      if (cost >= least) continue;
      least = cost;
      p.channel_floats = (p.rows * p.cols | 1) * lanes;  // an odd number of vectors spreads channels over the cache sets
      patches = p, in_patches = true, strip_rows = rows, above = *top;
    }
    if (!in_patches) return;
    copies.channel_floats = patches.channel_floats;
    for (size_t t = 0; t < w.dy.size(); ++t) copies.tap_offset[t] = ((w.dy[t] - *top) * patches.cols + w.dx[t] - *left) * lanes;
  }

  int64_t copy_floats() const { return fill_block * src_block * copies.channel_floats + lanes; }
  int64_t channel_blocks() const { return sparse_conv_ceil(src_blocks, channel_block); }

  SparseConvList arguments(const SparseConv2dShape& s, bool grad) const {
    SparseConvList a{};
    a.table = table.data();
    a.inner = int64_t(inner_x.size());
    a.inner_x = inner_x.data();
    a.inner_weight = inner_weight.data();
    if (s.BT == 1) a.x_step = copies.channel_floats, a.weight_step = grad ? s.BI : 1;
    a.entry_stride = s.BO * s.BI * s.BT;
    a.row_stride = grad ? s.BT : s.BI * s.BT;
    a.rows = dst_block;
    return a;
  }
};

// A row's entries of one channel block are too few for the hardware to see a stream.
void prefetch_entries(const SparseConvJob& job, const int32_t* codes, int64_t entry, int64_t entry_stride) {
  for (int64_t line = 0; line < 3; ++line) {
    __builtin_prefetch(codes + entry + line * 16);
    if (!job.grad) __builtin_prefetch(job.weight + entry * entry_stride + line * 16);
  }
}

}  // namespace

void sparse_conv_list_run(const SparseConvJob& job, const SparseConvWalk& w) {
  const SparseConvListKernels& kernels = SK_PICK_KERNELS(sparse_conv_list_kernels);
  const SparseConvPatchKernels& patch_kernels = SK_PICK_KERNELS(sparse_conv_patch_kernels);
  const SparseConv2dShape& s = job.shape;
  // filters that share each input are served from the second-level cache too
  const int64_t sharing = std::min<int64_t>(4, job.grad ? s.BI : s.BO);
  const ListGeometry g(s, w, job.grad, 6 + kBlockWeights * double(sharing), true);
  const SparseConvCopies& copies = g.copies;
  const SparseConvPatchCopyKernels& patch_copies = SK_PICK_KERNELS(sparse_conv_patch_copy_kernels);
  const SparseConvCopyKernels& copy_kernels = SK_PICK_KERNELS(sparse_conv_copy_kernels);
  const bool flat = !g.in_patches && !s.channels_last && job.flat(w, copies.row_floats);  // else into sums, which are then put where they belong
  const int64_t src_pixels = w.src_h * w.src_w, dst_pixels = job.dst_h * job.dst_w, TB = s.TB(), row_floats = copies.row_floats;
  const int64_t strip_rows = g.in_patches ? g.strip_rows : copies.strip, all_rows = g.in_patches ? g.patches.side_h : w.rows;
  const int64_t sums_stride = sparse_conv_odd_lines(g.in_patches ? strip_rows * g.patches.side_w * g.lanes : strip_rows * row_floats);
  const int32_t* row_start = job.grad ? job.plan.t_indptr : job.plan.indptr;
  const int32_t* codes = job.grad ? job.plan.t_code : job.plan.index;
  const auto forward = g.in_patches ? patch_kernels.forward : kernels.forward;

  // A unit is one block of destination channels of one strip; a thread builds the copies once for all its units of a strip.
  const int64_t units = s.N * g.strips * g.dst_blocks;
  parallel(job.pool, units, std::max<int64_t>(1, g.dst_blocks / 4), [&](int64_t begin, int64_t end) {
    const Scratch copied(sizeof(float) * g.copy_floats());
    const Scratch sums(flat ? 0 : sizeof(float) * std::min(g.dst_blocks, end - begin) * g.dst_block * sums_stride);
    const Scratch room(sizeof(float) * (g.in_patches ? g.patches.room_floats() : job.planes_floats(job.src_channels(), copies.most_pixels(w))));
    std::vector<int64_t> next(g.dst_blocks);
    SparseConvList a = g.arguments(s, job.grad);
    a.x = copied.as<float>();
    a.code = codes;
    a.entry = job.grad ? job.plan.t_entry : nullptr;
    a.weight = job.weight;
    a.out_stride = flat ? dst_pixels : sums_stride;
    a.patch_cols = g.patches.side_w;
    a.patch_row = g.patches.cols * g.lanes;
    while (begin < end) {
      const int64_t first = begin % g.dst_blocks, last = std::min(g.dst_blocks, first + end - begin);
      const int64_t row = begin / g.dst_blocks % g.strips * strip_rows, n = begin / g.dst_blocks / g.strips;
      const int64_t rows = std::min(strip_rows, all_rows - row), pixels = rows * row_floats;
      a.patch_rows = rows;
      a.vectors = sparse_conv_ceil(pixels, g.lanes);
      a.tail = flat ? int(pixels - (a.vectors - 1) * g.lanes) : int(g.lanes);
      float* out = flat ? job.dst + (n * job.dst_channels() + first * g.dst_block) * a.out_stride + row * w.cols : sums.as<float>();
      for (int64_t b = first; b < last; ++b) next[b] = row_start[b];
      SparseConvPlanes planes{};
      if (!g.in_patches) planes = job.planes(w, n, 0, job.src_channels(), copies.first_pixel(w, row), copies.last_pixel(w, row), room.as<float>());
      for (int64_t block = 0, block_end; block < g.src_blocks; block = block_end) {
        const int64_t fill = block / g.fill_block * g.fill_block, fill_channel = fill * g.src_block;
        block_end = std::min({g.src_blocks, fill + g.fill_block, block + g.channel_block});
        const int64_t channels = (std::min(g.src_blocks, fill + g.fill_block) - fill) * g.src_block;
        if (block == fill && g.in_patches)
          patch_copies.fill(g.patches, row + g.above, job.source(n, fill_channel, src_pixels), s.channels_last ? 1 : src_pixels,
                            s.channels_last ? job.src_channels() : 1, channels, copied.as<float>(), room.as<float>());
        else if (block == fill)
          copies.fill(copy_kernels, w, {planes.x + fill_channel * planes.stride, planes.stride}, channels, row, copied.as<float>());
        a.code_begin = int32_t(fill * TB);
        a.code_end = int32_t(block_end * TB);
        a.first = block == 0;
        for (int64_t b = first; b < last; ++b) {
          const int64_t row_end = row_start[b + 1];
          if (!a.first && (next[b] == row_end || codes[next[b]] >= a.code_end)) continue;
          if (b + kRowsAhead < last) prefetch_entries(job, codes, next[b + kRowsAhead], a.entry_stride);
          a.out = out + (b - first) * g.dst_block * a.out_stride;
          a.bias = job.bias ? job.bias + b * g.dst_block : nullptr;
          next[b] = forward(a, next[b], row_end);
        }
      }
      if (g.in_patches)
        patch_copies.restore(g.patches, row, rows, out, sums_stride, last - first,
                             job.dst + n * dst_pixels * job.dst_channels() + first * (s.channels_last ? 1 : dst_pixels),
                             s.channels_last ? 1 : dst_pixels, s.channels_last ? job.dst_channels() : 1);
      else if (!flat)
        job.scatter(w, out, sums_stride, row_floats, n, first * g.dst_block, (last - first) * g.dst_block, row, rows);
      begin += last - first;
    }
  });
}

void sparse_conv_list_grad_weight(const SparseConv2dShape& s, const SparseConvPlan& plan, const float* x, const float* grad_out, float* grad_weight,
                                  const Pool& pool) {
  const SparseConvListKernels& kernels = SK_PICK_KERNELS(sparse_conv_list_kernels);
  const SparseConvCopyKernels& copy_kernels = SK_PICK_KERNELS(sparse_conv_copy_kernels);
  const SparseConvWalk w = sparse_conv_forward_walk(s);
  const ListGeometry g(s, w, false, kDotBlockWeights, false);
  const SparseConvCopies& copies = g.copies;
  const bool flat = copies.row_floats == w.cols;
  const int64_t out_pixels = w.rows * w.cols, in_pixels = w.src_h * w.src_w, TB = s.TB();

  // A unit owns the weights of one row and one channel block, for all images in order: the sums have one fixed order.
  parallel(pool, g.channel_blocks() * s.OB(), std::max<int64_t>(1, s.OB() / 4), [&](int64_t begin, int64_t end) {
    struct Segment {
      int64_t block, block_end, first, last;  // rows [first, last) of the source blocks [block, block_end)
      std::vector<int64_t> start;             // [last - first, 2]: entries of each row
    };
    std::vector<Segment> segments;
    for (std::vector<int64_t> stop(s.OB(), -1); begin < end;) {
      const int64_t block = begin / s.OB() * g.channel_block, first = begin % s.OB();
      Segment segment{block, std::min(s.IB(), block + g.channel_block), first, std::min(s.OB(), first + end - begin), {}};
      for (int64_t b = segment.first; b < segment.last; ++b) {
        const int32_t *row = plan.index + plan.indptr[b], *row_end = plan.index + plan.indptr[b + 1];
        if (stop[b] < 0) stop[b] = std::lower_bound(row, row_end, int32_t(block * TB)) - plan.index;
        segment.start.push_back(stop[b]);
        while (stop[b] < plan.indptr[b + 1] && plan.index[stop[b]] < segment.block_end * TB) ++stop[b];
        segment.start.push_back(stop[b]);
      }
      begin += segment.last - segment.first;
      segments.push_back(std::move(segment));
    }
    int64_t first_row = s.OB(), last_row = 0;
    for (const Segment& segment : segments) {
      first_row = std::min(first_row, segment.first);
      last_row = std::max(last_row, segment.last);
    }

    const int64_t padded_stride = copies.strip * copies.row_floats;
    const Scratch copied(sizeof(float) * g.copy_floats());
    const Scratch padded(flat ? 0 : sizeof(float) * (last_row - first_row) * s.BO * padded_stride);
    SparseConvList a = g.arguments(s, false);
    a.x = copied.as<float>();
    a.code = plan.index;
    a.grad_weight = grad_weight;
    a.out_stride = flat ? out_pixels : padded_stride;
    for (int64_t n = 0; n < s.N; ++n)
      for (int64_t row = 0; row < w.rows; row += copies.strip) {
        const int64_t rows = std::min(copies.strip, w.rows - row), pixels = rows * copies.row_floats;
        a.vectors = sparse_conv_ceil(pixels, g.lanes);
        a.tail = int(pixels - (a.vectors - 1) * g.lanes);
        const float* grads = grad_out + (n * s.K + first_row * s.BO) * out_pixels + row * w.cols;
        if (!flat)  // rows padded with zeros, as the copies of x are
          for (int64_t k = 0; k < (last_row - first_row) * s.BO; ++k)
            for (int64_t r = 0; r < rows; ++r) {
              float* to = padded.as<float>() + k * padded_stride + r * copies.row_floats;
              std::memcpy(to, grads + k * out_pixels + r * w.cols, sizeof(float) * w.cols);
              std::memset(to + w.cols, 0, sizeof(float) * (copies.row_floats - w.cols));
            }
        float* shown = flat ? const_cast<float*>(grads) : padded.as<float>();
        for (const Segment& segment : segments) {
          copies.fill(copy_kernels, w, {x + (n * s.C + segment.block * s.BI) * in_pixels, in_pixels}, (segment.block_end - segment.block) * s.BI, row,
                      copied.as<float>());
          a.code_begin = int32_t(segment.block * TB);
          a.code_end = int32_t(segment.block_end * TB);
          for (int64_t b = segment.first; b < segment.last; ++b) {
            const int64_t* range = &segment.start[(b - segment.first) * 2];
            if (range[0] == range[1]) continue;
            a.out = shown + (b - first_row) * s.BO * a.out_stride;
            kernels.grad_weight(a, range[0], range[1]);
          }
        }
      }
  });
}

}  // namespace sk
