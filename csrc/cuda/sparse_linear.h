// Fixed fan-in linear on a CUDA device; the formula is in core/sparse_linear.h. Condensed (blocks of one weight) on the plain cores,
// blocks on tensor cores.
//
// T is float, bf16 or fp16; sums are in fp32, in one order, without atomics. A matrix is given by its two strides in elements: (in, 1)
// by row, (1, N) feature-major. Index tables were validated when they were planned and are not checked again here. Launchers are
// asynchronous, can be captured, and return null or what went wrong.
//
// Condensed is bound by the words that shared memory gives: one of x per multiplication. So it wins against dense fp32 and at few rows; against
// dense 16-bit products on tensor cores only at a few percent of density.
#pragma once
#include "core/sparse_linear.h"
#include "cuda/fp32.h"
#include "cuda/numbers.h"
#include "cuda/stream.h"

namespace sk {

template <class T>
const char* launch_sparse_linear_fwd(const SparseLinearShape& shape, const T* x, Strides x_stride,  // [N, in]
                                     const T* weight,                                               // [out, F]
                                     const int32_t* index,                                          // [out, F]
                                     const T* bias,                                                 // [out] or null
                                     T* y, Strides y_stride,                                        // [N, out]
                                     Stream stream);

// The connections by input: those of input i are [indptr[i], indptr[i + 1]), each with its output and its place in `weight`.
struct LinearColumns {
  const int32_t* indptr;  // [in + 1]
  const int32_t* output;  // [out * F]
  const int32_t* place;   // [out * F]
};
template <class T>
const char* launch_sparse_linear_grad_x(const SparseLinearShape& shape, const T* grad_out, Strides grad_stride,  // [N, out]
                                        const T* weight,                                                         // [out, F]
                                        const LinearColumns& columns, T* grad_x, Strides grad_x_stride,          // [N, in]
                                        Stream stream);

template <class T>
const char* launch_sparse_linear_grad_weight(const SparseLinearShape& shape, const T* grad_out, Strides grad_stride,  // [N, out]
                                             const T* x, Strides x_stride,                                            // [N, in]
                                             const int32_t* index,                                                    // [out, F]
                                             T* grad_weight,                                                          // [out, F]
                                             Stream stream);

// ---- blocks: weight and grad_weight [OB, F, BO, BI], index [OB, F], columns in blocks. Any block size; a width that is no multiple of
// 16 bytes is filled up with zeros, and an Inf or NaN of x then stays within its own block.
template <class T>
const char* launch_sparse_linear_blocks_fwd(const SparseLinearShape& shape, const T* x, Strides x_stride, const T* weight, const int32_t* index,
                                            const T* bias, T* y, Strides y_stride, Fp32 mode, Stream stream);
template <class T>
const char* launch_sparse_linear_blocks_grad_x(const SparseLinearShape& shape, const T* grad_out, Strides grad_stride, const T* weight,
                                               const LinearColumns& columns, T* grad_x, Strides grad_x_stride, Fp32 mode, Stream stream);
template <class T>
const char* launch_sparse_linear_blocks_grad_weight(const SparseLinearShape& shape, const T* grad_out, Strides grad_stride, const T* x,
                                                    Strides x_stride, const int32_t* index, T* grad_weight, Fp32 mode, Stream stream);

// ---- panels: blocks [V, 1], whose outputs share a list of single inputs. Feature-major x and grad_out: strides (1, N); grad_x reads
// grad_out by row, and lists that are rising.
inline bool sparse_linear_panels(const SparseLinearShape& s) { return s.BI == 1 && s.BO >= 16 && s.N >= 32; }
template <class T>
const char* launch_sparse_linear_panels_fwd(const SparseLinearShape& shape, const T* x, const T* weight, const int32_t* index, const T* bias, T* y,
                                            Strides y_stride, Fp32 mode, Stream stream);
template <class T>
const char* launch_sparse_linear_panels_grad_weight(const SparseLinearShape& shape, const T* grad_out, const T* x, const int32_t* index,
                                                    T* grad_weight, Fp32 mode, Stream stream);
template <class T>
const char* launch_sparse_linear_panels_grad_x(const SparseLinearShape& shape, const T* grad_out, const T* weight, const int32_t* index, T* grad_x,
                                               Strides grad_x_stride, Fp32 mode, Stream stream);

// ---- wide panels, of a multiple of 64 outputs, and wide blocks, of multiples of 64 both ways, in 16 bits by wgmma (compute capability
// 9.x). Everything must be aligned to 16 bytes, lines of x and grad_out too.
bool has_sparse_linear_wgmma();  // the current device, and this build
inline bool sparse_linear_wide_panels(const SparseLinearShape& s) { return sparse_linear_panels(s) && s.BO % 64 == 0; }
inline bool sparse_linear_wide_blocks(const SparseLinearShape& s) { return s.BO % 64 == 0 && s.BI % 64 == 0 && s.BO && s.BI; }

// The tile of a thread block, along a list's targets (outputs, or inputs for grad_x) and across them (rows; for the weight's gradient what
// the list picks): 64 by 256, 128 by 128, or 128 by 256, which reads least, where that leaves enough of them.
enum class WideTile { by_64x256, by_128x128, by_128x256 };
inline WideTile wide_tile(int64_t across, int64_t lists, int64_t width, int multiprocessors) {
  if (width % 128) return WideTile::by_64x256;
  return (across + 255) / 256 * lists * (width / 128) >= multiprocessors ? WideTile::by_128x256 : WideTile::by_128x128;
}

// Feature-major x, lines `x_line` elements apart; grad_out by row.
template <class T>
const char* launch_sparse_linear_panels_wgmma_fwd(const SparseLinearShape& shape, const T* x, int64_t x_line, const T* weight, const int32_t* index,
                                                  const T* bias, T* y, Strides y_stride, Stream stream);
template <class T>
const char* launch_sparse_linear_panels_wgmma_grad_weight(const SparseLinearShape& shape, const T* grad_out, const T* x, int64_t x_line,
                                                          const int32_t* index, T* grad_weight, Stream stream);
// x and grad_out by row.
template <class T>
const char* launch_sparse_linear_blocks_wgmma_fwd(const SparseLinearShape& shape, const T* x, const T* weight, const int32_t* index, const T* bias,
                                                  T* y, Strides y_stride, Stream stream);
template <class T>
const char* launch_sparse_linear_blocks_wgmma_grad_x(const SparseLinearShape& shape, const T* grad_out, const T* weight, const LinearColumns& columns,
                                                     T* grad_x, Strides grad_x_stride, Stream stream);
template <class T>
const char* launch_sparse_linear_blocks_wgmma_grad_weight(const SparseLinearShape& shape, const T* grad_out, const T* x, const int32_t* index,
                                                          T* grad_weight, Stream stream);

}  // namespace sk
