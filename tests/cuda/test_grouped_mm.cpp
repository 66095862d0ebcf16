// grouped_mm on the emulated device against plain double loops: every product and type, groups of equal and of ragged height, any size.
#include <string>
#include <vector>

#include "check.h"
#include "cuda/grouped_mm.h"

namespace {

using check::Sum;
using sk::bf16;
using sk::fp16;
using sk::Fp32;
int cases = 0;

template <class T>
void run(const std::vector<int>& heights, bool ragged, int64_t K, int64_t N, Fp32 mode, const char* way) {
  ++cases;
  const size_t offset = cases % 3 == 0;  // tensors that begin anywhere
  std::vector<int> group_of;
  emu::Buffer<int32_t> ends("offsets", heights.size(), emu::Role::input);
  for (size_t g = 0; g < heights.size(); ++g) group_of.insert(group_of.end(), heights[g], int(g)), ends[g] = int(group_of.size());
  const sk::GroupedMmShape s{int64_t(group_of.size()), int64_t(heights.size()), K, N, ragged ? ends.data() : nullptr};
  const std::string name = emu::format("%s %ld groups, %ld rows%s, %ld x %ld, %s", check::type_name<T>(mode), long(s.G), long(s.T),
                                       ragged ? ", ragged" : "", long(K), long(N), way);
  emu::Buffer<T> a("a", s.T * K, emu::Role::input, offset), b("b", s.G * K * N, emu::Role::input, offset);
  emu::Buffer<T> grad_out("grad_out", s.T * N, emu::Role::input), out("out", s.T * N, emu::Role::output);
  emu::Buffer<T> grad_a("grad_a", s.T * K, emu::Role::output), grad_b("grad_b", s.G * K * N, emu::Role::output, offset);
  check::fill(a, 1), check::fill(b, 2), check::fill(grad_out, 3);
  std::vector<Sum> wanted_out(out.size()), wanted_grad_a(grad_a.size()), wanted_grad_b(grad_b.size());
  for (int64_t r = 0; r < s.T; ++r)
    for (int64_t k = 0; k < K; ++k)
      for (int64_t n = 0; n < N; ++n) {
        const size_t at = (group_of[r] * K + k) * N + n;
        const double v = sk::to_float(a[r * K + k]), w = sk::to_float(b[at]), g = sk::to_float(grad_out[r * N + n]);
        wanted_out[r * N + n].add(v, w), wanted_grad_a[r * K + k].add(g, w), wanted_grad_b[at].add(g, v);
      }
  const auto allowed = [&](const Sum& sum) { return check::allowed_on_tensor_cores<T>(sum, mode); };
  try {
    const char* error = sk::launch_grouped_mm<T>(s, a.data(), b.data(), out.data(), mode, nullptr);
    if (!error) check::compare(name + ", forward", wanted_out, out, allowed);
    if (!error) error = sk::launch_grouped_mm_grad_a<T>(s, grad_out.data(), b.data(), grad_a.data(), mode, nullptr);
    if (!error) check::compare(name + ", grad_a", wanted_grad_a, grad_a, allowed);
    if (!error) error = sk::launch_grouped_mm_grad_b<T>(s, grad_out.data(), a.data(), grad_b.data(), mode, nullptr);
    if (!error) check::compare(name + ", grad_b", wanted_grad_b, grad_b, allowed);
    if (error) check::fail("%s: %s", name.c_str(), error);
  } catch (const emu::Fault& fault) {
    check::fail("%s: %s", name.c_str(), fault.what());
  }
}

void run_all(const std::vector<int>& heights, bool ragged, int64_t K, int64_t N, const char* way) {
  run<bf16>(heights, ragged, K, N, Fp32::strict, way), run<float>(heights, ragged, K, N, Fp32::tf32, way);
  run<fp16>(heights, ragged, K, N, Fp32::strict, way), run<float>(heights, ragged, K, N, Fp32::strict, way);
}

}  // namespace

int main() {
  run_all({1}, false, 1, 1, "in order"), run_all({9, 9, 9, 9}, false, 7, 5, "in order"), run_all({16, 16, 16}, false, 16, 16, "in order");
  run_all({70, 70}, false, 72, 80, "in order"), run_all({65}, false, 131, 67, "in order"), run_all({0, 0}, false, 8, 8, "in order");
  run_all({4, 0, 6}, true, 7, 5, "in order"), run_all({33}, true, 16, 16, "in order"), run_all({0, 90, 0, 3, 40}, true, 72, 72, "in order");
  run_all({100, 1, 70}, true, 20, 130, "in order"), run_all({0, 0}, true, 3, 4, "in order"), run_all({5, 40}, true, 200, 9, "in order");
  check::in_every_way([](const char* way) {
    run<bf16>({70, 0, 66}, true, 136, 66, Fp32::strict, way), run<float>({65}, false, 68, 72, Fp32::tf32, way);
    run<fp16>({12, 3}, true, 20, 40, Fp32::strict, way);
  });
  // ends that are no ends: nothing outside of the tensors is touched
  emu::Buffer<int32_t> ends("offsets", 3, emu::Role::input);
  ends[0] = 1000, ends[1] = -7, ends[2] = 40;
  emu::Buffer<float> a("a", 60 * 40, emu::Role::input), b("b", 3 * 40 * 72, emu::Role::input), out("out", 60 * 72, emu::Role::output),
      grad_b("grad_b", 3 * 40 * 72, emu::Role::output);
  check::fill(a, 1), check::fill(b, 2);
  const sk::GroupedMmShape s{60, 3, 40, 72, ends.data()};
  try {
    sk::launch_grouped_mm<float>(s, a.data(), b.data(), out.data(), Fp32::strict, nullptr);
  } catch (const emu::Fault& fault) {
    if (!std::strstr(fault.what(), "written twice")) check::fail("ends out of order: %s", fault.what());
  }
  return check::result("grouped_mm", cases + 1);
}
