// Pairs of vectors whose distance the loss depends on, and the gradient that they make (triplets/formula.h).
#pragma once
#include "triplets/mining.h"
#include "triplets/vectors.h"

namespace fusedloss::triplets::inline FUSEDLOSS_SET {

// Lists of pairs, one of which has the others of one vector in order.
template <class T>
struct Pairs {
  Pairs(int64_t room, bool turning, Workspace& workspace)
      : others(workspace.take<int32_t>(room)),
        weights(workspace.take<T>(room)),
        turns(turning ? workspace.take<T>(room) : nullptr) {}

  void copy(int64_t from, const Pairs& source, int64_t to, int32_t other) const {
    others[to] = other;
    weights[to] = source.weights[from];
    if (turns) turns[to] = source.turns[from];
  }

  int32_t* const others;
  T* const weights;
  T* const turns;  // what multiplies x_ij where v_ij is multiplied by the weight
};

// The rows of a tile: slopes of an anchor become its list.
template <class T>
int64_t collect(const Pass& pass, const AnchorRow<T>& row, double factor, const Pairs<T>& pairs, int64_t first) {
  using V = Lanes<T>;
  int64_t count = 0;
  for (int64_t n = 0; n < pass.count; n += V::size) {
    const V all = V::load(row.slopes + n);
    if (!any(!(all == V(0)))) continue;
    V(0).store(row.slopes + n);
    for (int lane = 0; lane < V::size; ++lane) {
      const double weight = weight_of(double(all.raw[lane]), double(row.distances[n + lane]), pass.squared);
      if (weight == 0) continue;
      pairs.others[first + count] = int32_t(n + lane);
      pairs.weights[first + count] = T(weight * factor);
      ++count;
    }
  }
  return count;
}

// Adds to `slope` the sum over a list of weight (vectors[n] - vectors[other]).
template <class T>
void pull(const T* vectors, int64_t padded, int64_t n, const int32_t* others, const T* weights, int64_t count,
          double* slope) {
  using V = Lanes<T>;
  constexpr int kAtOnce = Vectors<T>::kAtOnce;
  constexpr int64_t kShort = 128;  // float sums of so many terms are added up in float64
  for (int64_t first = 0; first < padded; first += kAtOnce * V::size) {
    V own[kAtOnce];
#pragma GCC unroll 4
    for (int r = 0; r < kAtOnce; ++r) own[r] = V::load(vectors + n * padded + first + r * V::size);
    for (int64_t begin = 0; begin < count; begin += kShort) {
      V sum[kAtOnce];
#pragma GCC unroll 4
      for (int r = 0; r < kAtOnce; ++r) sum[r] = 0;
      const int64_t end = std::min(begin + kShort, count);
      for (int64_t k = begin; k < end; ++k) {
        const T* const other = vectors + others[k] * padded + first;
        const V weight = V(double(weights[k]));
#pragma GCC unroll 4
        for (int r = 0; r < kAtOnce; ++r) sum[r] = sum[r] + weight * (own[r] - V::load(other + r * V::size));
      }
      for (int r = 0; r < kAtOnce; ++r)
        for (int lane = 0; lane < V::size; ++lane) slope[first + r * V::size + lane] += double(sum[r].raw[lane]);
    }
  }
}

// The pairs of a block of anchors, in memory that threads share.
template <class T>
class BlockPairs {
 public:
  BlockPairs(const Pass& pass, const Vectors<T>& vectors, Workspace& workspace)
      : pass_(pass),
        vectors_(vectors),
        of_anchors_(kept(pass) ? room(pass) : 0, pass.moving && pass.gradient.data, workspace),
        of_others_(pass.gradient.data ? room(pass) : 0, pass.moving && pass.gradient.data, workspace),
        counts_(workspace.take<int64_t>(kept(pass) ? pass.block : 0)),
        ends_(workspace.take<int64_t>(pass.gradient.data ? pass.count : 0)) {}

  static bool kept(const Pass& pass) { return pass.gradient.data || pass.moving; }

  // Makes an anchor's list, the one of this number in the block, and gives the anchor its part of the gradient.
  void take(int64_t number, const AnchorRow<T>& row, Mined& mined) {
    const int64_t first = number * pass_.groups.most_pairs;
    const double factor = pass_.factors ? pass_.factors[row.anchor] : 1;
    const int64_t count = counts_[number] = collect(pass_, row, factor, of_anchors_, first);
    if (pass_.moving) mined.value = move(first, count, row);
    if (pass_.gradient.data) pull_all(row.anchor, of_anchors_, first, count);
  }

