// The tile functions of a rows loss on the CPU: its formula over registers of lanes, which are classes of one row, or
// one class of as many rows. Compiled once for every loss and instruction set, by files that CMake writes.
#pragma once
#include <iterator>
#include <type_traits>
#include <utility>

#include "core/some_lanes.h"
#include "core/stream.h"
#include "core/sum.h"
#include "rows/formula.h"

namespace fusedloss::rows::inline FUSEDLOSS_SET {

// Where a register of a tile is: one class of the row in every lane, or classes of one row from `first` on.
template <class T, bool across>
struct Place {
  using V = Lanes<T>;
  using Int = typename BitsOf<T>::type;

  const Tile<T>& tile;
  typename V::Bits labels;  // of every lane's row
  int64_t first;
  int64_t count;  // lanes that are classes; V::size but at a row's end

  FUSEDLOSS_INLINE V load(const T* data, int64_t pitch) const {
    if constexpr (across) return V::load(data + first * pitch);
    return count == V::size ? V::load(data + first) : load_first<V>(data + first, count);
  }
  FUSEDLOSS_INLINE void store(T* data, int64_t pitch, V x) const {
    if constexpr (across) return x.store(data + first * pitch);
    if (count == V::size) return x.store(data + first);
    store_first(x, data + first, count);
  }
  FUSEDLOSS_INLINE V operand(int k) const { return load(tile.operands[k].data, tile.operands[k].pitch); }
  FUSEDLOSS_INLINE V tangent(int k) const {
    return tile.tangents[k].data ? load(tile.tangents[k].data, tile.tangents[k].pitch) : V(0);
  }
  // A class of the row in every lane, wherever this place is.
  FUSEDLOSS_INLINE V everywhere(const typename Tile<T>::template Block<const T>& block, int64_t c) const {
    if constexpr (across) return V::load(block.data + c * block.pitch);
    return double(block.data[c]);
  }
  FUSEDLOSS_INLINE V weight() const {
    if (usual(!tile.weight)) return 1;
    if constexpr (across) return double(tile.weight[first]);
    return load(tile.weight, 0);
  }
  FUSEDLOSS_INLINE bool wants(int k) const {
    return k == 0 ? usual(tile.gradients[0].data) : seldom(tile.gradients[k].data);
  }
  FUSEDLOSS_INLINE typename V::Mask is_label() const {
    if constexpr (across) return {labels == Int(first)};
    return {labels - Int(first) == each_lane_number<T, sizeof(V)>()};
  }
};

// What a formula reads at a place; V is a register, or a dual number of two.
template <class Formula, class V, class Where>
struct ClassAt {
  const Where& place;

  FUSEDLOSS_INLINE V input() const { return operand(0); }
  FUSEDLOSS_INLINE V target() const {
    if constexpr (Formula::dense)
      return operand(1);
    else
      return select(is_label(), V(1), V(0));
  }
  FUSEDLOSS_INLINE V weight() const {
    if constexpr (is_dual<V>)
      return {place.weight(), 0};
    else
      return place.weight();
  }
  FUSEDLOSS_INLINE auto is_label() const { return place.is_label(); }
  FUSEDLOSS_INLINE bool wants(int k) const { return place.wants(k); }
  template <int k>
  FUSEDLOSS_INLINE V keep(V x) const {
    if constexpr (!is_dual<V>)
      if (const auto& kept = place.tile.kept[k]; usual(kept.data)) place.store(kept.data, kept.pitch, x);
    return x;
  }
  template <int k, class Compute>
  FUSEDLOSS_INLINE V kept(Compute compute) const {
    if constexpr (!is_dual<V>)
      if (const auto& kept = place.tile.kept[k]; usual(kept.data)) return place.load(kept.data, kept.pitch);
    return compute();
  }

  template <class Use>
  FUSEDLOSS_INLINE void each_class(bool with_target, Use use) const {
    for (int64_t i = 0; i < (with_target ? place.tile.listed_count : place.tile.classes); ++i) {
      const int64_t c = with_target ? place.tile.listed[i] : i;
      const V target = operand_of(1, c);
      const auto absent = target == V(0);
      use(operand_of(0, c), target, with_target ? !absent : absent);
    }
  }

