// capture and splice for one instruction set. Included once by each of isa_*.cpp, which set VECTOR_BYTES.
//
// Both are bound by memory, and what counts is that memory is read in long runs and never waited for: while a chunk of
// tokens is transposed in the first-level cache, the next one is fetched into the second, in the order of addresses.
#pragma once

#include "job.h"
#include "vectors.h"

namespace memos {
namespace {

constexpr int kMaxHeadDim = 1024;
constexpr int kMaxLines = 4;

// Into the second-level cache; any address will do.
inline void fetch(const void* from) { __builtin_prefetch(from, 0, 2); }

// Tokens [first, first + chunk_tokens) of a block, of which [low, high), counted from `first`, belong to the job.
struct Chunk {
  std::int64_t first;
  std::int64_t row;  // token of the contiguous side that stands at `low`
  int low, high;
};

template <class T>
struct Pointers {
  T* keys;    // paged, [head_dim, block_size]
  T* values;  // paged, [block_size, head_dim]
  T* k;       // contiguous, token 0
  T* v;
};

template <class T, bool kSplice>
class Kernel {
 public:
  explicit Kernel(const Job& the_job) : job(the_job), head_dim(the_job.head_dim), block_size(the_job.block_size) {
    const int most = kSplice ? 1 : kMaxLines;  // capture reads the longer runs of a block, the more tokens it takes
    chunk_tokens = kWidth;
    for (int lines = 1; lines <= most; ++lines) {
      if (block_size % (lines * kLine) == 0) chunk_tokens = lines * kLine;
    }
    row_step = job.heads * head_dim;
    stream_to = job.streaming && head_dim % kLine == 0 && block_size % kLine == 0 && (kSplice ? paged() : rows());
  }

  // One layer's tokens of one block.
  void block(std::int64_t layer, std::int64_t index) {
    if (job.block_table[index] < 0) return;
    const std::int64_t begin = index * block_size, end = job.start + job.length;
    const std::int64_t first = begin < job.start ? job.start - begin : 0;
    const std::int64_t last = begin + block_size > end ? end - begin : block_size;
    for (std::int64_t token = first - first % chunk_tokens; token < last; token += chunk_tokens) {
      Chunk chunk = {token, 0, 0, chunk_tokens};
      if (first > token) chunk.low = static_cast<int>(first - token);
      if (last - token < chunk_tokens) chunk.high = static_cast<int>(last - token);
      chunk.row = begin + token + chunk.low - job.start;
      if (kSplice) {
        splice_chunk(pointers(layer, index), chunk);
      } else {
        capture_chunk(pointers(layer, index), chunk);
      }
    }
  }

 private:
  static constexpr int kSize = sizeof(T);
  static constexpr int kWidth = kVectorBytes / kSize;  // elements of a vector
  static constexpr int kLane = 16 / kSize;             // columns of a strip
  static constexpr int kLine = kLineBytes / kSize;     // elements of a cache line

  const Job& job;
  const std::int64_t head_dim, block_size;
  std::int64_t row_step;  // between tokens of the contiguous side
  int chunk_tokens;       // whole cache lines of transposed keys, or a vector where a block is not made of lines
  bool stream_to;         // past the caches
  T tile[(kSplice ? 1 : kMaxLines) * kLine * kMaxHeadDim] __attribute__((aligned(kLineBytes)));  // [tokens, head_dim]

  static bool aligned(std::int64_t bytes) { return bytes % kLineBytes == 0; }

  bool rows() const {
    return aligned(job.k) && aligned(job.v) && aligned(job.k_layer_stride * kSize) &&
           aligned(job.v_layer_stride * kSize);
  }

  bool paged() const {
    bool all = aligned(job.block_stride * kSize) && aligned(job.head_stride * kSize);
    for (std::int64_t layer = 0; layer < job.num_layers; ++layer) all &= aligned(job.layers[layer]);
    return all;
  }

