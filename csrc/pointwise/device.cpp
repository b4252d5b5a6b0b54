// The CUDA side of the pointwise ops that needs torch: streams, scratch memory, errors.
#ifdef FUSEDLOSS_CUDA
#include <ATen/ops/empty.h>
#include <c10/util/SmallVector.h>

#include "pointwise/device_pass.h"
#include "pointwise/pieces.h"

namespace fusedloss::pointwise {

void run_on_device(const Loss& loss, DevicePass& pass, Mode mode, int operands, bool wide, const at::Tensor& like) {
  const char* name = loss.about->name;
  if (pass.count == 0 && !pass.sum.data) return;
  if (mode == Mode::value_and_gradient && pass.value.data) {
    // Nobody trains like that: no kernel writes both.
    run_on_device(loss, pass, Mode::value, operands, wide, like);
    return run_on_device(loss, pass, Mode::gradient, operands, wide, like);
  }
  const OnDevice device(like);
  const int blocks = blocks_for(pass.count, kBlocksTogether, name);
  const DeviceLaunch how{mode, operands, wide, blocks, device.stream()};
  c10::SmallVector<Piece, 1> pieces;
  for_each_piece(pass, [&](const Piece& piece) { pieces.push_back(piece); });
  at::Tensor partials;
  double* next = nullptr;
  if (pass.sum.data) {
    partials = at::empty({int64_t(pieces.size()) * how.blocks}, like.options().dtype(at::kDouble));
    next = partials.mutable_data_ptr<double>();
  }
  for (Piece& piece : pieces) {
    piece.partials = next;
    check_device_error(loss.device(piece, how), name);
    if (next) next += how.blocks;
  }
  if (pass.sum.data)
    check_device_error(launch_finish(partials.const_data_ptr<double>(), int(partials.numel()), numbers_at(pass.sum),
                                     pass.denominator, pass.divisor, /*never_zero=*/false, how.stream),
                       name);
}

}  // namespace fusedloss::pointwise
#endif
