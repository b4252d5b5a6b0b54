// Connectionist temporal classification: -log of the probability that a sequence of T frames spells the labels
// y_1..y_L.
//
//   loss = -log sum over alignments of prod_t p_t(class of the alignment at t)
//
// An alignment stays at a label or at one of the L + 1 blanks around them for some frames each. It may leave out a
// blank between different labels; every label must be met. Place k has the blank before label k, counted from 0, and
// label k: with a_t the sum over the alignments of the first t frames that end there, b_t that over what can follow,
//
//   a_t(blank k) = p_t(blank) (a(blank k) + a(label k-1))                                   where a is a_{t-1}
//   a_t(label k) = p_t(y_k) (a(label k) + a(blank k) + [y_k != y_{k-1}] a(label k-1))
//   b_t(blank k) = b(blank k) + b(label k)                                                  where b is p_{t+1} b_{t+1}
//   b_t(label k) = b(label k) + b(blank k+1) + [y_{k+1} != y_k] b(label k+1)
//
// The posterior of a state at t is its share in a_t b_t, and d loss / d log p_t(c) = -(posterior of the states of c).
// From logits, d loss / dx = softmax(x) - posterior.
//
// Source: Graves, Fernandez, Gomez, Schmidhuber, "Connectionist Temporal Classification", ICML 2006.
#pragma once
#include "core/scaled.h"
#include "lattice/kernel.h"

namespace fusedloss::lattice::inline FUSEDLOSS_SET {

struct CtcLoss {
  static constexpr Description about{.name = "ctc_loss"};

  // Whether so many frames can spell the labels: a blank must stand between two that are the same.
  FUSEDLOSS_INLINE static bool fits(const int32_t* labels, int64_t count, int64_t frames) {
    int64_t needed = count;
    for (int64_t k = 1; k < count; ++k) needed += labels[k] == labels[k - 1];
    return needed <= frames;
  }

  // The states of a place, or of as many as there are lanes.
  template <class Number>
  struct States {
    Number blank, label;
  };

  // The sums above, without the frame's own p. `may_skip` is 0 where the blank before the label may be left out, or
  // kNothing: an exponent.
  template <class V, bool moving>
  FUSEDLOSS_INLINE static States<Scaled<V, moving>> before(const States<Scaled<V, moving>>& here,
                                                           const Scaled<V, moving>& label_before, V may_skip) {
    return {sum(here.blank, label_before), sum(here.label, here.blank, skipping(label_before, may_skip))};
  }
  template <class V, bool moving>
  FUSEDLOSS_INLINE static States<Scaled<V, moving>> after(const States<Scaled<V, moving>>& here,
                                                          const States<Scaled<V, moving>>& next, V next_may_skip) {
    return {sum(here.blank, here.label), sum(here.label, next.blank, skipping(next.label, next_may_skip))};
  }

 private:
  template <class V, bool moving>
  FUSEDLOSS_INLINE static Scaled<V, moving> skipping(Scaled<V, moving> label, V may_skip) {
    label.exponent = label.exponent + may_skip;
    return label;
  }
};

}  // namespace fusedloss::lattice::inline FUSEDLOSS_SET
