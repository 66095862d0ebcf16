// sparse_conv2d, tile family: where the pixels come from, strips, threads. See sparse_conv2d_tile.isa.cpp for the products.
#include <cstring>
#include <numeric>

#include "core/sparse_conv2d_walk.h"

namespace sk {
namespace {

constexpr int64_t kCopyBytes = 768 << 10;  // shifted copies of one strip stay in a second-level cache
constexpr int64_t kBandBytes = 256 << 10;  // pixels and sums of a band of a channels_last image
constexpr int64_t kLeastBand = 12;         // vectors of a band: two blocks of a forward pass
constexpr int64_t kBandStep = 6;           // whole blocks of a forward pass
constexpr int64_t kFilterBlock = 48;       // filters whose gradient is read together in grad_x
constexpr int64_t kAheadFloats = 1 << 20;  // outputs (and inputs) of more are not in a cache when they are written
constexpr int64_t kFiltersPerTap = 8;      // fewer do not pay for copies that masks make unnecessary, nor are faster without masks

SparseConvTile tile_arguments(const SparseConvJob& job) {
  const SparseConv2dShape& s = job.shape;
  SparseConvTile a{};
  a.weight = job.weight;
  a.columns = job.plan.t_indptr;
  a.rows = job.plan.t_code;
  a.entries = job.plan.t_entry;
  a.BO = s.BO, a.BI = s.BI, a.IB = s.IB(), a.K = s.K, a.taps = s.taps();
  a.bias = job.bias;
  return a;
}

bool many_filters(const SparseConv2dShape& s) { return s.nnz * s.BO >= kFiltersPerTap * SparseConvPlan::columns(s); }

// Taps that read the same lines follow each other: in place those of one row, in shifted copies those of one shift.
std::vector<int32_t> tap_order(const SparseConvWalk& w, bool copied) {
  std::vector<int32_t> order(w.dx.size());
  std::iota(order.begin(), order.end(), 0);
  if (copied) std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return w.dx[a] < w.dx[b]; });
  return order;
}

// How forward cuts the `vectors` vectors of a map.
void set_blocks(SparseConvTile& a, int64_t vectors, bool aligned) {
  // Aligned maps: 4 vectors x 6 filters. Others: 6 vectors, in halves, x 8 filters; small ones: 4.
  const bool fours = vectors == 4 || (aligned && vectors % 4 == 0);
  a.block_vectors = fours ? 4 : 6;
  a.tile_filters = fours && vectors > 4 ? 6 : 8;
  a.block_channels = 96;
}

// Vectors of a channels_last image that are turned together: a second-level cache holds their pixels and sums, and every thread gets some.
int64_t band_vectors(const SparseConvJob& job, int64_t vectors, int64_t halo, int64_t lanes) {
  const int64_t in_bytes = 4 * lanes * job.src_channels(), out_bytes = 4 * lanes * job.dst_channels();
  const int64_t fit = std::max<int64_t>(kLeastBand, (kBandBytes - halo * in_bytes) / (in_bytes + out_bytes));
  const int64_t bands =
      std::max(sparse_conv_ceil(vectors, fit), std::min(sparse_conv_ceil(vectors, kLeastBand), sparse_conv_ceil(job.pool.threads, job.shape.N)));
  return sparse_conv_ceil(sparse_conv_ceil(vectors, bands), kBandStep) * kBandStep;
}

// Of more channels_last images than a cache holds: what is fetched beside the multiply-adds of a band.
void pixels_ahead(const SparseConvJob& job, SparseConvTile& a, int64_t next, int64_t size, int64_t out) {
  const int64_t C = job.src_channels(), K = job.dst_channels(), in = job.shape.N * job.shape.H * job.shape.W;
  a.ahead = !job.grad && in * C + job.shape.N * job.dst_h * job.dst_w * K > kAheadFloats;
  a.next_x = job.src + next * C, a.next_x_floats = std::clamp<int64_t>(in - next, 0, size) * C;
  a.next_out = job.dst + out * K, a.next_out_floats = std::min(job.shape.N * job.dst_h * job.dst_w - out, size) * K;
  if (a.next_x_floats == 0) a.next_x = nullptr;
}

