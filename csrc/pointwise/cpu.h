// The tile functions of a loss on the CPU: its formula over registers of lanes.
// Compiled once for every loss and instruction set, by files that CMake writes (cmake/Pointwise.cmake).
#pragma once
#include "core/dual.h"
#include "core/sum.h"
#include "pointwise/kernel.h"

namespace fusedloss::pointwise::inline FUSEDLOSS_SET {

// Calls use(formula) with the formula of a loss for these parameters. A loss that has several says so with a
// with_formula of its own: a branch inside of the loop over elements would keep both in registers.
template <class Loss, class Use>
auto with_formula(const double* parameters, Use use) {
  if constexpr (requires { Loss::with_formula(parameters, use); })
    return Loss::with_formula(parameters, use);
  else
    return use(Loss(parameters));
}

template <class Formula, class V, int N>
FUSEDLOSS_INLINE Partials<V, N> evaluate(const Formula& formula, const V (&x)[N]) {
  if constexpr (N == 2)
    return formula(x[0], x[1]);
  else
    return formula(x[0], x[1], x[2]);
}

// Computes the lanes of a tile from i on and returns their weighted values, unscaled.
template <class T, int N, Mode mode, class Formula>
FUSEDLOSS_INLINE Lanes<T> compute(const Formula& formula, const Tile<T>& tile, int64_t i) {
  using V = Lanes<T>;
  const auto weighted = [&](V x) { return tile.weight ? V::load(tile.weight + i) * x : x; };
  const V scale = tile.scale;
  V x[N];
  for (int k = 0; k < N; ++k) x[k] = V::load(tile.operands[k] + i);

  if constexpr (mode == Mode::value || mode == Mode::value_and_gradient) {
    const auto f = evaluate(formula, x);
    const V value = weighted(f.value);
    if (tile.value) (value * scale).store(tile.value + i);
    const V factor = weighted(scale);
    if constexpr (mode == Mode::value_and_gradient)
      for (int k = 0; k < N; ++k)
        if (tile.gradients[k]) (factor * f.slope[k]).store(tile.gradients[k] + i);
    return value;
  } else if constexpr (mode == Mode::gradient) {
    const auto f = evaluate(formula, x);
    const V factor = weighted(scale) * (tile.grad_output ? V::load(tile.grad_output + i) : V(1));
    for (int k = 0; k < N; ++k)
      if (tile.gradients[k]) (factor * f.slope[k]).store(tile.gradients[k] + i);
    return V(0);
  } else if constexpr (mode == Mode::jvp) {
    const auto f = evaluate(formula, x);
    V change = 0;
    for (int k = 0; k < N; ++k)
      if (tile.tangents[k]) change = change + f.slope[k] * V::load(tile.tangents[k] + i);
    const V value = weighted(change);
    if (tile.value) (value * scale).store(tile.value + i);
    return value;
  } else {
    Dual<V> moving[N];
    for (int k = 0; k < N; ++k) moving[k] = {x[k], tile.tangents[k] ? V::load(tile.tangents[k] + i) : V(0)};
    const auto f = evaluate(formula, moving);
    const V factor = weighted(scale) * (tile.grad_output ? V::load(tile.grad_output + i) : V(1));
    for (int k = 0; k < N; ++k)
      if (tile.gradients[k]) (factor * f.slope[k].dot).store(tile.gradients[k] + i);
    return V(0);
  }
}

// The lanes of a sum as one number.
template <class T>
double sum_of_lanes(const Sum<Lanes<T>>& lanes) {
  Sum<double> sum;
  for (int lane = 0; lane < Lanes<T>::size; ++lane) sum.add(lanes.total.raw[lane]);
  for (int lane = 0; lane < Lanes<T>::size; ++lane)
    if (__builtin_isfinite(lanes.lost.raw[lane])) sum.add(lanes.lost.raw[lane]);
  return value_of(sum);
}

// Computes all elements by one and the same code, so that an element's bits do not depend on its place: where the last
// register would reach past the end it starts earlier, and does some elements again. Before the first element there
// must be room for that.
template <class T, int N, Mode mode, class Formula>
double run_registers(Formula formula, const Tile<T>& tile) {
  using V = Lanes<T>;
  constexpr int kTogether = 4;  // registers added plainly before the sum takes them
  Sum<V> sum;
  V together = 0;
  int waiting = 0;
  for (int64_t i = 0; i < tile.count; i += V::size) {
    const int64_t rest = tile.count - i;
    const V values = compute<T, N, mode>(formula, tile, rest < V::size ? tile.count - V::size : i);
    together = together + (rest < V::size ? values.last(rest) : values);
    if (++waiting < kTogether) continue;
    sum.add(together);
    together = 0;
    waiting = 0;
  }
  sum.add(together);
  return sum_of_lanes(sum);
}

template <class Loss, class T, int N, Mode mode>
[[gnu::noinline]] double run_registers(const Tile<T>& tile) {
  return with_formula<Loss>(tile.parameters, [&](auto formula) { return run_registers<T, N, mode>(formula, tile); });
}

// A tile that fills no register, put at the end of one.
template <class T>
class Padded {
 public:
  explicit Padded(const Tile<T>& tile) : tile_(tile), padded_(tile) {
    for (int k = 0; k < kMaxOperands; ++k) {
      padded_.operands[k] = in(tile.operands[k]);
      padded_.tangents[k] = in(tile.tangents[k]);
      padded_.gradients[k] = out(tile.gradients[k]);
    }
    padded_.weight = in(tile.weight);
    padded_.grad_output = in(tile.grad_output);
    padded_.value = out(tile.value);
  }
  const Tile<T>& tile() const { return padded_; }
  void write() const {
    copy(padded_.value, tile_.value);
    for (int k = 0; k < kMaxOperands; ++k) copy(padded_.gradients[k], tile_.gradients[k]);
  }

