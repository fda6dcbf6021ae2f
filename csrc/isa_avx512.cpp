// Needs AVX-512 F, BW, DQ and VL.
#define VECTOR_BYTES 64
#include "kernels.h"

namespace memos {

const Kernels kAvx512 = {"avx512", kVectorBytes, run_dtype<false>, run_dtype<true>};

}  // namespace memos