// [filter blocks + 1, columns]: where each column crosses into the next block of filters
std::vector<int32_t> split_filters(const SparseConvJob& job, int64_t* blocks) {
  const int64_t columns = SparseConvPlan::columns(job.shape), step = std::max<int64_t>(1, kFilterBlock / job.shape.BO);
  *blocks = std::max<int64_t>(1, sparse_conv_ceil(job.shape.OB(), step));
  std::vector<int32_t> splits;
  if (!job.grad) return splits;
  splits.reserve((*blocks + 1) * columns);
  for (int64_t b = 0; b <= *blocks; ++b)
    for (int64_t c = 0; c < columns; ++c) {
      const int32_t *first = job.plan.t_code + job.plan.t_indptr[c], *last = job.plan.t_code + job.plan.t_indptr[c + 1];
      splits.push_back(int32_t(std::lower_bound(first, last, int32_t(std::min(b * step, job.shape.OB()))) - job.plan.t_code));
    }
  return splits;
}

// Stride 1 and an output as wide as the input: pixel p of the output reads pixel p + dy*W + dx of the input, in place. Of a channels_last
// image a band of pixels at a time is turned, and its sums are turned back.
void run_masked(const SparseConvJob& job, const SparseConvWalk& w, const SparseConvTileKernels& kernels) {
  const SparseConvCopyKernels& copies = SK_PICK_KERNELS(sparse_conv_copy_kernels);
  const SparseConv2dShape& s = job.shape;
  const int64_t lanes = kernels.lanes, pixels = w.rows * w.cols, src_pixels = w.src_h * w.src_w, vectors = sparse_conv_ceil(pixels, lanes);
  const Scratch masks(sizeof(uint16_t) * s.taps() * vectors);
  copies.masks(w.rows, w.cols, w.src_h, w.src_w, s.taps(), w.dy.data(), w.dx.data(), masks.as<uint16_t>());
  std::vector<int64_t> offset;
  for (int64_t t = 0; t < s.taps(); ++t) offset.push_back(w.dy[t] * w.src_w + w.dx[t]);
  const auto [least, most] = std::minmax_element(offset.begin(), offset.end());
  const int64_t above = -*least, below = *most;
  int64_t filter_blocks;
  const std::vector<int32_t> splits = split_filters(job, &filter_blocks), order = tap_order(w, false);

  const int64_t band = s.channels_last ? band_vectors(job, vectors, (above + below) / lanes, lanes) : vectors,
                bands = sparse_conv_ceil(vectors, band);
  const int64_t band_pixels = std::min(src_pixels, band * lanes + above + below), sums_stride = sparse_conv_odd_lines(band * lanes);
  const auto work = [&](int64_t n, int64_t v_begin, int64_t v_end, float* turned, float* sums) {
    SparseConvTile a = tile_arguments(job);
    a.v_stride = lanes;
    a.tap_offset = offset.data();
    a.tap_order = order.data();
    a.splits = splits.data();
    a.filter_blocks = filter_blocks;
    a.mask = masks.as<uint16_t>();
    a.mask_stride = vectors;
    a.reach = below;
    a.v_begin = v_begin, a.v_end = v_end;
    set_blocks(a, v_end - v_begin, false);
    const int64_t first = std::clamp<int64_t>(v_begin * lanes - above, 0, src_pixels),
                  last = std::clamp<int64_t>(v_end * lanes + below, 0, src_pixels);
    const SparseConvPlanes planes = job.planes(w, n, 0, job.src_channels(), first, last, turned);
    a.x = planes.x;
    a.x_stride = planes.stride;
    a.x_begin = a.x_end = s.channels_last ? turned : job.src;  // nothing: every load is masked
    if (many_filters(s)) a.x_end += s.channels_last ? job.src_channels() * planes.stride : s.N * job.src_channels() * src_pixels;
    a.out = sums ? sums - v_begin * lanes : job.dst + n * job.dst_channels() * pixels;
    a.out_stride = sums ? sums_stride : pixels;
    a.tail = sums || v_end < vectors ? int(lanes) : int(pixels - (vectors - 1) * lanes);
    a.ahead = !sums && s.N * pixels * job.dst_channels() > kAheadFloats;
    const bool more = a.ahead && v_end == vectors && n + 1 < s.N;
    a.next_x = more ? a.x + job.src_channels() * a.x_stride : nullptr;
    a.next_out = more ? a.out + job.dst_channels() * pixels : nullptr;
    if (sums) pixels_ahead(job, a, n * src_pixels + (v_end < vectors ? last : src_pixels), band * lanes, n * pixels + v_begin * lanes);
    (job.grad ? kernels.grad_x : kernels.forward)(a);
    if (sums) job.scatter(sums, sums_stride, n, v_begin * lanes, std::min(pixels, v_end * lanes));
  };
  if (s.channels_last)
    parallel(job.pool, s.N * bands, 1, [&](int64_t begin, int64_t end) {
      const Scratch turned(sizeof(float) * job.planes_floats(job.src_channels(), band_pixels));
      const Scratch sums(sizeof(float) * job.dst_channels() * sums_stride);
      for (; begin < end; ++begin) {
        const int64_t v = begin % bands * band;
        work(begin / bands, v, std::min(vectors, v + band), turned.as<float>(), sums.as<float>());
      }
    });
  else
    parallel(job.pool, s.N * vectors, 6, [&](int64_t begin, int64_t end) {
      while (begin < end) {  // one image, or a part of it
        const int64_t v = begin % vectors, size = std::min(vectors - v, end - begin);
        work(begin / vectors, v, v + size, nullptr, nullptr);
        begin += size;
      }
    });
}