  // Head 0; the others follow head_stride and head_dim later.
  Pointers<T> pointers(std::int64_t layer, std::int64_t index) const {
    T* const base = reinterpret_cast<T*>(job.layers[layer]) + job.block_table[index] * job.block_stride;
    return {
        base,
        base + head_dim * block_size,
        reinterpret_cast<T*>(job.k) + layer * job.k_layer_stride,
        reinterpret_cast<T*>(job.v) + layer * job.v_layer_stride,
    };
  }

  void splice_chunk(const Pointers<T>& at, const Chunk& chunk) {
    const T* const k = at.k + chunk.row * row_step;
    const T* v = at.v + chunk.row * row_step;
    const T* next_k = k + (chunk.high - chunk.low) * row_step;
    const T* next_v = v;
    for (std::int64_t head = 0; head < job.heads; ++head) {
      const T* row = k + head * head_dim;
      for (int token = chunk.low; token < chunk.high; ++token, row += row_step, next_k += head_dim) {
        for (std::int64_t i = 0; i < head_dim; i += kLine) fetch(next_k + i);
        turn_row(tile + token * head_dim, row);
      }
      T* const keys = at.keys + head * job.head_stride + chunk.first;
      for (std::int64_t d = 0; d < head_dim; d += kLane, next_v += kLane * chunk_tokens) {
        for (int i = 0; i < kLane * chunk_tokens; i += kLine) fetch(next_v + i);
        put_keys(keys, d, chunk);
      }
    }
    T* values = at.values + (chunk.first + chunk.low) * head_dim;
    for (int token = chunk.low; token < chunk.high; ++token, values += head_dim) {
      for (std::int64_t head = 0; head < job.heads; ++head, v += head_dim) {
        copy_row(values + head * job.head_stride, v);
      }
    }
  }

  // Dimensions [d, d + kLane) of the tile into the block's transposed keys.
  void put_keys(T* keys, std::int64_t d, const Chunk& chunk) {
    const bool whole = chunk.low == 0 && chunk.high == chunk_tokens;
    for (int group = 0; group < chunk_tokens; group += kWidth) {
      Bytes columns[kLane];
      transpose_strip<kSize>(reinterpret_cast<const char*>(tile + group * head_dim + d), head_dim * kSize, columns);
      T* to = keys + d * block_size + group;
      for (int i = 0; i < kLane; ++i, to += block_size) {
        if (whole) {
          put(to, columns[i]);
        } else {
          put_part(to, columns[i], chunk.low - group, chunk.high - group);
        }
      }
    }
  }

  // Elements [low, high) of a vector, as far as it has them.
  static void put_part(T* to, Bytes value, int low, int high) {
    T line[kWidth];
    store(line, value);
    for (int i = low > 0 ? low : 0; i < high && i < kWidth; ++i) to[i] = line[i];
  }

  void capture_chunk(const Pointers<T>& at, const Chunk& chunk) {
    for (std::int64_t head = 0; head < job.heads; ++head) {
      const T* const keys = at.keys + head * job.head_stride + chunk.first;
      for (std::int64_t d = 0; d < head_dim; d += kWidth) {
        get_keys(keys, d + kWidth <= head_dim ? d : head_dim - kWidth, chunk);
      }
      T* k = at.k + chunk.row * row_step + head * head_dim;
      for (int token = chunk.low; token < chunk.high; ++token, k += row_step) copy_row(k, tile + token * head_dim);
      T* v = at.v + chunk.row * row_step + head * head_dim;
      const T* values = at.values + head * job.head_stride + (chunk.first + chunk.low) * head_dim;
      for (int token = chunk.low; token < chunk.high; ++token, v += row_step, values += head_dim) copy_row(v, values);
    }
  }

