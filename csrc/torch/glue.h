// What every op's glue shares: cheap tensor access and allocation through the stable ABI, torch's threads, storage types.
// Glue only checks, allocates and hands over. A `torch::stable::` call costs a boxed dispatch, so the good path avoids them.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstring>
#include <optional>
#include <vector>

#include "core/convert.h"
#include "core/core.h"

namespace sk::glue {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---- threads: torch's own pool
inline Pool pool() {
  return {int(torch::stable::get_num_threads()), [](int64_t size, int64_t grain, Pool::Body body, const void* context) {
            torch::stable::parallel_for(0, size, grain, [=](int64_t begin, int64_t end) SK_UNSEEN { body(context, begin, end); });
          }};
}

// ---- the device that this library serves: the CPU, or (SK_CUDA) CUDA devices
#ifdef SK_CUDA
inline bool here(const Tensor& t) { return t.is_cuda(); }
inline int32_t device_type() { return aoti_torch_device_type_cuda(); }
inline int32_t device_index(const Tensor& t) { return t.get_device_index(); }
#else
inline bool here(const Tensor& t) { return t.is_cpu(); }
inline int32_t device_type() { return aoti_torch_device_type_cpu(); }
inline int32_t device_index(const Tensor&) { return 0; }
#endif
inline bool beside(const Tensor& t, const Tensor& x) { return here(t) && device_index(t) == device_index(x); }

// ---- tensors
inline bool floating(ScalarType t) { return t == ScalarType::Float || t == ScalarType::Double || t == ScalarType::BFloat16 || t == ScalarType::Half; }
inline bool is_half(ScalarType t) { return t == ScalarType::BFloat16 || t == ScalarType::Half; }

inline Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
inline std::optional<Tensor> as_contiguous(const std::optional<Tensor>& t) { return t ? std::optional<Tensor>(as_contiguous(*t)) : std::nullopt; }

// On the device of `like`; `type` is int32, float32 or the type of `like`.
inline Tensor empty_strided(const Tensor& like, ScalarType type, const int64_t* sizes, const int64_t* strides, int64_t dim) {
  AtenTensorHandle handle;
  int32_t dtype = 0;
  if (type == ScalarType::Int)
    dtype = aoti_torch_dtype_int32();
  else if (type == ScalarType::Float)
    dtype = aoti_torch_dtype_float32();
  else
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dim, sizes, strides, dtype, device_type(), device_index(like), &handle));
  const Tensor fresh(handle);
#if !defined(SK_CUDA) && !defined(SK_EMU)
  int64_t values = 1;
  for (int64_t d = 0; d < dim; ++d) values = sizes[d] > 0 ? values + (sizes[d] - 1) * strides[d] : INT64_MIN / 2;
  if (values > int64_t(1) << 21) advise_huge_pages(fresh.mutable_data_ptr(), size_t(values) * (is_half(fresh.scalar_type()) ? 2 : 4));
#endif
  return fresh;
}

// Contiguous, with the dtype of `like`.
template <size_t Dim>
Tensor new_tensor(const Tensor& like, const std::array<int64_t, Dim>& sizes) {
  std::array<int64_t, Dim> strides;
  int64_t step = 1;
  for (size_t d = Dim; d-- > 0; step *= std::max<int64_t>(1, sizes[d])) strides[d] = step;
  return empty_strided(like, like.scalar_type(), sizes.data(), strides.data(), Dim);
}

// ---- operands of any address: torch.frombuffer gives tensors at ones that are no multiple of their elements' size, where C++ must not read

// As it lies, gaps included: what strides decide stays decided.
inline Tensor moved_into_alignment(const Tensor& t, size_t element_size) {
  int64_t span = 1;
  for (int64_t d = 0; d < t.dim(); ++d) span += (t.size(d) - 1) * t.stride(d);
  const int64_t step = 1;
  const Tensor fresh = empty_strided(t, t.scalar_type(), &span, &step, 1);
  std::memcpy(fresh.mutable_data_ptr(), t.const_data_ptr(), size_t(span) * element_size);
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(fresh.get(), t.dim(), t.sizes().data(), t.strides().data(), 0, &handle));
  return Tensor(handle);
}
inline void align(Tensor& t) {
  const auto address = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  if (address % 8 == 0) return;  // no element asks for more
  if (const size_t element_size = t.element_size(); address % element_size) t = moved_into_alignment(t, element_size);
}
inline void align(std::optional<Tensor>& t) {
  if (t) align(*t);
}
inline void align(std::vector<Tensor>& list) {
  for (Tensor& t : list) align(t);
}
template <class Other>
void align(const Other&) {}

// An operator as torch calls it: with operands that it may read. All of the CPU's are registered like this.
template <auto op>
struct Aligned;
template <class Result, class... Args, Result (*op)(Args...)>
struct Aligned<op> {
  static Result call(std::decay_t<Args>&... args) {
    (align(args), ...);
    return op(args...);
  }
};
#define SK_BOX(op) TORCH_BOX(&sk::glue::Aligned<op>::call)

inline Half half_of(ScalarType t) { return t == ScalarType::BFloat16 ? Half::bf16 : Half::fp16; }

// ---- storage types: fp16 and bf16 are computed in fp32, so a kernel sees floats whatever the tensor holds
class FloatInput {
 public:
  // `size` elements from data_ptr() on, in memory order
  FloatInput(const Tensor& t, int64_t size, const Pool& pool) {
    if (is_half(t.scalar_type())) {
      scratch_.emplace(size_t(size) * sizeof(float));
      to_f32(half_of(t.scalar_type()), static_cast<const uint16_t*>(t.const_data_ptr()), scratch_->as<float>(), size, pool);
      data_ = scratch_->as<float>();
    } else {
      data_ = static_cast<const float*>(t.const_data_ptr());
    }
  }
  FloatInput(const std::optional<Tensor>& t, const Pool& pool) : FloatInput() {
    if (t) new (this) FloatInput(*t, t->numel(), pool);
  }
  FloatInput() = default;
  const float* data() const { return data_; }

 private:
  std::optional<Scratch> scratch_;
  const float* data_ = nullptr;
};

class FloatOutput {
 public:
  FloatOutput(const Tensor& t, const Pool& pool) : tensor_(t), pool_(pool) {
    if (is_half(t.scalar_type())) {
      scratch_.emplace(size_t(t.numel()) * sizeof(float));
      data_ = scratch_->as<float>();
    } else {
      data_ = static_cast<float*>(t.mutable_data_ptr());
    }
  }
  float* data() const { return data_; }
  void finish() const {  // every element, in memory order
    if (scratch_) from_f32(half_of(tensor_.scalar_type()), data_, static_cast<uint16_t*>(tensor_.mutable_data_ptr()), tensor_.numel(), pool_);
  }

 private:
  const Tensor& tensor_;
  const Pool& pool_;
  std::optional<Scratch> scratch_;
  float* data_;
};

// ---- torch's own operators, where they are the faster choice

// The caller's tensors must not enter an autograd graph here.
class NoGrad {
 public:
  NoGrad() : was_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(was_); }

 private:
  bool was_;
};

template <size_t Inputs, class... Args>
Tensor call(const char* op, const char* overload, const Args&... args) {
  static_assert(sizeof...(Args) == Inputs);
  NoGrad no_grad;
  std::array<StableIValue, Inputs> stack{torch::stable::detail::from(args)...};
  TORCH_ERROR_CODE_CHECK(aoti_torch_call_dispatcher(op, overload, stack.data()));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace sk::glue
