// The CUDA kernel that all losses over rows share.
#pragma once
#include "core/sum.h"
#include "rows/cuda.cuh"

namespace fusedloss::rows {
inline namespace FUSEDLOSS_SET {

__global__ void __launch_bounds__(kDeviceThreads, device_blocks(false, false, false))
    count_rows(const __grid_constant__ DeviceRows rows, bool weighted) {
  Sum<double> sum;
  const uint32_t step = gridDim.x * kDeviceThreads;
  for (uint32_t row = blockIdx.x * kDeviceThreads + threadIdx.x; row < rows.count; row += step) {
    int64_t label = 0;
    const Label kind = label_of(rows, row, label);
    if (kind == Label::ignored || kind == Label::no_class) continue;
    double weight = weighted ? weight_of<double>(rows, row) : 1;
    if (weighted && kind == Label::valid && rows.weight.data && weight != 0) weight *= read<double>(rows.weight, label);
    sum.add(weight);
  }
  const double of_block = sum_of_block<kDeviceThreads>(value_of(sum));
  if (threadIdx.x == 0) rows.partials[blockIdx.x] = of_block;
}

}  // namespace FUSEDLOSS_SET

int launch_count(const DeviceRows& rows, bool weighted, const DeviceLaunch& how) {
  return launch(count_rows, dim3(how.blocks), dim3(kDeviceThreads), static_cast<cudaStream_t>(how.stream), rows,
                weighted);
}

}  // namespace fusedloss::rows