// Every other geometry, and every other instruction set: strips of rows over shifted copies of all source channels.
void run_copied(const SparseConvJob& job, const SparseConvWalk& w, const SparseConvTileKernels& kernels) {
  const SparseConvCopyKernels& copy_kernels = SK_PICK_KERNELS(sparse_conv_copy_kernels);
  const SparseConv2dShape& s = job.shape;
  const int64_t src_channels = job.src_channels(), dst_channels = job.dst_channels(), lanes = kernels.lanes;
  const int64_t src_floats = src_channels * w.src_h * w.src_w;
  const SparseConvCopies whole(w, w.rows, w.cols);
  const int64_t halo = whole.plane_rows - w.rows;
  const int64_t row_bytes = 4 * src_channels * int64_t(whole.shift.size() * whole.phase.size()) * w.cols;
  const int64_t fit = row_bytes > 0 ? std::max<int64_t>(1, kCopyBytes / row_bytes - halo) : w.rows;
  int64_t strips = sparse_conv_ceil(w.rows, std::min(fit, w.rows));
  strips = std::max(strips, std::min(w.rows, sparse_conv_ceil(job.pool.threads, s.N)));
  const SparseConvCopies copies(w, sparse_conv_ceil(w.rows, strips), w.cols);
  strips = sparse_conv_ceil(w.rows, copies.strip);
  const bool flat = job.flat(w, w.cols) && !s.channels_last;  // else into sums, which are then put where they belong
  // Vectors of all channels side by side, where rows are whole vectors: a tile then reads PV streams.
  const bool interleaved = w.cols % lanes == 0;
  std::vector<int64_t> tap_offset = copies.tap_offset;
  if (interleaved)
    for (int64_t& offset : tap_offset)
      if (offset != kAbsentTap) offset *= src_channels;
  const int64_t sums_stride = sparse_conv_odd_lines(copies.strip * w.cols);

  int64_t filter_blocks;
  const std::vector<int32_t> splits = split_filters(job, &filter_blocks), order = tap_order(w, true);

  parallel(job.pool, s.N * strips, 1, [&](int64_t begin, int64_t end) {
    const Scratch copied(sizeof(float) * (src_channels * copies.channel_floats + lanes));
    const Scratch sums(flat ? 0 : sizeof(float) * dst_channels * sums_stride);
    const Scratch turned(sizeof(float) * job.planes_floats(src_channels, copies.most_pixels(w)));
    SparseConvTile a = tile_arguments(job);
    a.x = copied.as<float>();
    a.x_stride = interleaved ? lanes : copies.channel_floats;
    a.v_stride = interleaved ? lanes * src_channels : lanes;
    a.tap_offset = tap_offset.data();
    a.tap_order = order.data();
    a.splits = splits.data();
    a.filter_blocks = filter_blocks;
    a.ahead = flat && s.N * dst_channels * job.dst_h * job.dst_w > kAheadFloats;
    for (; begin < end; ++begin) {
      const int64_t n = begin / strips, row = begin % strips * copies.strip, rows = std::min(copies.strip, w.rows - row);
      const SparseConvPlanes planes = job.planes(w, n, 0, src_channels, copies.first_pixel(w, row), copies.last_pixel(w, row), turned.as<float>());
      copies.fill(copy_kernels, w, planes, src_channels, row, copied.as<float>(), interleaved);
      const int64_t pixels = rows * w.cols;
      a.v_begin = 0;
      a.v_end = sparse_conv_ceil(pixels, lanes);
      set_blocks(a, a.v_end, interleaved);
      a.tail = int(pixels - (a.v_end - 1) * lanes);
      a.out_stride = flat ? job.dst_h * job.dst_w : sums_stride;
      a.out = flat ? job.dst + n * dst_channels * a.out_stride + row * w.cols : sums.as<float>();
      const bool more = a.ahead && n + 1 < s.N;
      a.next_x = more && strips == 1 ? job.src + (n + 1) * src_floats : nullptr;
      a.next_x_floats = src_floats;
      a.next_out = more && flat && strips == 1 ? a.out + dst_channels * a.out_stride : nullptr;
      if (s.channels_last && job.flat(w, w.cols)) {
        const int64_t next = row + rows < w.rows ? copies.last_pixel(w, row) : w.src_h * w.src_w;
        pixels_ahead(job, a, n * w.src_h * w.src_w + next, copies.strip * w.step_h * w.src_w, (n * job.dst_h + row) * job.dst_w);
      }
      (job.grad ? kernels.grad_x : kernels.forward)(a);
      if (!flat) job.scatter(w, a.out, sums_stride, w.cols, n, 0, dst_channels, row, rows);
    }
  });
}

}  // namespace

