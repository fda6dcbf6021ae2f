// Vectors of VECTOR_BYTES bytes in the vector extension of GCC and Clang, and what the kernels do with them.
//
// Included by one translation unit for each instruction set. All is in an unnamed namespace and nothing of the standard
// library's inline code is used: a function that two units share would be taken from whichever the linker met first,
// and might then run instructions that the machine does not have.
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace memos {
namespace {

constexpr int kVectorBytes = VECTOR_BYTES;
constexpr int kFloats = kVectorBytes / 4;
constexpr int kLineBytes = 64;

typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef std::uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef std::uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
typedef std::uint8_t Bytes __attribute__((vector_size(kVectorBytes)));
typedef std::uint8_t Lane __attribute__((vector_size(16)));

// Element types: bits in memory, fp32 in arithmetic.
struct Float32 {
  float bits;
};
struct Bfloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

template <class Vector>
inline Vector load(const void* from) {
  Vector value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

template <class Vector>
inline void store(void* to, Vector value) {
  __builtin_memcpy(to, &value, sizeof value);
}

// Past the caches; `to` is aligned to the vector.
inline void stream(void* to, Bytes value) {
#if VECTOR_BYTES == 64
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(value));
#elif VECTOR_BYTES == 32
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(value));
#elif defined(__SSE2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), reinterpret_cast<__m128i>(value));
#else
  store(to, value);
#endif
}

// Streamed stores are seen by other threads only after this.
inline void end_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Unsigned 16 bits to 32 and back, by intrinsics: GCC 12 splits __builtin_convertvector into pieces.
#if VECTOR_BYTES == 64
inline Words widen(Halves bits) { return (Words)_mm512_cvtepu16_epi32((__m256i)bits); }
inline Halves narrow(Words bits) { return (Halves)_mm512_cvtepi32_epi16((__m512i)bits); }
#elif VECTOR_BYTES == 32
inline Words widen(Halves bits) { return (Words)_mm256_cvtepu16_epi32((__m128i)bits); }
inline Halves narrow(Words bits) {
  const __m256i packed = _mm256_packus_epi32((__m256i)bits, (__m256i)bits);
  return (Halves)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
#else
inline Words widen(Halves bits) { return __builtin_convertvector(bits, Words); }
inline Halves narrow(Words bits) { return __builtin_convertvector(bits, Halves); }
#endif

inline Floats widen_bfloat16(Halves bits) { return (Floats)(widen(bits) << 16); }

// To nearest, ties to even; a NaN stays one. The instruction takes subnormal numbers for zero.
#if defined(__AVX512BF16__)
inline Halves narrow_bfloat16(Floats value) { return (Halves)_mm512_cvtneps_pbh((__m512)value); }
#else
inline Halves narrow_bfloat16(Floats value) {
  const Words bits = (Words)value;
  const Words rounded = (bits + (((bits >> 16) & 1u) + 0x7fffu)) >> 16;
  return narrow(value == value ? rounded : rounded * 0u + 0x7fc0u);
}
#endif

#if VECTOR_BYTES == 64
inline Floats widen_float16(Halves bits) { return (Floats)_mm512_cvtph_ps((__m256i)bits); }
inline Halves narrow_float16(Floats value) {
  return (Halves)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif VECTOR_BYTES == 32
inline Floats widen_float16(Halves bits) { return (Floats)_mm256_cvtph_ps((__m128i)bits); }
inline Halves narrow_float16(Floats value) {
  return (Halves)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#else
// Without an instruction for it. Widening: the exponent is moved up by a multiplication with 2^112, which also gets
// subnormal numbers right; infinities and NaNs then need their exponent filled up.
inline Floats widen_float16(Halves bits) {
  const Words half = widen(bits);
  const Words magnitude = (half & 0x7fffu) << 13;
  const Words power = magnitude * 0u + 0x77800000u;  // 2^112
  const Words scaled = (Words)((Floats)magnitude * (Floats)power);
  const Words special = (Words)(magnitude >= 0x0f800000u) & 0x7f800000u;
  return (Floats)(scaled | special | ((half & 0x8000u) << 16));
}

// Narrowing: normal numbers are rebiased and rounded in integers; small ones are rounded by adding 0.5, whose unit in
// the last place is the smallest subnormal number of fp16.
inline Halves narrow_float16(Floats value) {
  const Words bits = (Words)value;
  const Words sign = (bits >> 16) & 0x8000u;
  const Words magnitude = bits & 0x7fffffffu;
  const Words one_half = magnitude * 0u + 0x3f000000u;
  const Words small = (Words)((Floats)magnitude + (Floats)one_half) - 0x3f000000u;
  const Words normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const Words is_small = (Words)(magnitude < 0x38800000u);
  const Words is_large = (Words)(magnitude >= 0x477ff000u);
  const Words is_nan = (Words)(magnitude > 0x7f800000u);
  Words result = (small & is_small) | (normal & ~is_small);
  result = (result & ~is_large) | (is_large & 0x7c00u) | (is_nan & 0x0200u);
  return narrow(result | sign);
}
#endif

inline Floats load_floats(const Float32* from) { return load<Floats>(from); }
inline Floats load_floats(const Bfloat16* from) { return widen_bfloat16(load<Halves>(from)); }
inline Floats load_floats(const Float16* from) { return widen_float16(load<Halves>(from)); }

inline void store_floats(Float32* to, Floats value) { store(to, value); }
inline void store_floats(Bfloat16* to, Floats value) { store(to, narrow_bfloat16(value)); }
inline void store_floats(Float16* to, Floats value) { store(to, narrow_float16(value)); }

#if VECTOR_BYTES == 64
inline Floats swap_neighbours(Floats x) { return (Floats)_mm512_permute_ps((__m512)x, 0xb1); }
inline Bytes low16(Bytes a, Bytes b) { return (Bytes)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b); }
inline Bytes high16(Bytes a, Bytes b) { return (Bytes)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b); }
inline Bytes low32(Bytes a, Bytes b) { return (Bytes)_mm512_unpacklo_epi32((__m512i)a, (__m512i)b); }
inline Bytes high32(Bytes a, Bytes b) { return (Bytes)_mm512_unpackhi_epi32((__m512i)a, (__m512i)b); }

// 16 bytes from each of `from`, `from + step`, ... (step in bytes), one after the other.
inline Bytes gather_lanes(const char* from, std::int64_t step) {
  __m512i all = _mm512_castsi128_si512((__m128i)load<Lane>(from));
  all = _mm512_inserti32x4(all, (__m128i)load<Lane>(from + step), 1);
  all = _mm512_inserti32x4(all, (__m128i)load<Lane>(from + 2 * step), 2);
  return (Bytes)_mm512_inserti32x4(all, (__m128i)load<Lane>(from + 3 * step), 3);
}
#elif VECTOR_BYTES == 32
inline Floats swap_neighbours(Floats x) { return (Floats)_mm256_permute_ps((__m256)x, 0xb1); }
inline Bytes low16(Bytes a, Bytes b) { return (Bytes)_mm256_unpacklo_epi16((__m256i)a, (__m256i)b); }
inline Bytes high16(Bytes a, Bytes b) { return (Bytes)_mm256_unpackhi_epi16((__m256i)a, (__m256i)b); }
inline Bytes low32(Bytes a, Bytes b) { return (Bytes)_mm256_unpacklo_epi32((__m256i)a, (__m256i)b); }
inline Bytes high32(Bytes a, Bytes b) { return (Bytes)_mm256_unpackhi_epi32((__m256i)a, (__m256i)b); }

inline Bytes gather_lanes(const char* from, std::int64_t step) {
  const __m256i first = _mm256_castsi128_si256((__m128i)load<Lane>(from));
  return (Bytes)_mm256_inserti128_si256(first, (__m128i)load<Lane>(from + step), 1);
}
#else
#if defined(__clang__)
#define MEMOS_SHUFFLE(type, a, b, ...) __builtin_shufflevector((type)(a), (type)(b), __VA_ARGS__)
#else
#define MEMOS_SHUFFLE(type, a, b, ...) __builtin_shuffle((type)(a), (type)(b), (type){__VA_ARGS__})
#endif
typedef std::uint16_t Shorts __attribute__((vector_size(16)));

inline Floats swap_neighbours(Floats x) { return (Floats)MEMOS_SHUFFLE(Words, x, x, 1, 0, 3, 2); }
inline Bytes low16(Bytes a, Bytes b) { return (Bytes)MEMOS_SHUFFLE(Shorts, a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
inline Bytes high16(Bytes a, Bytes b) { return (Bytes)MEMOS_SHUFFLE(Shorts, a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
inline Bytes low32(Bytes a, Bytes b) { return (Bytes)MEMOS_SHUFFLE(Words, a, b, 0, 4, 1, 5); }
inline Bytes high32(Bytes a, Bytes b) { return (Bytes)MEMOS_SHUFFLE(Words, a, b, 2, 6, 3, 7); }
#undef MEMOS_SHUFFLE

inline Bytes gather_lanes(const char* from, std::int64_t) { return load<Bytes>(from); }
#endif

template <int kSize>
inline Bytes low(Bytes a, Bytes b) {
  return kSize == 2 ? low16(a, b) : low32(a, b);
}
template <int kSize>
inline Bytes high(Bytes a, Bytes b) {
  return kSize == 2 ? high16(a, b) : high32(a, b);
}

// A strip of a matrix of kSize-byte elements, transposed: kVectorBytes / kSize rows `row_bytes` apart, 16 bytes wide,
// become 16 / kSize vectors, one for each column. log2(n) perfect shuffles transpose n vectors of n elements; here each
// 16-byte lane of the vectors holds rows of its own.
template <int kSize>
inline void transpose_strip(const char* from, std::int64_t row_bytes, Bytes (&columns)[16 / kSize]) {
  constexpr int n = 16 / kSize;
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) columns[i] = gather_lanes(from + i * row_bytes, n * row_bytes);
#pragma GCC unroll 3
  for (int stage = 1; stage < n; stage *= 2) {
    Bytes mixed[n];
#pragma GCC unroll 4
    for (int i = 0; i < n / 2; ++i) {
      mixed[2 * i] = low<kSize>(columns[i], columns[i + n / 2]);
      mixed[2 * i + 1] = high<kSize>(columns[i], columns[i + n / 2]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) columns[i] = mixed[i];
  }
}

}  // namespace
}  // namespace memos
