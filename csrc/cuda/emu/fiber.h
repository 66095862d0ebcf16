// A stack of its own for every CUDA thread, and the switch between two of them.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emu {

#if defined(__x86_64__)
// Saves the callee-saved registers on the running stack and goes on where `to` was saved.
__attribute__((naked, noinline, unused)) static void switch_stack(void** /*save*/, void* /*to*/) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15; movq %rsp, (%rdi); movq %rsi, %rsp;"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
#endif

class Fiber {
 public:
  Fiber() = default;
  ~Fiber() {
    if (!base_) return;
    forget();
    munmap(base_, kBytes);
  }
  Fiber(const Fiber&) = delete;
  Fiber(Fiber&& other) noexcept { *this = static_cast<Fiber&&>(other); }
  Fiber& operator=(Fiber&& other) noexcept {
    base_ = other.base_, other.base_ = nullptr;
    return *this;
  }

  // The next switch to this fiber starts `entry`, which must never return.
  void reset(void (*entry)()) {
    if (!base_) {
      base_ = static_cast<char*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
      mprotect(base_, size_t(sysconf(_SC_PAGESIZE)), PROT_NONE);  // a stack overflow must not run into a neighbour
    }
    forget();
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(base_ + kBytes) - 1;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    stack_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = base_, context_.uc_stack.ss_size = kBytes, context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
  }

  // Leaves `from`, which may be the thread's own stack (a Fiber that was never reset), for `to`.
  static void switch_to(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&from.fake_stack_, to.base_ ? to.base_ : main_stack().bottom, to.base_ ? kBytes : main_stack().bytes);
#endif
#if defined(__x86_64__)
    switch_stack(&from.stack_, to.stack_);
#else
    swapcontext(&from.context_, &to.context_);
#endif
    arrived(from);
  }

  // First thing on a new fiber.
  static void arrived([[maybe_unused]] Fiber& here) {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(here.fake_stack_, &bottom, &bytes);
    if (here.base_ && !main_stack().bottom) main_stack() = {bottom, bytes};  // the first switch comes from the thread's own stack
#endif
  }

 private:
  void forget() {  // frames that were left without returning
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(base_, kBytes);
    fake_stack_ = nullptr;
#endif
  }

  static constexpr size_t kBytes = 256 * 1024;
  char* base_ = nullptr;
#if defined(__x86_64__)
  void* stack_ = nullptr;
#else
  ucontext_t context_;
#endif
#if defined(__SANITIZE_ADDRESS__)
  struct Extent {
    const void* bottom;
    size_t bytes;
  };
  static Extent& main_stack() {
    static Extent extent{};
    return extent;
  }
  void* fake_stack_ = nullptr;
#endif
};

}  // namespace emu
