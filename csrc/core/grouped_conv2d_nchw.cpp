// Driver of the NCHW kernels: copy a group's planes with their padding, then tile (output channels) x (flat pixels).
// Work is cut by (image, group, part of the group's output channels); pixel tiles run innermost in blocks that keep
// the input in L2.
#include "core/grouped_conv2d_planes.h"

namespace sk {
namespace {

constexpr int64_t kBlockBytes = 384 << 10;  // input of one pixel block, to stay in L2
constexpr int64_t kUnitsWanted = 16;        // fewer (image, group) pairs are cut into parts, for the threads

struct Piece {
  int64_t first, count;
};

// `total` in pieces of at most `most`, as equal as possible
std::vector<Piece> even_pieces(int64_t total, int64_t most) {
  std::vector<Piece> pieces;
  const int64_t count = (total + most - 1) / most;
  for (int64_t i = 0, first = 0; i < count; ++i) {
    const int64_t size = (total - first + (count - i) - 1) / (count - i);
    pieces.push_back({first, size});
    first += size;
  }
  return pieces;
}

std::vector<PlaneVector> plane_vectors(const ConvJob& job, const Planes& planes) {
  std::vector<PlaneVector> vectors(planes.vectors);
  for (int64_t v = 0, pixel = 0; v < planes.vectors; ++v) {
    PlaneVector& out = vectors[v];
    out = {pixel, 0, 0};
    for (int lane = 0; lane < planes.kernels.lanes; ++lane) {
      const int64_t position = v * planes.kernels.lanes + lane;
      if (position < planes.positions && position % planes.row < job.OW) out.mask |= 1u << lane, ++out.count;
    }
    pixel += out.count;
  }
  return vectors;
}

}  // namespace

void conv_nchw(const ConvJob& job, const float* x, const float* weight, const float* bias, const float* shortcut, bool relu, float* out,
               const Pool& pool) {
  if (job.N * job.K * job.OH * job.OW == 0) return;
  const ConvPlaneKernels& kernels = SK_PICK_KERNELS(conv_plane_kernels);
  const Planes planes(job, kernels, /*may_be_direct=*/true);
  const std::vector<PlaneVector> vectors = plane_vectors(job, planes);
  const int64_t in_group = job.C / job.groups, out_group = job.K / job.groups, taps = job.KH * job.KW;
  const std::vector<Piece> row_tiles = even_pieces(out_group, kPlaneRows);
  int most = 1;  // vectors per tile
  while (most < kPlaneVectors && kernels.tile[row_tiles[0].count][most + 1]) ++most;
  const std::vector<Piece> pixel_tiles = even_pieces(planes.vectors, most);
  const int64_t block = std::max<int64_t>(1, kBlockBytes / (4 * in_group * most * kernels.lanes));  // pixel tiles
  std::vector<int64_t> offsets;                                                                     // of each (channel, tap)
  for_each_weight(job, [&](int64_t j, int64_t ky, int64_t kx) { offsets.push_back(j * planes.plane + planes.tap_offset[ky * job.KW + kx]); });

  const int64_t parts = std::min<int64_t>(row_tiles.size(), (kUnitsWanted - 1) / (job.N * job.groups) + 1);
  const double macs = double(out_group) * in_group * taps * planes.positions / parts;
  parallel(pool, job.N * job.groups * parts, conv_grain(macs), [&](int64_t begin, int64_t end) {
    Scratch scratch(planes.direct ? 64 : size_t(in_group * planes.plane) * sizeof(float));
    float* padded = scratch.as<float>();
    if (!planes.direct) planes.clear(padded, in_group);
    int64_t copied = -1;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t image_group = unit / parts, part = unit % parts, n = image_group / job.groups, g = image_group % job.groups;
      if (!planes.direct && copied != image_group) planes.copy(x, n, g * in_group, in_group, padded);
      copied = image_group;
      PlaneTile tile{};
      tile.offset = offsets.data();
      tile.terms = in_group * taps;
      tile.relu = relu;
      tile.out_plane = job.OH * job.OW;
      const float* source = planes.direct ? x + (n * job.C + g * in_group) * planes.plane : padded;
      const size_t row_begin = row_tiles.size() * part / parts, row_end = row_tiles.size() * (part + 1) / parts;
      for (size_t p0 = 0; p0 < pixel_tiles.size(); p0 += block)
        for (size_t r = row_begin; r < row_end; ++r) {
          const int64_t k = g * out_group + row_tiles[r].first;
          tile.weight = weight + k * tile.terms;
          tile.bias = bias ? bias + k : nullptr;
          tile.out = out + (n * job.K + k) * tile.out_plane;
          tile.shortcut = shortcut ? shortcut + (n * job.K + k) * tile.out_plane : nullptr;
          for (size_t p = p0; p < std::min(pixel_tiles.size(), p0 + block); ++p) {
            tile.x = source + pixel_tiles[p].first * kernels.lanes;
            tile.vectors = vectors.data() + pixel_tiles[p].first;
            kernels.tile[row_tiles[r].count][pixel_tiles[p].count](tile);
          }
        }
    }
  });
}

}  // namespace sk
