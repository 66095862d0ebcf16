// Launchers of the sparse convolution on the plain cores.
#include "cuda/grouped_conv2d_weight.cuh"
#include "cuda/sparse_conv2d_list.cuh"
#include "cuda/sparse_conv2d_plan.h"

namespace sk {
namespace {

constexpr int kListChunk = 32;  // target channels of a block, about

const char* const kNoTile = "sparse_conv2d: no tile of this shape fits into shared memory";

template <class T, int V>
const char* launch_lists(KeptJob job, const T* source, const T* weight, const T* bias, T* target, Stream stream) {
  const int targets = job.conv.groups * job.conv.target_group;
  job.chunk = std::max(1, kListChunk / job.target_block) * job.target_block;
  const uint32_t sums = up_to_16(int64_t(job.chunk) * kSumPitch * 4), tables = kListWarps * kListTable<V>;
  if (!choose_lists(job, sums + tables)) return kNoTile;
  job.tables_at = job.sums_at + sums, job.shared_bytes = job.tables_at + tables;
  const int64_t chunks = pieces_up(targets, job.chunk), phases = int64_t(job.conv.y.target_step()) * job.conv.x.target_step();
  if (chunks > 65535 || phases > 65535) return kNoTile;
  return launch(sparse_conv2d_list_kernel<T, V>, dim3(unsigned(job.conv.tiles), unsigned(chunks), unsigned(phases)), dim3(kListThreads),
                job.shared_bytes, stream, source, weight, bias, target, job);
}

struct KeptWeightPlan {
  KeptWeightJob job;
  int64_t blocks;
  int parts;
  const char* error;
};
// Depends on sizes only: scratch memory is asked for and used with the same plan.
template <class T>
KeptWeightPlan kept_weight_plan(const SparseConv2dShape& s, const KeptTables& tables, const T* x, const T* grad_out) {
  KeptWeightPlan plan{};
  plan.job.kept = kept_job<T>(s, Direction::forward, tables, x, grad_out);
  plan.job.row = tables.row, plan.job.per_output = s.nnz * s.BI * s.BT, plan.job.weights = plan.job.per_output * s.BO;
  plan.blocks = pieces_up(plan.job.weights, 32 * kListWarps);
  const uint32_t table = kListWarps * 32 * 16;
  KeptJob& kept = plan.job.kept;
  if (!choose_lists(kept, table) || plan.blocks > INT32_MAX) {
    plan.error = kNoTile;
    return plan;
  }
  kept.tables_at = kept.sums_at, kept.shared_bytes = kept.tables_at + table;
  const int residents = std::clamp(int(shared_bytes_per_block() / (kept.shared_bytes + 1024)), 1, 8);
  plan.parts =
      int(std::clamp<int64_t>(int64_t(multiprocessors()) * residents / std::max<int64_t>(1, plan.blocks), 1, std::clamp(kept.conv.tiles, 1, 128)));
  return plan;
}

}  // namespace

template <class T>
const char* launch_sparse_conv2d_list(const KeptJob& job, const T* source, const T* weight, const T* bias, T* target, Stream stream) {
  if (job.target_block == 1) return launch_lists<T, 1>(job, source, weight, bias, target, stream);
  return launch_lists<T, 4>(job, source, weight, bias, target, stream);
}

template <class T>
int64_t sparse_conv2d_list_weight_scratch(const SparseConv2dShape& s) {
  const KeptWeightPlan plan = kept_weight_plan<T>(s, {}, nullptr, nullptr);
  return plan.parts * plan.job.weights;
}

template <class T>
const char* launch_sparse_conv2d_list_weight(const SparseConv2dShape& s, const T* grad_out, const T* x, const KeptTables& tables, T* grad_weight,
                                             float* scratch, Stream stream) {
  const KeptWeightPlan plan = kept_weight_plan<T>(s, tables, x, grad_out);
  if (!plan.job.weights) return nullptr;
  if (plan.error) return plan.error;
  const char* error = launch(sparse_conv2d_list_weight_kernel<T>, dim3(unsigned(plan.blocks), unsigned(plan.parts)), dim3(kListThreads),
                             plan.job.kept.shared_bytes, stream, x, grad_out, scratch, plan.job);
  if (error) return error;
  const dim3 grid(unsigned(std::min<int64_t>(pieces_up(plan.job.weights, 256), 4 * multiprocessors())));
  return launch(add_parts_kernel<T>, grid, dim3(256), 0, stream, scratch, grad_weight, plan.job.weights, plan.parts);
}

#define SK_INSTANTIATE(T)                                                                                      \
  template const char* launch_sparse_conv2d_list<T>(const KeptJob&, const T*, const T*, const T*, T*, Stream); \
  template int64_t sparse_conv2d_list_weight_scratch<T>(const SparseConv2dShape&);                             \
  template const char* launch_sparse_conv2d_list_weight<T>(const SparseConv2dShape&, const T*, const T*, const KeptTables&, T*, float*, Stream);
SK_INSTANTIATE(float)
SK_INSTANTIATE(bf16)
SK_INSTANTIATE(fp16)
#undef SK_INSTANTIATE

}  // namespace sk
