// Launchers of the condensed fixed fan-in products: how many rows are staged, how many blocks.
#include <algorithm>

#include "cuda/sparse_linear.cuh"

namespace sk {
namespace {

constexpr int64_t kFewRows = 8;  // up to here the weights are the traffic

int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of `sources` floats that fit beside `other` bytes, at most 32 and no more than there are; 0: not even four.
int rows_that_fit(int sources, int64_t N, int64_t other_per_row, int64_t other) {
  for (int rows = 32; rows >= 4; rows /= 2)
    if ((rows == 4 || rows / 2 < N) && int64_t(sources) * rows * 4 + other_per_row * rows + other <= int64_t(shared_bytes_per_block())) return rows;
  return 0;
}

template <class T>
const char* launch_product(LinearJob job, const T* source, const T* weight, const T* bias, T* target, Stream stream) {
  if (!job.N || !job.targets) return nullptr;
  const auto run = [&](auto* kernel, int rows, bool staged, bool keeps_results, int targets_per_block) {
    const int64_t row_blocks = up(job.N, rows), source_bytes = staged ? int64_t(job.sources) * rows * 4 : 0;
    job.results_at = uint32_t(source_bytes);
    const size_t bytes = size_t(source_bytes) + (keeps_results ? 8 * 32 * (rows + 1) * 4 : 0);
    const int residents = std::clamp(int(shared_bytes_per_block() / (bytes + 1024)), 1, 4);
    const int64_t most = std::min<int64_t>(up(job.targets, targets_per_block), 65535);
    const int64_t along = std::clamp<int64_t>(up(int64_t(multiprocessors()) * residents, row_blocks), 1, most);
    return launch(kernel, dim3(unsigned(row_blocks), unsigned(along)), dim3(kLinearThreads), bytes, stream, source, weight, bias, target, job);
  };
  if (job.N <= kFewRows) {
    if (rows_that_fit(job.sources, 4, 0, 0)) return run(sparse_linear_few_rows_kernel<T, true>, 4, true, false, 8);
    return run(sparse_linear_few_rows_kernel<T, false>, 4, false, false, 8);
  }
  switch (rows_that_fit(job.sources, job.N, 8 * 32 * 4, 8 * 32 * 4)) {
    case 32: return run(sparse_linear_kernel<T, 32, true>, 32, true, true, 256);
    case 16: return run(sparse_linear_kernel<T, 16, true>, 16, true, true, 256);
    case 8: return run(sparse_linear_kernel<T, 8, true>, 8, true, true, 256);
    case 4: return run(sparse_linear_kernel<T, 4, true>, 4, true, true, 256);
    default: return run(sparse_linear_kernel<T, 4, false>, 4, false, true, 256);
  }
}

const char* only_condensed(const SparseLinearShape& s) {
  if (s.BO != 1 || s.BI != 1) return "sparse_linear: no kernel for blocks here";
  return s.kept() > INT32_MAX ? "sparse_linear: more connections than 32-bit places" : nullptr;
}

}  // namespace

template <class T>
const char* launch_sparse_linear_fwd(const SparseLinearShape& s, const T* x, Strides x_stride, const T* weight, const int32_t* index, const T* bias,
                                     T* y, Strides y_stride, Stream stream) {
  if (const char* error = only_condensed(s)) return error;
  return launch_product<T>({s.N, int(s.in()), int(s.out()), int(s.F), x_stride, y_stride, nullptr, index, nullptr, 0}, x, weight, bias, y, stream);
}

template <class T>
const char* launch_sparse_linear_grad_x(const SparseLinearShape& s, const T* grad_out, Strides grad_stride, const T* weight,
                                        const LinearColumns& columns, T* grad_x, Strides grad_x_stride, Stream stream) {
  if (const char* error = only_condensed(s)) return error;
  const LinearJob job{s.N, int(s.out()), int(s.in()), 0, grad_stride, grad_x_stride, columns.indptr, columns.output, columns.place, 0};
  return launch_product<T>(job, grad_out, weight, static_cast<const T*>(nullptr), grad_x, stream);
}

template <class T>
const char* launch_sparse_linear_grad_weight(const SparseLinearShape& s, const T* grad_out, Strides grad_stride, const T* x, Strides x_stride,
                                             const int32_t* index, T* grad_weight, Stream stream) {
  if (const char* error = only_condensed(s)) return error;
  if (!s.kept()) return nullptr;
  LinearWeightJob job{s.N, s.kept(), int(s.in()), int(s.out()), int(s.F), int(std::min<int64_t>(4, s.F)), x_stride, grad_stride, index, 0};
  const int64_t outputs = kLinearThreads * job.pairs / s.F + 2;  // of a block, at the most
  const auto run = [&](auto* kernel, int rows, bool staged) {
    job.grad_shared = staged ? uint32_t(job.sources) * rows * 4 : 0;
    const size_t bytes = job.grad_shared + size_t(outputs) * (rows * 4 + 16);
    return launch(kernel, dim3(unsigned(up(s.kept(), int64_t(kLinearThreads) * job.pairs))), dim3(kLinearThreads), bytes, stream, grad_out, x,
                  grad_weight, job);
  };
  switch (rows_that_fit(job.sources, s.N, outputs * 4, outputs * 16)) {
    case 32: return run(sparse_linear_weight_kernel<T, 32, true>, 32, true);
    case 16: return run(sparse_linear_weight_kernel<T, 16, true>, 16, true);
    case 8: return run(sparse_linear_weight_kernel<T, 8, true>, 8, true);
    case 4: return run(sparse_linear_weight_kernel<T, 4, true>, 4, true);
    default: return run(sparse_linear_weight_kernel<T, 4, false>, 4, false);
  }
}

#define SK_INSTANTIATE(T)                                                                                                                        \
  template const char* launch_sparse_linear_fwd<T>(const SparseLinearShape&, const T*, Strides, const T*, const int32_t*, const T*, T*, Strides, \
                                                   Stream);                                                                                      \
  template const char* launch_sparse_linear_grad_x<T>(const SparseLinearShape&, const T*, Strides, const T*, const LinearColumns&, T*, Strides,  \
                                                      Stream);                                                                                   \
  template const char* launch_sparse_linear_grad_weight<T>(const SparseLinearShape&, const T*, Strides, const T*, Strides, const int32_t*, T*,   \
                                                           Stream);
SK_INSTANTIATE(float)
SK_INSTANTIATE(bf16)
SK_INSTANTIATE(fp16)
#undef SK_INSTANTIATE

}  // namespace sk
