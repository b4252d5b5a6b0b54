// Fresh CPU memory for results.
#pragma once
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fusedloss {

// Asks the kernel for huge pages: a large fresh tensor otherwise costs more in page faults than in arithmetic.
inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kHugePage = size_t(2) << 20;
  if (bytes < 2 * kHugePage) return;
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHugePage - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// A tensor of `shape`, laid out in memory like `model` where `model` has that shape and fills its memory without gaps.
inline at::Tensor empty_laid_out_like(const at::Tensor& model, c10::SymIntArrayRef shape, c10::ScalarType dtype) {
  const bool alike = model.sym_sizes() == shape && model.is_non_overlapping_and_dense();
  if (!model.is_cpu()) {
    const auto options = model.options().dtype(dtype);
    return alike ? at::empty_strided_symint(shape, model.sym_strides(), options) : at::empty_symint(shape, options);
  }
  const auto sizes = C10_AS_INTARRAYREF_SLOW(shape);
  const at::Tensor result = alike ? at::Tensor(at::detail::empty_strided_cpu(sizes, model.strides(), dtype))
                                  : at::Tensor(at::detail::empty_cpu(sizes, dtype));
  advise_huge_pages(result.mutable_data_ptr(), result.nbytes());
  return result;
}

}  // namespace fusedloss