  // The other way round, for the vectors of a range: lists of anchors, in order.
  void give(const Block& block, int64_t begin, int64_t end) {
    std::fill(ends_ + begin, ends_ + end, 0);
    each_pair(block, begin, end, [&](int64_t, int64_t k) { ++ends_[of_anchors_.others[k]]; });
    const int64_t start = pairs_before(block, begin);
    for (int64_t n = begin, next = start; n < end; ++n) next += std::exchange(ends_[n], next);
    each_pair(block, begin, end, [&](int64_t number, int64_t k) {
      const int32_t anchor = pass_.groups.anchors[block.first + number];
      of_others_.copy(k, of_anchors_, ends_[of_anchors_.others[k]]++, anchor);
    });
    for (int64_t n = begin, first = start; n < end; first = ends_[n++])
      pull_all(n, of_others_, first, ends_[n] - first);
  }

 private:
  static int64_t room(const Pass& pass) { return pass.block * pass.groups.most_pairs; }
  const int32_t* list(int64_t number) const { return of_anchors_.others + number * pass_.groups.most_pairs; }

  // Calls use(number of the anchor, place of the pair) for all pairs with others of a range.
  template <class Use>
  void each_pair(const Block& block, int64_t begin, int64_t end, Use use) const {
    for (int64_t number = 0; number < block.count; ++number) {
      const int32_t* const stop = list(number) + counts_[number];
      for (const int32_t* at = std::lower_bound(list(number), stop, begin); at != stop && *at < end; ++at)
        use(number, at - of_anchors_.others);
    }
  }
  int64_t pairs_before(const Block& block, int64_t begin) const {
    int64_t before = 0;
    for (int64_t number = 0; number < block.count; ++number)
      before += std::lower_bound(list(number), list(number) + counts_[number], begin) - list(number);
    return before;
  }

  // How the sum of the pairs' distances, each times its derivative, moves along the direction.
  double move(int64_t first, int64_t count, const AnchorRow<T>& row) {
    double sum = 0;
    for (int64_t k = first; k < first + count; ++k) {
      const int32_t other = of_anchors_.others[k];
      const double along = dot_of_differences(row.anchor, other), d = double(row.distances[other]);
      const double weight = double(of_anchors_.weights[k]);
      if (of_anchors_.turns) of_anchors_.turns[k] = T(turn_of(weight, along, d, pass_.squared));
      sum += weight * along;
    }
    return sum;
  }
  double dot_of_differences(int64_t i, int64_t j) const {
    const T *const x = vectors_.of(i), *const y = vectors_.of(j), *const v = vectors_.moved(i),
                   *const w = vectors_.moved(j);
    double sum = 0;
    for (int64_t first = 0; first < vectors_.padded(); first += Vectors<T>::kAtOnce * V::size) {
      V part = 0;
      for (int64_t d = first; d < first + Vectors<T>::kAtOnce * V::size; d += V::size)
        part = part + (V::load(x + d) - V::load(y + d)) * (V::load(v + d) - V::load(w + d));
      for (int lane = 0; lane < V::size; ++lane) sum += double(part.raw[lane]);
    }
    return sum;
  }

  void pull_all(int64_t n, const Pairs<T>& pairs, int64_t first, int64_t count) const {
    const auto add = [&](const T* vectors, const T* weights, double* slope) {
      pull(vectors, vectors_.padded(), n, pairs.others + first, weights + first, count, slope);
    };
    if (!pass_.moving) return add(vectors_.all(), pairs.weights, vectors_.slope(n));
    add(vectors_.all_moved(), pairs.weights, vectors_.slope(n));
    if (!pass_.squared) add(vectors_.all(), pairs.turns, vectors_.slope(n));
    if (vectors_.needs_still_slopes()) add(vectors_.all(), pairs.weights, vectors_.still_slope(n));
  }

  using V = Lanes<T>;
  const Pass& pass_;
  const Vectors<T>& vectors_;
  const Pairs<T> of_anchors_, of_others_;
  int64_t* const counts_;  // of the anchors' lists
  int64_t* const ends_;    // of the others' lists, which lie one behind another
};

}  // namespace fusedloss::triplets::inline FUSEDLOSS_SET