 private:
  FUSEDLOSS_INLINE V operand_of(int k, int64_t c) const {
    const auto value = place.everywhere(place.tile.operands[k], c);
    if constexpr (is_dual<V>)
      return {value, place.tile.tangents[k].data ? place.everywhere(place.tile.tangents[k], c) : decltype(value)(0)};
    else
      return value;
  }
  FUSEDLOSS_INLINE V operand(int k) const {
    if constexpr (is_dual<V>)
      return {place.operand(k), place.tangent(k)};
    else
      return place.operand(k);
  }
};

// All lanes of a register of terms as one, in every lane.
template <Stage stage, class T>
FUSEDLOSS_INLINE Lanes<T> merged(Lanes<T> x) {
  return across_lanes(x, [](Lanes<T> a, Lanes<T> b) { return stage.combine == Combine::sum ? a + b : larger(a, b); });
}
template <Stage stage, class T>
FUSEDLOSS_INLINE Dual<Lanes<T>> merged(Dual<Lanes<T>> x) {
  return {merged<stage>(x.value), stage.combine == Combine::sum ? merged<stage>(x.dot) : Lanes<T>(0)};
}

// What is written of a number: itself, or how it changes.
template <class T>
FUSEDLOSS_INLINE Lanes<T> written(Lanes<T> x) {
  return x;
}
template <class T>
FUSEDLOSS_INLINE Lanes<T> written(Dual<Lanes<T>> x) {
  return x.dot;
}

template <class W>
FUSEDLOSS_INLINE void set_label(RowStart<W>& row, W input, W, W weight) {
  row.input = input;
  row.weight = weight;
}
template <class W>
FUSEDLOSS_INLINE void set_label(RowStart<Dual<W>>& row, W input, W tangent, W weight) {
  row.input = {input, tangent};
  row.weight = {weight, 0};
}

template <class Formula, class T, bool across, bool moving>
class RowLoop {
 public:
  using W = Lanes<T>;
  using V = std::conditional_t<moving, Dual<W>, W>;

  RowLoop(const Formula& formula, const Tile<T>& tile) : formula_(formula), tile_(tile) { start(); }

  void run() {
    [&]<int... stage>(std::integer_sequence<int, stage...>) {
      (gather<stage>(), ...);
    }(std::make_integer_sequence<int, int(std::size(Formula::stages))>{});
    written(formula_.value(row_)).store(tile_.value);
    if (tile_.gradients[0].data || tile_.gradients[1].data) make_gradients();
  }

 private:
  using At = ClassAt<Formula, V, Place<T, across>>;
  static constexpr int64_t kStep = across ? 1 : W::size;
  // The stage that computes most asks for what comes next.
  template <int stage>
  static constexpr bool kLooksAhead = !across && !moving && stage + 1 == std::size(Formula::stages);
  // Registers that are added plainly, before the sum takes them.
  static constexpr int64_t kTogether = 8 * kStep;

  void start() {
    row_.classes = double(tile_.classes);
    labels_ = typename W::Bits{};
    if constexpr (Formula::dense) return;
    find_labels();
  }
  void find_labels() {
    T input[W::size], tangent[W::size] = {}, weight[W::size];
    for (int lane = 0; lane < W::size; ++lane) {
      const int64_t label = tile_.labels[across ? lane : 0];
      const auto at = [&](const auto& block) { return block.data[across ? label * block.pitch + lane : label]; };
      labels_[lane] = typename BitsOf<T>::type(label);
      input[lane] = at(tile_.operands[0]);
      if (tile_.tangents[0].data) tangent[lane] = at(tile_.tangents[0]);
      weight[lane] = tile_.weight ? tile_.weight[label] : T(1);
    }
    set_label(row_, W::load(input), W::load(tangent), W::load(weight));
  }
  // The classes that fill whole registers.
  int64_t whole() const { return across ? tile_.classes : tile_.classes / W::size * W::size; }

