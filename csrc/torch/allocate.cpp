#include "torch/allocate.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/strides.h>

#include <mutex>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fusedloss {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;

#if defined(__linux__) && defined(MADV_FREE)
constexpr bool kRecycles = true;

// Memory of large gradients. Fresh pages cost more than the loss itself (16M floats: 16 ms plain, 4 ms as huge pages,
// 8 ms for the rest of a step), and a training loop frees and takes the same sizes at every step. So the last block
// that was freed is kept, marked MADV_FREE: the kernel takes its pages back whenever it needs them.
class LargeBlocks {
 public:
  static LargeBlocks& instance() {
    static LargeBlocks* blocks = new LargeBlocks;  // never destroyed: tensors may outlive static objects
    return *blocks;
  }
  void* take(size_t bytes) {
    void* data = nullptr;
    {
      // Never waits: a process forked while the lock was held must not hang.
      const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      if (lock && kept_bytes_ == bytes) data = std::exchange(kept_, nullptr);
      if (data) kept_bytes_ = 0;
    }
    if (!data) data = fresh(bytes);
    c10::profiledCPUMemoryReporter().New(data, bytes);
    return data;
  }
  void give_back(void* data, size_t bytes) {
    c10::profiledCPUMemoryReporter().Delete(data);
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock && madvise(data, bytes, MADV_FREE) == 0) {
      std::swap(kept_, data);
      std::swap(kept_bytes_, bytes);
    }
    if (data) munmap(data, bytes);
  }

 private:
  // Not of malloc's, which may have used it before, as small pages: they would stay small.
  static void* fresh(size_t bytes) {
    void* const found = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK(found != MAP_FAILED, "fusedloss: no memory for a result of ", bytes, " bytes");
    char* const start = static_cast<char*>(found);
    const size_t before = -reinterpret_cast<uintptr_t>(start) % kHugePage;
    if (before > 0) munmap(start, before);
    munmap(start + before + bytes, kHugePage - before);
    madvise(start + before, bytes, MADV_HUGEPAGE);
    return start + before;
  }

  std::mutex mutex_;
  void* kept_ = nullptr;
  size_t kept_bytes_ = 0;
};

at::Tensor large(at::IntArrayRef sizes, at::IntArrayRef strides, c10::ScalarType dtype, size_t bytes) {
  const size_t rounded = (bytes + kHugePage - 1) & ~(kHugePage - 1);
  void* data = LargeBlocks::instance().take(rounded);
  const auto release = [rounded](void* block) { LargeBlocks::instance().give_back(block, rounded); };
  return at::from_blob(data, sizes, strides, release, at::TensorOptions().dtype(dtype));
}
#else
constexpr bool kRecycles = false;
at::Tensor large(at::IntArrayRef sizes, at::IntArrayRef strides, c10::ScalarType dtype, size_t) {
  return at::detail::empty_strided_cpu(sizes, strides, dtype);
}
#endif

at::Tensor empty_cpu(at::IntArrayRef sizes, at::IntArrayRef strides, c10::ScalarType dtype) {
  const size_t bytes = c10::multiply_integers(sizes) * c10::elementSize(dtype);
  if (kRecycles && bytes >= 2 * kHugePage) return large(sizes, strides, dtype, bytes);
  return at::detail::empty_strided_cpu(sizes, strides, dtype);
}

}  // namespace

at::Tensor empty_laid_out_like(const at::Tensor& model, c10::SymIntArrayRef shape, c10::ScalarType dtype) {
  const bool alike = model.sym_sizes() == shape && model.is_non_overlapping_and_dense();
  if (!model.is_cpu()) {
    const auto options = model.options().dtype(dtype);
    return alike ? at::empty_strided_symint(shape, model.sym_strides(), options) : at::empty_symint(shape, options);
  }
  const auto sizes = C10_AS_INTARRAYREF_SLOW(shape);
  if (alike) return empty_cpu(sizes, model.strides(), dtype);
  return empty_cpu(sizes, c10::contiguous_strides(sizes), dtype);
}

void fill(const at::Tensor& scalar, double value) {
  void* data = scalar.mutable_data_ptr();
  switch (scalar.scalar_type()) {
    case at::kDouble: *static_cast<double*>(data) = value; break;
    case at::kHalf: *static_cast<at::Half*>(data) = at::Half(float(value)); break;
    case at::kBFloat16: *static_cast<at::BFloat16*>(data) = at::BFloat16(float(value)); break;
    default: *static_cast<float*>(data) = float(value);
  }
}

}  // namespace fusedloss
