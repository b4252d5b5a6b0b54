// From the distances of one anchor to the triplets that count, and what the loss depends on. Triplets are not gone
// through one by one where they are many: the positives are ranked, and each negative finds its place among them.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/some_lanes.h"
#include "core/workspace.h"
#include "triplets/formula.h"
#include "triplets/kernel.h"

namespace fusedloss::triplets::inline FUSEDLOSS_SET {

// The distances of an anchor to all vectors, and the derivatives by them, which are 0 where nothing is written.
template <class T>
struct AnchorRow {
  int32_t anchor;
  T* distances;  // with room for whole registers
  T* slopes;
};

struct Mined {
  double value = 0;
  double above = 0;  // how many triplets are above 0
};

template <class T>
class Miner {
 public:
  Miner(const Pass& pass, Workspace& workspace)
      : pass_(pass),
        groups_(pass.groups),
        hidden_(workspace.take<T>(groups_.most_positives + 1)),
        ranked_(workspace.take<Ranked>(groups_.most_positives)),
        nearest_(workspace.take<int32_t>(groups_.most_positives)),
        falls_(workspace.take<Falls>(groups_.most_positives)) {}

  Mined mine(const AnchorRow<T>& row) {
    own_ = groups_.group[row.anchor];
    members_ = groups_.members + groups_.first[own_];
    member_count_ = groups_.first[own_ + 1] - groups_.first[own_];
    switch (pass_.mining) {
      case Mining::batch_hard: return batch_hard(row);
      case Mining::semi_hard: return semi_hard(row);
      default: return all(row);
    }
  }

 private:
  using V = Lanes<T>;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

  // A positive, and up to where the loss asks for negatives.
  struct Ranked {
    double reach;
    int32_t index;
    bool operator<(const Ranked& other) const { return reach < other.reach; }
  };
  // Negatives that are within the reach of a positive and not of the one before.
  struct Falls {
    double count, sum;
  };

  void add_triplet(const AnchorRow<T>& row, int32_t positive, int32_t negative, Mined& to) const {
    const double f = unbounded(double(row.distances[positive]), double(row.distances[negative]), pass_.margin);
    if (!counts(f)) return;
    to.value += f;
    to.above += 1;
    row.slopes[positive] += 1;
    row.slopes[negative] -= 1;
  }

  // ---- batch_hard ---------------------------------------------------------------------------------------------------

  Mined batch_hard(const AnchorRow<T>& row) {
    Mined mined;
    const int32_t positive = farthest_positive(row);
    hide_members(row.distances);
    const int32_t negative = nearest_unhidden(row.distances);
    show_members(row.distances);
    add_triplet(row, positive, negative, mined);
    return mined;
  }
  static bool farther(T distance, T than) { return than == than && !(distance <= than); }

  int32_t farthest_positive(const AnchorRow<T>& row) const {
    int32_t found = -1;
    T most = -1;
    for (int64_t k = 0; k < member_count_; ++k) {
      const int32_t member = members_[k];
      if (member == row.anchor || !farther(row.distances[member], most)) continue;
      most = row.distances[member];
      found = member;
    }
    return found;
  }
  // What is not to be found is infinitely far.
  void hide_members(T* distances) {
    for (int64_t k = 0; k < member_count_; ++k) hidden_[k] = std::exchange(distances[members_[k]], kInfinity);
    std::fill(distances + pass_.count, distances + (pass_.count + V::size - 1) / V::size * V::size, kInfinity);
  }
  void show_members(T* distances) const {
    for (int64_t k = 0; k < member_count_; ++k) distances[members_[k]] = hidden_[k];
  }

  // A register's lanes look for theirs, each for the first.
  int32_t nearest_unhidden(const T* distances) const {
    typename V::Bits number = each_lane_number<T, sizeof(V)>(), where = number - number - 1;
    V least = kInfinity;
    typename V::Mask is_nan = {number - number};
    for (int64_t n = 0; n < pass_.count; n += V::size) {
      const V d = V::load(distances + n);
      const auto nearer = d < least;
      least = select(nearer, d, least);
      where = nearer.bits ? number : where;
      is_nan = is_nan | !(d == d);
      number = number + V::size;
    }
    int64_t found = -1;
    for (int lane = 0; lane < V::size; ++lane) {
      if (where[lane] < 0) continue;
      const T d = least.raw[lane], best = found < 0 ? kInfinity : distances[found];
      if (d < best || (d == best && where[lane] < found)) found = where[lane];
    }
    return found < 0 || any(is_nan) ? first_unusual(distances) : int32_t(found);
  }
  // The first negative that is NaN, or, if none is and all are infinitely far, the first.
  int32_t first_unusual(const T* distances) const {
    int32_t first = -1;
    for (int32_t n = 0; n < pass_.count; ++n) {
      if (groups_.group[n] == own_) continue;
      if (distances[n] != distances[n]) return n;
      if (first < 0) first = n;
    }
    return first;
  }

