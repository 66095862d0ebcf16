// Launchers of the sparse convolution's weight gradient: which way, what fits into shared memory.
#include "cuda/sparse_conv2d_plan.h"
#include "cuda/sparse_conv2d_weight.cuh"

namespace sk {

template <class T>
int64_t sparse_conv2d_list_weight_scratch(const SparseConv2dShape& shape);

template <class T>
const char* launch_sparse_conv2d_list_weight(const SparseConv2dShape& shape, const T* grad_out, const T* x, const KeptTables& tables, T* grad_weight,
                                             float* scratch, Stream stream);

namespace {

struct PatchPlan {
  PatchJob job;
  unsigned blocks = 0;  // of slots; 0: nothing fits
  int parts = 0;
};

// Depends on sizes and alignment only, never on the lists: scratch memory is asked for and used with the same plan.
template <class T>
PatchPlan patch_plan(const SparseConv2dShape& s, SparseConv2dWay way, const KeptTables& tables, const T* x, const T* grad_out) {
  constexpr int E = kPerPiece<T>;
  const bool by_items = way == SparseConv2dWay::matrix;
  PatchPlan plan;
  PatchJob& job = plan.job = {};
  job.kept = kept_job<T>(s, Direction::forward, tables, x, grad_out);
  job.row = tables.row, job.cells = tables.cells, job.cell_place = tables.cell_place;
  job.weights = s.nnz * s.BO * s.BI * s.BT;
  const int64_t pieces = pieces_up(s.BI, 8) + (s.BI % 8 && s.IB() > 1);  // of 8 channels, of a source block at the most
  const int64_t groups = by_items ? s.OB() : s.IB(), lists = groups * (by_items ? 1 : s.taps());
  job.units = by_items ? kPatchSteps<T> * 16 : kPatchColumns;
  job.chunks = int(by_items ? pieces_up(s.BO, kPatchColumns) : pieces_up(pieces, 2 * kPatchSteps<T>));
  job.steps = by_items ? kPatchSteps<T> : int(pieces_up(pieces_up(pieces, job.chunks), 2));
  const int64_t slots = s.nnz * s.BT * (by_items ? s.BI : s.BO) / job.units + lists, blocks = (slots / kPatchWarps + groups) * job.chunks;
  if (lists > INT32_MAX || blocks > INT32_MAX) return plan;
  job.groups = int(groups), job.of_group = int(lists / groups);

  ConvJob& c = job.kept.conv;
  const int64_t most = int64_t(shared_bytes_per_block()), all = pieces_up(s.C, E);
  const int64_t other = kPatchWarps * (kPatchColumns * kColumnPitch<T> + kPatchTable<T>)+kPatchPixelTable;
  const struct {
    int64_t limit, least;
  } tries[] = {{most / 2 - 1024, std::min<int64_t>(all, 4)}, {most, 1}};
  for (const auto& t : tries)
    for (int pixels = 65535; pixels >= 128; pixels /= 4) {
      if (!choose_tile(c, 7, pixels)) continue;
      const int64_t fit = (t.limit - other) / c.pixels / 16;  // pieces of a pixel
      int64_t staged = job.steps * 16 / E, pixel = staged | 1;
      if (by_items) {
        staged = std::min(all, (fit - 1) | 1);
        if (staged < t.least) continue;
        staged = pieces_up(all, pieces_up(all, staged)), pixel = staged | 1;
      } else if (sizeof(T) == 4) {
        pixel = staged / 2 % 2 ? staged : staged + 2;  // numbers are picked: an odd number of pairs
      }
      if (pixel > fit) continue;
      c.round_pieces = int(staged), c.by_round = Divider::by(int(staged)), c.pixel_bytes = uint32_t(pixel * 16);
      job.columns_at = uint32_t(c.pixels * pixel * 16), job.tables_at = job.columns_at + kPatchWarps * kPatchColumns * kColumnPitch<T>;
      job.pixels_at = job.tables_at + kPatchWarps * kPatchTable<T>, job.kept.shared_bytes = job.pixels_at + kPatchPixelTable;
      const int residents = std::clamp(int(most / (job.kept.shared_bytes + 1024)), 1, 4);
      plan.blocks = unsigned(blocks);
      plan.parts = int(std::clamp<int64_t>(int64_t(multiprocessors()) * residents / blocks, 1, std::clamp(c.tiles, 1, 128)));
      return plan;
    }
  return plan;
}

template <class T>
PatchPlan plan_of(const SparseConv2dShape& s, const KeptTables& tables, const T* x, const T* grad_out) {
  const SparseConv2dWay way = sparse_conv2d_way(s, SparseConv2dProduct::grad_weight);
  return way == SparseConv2dWay::list ? PatchPlan{} : patch_plan<T>(s, way, tables, x, grad_out);
}

}  // namespace

template <class T>
int64_t sparse_conv2d_grad_weight_scratch(const SparseConv2dShape& s) {
  const PatchPlan plan = plan_of<T>(s, {}, nullptr, nullptr);
  return plan.blocks ? plan.parts * plan.job.weights : sparse_conv2d_list_weight_scratch<T>(s);
}

template <class T>
const char* launch_sparse_conv2d_grad_weight(const SparseConv2dShape& s, const T* grad_out, const T* x, const KeptTables& tables, T* grad_weight,
                                             float* scratch, Fp32 mode, Stream stream) {
  const PatchPlan plan = plan_of<T>(s, tables, x, grad_out);
  if (!plan.blocks) return launch_sparse_conv2d_list_weight(s, grad_out, x, tables, grad_weight, scratch, stream);
  if (!plan.job.weights) return nullptr;
  const bool by_items = sparse_conv2d_way(s, SparseConv2dProduct::grad_weight) == SparseConv2dWay::matrix;
  auto* kernel = by_items ? sparse_conv2d_weight_kernel<T, Fp32::strict, true> : sparse_conv2d_weight_kernel<T, Fp32::strict, false>;
  if constexpr (sizeof(T) == 4)
    if (mode == Fp32::tf32) kernel = by_items ? sparse_conv2d_weight_kernel<T, Fp32::tf32, true> : sparse_conv2d_weight_kernel<T, Fp32::tf32, false>;
  const char* error =
      launch(kernel, dim3(plan.blocks, unsigned(plan.parts)), dim3(kConvThreads), plan.job.kept.shared_bytes, stream, x, grad_out, scratch, plan.job);
  if (error) return error;
  const dim3 grid(unsigned(std::min<int64_t>(pieces_up(plan.job.weights, 256), 4 * multiprocessors())));
  return launch(add_parts_kernel<T>, grid, dim3(256), 0, stream, scratch, grad_weight, plan.job.weights, plan.parts);
}

#define SK_INSTANTIATE(T)                                                          \
  template int64_t sparse_conv2d_grad_weight_scratch<T>(const SparseConv2dShape&); \
  template const char* launch_sparse_conv2d_grad_weight<T>(const SparseConv2dShape&, const T*, const T*, const KeptTables&, T*, float*, Fp32, Stream);
SK_INSTANTIATE(float)
SK_INSTANTIATE(bf16)
SK_INSTANTIATE(fp16)
#undef SK_INSTANTIATE

}  // namespace sk