 private:
  static constexpr int kSize = Lanes<T>::size;
  T* next() { return buffers_[used_++] + kSize - tile_.count; }
  const T* in(const T* data) {
    if (!data) return nullptr;
    T* place = next();
    for (T* before = place - (kSize - tile_.count); before < place; ++before) *before = data[0];
    std::memcpy(place, data, tile_.count * sizeof(T));
    return place;
  }
  T* out(T* data) { return data ? next() : nullptr; }
  void copy(const T* from, T* to) const {
    if (to) std::memcpy(to, from, tile_.count * sizeof(T));
  }

  const Tile<T>& tile_;
  Tile<T> padded_;
  int used_ = 0;
  T buffers_[3 * kMaxOperands + 3][kSize];
};

template <class Loss, class T, int N, Mode mode>
double run_tile(const Tile<T>& tile) {
  if (tile.count >= Lanes<T>::size) return run_registers<Loss, T, N, mode>(tile);
  const Padded<T> padded(tile);
  const double sum = run_registers<Loss, T, N, mode>(padded.tile());
  padded.write();
  return sum;
}

template <class Loss, class T, int N>
constexpr void fill(TileFunction<T> (&functions)[kModes]) {
  functions[int(Mode::value)] = run_tile<Loss, T, N, Mode::value>;
  functions[int(Mode::value_and_gradient)] = run_tile<Loss, T, N, Mode::value_and_gradient>;
  functions[int(Mode::gradient)] = run_tile<Loss, T, N, Mode::gradient>;
  functions[int(Mode::jvp)] = run_tile<Loss, T, N, Mode::jvp>;
  functions[int(Mode::hvp)] = run_tile<Loss, T, N, Mode::hvp>;
}

template <class Loss>
constexpr TileFunctions tile_functions() {
  TileFunctions functions;
  if constexpr (Loss::about.required_operands == 2) {
    fill<Loss, float, 2>(functions.of_float[0]);
    fill<Loss, double, 2>(functions.of_double[0]);
  }
  if constexpr (Loss::about.operands[2] != nullptr) {
    fill<Loss, float, 3>(functions.of_float[1]);
    fill<Loss, double, 3>(functions.of_double[1]);
  }
  return functions;
}

}  // namespace fusedloss::pointwise::inline FUSEDLOSS_SET