  // ---- positives in order -------------------------------------------------------------------------------------------

  // By distance, each asking for negatives up to so much farther. Those that ask without a limit, or are NaN, are last.
  void rank_positives(const AnchorRow<T>& row, double farther) {
    positives_ = limited_ = 0;
    for (int64_t k = 0; k < member_count_; ++k) {
      const int32_t member = members_[k];
      if (member == row.anchor) continue;
      const double reach = double(row.distances[member]) + farther;
      const bool ends = reach < kInfinity;
      limited_ += ends;
      ranked_[positives_++] = {ends ? reach : double(kInfinity), member};
    }
    std::sort(ranked_, ranked_ + positives_);
  }
  // How many of them come before the first for which `comes_before` does not hold.
  template <class ComesBefore>
  int64_t place(ComesBefore comes_before) const {
    if (limited_ == 0) return 0;
    int64_t first = 0;
    for (int64_t rest = limited_; rest > 1; rest -= rest / 2)
      first = comes_before(ranked_[first + rest / 2 - 1].reach) ? first + rest / 2 : first;
    return first + comes_before(ranked_[first].reach);
  }
  template <class Use>
  void each_negative(Use use) const {
    for (int32_t n = 0; n < pass_.count; ++n)
      if (groups_.group[n] != own_) use(n);
  }

  // ---- semi_hard ----------------------------------------------------------------------------------------------------

  // A negative is nearest to be farther than the positive just below it, and a candidate for all before that.
  Mined semi_hard(const AnchorRow<T>& row) {
    rank_positives(row, 0);
    std::fill_n(nearest_, positives_, -1);
    int32_t farthest = -1;
    T most = -1;
    each_negative([&](int32_t n) {
      const T d = row.distances[n];
      if (farther(d, most)) {
        most = d;
        farthest = n;
      }
      const int64_t below = place([&](double reach) { return reach < double(d); });
      if (below == 0) return;
      int32_t& nearest = nearest_[below - 1];
      if (nearest < 0 || d < row.distances[nearest]) nearest = n;
    });
    Mined mined;
    int32_t negative = farthest;
    for (int64_t k = positives_ - 1; k >= 0; --k) {
      if (nearest_[k] >= 0 && most == most) negative = nearest_[k];
      add_triplet(row, ranked_[k].index, negative, mined);
    }
    return mined;
  }

  // ---- all ----------------------------------------------------------------------------------------------------------

  // A positive at d has a loss with all negatives within d + m: their number times d + m, less the sum of theirs.
  Mined all(const AnchorRow<T>& row) {
    rank_positives(row, pass_.margin);
    std::fill_n(falls_, positives_, Falls{0, 0});
    each_negative([&](int32_t n) {
      const T d = row.distances[n];
      const int64_t out_of_reach = place([&](double reach) { return reach <= double(d); });
      if (out_of_reach == positives_) return;
      row.slopes[n] = -T(positives_ - out_of_reach);
      falls_[out_of_reach].count += 1;
      falls_[out_of_reach].sum += d;
    });
    Mined mined;
    Falls within{0, 0};
    for (int64_t k = 0; k < positives_; ++k) {
      within = {within.count + falls_[k].count, within.sum + falls_[k].sum};
      if (within.count == 0) continue;
      const int32_t positive = ranked_[k].index;
      row.slopes[positive] = T(within.count);
      mined.value += within.count * (double(row.distances[positive]) + pass_.margin) - within.sum;
      mined.above += within.count;
    }
    return mined;
  }

  const Pass& pass_;
  const Groups& groups_;
  T* const hidden_;
  Ranked* const ranked_;
  int32_t* const nearest_;
  Falls* const falls_;
  // Of the anchor that is being mined.
  int32_t own_ = 0;
  const int32_t* members_ = nullptr;
  int64_t member_count_ = 0, positives_ = 0, limited_ = 0;
};

}  // namespace fusedloss::triplets::inline FUSEDLOSS_SET
