// Global memory: every buffer is known by name and size. Loads and stores are checked against it, element by element, and a
// launch may neither write a byte twice nor read what it writes (blocks run in any order).
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "cuda/emu/machine.h"

namespace emu {

class Memory {  // untyped; tests use Buffer<T>
 public:
  Memory(std::string buffer_name, size_t bytes, size_t offset, bool may_write)
      : name(std::move(buffer_name)), writable(may_write), stamps_(bytes, 0) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    mapped_ = (offset + bytes + kCanary + page - 1) / page * page + 2 * page;
    base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_, page, PROT_NONE);
    mprotect(base_ + mapped_ - page, page, PROT_NONE);
    memset(base_ + page, 0xff, mapped_ - 2 * page);
    begin = base_ + page + offset, end = begin + bytes;
    all().push_back(this);
  }
  // Memory of somebody else: no guard pages, but every checked access is still held against its bounds.
  Memory(std::string buffer_name, void* data, size_t bytes, bool may_write)
      : name(std::move(buffer_name)),
        writable(may_write),
        begin(static_cast<char*>(data)),
        end(begin + bytes),
        base_(nullptr),
        mapped_(0),
        stamps_(may_write ? bytes : 0, 0) {
    all().push_back(this);
  }
  ~Memory() {
    if (base_) munmap(base_, mapped_);
    all().erase(std::find(all().begin(), all().end(), this));
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  static std::vector<Memory*>& all() {
    static std::vector<Memory*> list;
    return list;
  }
  // A store that went around the checked functions.
  void check_canary() const {
    for (const char* p = end; base_ && p < end + kCanary; ++p)
      if (*p != char(0xff)) throw Fault(format("writes %zd bytes past the end of %s", p - end, name.c_str()));
  }

  const std::string name;
  const bool writable;
  char *begin, *end;

  void written(size_t first, size_t bytes, uint32_t launch, Site site) {
    for (size_t i = first; i < first + bytes; ++i) {
      if (stamps_[i] == launch) fault(format("store at %s: byte %zu of %s is written twice in one launch", emu::name(site).c_str(), i, name.c_str()));
      stamps_[i] = launch;
    }
  }
  void read(size_t first, size_t bytes, uint32_t launch, Site site) const {
    if (!writable) return;
    for (size_t i = first; i < first + bytes; ++i)
      if (stamps_[i] == launch) fault(format("load at %s: byte %zu of %s was written in the same launch", emu::name(site).c_str(), i, name.c_str()));
  }

 private:
  static constexpr size_t kCanary = 256;
  char* base_;
  size_t mapped_;
  std::vector<uint32_t> stamps_;  // the launch that last wrote each byte
};
inline uint32_t launch_number = 0;

inline Memory& find(const char* what, const void* pointer, size_t bytes, size_t alignment, Site site) {
  const char* p = static_cast<const char*>(pointer);
  Memory* nearest = nullptr;
  for (Memory* m : Memory::all()) {
    if (p >= m->begin && p + bytes <= m->end) {
      if (reinterpret_cast<uintptr_t>(p) % alignment)
        fault(format("%s at %s: address in %s is not a multiple of %zu", what, name(site).c_str(), m->name.c_str(), alignment));
      return *m;
    }
    if (p + bytes > m->begin - 4096 && p < m->end + 4096) nearest = m;
  }
  if (nearest)
    fault(format("%s at %s: bytes [%td, %td) are outside %s [0, %td)", what, name(site).c_str(), p - nearest->begin, p + bytes - nearest->begin,
                 nearest->name.c_str(), nearest->end - nearest->begin));
  fault(format("%s at %s: address %p is in no buffer", what, name(site).c_str(), pointer));
}
inline void check_load(const void* p, size_t bytes, size_t alignment, Site site) {
  const Memory& m = find("load", p, bytes, alignment, site);
  m.read(static_cast<const char*>(p) - m.begin, bytes, launch_number, site);
}
inline void check_store(const void* p, size_t bytes, size_t alignment, Site site) {
  Memory& m = find("store", p, bytes, alignment, site);
  if (!m.writable) fault(format("store at %s: %s is an input", name(site).c_str(), m.name.c_str()));
  m.written(static_cast<const char*>(p) - m.begin, bytes, launch_number, site);
}

enum class Role { input, output };

// `count` values of T. Outputs, and the bytes behind every buffer, begin as NaN. `offset` in elements moves the first value
// away from its 256-byte boundary, as a view of a tensor may be.
template <class T>
class Buffer {
 public:
  Buffer(const std::string& name, size_t count, Role role, size_t offset = 0)
      : count_(count), memory_(name, count * sizeof(T), offset * sizeof(T), role == Role::output) {}
  T* data() { return reinterpret_cast<T*>(memory_.begin); }
  T& operator[](size_t i) { return data()[i]; }
  const T& operator[](size_t i) const { return reinterpret_cast<const T*>(memory_.begin)[i]; }
  size_t size() const { return count_; }

 private:
  size_t count_;
  Memory memory_;
};

}  // namespace emu
