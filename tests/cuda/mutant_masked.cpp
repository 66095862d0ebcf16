// A small run of the sparse convolution's kernels, quick to compile: tests/cuda/test_mutants.py builds it from altered sources.
#include <vector>

#include "check.h"
#include "cuda/sparse_conv2d_list.cuh"
#include "cuda/sparse_conv2d_matrix.cuh"
#include "cuda/sparse_conv2d_plan.h"
#include "cuda/sparse_conv2d_scatter.cuh"
#include "kept.h"

namespace {

template <class T>
void compare(const char* what, const std::vector<check::Sum>& wanted, const emu::Buffer<T>& got, const char* way) {
  for (size_t i = 0; i < got.size(); ++i)
    if (!(std::fabs(sk::to_float(got[i]) - wanted[i].value) <= wanted[i].magnitude / 256 + 1e-6))
      return check::fail("wrong value of %s at %zu of %zu, %s", what, i, got.size(), way);
}

// Forward and the weight's gradient by lists (in rounds of three channels), grad_x by the kernel that its width asks for.
template <class T>
void run(sk::SparseConv2dShape s, double density, const char* way) {
  const check::Mask mask(s, density);
  emu::Buffer<T> x("x", s.N * s.C * s.H * s.W, emu::Role::input), grad_out("grad_out", s.N * s.K * s.OH() * s.OW(), emu::Role::input);
  emu::Buffer<T> weight("weight", s.nnz * s.BO * s.BI * s.BT, emu::Role::input), out("out", grad_out.size(), emu::Role::output);
  emu::Buffer<T> grad_x("grad_x", x.size(), emu::Role::output);
  emu::Buffer<float> parts("parts", weight.size(), emu::Role::output);
  check::fill(x, 1), check::fill(weight, 2), check::fill(grad_out, 3);
  std::vector<check::Sum> wanted_out(out.size()), wanted_grad_x(x.size()), wanted_grad_weight(weight.size());
  mask.each_product(s, [&](size_t ix, size_t iw, size_t io) {
    const double w = sk::to_float(weight[iw]), v = sk::to_float(x[ix]), g = sk::to_float(grad_out[io]);
    wanted_out[io].add(v, w), wanted_grad_x[ix].add(g, w), wanted_grad_weight[iw].add(g, v);
  });
  const T* none = nullptr;
  const auto lists = [&](sk::KeptJob& job, int rounds_of, uint32_t after) {
    if (!sk::choose_tile(job.conv, 7, 1023)) check::fail("no plan");
    job.pitch = uint32_t(job.conv.pixels) | 1;
    sk::choose_rounds(job, rounds_of);
    job.sums_at = sk::up_to_16(int64_t(job.round_blocks ? job.round_blocks * job.source_block : job.round_channels) * job.pitch * 4);
    job.tables_at = job.sums_at + after, job.shared_bytes = job.tables_at + sk::kListWarps * 640;
  };
  sk::KeptJob forward = sk::kept_job<T>(s, sk::Direction::forward, mask.tables(), x.data(), out.data());
  forward.chunk = 12 * forward.target_block;  // more runs than warps
  lists(forward, 3, sk::up_to_16(forward.chunk * sk::kSumPitch * 4));
  auto* kernel = s.BO == 1 ? sk::sparse_conv2d_list_kernel<T, 1> : sk::sparse_conv2d_list_kernel<T, 4>;
  emu::launch(dim3(forward.conv.tiles, unsigned(sk::pieces_up(s.K, forward.chunk))), dim3(sk::kListThreads), forward.shared_bytes, kernel, x.data(),
              weight.data(), none, out.data(), forward);
  compare("out", wanted_out, out, way);

  sk::KeptWeightJob by_weight{sk::kept_job<T>(s, sk::Direction::forward, mask.tables(), x.data(), out.data()), mask.tables().row, s.nnz * s.BI * s.BT,
                              int64_t(weight.size())};
  lists(by_weight.kept, 3, 0);
  emu::launch(dim3(unsigned(sk::pieces_up(by_weight.weights, 256))), dim3(sk::kListThreads), by_weight.kept.shared_bytes,
              sk::sparse_conv2d_list_weight_kernel<T>, x.data(), grad_out.data(), parts.data(), by_weight);
  compare("grad_weight", wanted_grad_weight, parts, way);

  sk::KeptMatrixJob backward{};
  backward.kept = sk::kept_job<T>(s, sk::Direction::grad_x, mask.tables(), grad_out.data(), grad_x.data());
  sk::ConvJob& c = backward.kept.conv;
  if (!sk::choose_tile(c, 7, 1023)) check::fail("no plan");
  sk::choose_rounds(backward.kept, 4);
  constexpr int kSteps = 2, kItems = sk::kStepItems<T>;
  c.round_pieces = 3, c.by_round = sk::Divider::by(3), c.pixel_bytes = 48, c.stage_bytes = c.pixels * 48;
  backward.chunks = int(sk::pieces_up(s.BI, 16)), backward.capacity = kSteps;
  backward.kept.tables_at = c.stage_bytes, backward.places_at = backward.kept.tables_at + kSteps * kItems * 4;
  backward.fragments_at = backward.places_at + kSteps * kItems * 8;
  if (s.BO == 1) {  // and forward, tap by tap, in batches of some cells
    emu::Buffer<T> scattered("scattered", out.size(), emu::Role::output);
    sk::KeptScatterJob picked{};
    picked.kept = sk::kept_job<T>(s, sk::Direction::forward, mask.tables(), x.data(), scattered.data());
    sk::ConvJob& p = picked.kept.conv;
    if (!sk::choose_tile(p, 7, 1023)) check::fail("no plan");
    sk::choose_rounds(picked.kept, s.C / 2);
    p.round_pieces = 5, p.by_round = sk::Divider::by(5), p.pixel_bytes = 80, p.stage_bytes = p.pixels * 80;
    picked.capacity = 8, picked.kept.sums_at = p.stage_bytes, picked.counts_at = sk::up_to_16(p.stage_bytes + sk::kScatterSums);
    picked.ids_at = picked.counts_at + sk::kScatterCells * 4, picked.places_at = picked.ids_at + sk::kScatterCells * sk::kScatterTargets * 4;
    picked.fragments_at = picked.places_at + sk::kScatterCells * sk::kScatterTargets * 8;
    emu::launch(dim3(2), dim3(sk::kConvThreads), picked.fragments_at + 8 * 256, sk::sparse_conv2d_scatter_kernel<T, sk::Fp32::strict>, x.data(),
                weight.data(), none, scattered.data(), picked);
    compare("out, tap by tap", wanted_out, scattered, way);
  }
  const unsigned phases = unsigned(c.y.target_step() * c.x.target_step());
  emu::launch(dim3(2, unsigned(s.IB() * backward.chunks), phases), dim3(sk::kConvThreads), backward.fragments_at + kSteps * 512,
              sk::sparse_conv2d_matrix_kernel<T, sk::Fp32::strict, 2>, grad_out.data(), weight.data(), none, grad_x.data(), backward);
  compare("grad_x", wanted_grad_x, grad_x, way);
}

}  // namespace

int main() {
  // N C H W K KH KW stride pad dilation BO BI BT
  const sk::SparseConv2dShape spatial{3, 10, 9, 7, 9, 3, 3, 1, 1, 1, 1, 1, 1, 1, 10, 1, 0, true},
      pieces{2, 16, 6, 7, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 16, 1, 0, true}, strided{1, 18, 9, 10, 6, 3, 3, 2, 2, 1, 1, 1, 1, 3, 9, 1, 0, false};
  check::in_every_way([&](const char* way) {
    try {
      run<sk::bf16>(spatial, 0.4, way), run<float>(strided, 0.4, way), run<sk::bf16>(pieces, 0.4, way);
    } catch (const emu::Fault& fault) {
      check::fail("fault: %s, %s", fault.what(), way);
    }
  });
  return check::result("mutant", 18);
}
