// What the formulas of the rows family are written against, for all machines.
//
// A loss goes over the classes of a row a few times: first in stages, each of which adds up some terms or takes their
// largest; then, if gradients are wanted, once more for the slope at every class. A formula has
//
//   dense                         whether the target is a number for every class, or a label
//   kept                          how many numbers of a class it keeps; if none, it need not be there
//   stages                        for each stage how terms are combined, and how many there are
//   Row<V>                        what it knows of a row: RowStart, and what the stages have found
//   term<stage>(row, at)          the terms of the class `at`
//   close<stage>(row, terms)      takes in the combined terms
//   skips<stage>(row)             whether the row has what it needs without this stage; if never, it need not be there
//   value(row), slopes(row, at)   the loss of the row, and its derivative by the operands at a class
//
// and reads from `at`, where it needs them, input(), target(), weight() and is_label(); at.each_class(with_target, use)
// calls use(input, target, holds) for the classes of the row whose target is not 0, or is 0, where that holds. What it
// gives to at.keep<k>(x), which returns x, it gets back from at.kept<k>(compute) when it comes to the class again; or
// compute() instead, where nothing can be kept. at.wants(k) says whether the slope by operand k is asked for. V is a
// lane or a register of lanes: of classes of one row during a stage, of rows in between. On dual numbers the same
// functions give derivatives along a direction: no loss writes a second derivative by hand. A loss gives its formula,
// or the one of several that is meant, by with_formula<dense>(parameters, classes, use), which returns use(formula).
#pragma once
#include "core/dual.h"
#include "core/loss.h"
#include "core/sum.h"
#include "rows/kernel.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

enum class Combine { largest, sum };

struct Stage {
  Combine combine;
  int terms;
};

template <class V, int n>
struct Terms {
  V of[n];
};

// Derivatives by input and target.
template <class V>
struct Slopes {
  V by_input, by_target;
};

// What a formula knows of a row from the start.
template <class V>
struct RowStart {
  V classes;        // how many there are
  V input, weight;  // of the class that is the label, where there is one
};

template <class V>
FUSEDLOSS_INLINE V larger(V a, V b) {
  return select(b > a, b, a);
}
// The largest value of a stage only shifts what follows, whose derivative it does not change.
template <class V>
FUSEDLOSS_INLINE Dual<V> larger(Dual<V> a, Dual<V> b) {
  return {larger(a.value, b.value), V(0)};
}

template <Stage stage, class V>
FUSEDLOSS_INLINE Terms<V, stage.terms> empty() {
  Terms<V, stage.terms> terms;
  for (V& term : terms.of) term = stage.combine == Combine::sum ? 0.0 : -__builtin_inf();
  return terms;
}
template <Stage stage, class V>
FUSEDLOSS_INLINE void combine(Terms<V, stage.terms>& into, const Terms<V, stage.terms>& terms) {
  for (int k = 0; k < stage.terms; ++k)
    into.of[k] = stage.combine == Combine::sum ? into.of[k] + terms.of[k] : larger(into.of[k], terms.of[k]);
}

// A sum as one number. An infinite one has lost nothing that is known: inf - inf.
template <class V>
FUSEDLOSS_INLINE V together(V total, V lost) {
  return select(lost == lost, total + lost, total);
}
template <class V>
FUSEDLOSS_INLINE V together(const Sum<V>& sum) {
  if constexpr (is_dual<V>)
    return {together(sum.total.value, sum.lost.value), together(sum.total.dot, sum.lost.dot)};
  else
    return together(sum.total, sum.lost);
}

template <int stage, class Formula, class Row>
FUSEDLOSS_INLINE bool skips(const Formula& formula, const Row& row) {
  if constexpr (requires { formula.template skips<stage>(row); })
    return formula.template skips<stage>(row);
  else
    return false;
}

// x without its value: what is left of it is how it changes.
template <class V>
FUSEDLOSS_INLINE V change_of(V) {
  return 0;
}
template <class V>
FUSEDLOSS_INLINE Dual<V> change_of(Dual<V> x) {
  return {V(0), x.dot};
}

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
