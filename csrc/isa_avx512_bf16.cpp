// Needs AVX-512 F, BW, DQ, VL and BF16.
#define VECTOR_BYTES 64
#include "kernels.h"

namespace memos {

const Kernels kAvx512Bf16 = {"avx512_bf16", kVectorBytes, run_dtype<false>, run_dtype<true>};

}  // namespace memos
