// Kernels of grouped_conv2d for channels_last filters whose taps or pixels do not lie side by side: strided or dilated by 2.
#pragma once
#include "core/grouped_conv2d_impl.h"

namespace sk {

// As the row kernels of grouped_conv2d_impl.h; the tiles of a left border leave the padding of K/2 taps away, those of a right
// border one column (strided) or two (dilated).
SK_DECLARE_KERNELS(ConvRowKernels, conv_row3_strided_kernels)
SK_DECLARE_KERNELS(ConvRowKernels, conv_row5_strided_kernels)
SK_DECLARE_KERNELS(ConvRowKernels, conv_row3_dilated_kernels)

// Columns that are looked at beyond the right border.
static inline int64_t columns_beyond(const ConvJob& job) { return job.padded_w() - job.pad_w - job.W; }

}  // namespace sk
