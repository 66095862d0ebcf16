// grouped_conv2d in bf16 on matrix tiles (AMX), channels_last: sums in fp32, rounded once. Arguments as in grouped_conv2d.h.
//
// A tile multiplies zeros: an Inf or NaN of x may reach outputs of neighbouring groups and pixels as NaN.
#pragma once
#include "core/grouped_conv2d.h"

namespace sk {

SK_API bool grouped_conv2d_on_tiles(const Conv2dShape& shape);  // whether there are tiles, and they fit
SK_API void grouped_conv2d_tiles_fwd(const Conv2dShape& shape, const uint16_t* x, const uint16_t* weight, const uint16_t* bias,
                                     const uint16_t* shortcut, bool relu, uint16_t* out, const Pool& pool);

// The gradients; grad_x is a forward convolution with the weight turned around, of stride 1.
SK_API bool grouped_conv2d_grad_x_on_tiles(const Conv2dShape& shape);
SK_API void grouped_conv2d_tiles_grad_x(const Conv2dShape& shape, const uint16_t* grad_out, const uint16_t* weight, uint16_t* grad_x,
                                        const Pool& pool);
SK_API void grouped_conv2d_tiles_grad_weight(const Conv2dShape& shape, const uint16_t* grad_out, const uint16_t* x, uint16_t* grad_weight,
                                             const Pool& pool);

// Packs, where grouped_conv2d_on_tiles(shape): for images of any size, but one stride and dilation.
SK_API void grouped_conv2d_tiles_pack(const Conv2dShape& shape, const uint16_t* weight, std::vector<int32_t>& pack);
// False, and nothing done, where the pack holds no tiles, or not those of the shape.
SK_API bool grouped_conv2d_tiles_packed_fwd(const Conv2dShape& shape, const uint16_t* x, const int32_t* pack, const uint16_t* bias,
                                            const uint16_t* shortcut, bool relu, uint16_t* out, const Pool& pool);

}  // namespace sk
