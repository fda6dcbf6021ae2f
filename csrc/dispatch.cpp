#include "dispatch.h"

#include <stdexcept>
#include <vector>

namespace memos {

// Best first.
static std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512 && __builtin_cpu_supports("avx512bf16")) found.push_back(&kAvx512Bf16);
  if (avx2 && avx512) found.push_back(&kAvx512);
  if (avx2) found.push_back(&kAvx2);
#endif
  found.push_back(&kPortable);
  return found;
}

const Kernels& choose_kernels(const std::string& wanted) {
  std::string names;
  for (const Kernels* kernels : runnable()) {
    if (wanted.empty() || wanted == kernels->name) return *kernels;
    names += names.empty() ? kernels->name : std::string(", ") + kernels->name;
  }
  throw std::invalid_argument("this machine's kernels are " + names + ", not " + wanted);
}

const Kernels& narrow_enough(const Kernels& chosen, std::int64_t block_bytes, std::int64_t head_bytes) {
  for (const Kernels* kernels : runnable()) {
    const int width = kernels->vector_bytes;
    if (width <= chosen.vector_bytes && block_bytes % width == 0 && head_bytes >= width) return *kernels;
  }
  throw std::invalid_argument("blocks or heads smaller than a vector");
}

}  // namespace memos
