// Launchers of the grouped convolution: which tile, which variant, how many blocks.
#include "cuda/conv_plan.h"
#include "cuda/grouped_conv2d.cuh"

namespace sk {
namespace {

constexpr int kLog2Pixels = 7;  // a block's tile: 4 warps of 32 target pixels

struct Plan {
  ConvJob job;
  dim3 grid;
  double cost = -1;
};

// Fills the job's tile for `tiles` matrix tiles per block in sets of `shared`, if that is cheaper than the plan so far.
template <class T>
bool consider(Plan& best, ConvJob job, int tiles, int shared) {
  const Widths width = widths(job, tiles, shared, kPerPiece<T>);
  const size_t most = shared_bytes_per_block();
  // two blocks per multiprocessor where that can be, else whatever fits; fewer halo pixels where a stage is too large
  bool fits = false;
  for (size_t limit : {most / 2 - 1024, most})
    for (int pixels = 65535; !fits && pixels >= 128; pixels /= 4)
      fits = choose_tile(job, kLog2Pixels, pixels) && choose_stages(job, width, tiles / shared, 8 + 256 * shared, limit);
  if (!fits) return false;
  const int channels = job.groups * job.target_group, blocks_y = int(pieces_up(channels, 8 * tiles));
  const int phases = job.y.target_step() * job.x.target_step(), taps = most_taps(job.y) * most_taps(job.x);
  const int residents = std::clamp(int(most / (job.shared_bytes + 1024)), 1, 8);
  const int64_t places = int64_t(multiprocessors()) * residents;
  const double steps = double(tiles) / shared * ((taps * width.set + 1) / 2);
  const double per_tile = steps * (shared + 1) * (job.keeps_weights ? 1 : 20) + job.pixels * width.block / 32.0 * (job.stages == 2 ? 1 : 1.5);
  const double cost = double(pieces_up(int64_t(job.tiles) * blocks_y * phases, places)) * residents * per_tile;
  if (best.cost >= 0 && cost >= best.cost) return false;
  const int64_t walkers = std::clamp<int64_t>(pieces_up(places, int64_t(blocks_y) * phases), 1, job.tiles);
  best = {job, dim3(unsigned(walkers), unsigned(blocks_y), unsigned(phases)), cost};
  return true;
}

template <class T, Fp32 mode>
const char* launch_conv(const ConvJob& job, const T* source, const T* weight, const T* bias, T* target, Stream stream) {
  using Kernel = decltype(&grouped_conv2d_kernel<T, mode, 8, 1>);
  struct Variant {
    int tiles, shared;
    Kernel kernel;
  };
  const Variant variants[] = {{8, 1, grouped_conv2d_kernel<T, mode, 8, 1>},
                              {8, 2, grouped_conv2d_kernel<T, mode, 8, 2>},
                              {8, 4, grouped_conv2d_kernel<T, mode, 8, 4>},
                              {2, 1, grouped_conv2d_kernel<T, mode, 2, 1>}};
  Plan plan;
  Kernel kernel = nullptr;
  for (const Variant& v : variants)
    if (consider<T>(plan, job, v.tiles, v.shared)) kernel = v.kernel;
  if (!kernel || plan.grid.y > 65535 || plan.grid.z > 65535) return "grouped_conv2d: no tile of this shape fits into shared memory";
  return launch(kernel, plan.grid, dim3(kConvThreads), plan.job.shared_bytes, stream, source, weight, bias, target, plan.job);
}

template <class T>
const char* launch_conv(const Conv2dShape& s, Direction direction, const T* source, const T* weight, const T* bias, bool relu, T* target, Fp32 mode,
                        Stream stream) {
  if (s.N * s.C * s.H * s.W == 0 && direction == Direction::grad_x) return nullptr;
  if (s.N * s.K * s.OH * s.OW == 0 && direction == Direction::forward) return nullptr;
  const ConvJob job = conv_job<T>(s, direction, source, target, relu);
  if constexpr (sizeof(T) == 4)
    if (mode == Fp32::tf32) return launch_conv<T, Fp32::tf32>(job, source, weight, bias, target, stream);
  return launch_conv<T, Fp32::strict>(job, source, weight, bias, target, stream);
}

}  // namespace

template <class T>
const char* launch_grouped_conv2d_fwd(const Conv2dShape& shape, const T* x, const T* weight, const T* bias, bool relu, T* out, Fp32 mode,
                                      Stream stream) {
  return launch_conv(shape, Direction::forward, x, weight, bias, relu, out, mode, stream);
}

template <class T>
const char* launch_grouped_conv2d_grad_x(const Conv2dShape& shape, const T* grad_out, const T* weight, T* grad_x, Fp32 mode, Stream stream) {
  return launch_conv(shape, Direction::grad_x, grad_out, weight, static_cast<const T*>(nullptr), false, grad_x, mode, stream);
}

#define SK_INSTANTIATE(T)                                                                                                      \
  template const char* launch_grouped_conv2d_fwd<T>(const Conv2dShape&, const T*, const T*, const T*, bool, T*, Fp32, Stream); \
  template const char* launch_grouped_conv2d_grad_x<T>(const Conv2dShape&, const T*, const T*, T*, Fp32, Stream);
SK_INSTANTIATE(float)
SK_INSTANTIATE(bf16)
SK_INSTANTIATE(fp16)
#undef SK_INSTANTIATE

}  // namespace sk
