// Launchers of the grouped convolution's weight gradient.
#include "cuda/conv_plan.h"
#include "cuda/grouped_conv2d_weight.cuh"

namespace sk {
namespace {

struct WeightPlan {
  WeightJob job;
  unsigned blocks;  // of output channels and portions
  int parts;
  const char* error;
};

// Depends on sizes and alignment only, never on values: scratch memory is asked for and used with the same plan.
template <class T>
WeightPlan weight_plan(const Conv2dShape& shape, const T* x, const T* grad_out) {
  constexpr int kPieceBytes = kWeightPiece * int(sizeof(T));
  Conv2dShape s = shape;
  s.weight_channels_last = false;
  WeightJob job{};
  job.conv = conv_job<T>(s, Direction::forward, x, grad_out, false);
  job.grad_vectors = s.channels_last && s.K * sizeof(T) % 16 == 0 && reinterpret_cast<uintptr_t>(grad_out) % 16 == 0;
  job.weights = s.K * (s.C / s.groups) * s.KH * s.KW;
  const size_t most = shared_bytes_per_block();
  const int taps = int(s.KH * s.KW);
  for (size_t limit : {most / 2 - 1024, most})
    for (int sets : {kWeightSets, 1})
      for (int sums = kWeightSums; sums; sums /= 2)
        for (int pixels = 65535; pixels >= 128; pixels /= 4) {
          job.sets = sets, job.sums = sums;
          int steps = 0, staged = 0;
          const int64_t blocks = pieces_up(s.K, 8 * sets);
          for (int64_t block = 0; block < blocks; ++block) {
            const WeightSteps list{job, taps, int(block) * 8 * sets};
            const int count = list.all_steps();
            steps = std::max(steps, count);
            for (int begin = 0; begin < count; begin += 4 * sums) staged = std::max(staged, list.pieces(begin, begin + 4 * sums).size());
          }
          job.portions = int(pieces_up(steps, 4 * sums));
          if (!choose_tile(job.conv, 7, pixels)) continue;
          // by ldmatrix an odd number of 16-byte pieces per pixel has no bank conflicts, by words an odd number of pairs
          const auto spread = [](int pieces) {
            return uint32_t(sizeof(T) == 2 ? pieces | 1 : (pieces + 1) / 2 % 2 ? (pieces + 1) / 2 * 2 : (pieces + 1) / 2 * 2 + 2) * 16;
          };
          ConvJob& c = job.conv;
          c.round_pieces = staged * kPieceBytes / 16, c.by_round = Divider::by(c.round_pieces);
          c.pixel_bytes = spread(c.round_pieces), job.grad_pixel_bytes = spread(sets * kPieceBytes / 16);
          const int64_t grad_at = int64_t(c.pixels) * c.pixel_bytes, bytes = grad_at + kWeightPixels * job.grad_pixel_bytes;
          if (bytes > int64_t(limit) || blocks * job.portions > 65535) continue;
          job.grad_at = uint32_t(grad_at), job.shared_bytes = uint32_t(bytes);
          const int residents = std::clamp(int(most / (bytes + 1024)), 1, 8);
          const int parts = int(std::clamp<int64_t>(multiprocessors() * residents / (blocks * job.portions), 1, std::min(c.tiles, 128)));
          return {job, unsigned(blocks * job.portions), parts, nullptr};
        }
  return {job, 0, 0, "grouped_conv2d: no tile of this shape fits into shared memory"};
}

template <class T>
const char* add_parts(const float* parts, T* out, int64_t size, int count, Stream stream) {
  return launch(add_parts_kernel<T>, dim3(unsigned(std::min<int64_t>(pieces_up(size, 256), 4 * multiprocessors()))), dim3(256), 0, stream, parts, out,
                size, count);
}

}  // namespace

template <class T>
int64_t grouped_conv2d_grad_weight_scratch(const Conv2dShape& shape, const T* grad_out, const T* x) {
  return weight_plan<T>(shape, x, grad_out).parts * shape.K * (shape.C / shape.groups) * shape.KH * shape.KW;
}

template <class T>
const char* launch_grouped_conv2d_grad_weight(const Conv2dShape& shape, const T* grad_out, const T* x, T* grad_weight, float* scratch, Fp32 mode,
                                              Stream stream) {
  if (shape.K * shape.C == 0) return nullptr;
  WeightPlan plan = weight_plan<T>(shape, x, grad_out);
  if (plan.error) return plan.error;
  auto* kernel = grouped_conv2d_weight_kernel<T, Fp32::strict>;
  if constexpr (sizeof(T) == 4)
    if (mode == Fp32::tf32) kernel = grouped_conv2d_weight_kernel<T, Fp32::tf32>;
  const dim3 grid(unsigned(plan.parts), plan.blocks);
  const char* error = launch(kernel, grid, dim3(kConvThreads), plan.job.shared_bytes, stream, x, grad_out, scratch, plan.job);
  return error ? error : add_parts(scratch, grad_weight, plan.job.weights, plan.parts, stream);
}

#define SK_INSTANTIATE(T)                                                                         \
  template int64_t grouped_conv2d_grad_weight_scratch<T>(const Conv2dShape&, const T*, const T*); \
  template const char* launch_grouped_conv2d_grad_weight<T>(const Conv2dShape&, const T*, const T*, T*, float*, Fp32, Stream);
SK_INSTANTIATE(float)
SK_INSTANTIATE(bf16)
SK_INSTANTIATE(fp16)
#undef SK_INSTANTIATE

}  // namespace sk
