// A stream as launchers take it. No CUDA header is needed, so whoever calls a launcher is plain C++.
#pragma once

struct CUstream_st;  // what a cudaStream_t points to

namespace sk {
using Stream = CUstream_st*;
}  // namespace sk
