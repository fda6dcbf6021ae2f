// What one call of capture or splice is told. Plain data: the kernels see neither Python nor Torch.
#pragma once

#include <cstdint>

namespace memos {

enum class Dtype : int { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

// The paged side is vLLM's `vec` layout: block b of head h of a layer begins at
// `layer + b * block_stride + h * head_stride` and holds keys `[head_dim, block_size]`, then values
// `[block_size, head_dim]`. The contiguous side is `[layers, length, heads, head_dim]`, its layers apart by a stride.
// Strides count elements.
struct Job {
  const std::uintptr_t* layers;
  std::int64_t num_layers;
  std::int64_t heads;
  std::int64_t head_dim;
  std::int64_t block_size;
  std::int64_t block_stride;
  std::int64_t head_stride;
  const std::int64_t* block_table;  // a negative block id: its tokens are skipped
  std::int64_t start;               // first token, counted from the beginning of block_table[0]
  std::int64_t length;              // tokens
  std::uintptr_t k;
  std::uintptr_t v;
  std::int64_t k_layer_stride;
  std::int64_t v_layer_stride;
  // Keys turn as x * cosine[i] + partner(x) * sine[i], i < rotary_dim; sine carries the sign. rotary_dim 0: no turn.
  const float* cosine;
  const float* sine;
  std::int64_t rotary_dim;
  bool interleaved;
  bool streaming;  // write past the caches: the rows are too many to be found there later
  int threads;
};

// One translation unit compiles one of these, for one instruction set.
struct Kernels {
  const char* name;
  int vector_bytes;  // a block of tokens, and a head, must be a multiple of this many bytes wide, see dispatch.cpp
  void (*capture)(const Job&, Dtype);
  void (*splice)(const Job&, Dtype);
};

#if defined(__x86_64__)
extern const Kernels kAvx512Bf16;
extern const Kernels kAvx512;
extern const Kernels kAvx2;
#endif
extern const Kernels kPortable;

}  // namespace memos
