// Launchers of the grouped products of matrices.
#include "cuda/grouped_mm.cuh"

namespace sk {
namespace {

int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
bool whole_lines(const T* p, int64_t line) {
  return line * sizeof(T) % 16 == 0 && reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// `height`: rows of the result in a group, about.
template <class T, Fp32 mode, bool ATurned, bool BTurned>
const char* launch_mm(MmJob job, int64_t height, int64_t inner, const T* a, const T* b, T* out, Stream stream) {
  job.a_vectors = whole_lines(a, job.a_line), job.b_vectors = whole_lines(b, job.b_line);
  const bool direct = height <= 32 && job.columns <= 64 && inner <= 128;
  const int64_t rows = direct ? 16 : kMmTile, columns = direct ? 32 : kMmTile, ragged = job.offsets && !ATurned;
  const int64_t row_tiles = up(ragged ? job.rows : ATurned ? job.result_rows : job.group_rows, rows);
  job.column_tiles = int(up(job.columns, columns));
  const int64_t tiles = row_tiles * job.column_tiles * (ragged ? 1 : job.groups);
  if (!tiles) return nullptr;
  if (tiles > INT32_MAX) return "grouped_mm: more tiles than a grid holds";
  job.row_tiles = int(row_tiles);
  if (direct)
    return launch(grouped_mm_direct_kernel<T, mode, ATurned, BTurned>, dim3(unsigned(up(tiles, kMmThreads / 32))), dim3(kMmThreads), 0, stream, a, b,
                  out, job);
  return launch(grouped_mm_tile_kernel<T, mode, ATurned, BTurned>, dim3(unsigned(tiles)), dim3(kMmThreads), size_t(kMmBytes), stream, a, b, out, job);
}

template <class T, bool ATurned, bool BTurned>
const char* launch_mm(const MmJob& job, int64_t height, int64_t inner, const T* a, const T* b, T* out, Fp32 mode, Stream stream) {
  if constexpr (sizeof(T) == 4)
    if (mode == Fp32::tf32) return launch_mm<T, Fp32::tf32, ATurned, BTurned>(job, height, inner, a, b, out, stream);
  return launch_mm<T, Fp32::strict, ATurned, BTurned>(job, height, inner, a, b, out, stream);
}

MmJob job_of(const GroupedMmShape& s) {
  MmJob job{};
  job.offsets = s.offsets, job.rows = s.T, job.groups = int(s.G), job.group_rows = s.G && !s.offsets ? s.T / s.G : 0;
  return job;
}
int64_t height_of(const GroupedMmShape& s) { return s.G ? up(s.T, s.G) : 0; }

}  // namespace

template <class T>
const char* launch_grouped_mm(const GroupedMmShape& s, const T* a, const T* b, T* out, Fp32 mode, Stream stream) {
  if (!s.T || !s.N) return nullptr;
  MmJob job = job_of(s);
  job.inner = int(s.K), job.columns = int(s.N), job.a_line = s.K, job.b_line = s.N, job.b_group = s.K * s.N;
  return launch_mm<T, false, true>(job, height_of(s), s.K, a, b, out, mode, stream);
}

template <class T>
const char* launch_grouped_mm_grad_a(const GroupedMmShape& s, const T* grad_out, const T* b, T* grad_a, Fp32 mode, Stream stream) {
  if (!s.T || !s.K) return nullptr;
  MmJob job = job_of(s);
  job.inner = int(s.N), job.columns = int(s.K), job.a_line = s.N, job.b_line = s.N, job.b_group = s.K * s.N;
  return launch_mm<T, false, false>(job, height_of(s), s.N, grad_out, b, grad_a, mode, stream);
}

template <class T>
const char* launch_grouped_mm_grad_b(const GroupedMmShape& s, const T* grad_out, const T* a, T* grad_b, Fp32 mode, Stream stream) {
  if (!s.G || !s.K || !s.N) return nullptr;
  MmJob job = job_of(s);
  job.result_rows = int(s.K), job.columns = int(s.N), job.a_line = s.K, job.b_line = s.N;
  return launch_mm<T, true, true>(job, s.K, height_of(s), a, grad_out, grad_b, mode, stream);
}

#define SK_INSTANTIATE(T)                                                                                        \
  template const char* launch_grouped_mm<T>(const GroupedMmShape&, const T*, const T*, T*, Fp32, Stream);        \
  template const char* launch_grouped_mm_grad_a<T>(const GroupedMmShape&, const T*, const T*, T*, Fp32, Stream); \
  template const char* launch_grouped_mm_grad_b<T>(const GroupedMmShape&, const T*, const T*, T*, Fp32, Stream);
SK_INSTANTIATE(float)
SK_INSTANTIATE(bf16)
SK_INSTANTIATE(fp16)
#undef SK_INSTANTIATE

}  // namespace sk
