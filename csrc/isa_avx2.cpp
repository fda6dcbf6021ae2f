// Needs AVX2, FMA and F16C.
#define VECTOR_BYTES 32
#include "kernels.h"

namespace memos {

const Kernels kAvx2 = {"avx2", kVectorBytes, run_dtype<false>, run_dtype<true>};

}  // namespace memos
