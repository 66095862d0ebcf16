// The torch-free core: instruction-set choice, threads and scratch memory, shared by every op.
#pragma once
#include <cstddef>
#include <cstdint>

#define SK_API __attribute__((visibility("default")))

namespace sk {

// ---- instruction sets: one kernel source is compiled once per set; the best one the processor has is used
enum class Isa : int { base = 0, avx2 = 1, avx512 = 2, amx = 3 };  // amx: avx512 and bf16 tiles

SK_API Isa isa();  // in use now: the best supported one, or SPARSEKERN_ISA, or set_isa()
inline bool has_avx512() { return isa() >= Isa::avx512; }
SK_API const char* isa_name();               // "base", "avx2", "avx512" or "amx"
SK_API bool set_isa(const char* name);       // for tests and benchmarks; false if this processor lacks it
SK_API bool isa_supported(Isa candidate);    // by this processor, in this build
SK_API const char* const* supported_isas();  // worst first, nullptr-terminated

// An op's kernels are a struct of function pointers `Type`, one constant per instruction set, defined in
// <op>.isa.cpp as `sk::<isa>::name`. Declare with SK_DECLARE_KERNELS, pick with SK_PICK_KERNELS. What AMX adds is in
// kernels of its own (amx_*.cpp); everything else runs the avx512 ones there.
#ifdef SK_HAVE_avx512
#define SK_DECLARE_KERNELS(Type, name) \
  namespace base {                     \
  extern const Type name;              \
  }                                    \
  namespace avx2 {                     \
  extern const Type name;              \
  }                                    \
  namespace avx512 {                   \
  extern const Type name;              \
  }
#define SK_PICK_KERNELS(name) (isa() >= Isa::avx512 ? avx512::name : isa() == Isa::avx2 ? avx2::name : base::name)
#else
#define SK_DECLARE_KERNELS(Type, name) \
  namespace base {                     \
  extern const Type name;              \
  }
#define SK_PICK_KERNELS(name) (base::name)
#endif

// ---- torch's dense product instead of ours, where it is estimated faster: every op's choice asks this first
enum class Dense : int { automatic = 0, never = 1, always = 2 };
SK_API Dense dense_policy();
SK_API bool set_dense_policy(const char* name);  // "auto", "never" or "always"; for tests and benchmarks
// What an op's choice says, given its own estimate.
inline bool use_dense(bool estimated_faster) {
  const Dense policy = dense_policy();
  return policy == Dense::always || (policy == Dense::automatic && estimated_faster);
}

// ---- threads: the caller owns them (torch's pool inside an op, none in the C++ tests)
struct Pool {
  using Body = void (*)(const void* context, int64_t begin, int64_t end);
  int threads;
  void (*run)(int64_t size, int64_t grain, Body body, const void* context);
};
SK_API extern const Pool kSerial;  // runs everything on the calling thread

#ifdef __SANITIZE_THREAD__  // it does not see how torch's pool hands work to its threads and waits for them: it is told
extern "C" void __tsan_acquire(void*);
extern "C" void __tsan_release(void*);
#define SK_UNSEEN __attribute__((no_sanitize_thread))  // what a thread of the pool runs before it can be told
#else
#define SK_UNSEEN
#endif

// f(begin, end) over [0, size) in pieces of at least `grain`. Every output must be computed by one piece, in an
// order that does not depend on where the pieces are cut: results are the same for any number of threads.
template <class F>
void parallel(const Pool& pool, int64_t size, int64_t grain, const F& f) {
  if (size <= 0) return;
  if (pool.threads <= 1 || size <= grain) return f(int64_t(0), size);
#ifdef __SANITIZE_THREAD__
  struct Meeting {
    const F& f;
    int64_t begun, done;  // by address: pieces come after the one and before the other, in no order among themselves
  } meeting{f, 0, 0};
  __tsan_release(&meeting.begun);
  const auto piece = [](const void* c, int64_t b, int64_t e) {
    Meeting& m = *static_cast<Meeting*>(const_cast<void*>(c));
    __tsan_acquire(&m.begun);
    m.f(b, e);
    __tsan_release(&m.done);
  };
  pool.run(size, grain, piece, &meeting);
  __tsan_acquire(&meeting.done);
#else
  pool.run(size, grain, [](const void* c, int64_t b, int64_t e) { (*static_cast<const F*>(c))(b, e); }, &f);
#endif
}

// ---- scratch memory: 64-byte aligned, uninitialised, kept by the thread for the next call (up to a cap), because
// fresh pages cost more than many kernels (0.43 ms per MB measured)
class SK_API Scratch {
 public:
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
  size_t bytes_;
};

// Asks for pages of 2 MB behind fresh memory of several of them: of 50 MB, the first write to each page of 4 KB takes longer than many kernels.
SK_API void advise_huge_pages(void* data, size_t bytes);

}  // namespace sk
