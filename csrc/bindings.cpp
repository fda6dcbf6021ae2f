// The Python module memos_kernels._cpu. Pointers come as integers, checked by memos_kernels/cpu.py.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <sys/mman.h>

#include <cstring>
#include <stdexcept>

#include "dispatch.h"

namespace nb = nanobind;

namespace {

struct Paged {
  std::vector<std::uintptr_t> layers;
  memos::Dtype dtype;
  std::int64_t size;  // bytes of an element
  std::int64_t num_blocks, heads, head_dim, block_size, block_stride, head_stride;
};

using Table = std::vector<std::int64_t>;

// Rows of this size or more are written past the caches: reading them back would find little of them there.
constexpr std::int64_t kStreamingBytes = 8 << 20;

memos::Job make_job(const Paged& paged, const Table& table, std::int64_t start, std::int64_t length, std::uintptr_t k,
                    std::uintptr_t v, std::int64_t k_layer_stride, std::int64_t v_layer_stride, int threads) {
  const std::int64_t end = start + length;
  if (start < 0 || length < 0 || end > static_cast<std::int64_t>(table.size()) * paged.block_size) {
    throw std::out_of_range("the block table is too short for the tokens");
  }
  for (const std::int64_t block : table) {
    if (block >= paged.num_blocks) throw std::out_of_range("a block id is past the end of the cache");
  }
  memos::Job job = {};
  job.layers = paged.layers.data();
  job.num_layers = static_cast<std::int64_t>(paged.layers.size());
  job.heads = paged.heads;
  job.head_dim = paged.head_dim;
  job.block_size = paged.block_size;
  job.block_stride = paged.block_stride;
  job.head_stride = paged.head_stride;
  job.block_table = table.data();
  job.start = start;
  job.length = length;
  job.k = k;
  job.v = v;
  job.k_layer_stride = k_layer_stride;
  job.v_layer_stride = v_layer_stride;
  job.streaming = 2 * job.num_layers * length * paged.heads * paged.head_dim * paged.size >= kStreamingBytes;
  job.threads = threads < 1 ? 1 : threads;
  return job;
}

// Half tables, one entry for each pair of dimensions, to one entry for each dimension; the sine carries the sign.
struct Turn {
  std::vector<float> cosine, sine;

  Turn(const std::vector<float>& cosines, const std::vector<float>& sines, bool interleaved)
      : cosine(2 * cosines.size()), sine(2 * cosines.size()) {
    if (sines.size() != cosines.size()) throw std::invalid_argument("as many sines as cosines are needed");
    const std::size_t half = cosines.size();
    for (std::size_t i = 0; i < half; ++i) {
      const std::size_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : half + i;
      cosine[first] = cosine[second] = cosines[i];
      sine[first] = -sines[i];
      sine[second] = sines[i];
    }
  }
};

class Cpu {
 public:
  explicit Cpu(const std::string& wanted) : kernels_(memos::choose_kernels(wanted)) {}

  std::string isa() const { return kernels_.name; }

  void capture(const Paged& paged, const Table& table, std::int64_t start, std::int64_t length, std::uintptr_t k,
               std::uintptr_t v, std::int64_t k_layer_stride, std::int64_t v_layer_stride, int threads) const {
    const memos::Job job = make_job(paged, table, start, length, k, v, k_layer_stride, v_layer_stride, threads);
    if (length > 0) kernels_for(paged).capture(job, paged.dtype);
  }

  void splice(const Paged& paged, const Table& table, std::int64_t start, std::int64_t length, std::uintptr_t k,
              std::uintptr_t v, std::int64_t k_layer_stride, std::int64_t v_layer_stride,
              const std::vector<float>& cosines, const std::vector<float>& sines, bool interleaved,
              int threads) const {
    memos::Job job = make_job(paged, table, start, length, k, v, k_layer_stride, v_layer_stride, threads);
    const Turn turn(cosines, sines, interleaved);
    if (static_cast<std::int64_t>(turn.cosine.size()) > paged.head_dim) {
      throw std::invalid_argument("more rotary dimensions than the head has");
    }
    job.cosine = turn.cosine.data();
    job.sine = turn.sine.data();
    job.rotary_dim = static_cast<std::int64_t>(turn.cosine.size());
    job.interleaved = interleaved;
    if (length > 0) kernels_for(paged).splice(job, paged.dtype);
  }

 private:
  const memos::Kernels& kernels_for(const Paged& paged) const {
    return memos::narrow_enough(kernels_, paged.block_size * paged.size, paged.head_dim * paged.size);
  }

  const memos::Kernels& kernels_;
};

// The yardstick of the benchmark: memcpy of equal shares by the same threads.
void copy(std::uintptr_t to, std::uintptr_t from, std::int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int part = 0; part < threads; ++part) {
    const std::int64_t first = size / threads * part;
    const std::int64_t share = part + 1 == threads ? size - first : size / threads;
    std::memcpy(reinterpret_cast<char*>(to) + first, reinterpret_cast<const char*>(from) + first,
                static_cast<std::size_t>(share));
  }
}

// Of new memory, most of the time goes into its page faults; pages of 2 MiB make them few. Linux may say no.
void prefer_huge_pages(std::uintptr_t at, std::int64_t size) {
#if defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kHugePage = 2 << 20;
  const std::uintptr_t first = (at + kHugePage - 1) / kHugePage * kHugePage;
  const std::uintptr_t last = (at + static_cast<std::uintptr_t>(size)) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

NB_MODULE(_cpu, module) {
  using nb::arg;
  using Released = nb::call_guard<nb::gil_scoped_release>;
  nb::enum_<memos::Dtype>(module, "Dtype")
      .value("FLOAT32", memos::Dtype::kFloat32)
      .value("BFLOAT16", memos::Dtype::kBfloat16)
      .value("FLOAT16", memos::Dtype::kFloat16);
  nb::class_<Paged>(module, "Paged")
      .def(
          "__init__",
          [](Paged* self, std::vector<std::uintptr_t> layers, memos::Dtype dtype, std::int64_t num_blocks,
             std::int64_t heads, std::int64_t head_dim, std::int64_t block_size, std::int64_t block_stride,
             std::int64_t head_stride) {
            const std::int64_t size = dtype == memos::Dtype::kFloat32 ? 4 : 2;
            new (self) Paged{std::move(layers), dtype,      size,         num_blocks, heads,
                             head_dim,          block_size, block_stride, head_stride};
          },
          arg("layers"), arg("dtype"), arg("num_blocks"), arg("heads"), arg("head_dim"), arg("block_size"),
          arg("block_stride"), arg("head_stride"));
  nb::class_<Cpu>(module, "Cpu")
      .def(nb::init<const std::string&>(), arg("wanted"))
      .def_prop_ro("isa", &Cpu::isa)
      .def("capture", &Cpu::capture, Released(), arg("paged"), arg("table"), arg("start"), arg("length"), arg("k"),
           arg("v"), arg("k_layer_stride"), arg("v_layer_stride"), arg("threads"))
      .def("splice", &Cpu::splice, Released(), arg("paged"), arg("table"), arg("start"), arg("length"), arg("k"),
           arg("v"), arg("k_layer_stride"), arg("v_layer_stride"), arg("cosines"), arg("sines"), arg("interleaved"),
           arg("threads"));
  module.def("prefer_huge_pages", &prefer_huge_pages, arg("at"), arg("size"));
  module.def("copy", &copy, Released(), arg("to"), arg("source"), arg("size"), arg("threads"));
}