  // Loops read copies of what they read, because what they write might change the originals for all the compiler knows.
  // (A copy that is declared const, GCC 12 keeps in memory: it would be made whole for every row.)
  struct Copies {
    const Formula formula;
    const Tile<T> tile;
    const typename Formula::template Row<V> row;
    const typename W::Bits labels;

    template <int k>
    FUSEDLOSS_INLINE auto term(int64_t first, int64_t count = W::size) const {
      const Place<T, across> place{tile, labels, first, count};
      return formula.template term<k>(row, At{place});
    }
    template <bool streams>
    FUSEDLOSS_INLINE void put_slopes(int64_t first, int64_t count, W factor, typename W::Mask counted) const {
      const Place<T, across> place{tile, labels, first, count};
      Slopes<V> slopes = formula.slopes(row, At{place});
      put<streams>(place, 0, slopes.by_input, factor, counted);
      if constexpr (Formula::dense) put<streams>(place, 1, slopes.by_target, factor, counted);
    }

   private:
    template <bool streams>
    FUSEDLOSS_INLINE void put(const Place<T, across>& at, int k, V slope, W factor, typename W::Mask counted) const {
      const auto& gradient = tile.gradients[k];
      if (!at.wants(k)) return;
      W x = factor * written(slope);
      if constexpr (across) x = select(counted, x, W(0));  // (a single row counts, or nobody asks)
      T* place = gradient.data + at.first;
      if (streams && reinterpret_cast<uintptr_t>(place) % sizeof(W) == 0)
        stream(x, place);
      else
        at.store(gradient.data, gradient.pitch, x);
    }
  };
  FUSEDLOSS_INLINE Copies copies() const { return {formula_, tile_, row_, labels_}; }

  FUSEDLOSS_INLINE static void ask_for(const T* registers) {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t first = 0; first < kTogether; first += kLine) __builtin_prefetch(registers + first);
  }
  template <int k>
  [[gnu::noinline]] void gather() {
    if (skips<k>(formula_, row_)) return;
    constexpr Stage stage = Formula::stages[k];
    Copies local = copies();
    auto all = empty<stage, V>();
    Terms<Sum<V>, stage.terms> sums;
    const auto take = [&](const Terms<V, stage.terms>& some) __attribute__((always_inline)) {
      if constexpr (stage.combine == Combine::sum)
        for (int n = 0; n < stage.terms; ++n) sums.of[n].add(some.of[n]);
      else
        combine<stage>(all, some);
    };
    const int64_t classes = whole();
    for (int64_t begin = 0; begin < classes; begin += kTogether) {
      auto some = empty<stage, V>();
      const int64_t end = begin + kTogether < classes ? begin + kTogether : classes;
      if constexpr (kLooksAhead<k>)
        for (const T* ahead : local.tile.ahead) ask_for(ahead + begin);
      for (int64_t first = begin; first < end; first += kStep) combine<stage>(some, local.template term<k>(first));
      take(some);
    }
    if constexpr (!across)
      if (classes < tile_.classes) take(rest<k>(classes));
    if constexpr (stage.combine == Combine::sum)
      for (int n = 0; n < stage.terms; ++n) all.of[n] = together(sums.of[n]);
    if constexpr (!across)
      for (V& term : all.of) term = merged<stage>(term);
    formula_.template close<k>(row_, all);
  }
  // The terms of those that do not fill a register.
  template <int k>
  [[gnu::noinline]] auto rest(int64_t first) {
    constexpr Stage stage = Formula::stages[k];
    const int64_t count = tile_.classes - first;
    auto terms = copies().template term<k>(first, count);
    const auto has_class = first_lanes<W>(count);
    for (int n = 0; n < stage.terms; ++n) terms.of[n] = select(has_class, terms.of[n], empty<stage, V>().of[n]);
    return terms;
  }

