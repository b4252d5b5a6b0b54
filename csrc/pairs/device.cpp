// The CUDA side of the ops over pairs that needs torch: streams and errors.
#include "pairs/device.h"

#include "pairs/device_pass.h"
#include "torch/device.h"

namespace fusedloss::pairs {

#ifdef FUSEDLOSS_CUDA
void sweep_on_device(Plan& plan, const Description& about, const at::Tensor& like) {
  const OnDevice here(like);
  const DeviceLaunch how{plan.wide, here.stream()};
  plan.run_rows = [how, &about](const Tile& tile, int64_t, int64_t) {
    check_device_error(launch_rows(tile, about.kind, how), about.name);
  };
  plan.run_columns = [how, &about](const Tile& tile, const Columns& columns, int64_t, int64_t) {
    check_device_error(launch_columns(tile, columns, how), about.name);
  };
  sweep(plan);
}
#endif

}  // namespace fusedloss::pairs
