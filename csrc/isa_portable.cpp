// Needs nothing beyond the baseline of the architecture: SSE2 on x86-64, NEON on AArch64.
#define VECTOR_BYTES 16
#include "kernels.h"

namespace memos {

const Kernels kPortable = {"portable", kVectorBytes, run_dtype<false>, run_dtype<true>};

}  // namespace memos