  void make_gradients() {
    if constexpr (across)
      put_registers<false>(0, tile_.classes);
    else
      make_gradients_of_row();
  }
  void make_gradients_of_row() {
    const int64_t head = tile_.streams ? classes_before_alignment() : 0;
    const int64_t tail = tile_.classes - (tile_.classes - head) % W::size;
    if (head > 0) put_some(0, head);
    tile_.streams ? put_registers<true>(head, tail) : put_registers<false>(head, tail);
    if (tail < tile_.classes) put_some(tail, tile_.classes - tail);
  }
  template <bool streams>
  [[gnu::noinline]] void put_registers(int64_t begin, int64_t end) const {
    Copies local = copies();
    const W factor = gradient_factor();
    const auto counted = counted_lanes();
    for (int64_t first = begin; first < end; first += kStep)
      local.template put_slopes<streams>(first, W::size, factor, counted);
  }
  [[gnu::noinline]] void put_some(int64_t first, int64_t count) const {
    copies().template put_slopes<false>(first, count, gradient_factor(), counted_lanes());
  }
  W gradient_factor() const { return across ? W::load(tile_.factor) : W(double(tile_.factor[0])); }
  typename W::Mask counted_lanes() const { return (across ? W::load(tile_.counted) : W(1)) > W(0); }
  int64_t classes_before_alignment() const {
    const auto address = reinterpret_cast<uintptr_t>(tile_.gradients[0].data);
    return int64_t(-address % sizeof(W) / sizeof(T));
  }

  const Formula& formula_;
  const Tile<T>& tile_;
  typename Formula::template Row<V> row_;
  typename W::Bits labels_;
};

template <class Loss, class T, bool dense, bool across, bool moving>
void run_tile(const Tile<T>& tile) {
  Loss::template with_formula<dense>(tile.parameters, tile.classes, [&](const auto& formula) {
    RowLoop<std::decay_t<decltype(formula)>, T, across, moving>(formula, tile).run();
  });
}

// What a formula reads where all lanes are at their labels.
template <class T>
struct AtLabel {
  FUSEDLOSS_INLINE typename Lanes<T>::Mask is_label() const { return Lanes<T>(0) == Lanes<T>(0); }
};

template <class Loss, class T, bool moving>
void run_at_labels(const LabelTile<T>& given) {
  using W = Lanes<T>;
  using V = std::conditional_t<moving, Dual<W>, W>;
  LabelTile<T> tile = given;
  Loss::template with_formula<false>(tile.parameters, tile.classes, [&](const auto& formula) {
    for (int64_t first = 0; first < tile.rows; first += W::size) {
      const auto load = [&](const T* numbers, double otherwise) {
        return numbers ? W::load(numbers + first) : W(otherwise);
      };
      typename std::decay_t<decltype(formula)>::template Row<V> row;
      row.classes = double(tile.classes);
      set_label(row, W::load(tile.input + first), load(tile.tangent, 0), load(tile.weight, 1));
      written(formula.value(row)).store(tile.value + first);
      if (!tile.slope) continue;
      const W slope = W::load(tile.factor + first) * written(formula.slopes(row, AtLabel<T>()).by_input);
      select(W::load(tile.counted + first) > W(0), slope, W(0)).store(tile.slope + first);
    }
  });
}

template <class Loss, class T>
constexpr FunctionsOf<T> functions_of() {
  FunctionsOf<T> all;
  if constexpr (Loss::about.reads_label_only) {
    all.at_labels[0] = run_at_labels<Loss, T, false>;
    all.at_labels[1] = run_at_labels<Loss, T, true>;
  } else {
    if constexpr (requires { Loss::kept; }) all.kept = Loss::kept;
    const auto fill = [&]<bool dense>() {
      all.of[dense][0][0] = run_tile<Loss, T, dense, false, false>;
      all.of[dense][0][1] = run_tile<Loss, T, dense, false, true>;
      all.of[dense][1][0] = run_tile<Loss, T, dense, true, false>;
      all.of[dense][1][1] = run_tile<Loss, T, dense, true, true>;
    };
    if constexpr (takes_labels(Loss::about.targets)) fill.template operator()<false>();
    if constexpr (takes_dense(Loss::about.targets)) fill.template operator()<true>();
  }
  return all;
}

template <class Loss>
constexpr TileFunctions tile_functions() {
  return {functions_of<Loss, float>(), functions_of<Loss, double>()};
}

}  // namespace fusedloss::rows::inline FUSEDLOSS_SET
