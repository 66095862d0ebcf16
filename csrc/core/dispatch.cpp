// Run-time choice of the instruction set, and the small services declared in core.h.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/core.h"

#ifdef __linux__
#include <sys/mman.h>
#endif
#if defined(SK_HAVE_amx) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sk {
namespace {

constexpr int kIsas = 4;
constexpr const char* kNames[kIsas] = {"base", "avx2", "avx512", "amx"};

// The processor has bf16 tiles (and the AVX-512 extensions that our tile kernels use), and the system lets this process use them.
[[maybe_unused]] bool tiles_usable() {
#if defined(SK_HAVE_amx) && defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kVbmi2 = 1u << 6, kAvx512Bf16 = 1u << 5;
  if ((d & (kAmxBf16 | kAmxTile)) != (kAmxBf16 | kAmxTile) || !(c & kVbmi2)) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & kAvx512Bf16)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM: for the whole process
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool supported(Isa candidate) {
#ifdef SK_HAVE_avx512
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq");
  if (candidate == Isa::avx2) return avx2;
  if (candidate == Isa::avx512) return avx512;
  static const bool amx = avx512 && tiles_usable();  // cpuid is slow in a virtual machine
  if (candidate == Isa::amx) return amx;
#endif
  return candidate == Isa::base;
}

Isa best() {
  if (const char* wanted = std::getenv("SPARSEKERN_ISA"))
    for (int i = 0; i < kIsas; ++i)
      if (!std::strcmp(wanted, kNames[i]) && supported(Isa(i))) return Isa(i);
  for (int i = kIsas - 1; i > 0; --i)
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

bool isa_supported(Isa candidate) { return supported(candidate); }
Isa isa() { return current().load(std::memory_order_relaxed); }
const char* isa_name() { return kNames[int(isa())]; }

bool set_isa(const char* name) {
  for (int i = 0; i < kIsas; ++i)
    if (!std::strcmp(name, kNames[i]) && supported(Isa(i))) {
      current() = Isa(i);
      return true;
    }
  return false;
}

const char* const* supported_isas() {
  static const char* names[kIsas + 1] = {};
  static const bool ready = [] {
    int n = 0;
    for (int i = 0; i < kIsas; ++i)
      if (supported(Isa(i))) names[n++] = kNames[i];
    return true;
  }();
  (void)ready;
  return names;
}

Dense dense_policy() { return policy.load(std::memory_order_relaxed); }

bool set_dense_policy(const char* name) {
  for (int i = 0; i < kIsas; ++i)
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
    advise_huge_pages(data_, bytes_);
  }
}

void advise_huge_pages(void* data, size_t bytes) {
#ifdef __linux__
  constexpr size_t kPage = 4096, kWorthwhile = size_t(8) << 20;
  if (bytes < kWorthwhile) return;
  const size_t begin = (reinterpret_cast<size_t>(data) + kPage - 1) / kPage * kPage;
  const size_t end = (reinterpret_cast<size_t>(data) + bytes) / kPage * kPage;
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish: where it is not granted, nothing is lost
#else
  (void)data, (void)bytes;
#endif
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
