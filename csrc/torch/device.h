// What the CUDA side of all families needs of torch: where tensors are, streams, errors.
#pragma once
#include <ATen/core/Tensor.h>

#ifdef FUSEDLOSS_CUDA
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include "core/device.h"
#ifndef FUSEDLOSS_EMULATED
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#endif
#endif

namespace fusedloss {

// Whether there are kernels for CUDA.
#ifdef FUSEDLOSS_CUDA
inline constexpr bool kHasDevice = true;
#else
inline constexpr bool kHasDevice = false;
#endif

// Whether the CUDA kernels are what computes on this tensor. In the emulated build that is so for CPU tensors.
inline bool on_device([[maybe_unused]] const at::Tensor& tensor) {
#ifdef FUSEDLOSS_EMULATED
  return tensor.is_cpu();
#else
  return kHasDevice && tensor.is_cuda();
#endif
}

#ifdef FUSEDLOSS_CUDA
inline void check_device_error(int error, const char* name) {
  TORCH_CHECK(error == 0, name, ": CUDA: ", describe_device_error(error));
}

// Makes the tensor's device the current one while it lives, and knows the stream that torch uses there.
#ifdef FUSEDLOSS_EMULATED
struct OnDevice {
  explicit OnDevice(const at::Tensor&) {}
  void* stream() const { return nullptr; }
};
#else
class OnDevice {
 public:
  explicit OnDevice(const at::Tensor& tensor) : guard_(tensor.device()) {}
  void* stream() const {
    const at::Device device = guard_.current_device();
    return c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
  }

 private:
  c10::DeviceGuard guard_;
};
#endif

// How many blocks of kDeviceThreads to launch for so many threads: at most those that run at once, of which each
// multiprocessor takes `together`.
int blocks_for(int64_t threads, int together, const char* name);

// A tensor as kernels read or write it by offsets; absent if it is not defined.
Numbers numbers_of(const at::Tensor& tensor);

// Memory on the device that lasts until the kernels that were launched are done: it goes back to torch, whose streams
// keep the order.
class DeviceMemory {
 public:
  explicit DeviceMemory(const at::Tensor& like) : options_(like.options().dtype(at::kByte)) {}

  void* of(int64_t count, int64_t bytes) {
    all_.push_back(at::empty({std::max<int64_t>(count, 1) * bytes}, options_));
    return all_.back().mutable_data_ptr();
  }
  template <class T>
  const T* with(std::vector<T>& numbers) {
    const at::Tensor here = at::from_blob(numbers.data(), {int64_t(numbers.size() * sizeof(T))}, at::kByte);
    // The driver takes what lies in pageable memory before it returns: the host need not wait for the stream.
    all_.push_back(here.to(options_, /*non_blocking=*/true, /*copy=*/true));
    return static_cast<const T*>(all_.back().const_data_ptr());
  }

 private:
  const at::TensorOptions options_;
  std::vector<at::Tensor> all_;
};
#endif

// Multiplies a dense float32 or float64 tensor on a device, in place, by a tensor of one number.
void rescale_on_device(const at::Tensor& tensor, const at::Tensor& factor);

}  // namespace fusedloss