void sparse_conv_tile_run(const SparseConvJob& job, const SparseConvWalk& w) {
  const SparseConvTileKernels& kernels = SK_PICK_KERNELS(sparse_conv_tile_kernels);
  const bool in_place = kernels.masked && w.step_h == 1 && w.step_w == 1 && w.cols == w.src_w && job.flat(w, w.cols) && w.rows * w.cols < INT32_MAX;
  // Rows of whole vectors make channels lie a power of two apart, which the first-level cache cannot hold: copies are faster.
  const bool collide = !job.grad && w.cols % kernels.lanes == 0 && many_filters(job.shape);
  if (in_place && !collide)
    run_masked(job, w, kernels);
  else
    run_copied(job, w, kernels);
}

void sparse_conv_tile_grad_weight(const SparseConv2dShape& s, const SparseConvPlan& plan, const float* x, const float* grad_out, float* grad_weight,
                                  const Pool& pool) {
  const SparseConvTileKernels& kernels = SK_PICK_KERNELS(sparse_conv_tile_kernels);
  const SparseConvCopyKernels& copies = SK_PICK_KERNELS(sparse_conv_copy_kernels);
  const SparseConvWalk w = sparse_conv_forward_walk(s);
  const int64_t lanes = kernels.lanes, in_pixels = s.H * s.W, out_pixels = w.rows * w.cols;
  const int64_t block_vectors = sparse_conv_ceil(s.BI, lanes);
  const int64_t channel_tiles = sparse_conv_ceil(block_vectors, kernels.max_vectors);
  const int64_t tile_vectors = sparse_conv_ceil(block_vectors, channel_tiles);
  const int64_t block_floats = channel_tiles * tile_vectors * lanes * in_pixels, image_floats = s.IB() * block_floats;
  // channels_last pixels are read where they lie if no vector reaches over its block, maybe over the end of x
  const bool in_place = s.channels_last && s.BI % lanes == 0;
  const int64_t pixel_floats = in_place ? s.C : tile_vectors * lanes;

  struct FilterTile {
    int64_t tap, block, entry, o;  // first filter: channel o of the entry's output block
    int count;
  };
  std::vector<FilterTile> tiles;
  for (int64_t column = 0; column < s.IB() * s.taps(); ++column) {
    int64_t entry = plan.t_indptr[column], o = 0;
    int64_t filters = (plan.t_indptr[column + 1] - entry) * s.BO;
    while (filters > 0) {
      const int64_t pieces = sparse_conv_ceil(filters, kernels.max_filters);
      const int count = int(sparse_conv_ceil(filters, pieces));
      tiles.push_back({column % s.taps(), column / s.taps(), entry, o, count});
      entry += (o + count) / s.BO;
      o = (o + count) % s.BO;
      filters -= count;
    }
  }

  // A few images at a time, so that the transposed input is still in a cache when the tiles read it.
  const int64_t chunk = in_place ? s.N : std::max<int64_t>(1, (int64_t(1) << 20) / (4 * std::max<int64_t>(1, image_floats)));
  const Scratch transposed(in_place ? 0 : sizeof(float) * std::min(chunk, s.N) * image_floats);
  const auto make_tiles = [&](int64_t n, int64_t block, float* out) {
    if (!s.channels_last) return copies.channel_tiles(x + (n * s.C + block * s.BI) * in_pixels, s.BI, in_pixels, int(tile_vectors), out);
    for (int64_t c = 0; c < s.BI; c += pixel_floats) {
      const int64_t present = std::min(pixel_floats, s.BI - c);
      const float* from = x + n * s.C * in_pixels + block * s.BI + c;
      for (int64_t p = 0; p < in_pixels; ++p, from += s.C, out += pixel_floats) {
        std::memcpy(out, from, sizeof(float) * present);
        std::memset(out + present, 0, sizeof(float) * (pixel_floats - present));
      }
    }
  };
  for (int64_t n0 = 0; n0 < s.N; n0 += chunk) {
    const int64_t images = std::min(chunk, s.N - n0);
    parallel(pool, in_place ? 0 : images * s.IB(), 1, [&](int64_t begin, int64_t end) {
      for (; begin < end; ++begin) make_tiles(n0 + begin / s.IB(), begin % s.IB(), transposed.as<float>() + begin * block_floats);
    });
    parallel(pool, int64_t(tiles.size()) * channel_tiles, 4, [&](int64_t begin, int64_t end) {
      for (; begin < end; ++begin) {
        const FilterTile& tile = tiles[begin % tiles.size()];
        const int64_t channel_tile = begin / tiles.size(), channel = channel_tile * tile_vectors * lanes;
        const int64_t dy = w.dy[tile.tap], dx = w.dx[tile.tap];
        // output pixels whose input pixel exists
        const auto first = [](int64_t d, int64_t step) { return d >= 0 ? 0 : (-d + step - 1) / step; };
        const auto last = [](int64_t d, int64_t step, int64_t size, int64_t most) {
          return d >= size ? int64_t(0) : std::min(most, (size - 1 - d) / step + 1);
        };
        const int64_t y0 = first(dy, s.stride_h), y1 = last(dy, s.stride_h, s.H, w.rows);
        const int64_t x0 = first(dx, s.stride_w), x1 = last(dx, s.stride_w, s.W, w.cols);
        if (y0 >= y1 || x0 >= x1) continue;

        SparseConvOuter a{};
        const float* grads[8];
        float* targets[8];
        a.x_col = pixel_floats * s.stride_w;
        a.x_row = pixel_floats * s.stride_h * s.W;
        a.grad_row = w.cols, a.rows = y1 - y0, a.cols = x1 - x0;
        a.grad_out = grads, a.grad_weight = targets;
        a.count = tile.count;
        a.vectors = int(std::min(tile_vectors, block_vectors - channel_tile * tile_vectors));
        a.tail = int(std::min(lanes, s.BI - channel - (a.vectors - 1) * lanes));
        for (int64_t n = 0; n < images; ++n) {
          int64_t entry = tile.entry, o = tile.o;
          for (int j = 0; j < tile.count; ++j) {
            const int64_t filter = plan.t_code[entry] * s.BO + o;
            grads[j] = grad_out + ((n0 + n) * s.K + filter) * out_pixels + y0 * w.cols + x0;
            targets[j] = grad_weight + (int64_t(plan.t_entry[entry]) * s.BO + o) * s.BI + channel;
            if (++o == s.BO) o = 0, ++entry;
          }
          const float* image = in_place ? x + (n0 + n) * s.C * in_pixels + tile.block * s.BI + channel
                                        : transposed.as<float>() + n * image_floats + tile.block * block_floats + channel * in_pixels;
          a.x = image + ((y0 * s.stride_h + dy) * s.W + x0 * s.stride_w + dx) * pixel_floats;
          kernels.outer(a);
        }
      }
    });
  }
}

}  // namespace sk
