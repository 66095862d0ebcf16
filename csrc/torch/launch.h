// What a launch needs from torch: the tensors' device made current, torch's stream on it, pointers of the kernels' types.
//
// Built with SK_EMU the device is the emulated one (cuda/emu): tensors live on the CPU, and it is told of each of them, so that it
// checks every access of a kernel.
#pragma once
#include "cuda/fp32.h"
#include "cuda/numbers.h"
#include "cuda/stream.h"
#include "torch/glue.h"
#ifdef SK_EMU
#include <memory>
#include <vector>

#include "cuda/emu/global.h"
#define SK_LIBRARY sparsekern_emu
#define SK_DEVICE_KEY CPU
#else
#include <torch/csrc/stable/accelerator.h>
#define SK_LIBRARY sparsekern_cuda
#define SK_DEVICE_KEY CUDA
#endif

namespace sk::glue {

inline Fp32 fp32_mode(bool tf32) { return tf32 ? Fp32::tf32 : Fp32::strict; }

// One per op, made before any memory is allocated.
class Launch {
 public:
#ifdef SK_EMU
  explicit Launch(const Tensor&) {}
  Stream stream() const { return nullptr; }
#else
  explicit Launch(const Tensor& like) : guard_(like.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    stream_ = static_cast<Stream>(stream);
  }
  Stream stream() const { return stream_; }
#endif

  template <class T>
  const T* input(const Tensor& t, const char* name) {
    meet(t, sizeof(T), name, false);
    return static_cast<const T*>(t.const_data_ptr());
  }
  template <class T>
  const T* input(const std::optional<Tensor>& t, const char* name) {
    return t ? input<T>(*t, name) : nullptr;
  }
  template <class T>
  T* output(const Tensor& t, const char* name) {
    meet(t, sizeof(T), name, true);
    return static_cast<T*>(t.mutable_data_ptr());
  }
  static void done(const char* error) { STD_TORCH_CHECK(!error, error); }

 private:
#ifdef SK_EMU
  // Outputs begin as NaN.
  void meet(const Tensor& t, size_t element, const char* name, bool written) {
    size_t last = 0;
    for (int64_t d = 0; d < t.dim(); ++d) last += t.numel() ? size_t((t.size(d) - 1) * t.stride(d)) : 0;
    const size_t bytes = t.numel() ? (last + 1) * element : 0;
    memory_.push_back(std::make_unique<emu::Memory>(name, written ? t.mutable_data_ptr() : const_cast<void*>(t.const_data_ptr()), bytes, written));
    if (written && bytes) memset(t.mutable_data_ptr(), 0xff, bytes);
  }
  std::vector<std::unique_ptr<emu::Memory>> memory_;
#else
  static void meet(const Tensor&, size_t, const char*, bool) {}
  torch::stable::accelerator::DeviceGuard guard_;
  Stream stream_ = nullptr;
#endif
};

// f(T{}) with the type that the kernels call this one.
template <class F>
auto by_type(ScalarType type, const F& f) {
  STD_TORCH_CHECK(type == ScalarType::Float || is_half(type), "no CUDA kernel for this type");
  return type == ScalarType::Float ? f(float{}) : type == ScalarType::BFloat16 ? f(bf16{}) : f(fp16{});
}

}  // namespace sk::glue
