// Run-time choice of the instruction set, and the small services declared in core.h.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/core.h"

namespace sk {
namespace {

constexpr const char* kNames[] = {"base", "avx2", "avx512"};

bool supported(Isa candidate) {
#ifdef SK_HAVE_avx512
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq");
  if (candidate == Isa::avx2) return avx2;
  if (candidate == Isa::avx512) return avx512;
#endif
  return candidate == Isa::base;
}

Isa best() {
  if (const char* wanted = std::getenv("SPARSEKERN_ISA"))
    for (int i = 0; i < 3; ++i)
      if (!std::strcmp(wanted, kNames[i]) && supported(Isa(i))) return Isa(i);
  for (int i = 2; i > 0; --i)
    if (supported(Isa(i))) return Isa(i);
  return Isa::base;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> value{best()};
  return value;
}

constexpr const char* kPolicies[] = {"auto", "never", "always"};
std::atomic<Dense> policy{Dense::automatic};

// One kept block per thread and size class would fragment; a short list with a cap is enough: an op holds 1 to 4.
struct Kept {
  static constexpr int kSlots = 4;
  static constexpr size_t kMaxBytes = size_t(64) << 20;  // larger blocks go back to the system at once
  void* data[kSlots] = {};
  size_t bytes[kSlots] = {};
  ~Kept() {
    for (void* p : data) std::free(p);
  }
};
thread_local Kept kept;

void run_serial(int64_t size, int64_t, Pool::Body body, const void* context) { body(context, 0, size); }

}  // namespace

Isa isa() { return current().load(std::memory_order_relaxed); }
const char* isa_name() { return kNames[int(isa())]; }

bool set_isa(const char* name) {
  for (int i = 0; i < 3; ++i)
    if (!std::strcmp(name, kNames[i]) && supported(Isa(i))) {
      current() = Isa(i);
      return true;
    }
  return false;
}

const char* const* supported_isas() {
  static const char* names[4] = {};
  static const bool ready = [] {
    int n = 0;
    for (int i = 0; i < 3; ++i)
      if (supported(Isa(i))) names[n++] = kNames[i];
    return true;
  }();
  (void)ready;
  return names;
}

Dense dense_policy() { return policy.load(std::memory_order_relaxed); }

bool set_dense_policy(const char* name) {
  for (int i = 0; i < 3; ++i)
    if (!std::strcmp(name, kPolicies[i])) {
      policy = Dense(i);
      return true;
    }
  return false;
}

const Pool kSerial{1, run_serial};

Scratch::Scratch(size_t bytes) : data_(nullptr), bytes_((bytes + 4095) / 4096 * 4096 + 4096) {
  int fit = -1;  // the smallest kept block that is large enough
  for (int i = 0; i < Kept::kSlots; ++i)
    if (kept.bytes[i] >= bytes_ && (fit < 0 || kept.bytes[i] < kept.bytes[fit])) fit = i;
  if (fit >= 0) {
    data_ = kept.data[fit];
    bytes_ = kept.bytes[fit];
    kept.data[fit] = nullptr;
    kept.bytes[fit] = 0;
  } else {
    data_ = std::aligned_alloc(4096, bytes_);
    if (!data_) throw std::bad_alloc();
  }
}

Scratch::~Scratch() {
  int smallest = 0;
  for (int i = 1; i < Kept::kSlots; ++i)
    if (kept.bytes[i] < kept.bytes[smallest]) smallest = i;
  if (bytes_ > Kept::kMaxBytes || kept.bytes[smallest] >= bytes_) {
    std::free(data_);
  } else {
    std::free(kept.data[smallest]);
    kept.data[smallest] = data_;
    kept.bytes[smallest] = bytes_;
  }
}

}  // namespace sk
