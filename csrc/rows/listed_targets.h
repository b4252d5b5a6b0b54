// The targets of losses that take lists of the classes that are right: how often each class is in a row's list.
#pragma once
#include <algorithm>
#include <vector>

#include "core/lanes.h"
#include "core/runs.h"
#include "rows/kernel.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

// Calls use(class, row of the part) for all that is listed before a -1.
template <class Use>
void for_each_listed(const Pass& pass, const Part& part, const Use& use) {
  const ClassView& lists = pass.operands[1];
  for_each_run(pass, lists, part, [&](const Run& run) {
    visit(lists.dtype, [&](auto element) {
      const auto* const data = static_cast<const decltype(element)*>(lists.data) + run.offset;
      for (int64_t i = 0; i < run.length; ++i)
        for (int64_t k = 0; k < pass.classes; ++k) {
          const auto listed = convert<int64_t>(data[i * run.stride + k * lists.step]);
          if (listed == -1) break;
          use(listed, run.at + i);
        }
    });
  });
}

// Whether all that is listed in some rows is a class.
inline bool lists_in_range(const Pass& pass, int64_t first, int64_t rows) {
  Part part;
  find_stretch(pass, first, rows, part);
  bool in_range = true;
  for_each_listed(pass, part, [&](int64_t c, int64_t) { in_range &= uint64_t(c) < uint64_t(pass.classes); });
  return in_range;
}

// As a tile of one row, or of one in each lane.
template <class T, bool along>
class ListedTargets {
 public:
  explicit ListedTargets(const Pass& pass) : pass_(pass) {
    if (pass.takes_lists) counts_.resize(pass.classes * kLanes);
  }

  void read(const Part& part, Tile<T>& tile) {
    for (const int64_t c : listed_) std::fill_n(counts_.data() + c * kLanes, kLanes, T(0));
    listed_.clear();
    for_each_listed(pass_, part, [&](int64_t c, int64_t row) {
      T* const of_class = counts_.data() + c * kLanes;
      if (std::all_of(of_class, of_class + kLanes, [](T count) { return count == 0; })) listed_.push_back(c);
      of_class[row] += 1;
    });
    // So that what a row's terms come to does not depend on the rows beside it.
    std::sort(listed_.begin(), listed_.end());
    tile.operands[1] = {counts_.data(), kLanes};
    tile.listed = listed_.data();
    tile.listed_count = int64_t(listed_.size());
  }

 private:
  static constexpr int kLanes = along ? 1 : Lanes<T>::size;

  const Pass& pass_;
  std::vector<T> counts_;  // 0 but for the classes that are listed
  std::vector<int64_t> listed_;
};

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
