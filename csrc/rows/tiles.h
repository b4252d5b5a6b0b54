// How the rows of a pass are cut into tiles and blocks.
#pragma once
#include "rows/kernel.h"

namespace fusedloss::rows {

// Both follow from the pass alone: sums come out the same to the bit for every number of threads.
class Tiling {
 public:
  // `lanes` is how many rows a register holds.
  Tiling(const Pass& pass, int lanes)
      : count_(pass.count), in_block_(along(pass) || pass.reads_label_only ? 1 : lanes) {
    const int64_t in_tile = pass.classes * in_block_;
    if (in_tile < kElementsInBlock) in_block_ *= kElementsInBlock / (in_tile + 1) + 1;
    elements_in_block_ = pass.classes * in_block_;
  }

  // Whether a tile is one row, whose classes are taken many at once: where they lie one after another, and are so many
  // that what is done once for a row does not matter.
  static bool along(const Pass& pass) { return pass.operands[0].step == 1 && pass.classes > pass.few_classes; }

  int64_t blocks() const { return (count_ + in_block_ - 1) / in_block_; }
  // Below this a second thread costs more than it brings.
  int64_t blocks_for_a_thread() const { return 2 * kElementsInBlock / elements_in_block_ + 1; }
  int64_t begin(int64_t block) const { return block * in_block_; }
  int64_t end(int64_t block) const { return (block + 1) * in_block_ < count_ ? (block + 1) * in_block_ : count_; }

 private:
  static constexpr int64_t kElementsInBlock = 1 << 14;

  int64_t count_, in_block_, elements_in_block_;  // in_block_: rows
};

}  // namespace fusedloss::rows