  // Dimensions [d, d + kWidth) of the block's transposed keys into the tile.
  void get_keys(const T* keys, std::int64_t d, const Chunk& chunk) {
    const T* from = keys + d * block_size;
    const T* next = from + job.head_stride;
    const int low = chunk.low - chunk.low % kLane;
    for (int token = low; token < chunk.high; token += kLane, next += kWidth * kLane) {
      for (int i = 0; i < kWidth * kLane; i += kLine) fetch(next + i);
      Bytes columns[kLane];
      transpose_strip<kSize>(reinterpret_cast<const char*>(from + token), block_size * kSize, columns);
      T* to = tile + token * head_dim + d;
      for (int i = 0; i < kLane; ++i, to += head_dim) store(to, columns[i]);
    }
  }

  void put(T* to, Bytes value) const {
    if (stream_to) {
      stream(to, value);
    } else {
      store(to, value);
    }
  }

  void copy_row(T* to, const T* from) const {
    std::int64_t i = 0;
    for (; i + kWidth <= head_dim; i += kWidth) put(to + i, load<Bytes>(from + i));
    for (; i < head_dim; ++i) to[i] = from[i];
  }

  // A key into the tile, turned.
  void turn_row(T* to, const T* from) const {
    const std::int64_t rotary_dim = job.rotary_dim;
    if (job.interleaved) {
      turn_neighbours(to, from);
    } else if (rotary_dim > 0) {
      turn_halves(to, from);
    }
    std::int64_t i = rotary_dim;
    for (; i + kWidth <= head_dim; i += kWidth) store(to + i, load<Bytes>(from + i));
    for (; i < head_dim; ++i) to[i] = from[i];
  }

  // NeoX: dimensions i and i + rotary_dim / 2 are a pair.
  void turn_halves(T* to, const T* from) const {
    const std::int64_t half = job.rotary_dim / 2;
    const float* const cosines = job.cosine;
    const float* const sines = job.sine + half;
    std::int64_t i = 0;
    for (; i + kFloats <= half; i += kFloats) {
      const Floats a = load_floats(from + i), b = load_floats(from + half + i);
      const Floats cosine = load<Floats>(cosines + i), sine = load<Floats>(sines + i);
      store_floats(to + i, a * cosine - b * sine);
      store_floats(to + half + i, b * cosine + a * sine);
    }
    for (; i < half; ++i) {
      turn_one(to, from, i, half + i);
      turn_one(to, from, half + i, i);
    }
  }

  // GPT-J: dimensions 2 i and 2 i + 1 are a pair.
  void turn_neighbours(T* to, const T* from) const {
    std::int64_t i = 0;
    for (; i + kFloats <= job.rotary_dim; i += kFloats) {
      const Floats x = load_floats(from + i);
      store_floats(to + i, x * load<Floats>(job.cosine + i) + swap_neighbours(x) * load<Floats>(job.sine + i));
    }
    for (; i < job.rotary_dim; ++i) turn_one(to, from, i, i ^ 1);
  }

  void turn_one(T* to, const T* from, std::int64_t i, std::int64_t partner) const {
    T x[kFloats] = {}, y[kFloats] = {}, turned[kFloats];
    x[0] = from[i];
    y[0] = from[partner];
    store_floats(turned, load_floats(x) * job.cosine[i] + load_floats(y) * job.sine[i]);
    to[i] = turned[0];
  }
};

template <class T, bool kSplice>
void run(const Job& job) {
  const std::int64_t first = job.start / job.block_size;
  const std::int64_t blocks = (job.start + job.length - 1) / job.block_size - first + 1;
  const std::int64_t items = job.num_layers * blocks;
#pragma omp parallel num_threads(job.threads)
  {
    Kernel<T, kSplice> kernel(job);
#pragma omp for schedule(static)
    for (std::int64_t item = 0; item < items; ++item) kernel.block(item / blocks, first + item % blocks);
    end_streaming();
  }
}

template <bool kSplice>
void run_dtype(const Job& job, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return run<Float32, kSplice>(job);
    case Dtype::kBfloat16:
      return run<Bfloat16, kSplice>(job);
    case Dtype::kFloat16:
      return run<Float16, kSplice>(job);
  }
}

}  // namespace
}  // namespace memos
