// The tile functions of a loss on the CPU: its formula over registers of lanes.
// Compiled once for every loss and instruction set, by files that CMake writes (cmake/Pointwise.cmake).
#pragma once
#include "core/dual.h"
#include "core/sum.h"
#include "pointwise/kernel.h"

namespace fusedloss::pointwise::inline FUSEDLOSS_SET {

// The lanes [i, i + count) of a tile, where count is Lanes::size except at the tail.
template <class T>
struct Window {
  using V = Lanes<T>;
  int64_t i;
  int64_t count;
  V load(const T* data) const { return count == V::size ? V::load(data + i) : V::load(data + i, count); }
  void store(V lanes, T* data) const { count == V::size ? lanes.store(data + i) : lanes.store(data + i, count); }
};

template <class Loss, class V, int N>
FUSEDLOSS_INLINE Partials<V, N> evaluate(const Loss& loss, const V (&x)[N]) {
  if constexpr (N == 2)
    return loss(x[0], x[1]);
  else
    return loss(x[0], x[1], x[2]);
}

// Computes one window and returns its weighted values, unscaled.
template <class Loss, class T, int N, Mode mode>
FUSEDLOSS_INLINE Lanes<T> compute(const Loss& loss, const Tile<T>& tile, Window<T> window) {
  using V = Lanes<T>;
  const V weight = tile.weight ? window.load(tile.weight) : V(1);
  const V scale = tile.scale;
  V x[N];
  for (int k = 0; k < N; ++k) x[k] = window.load(tile.operands[k]);

  if constexpr (mode == Mode::value || mode == Mode::value_and_gradient) {
    const auto f = evaluate<Loss, V, N>(loss, x);
    const V value = weight * f.value;
    if (tile.value) window.store(value * scale, tile.value);
    if constexpr (mode == Mode::value_and_gradient)
      for (int k = 0; k < N; ++k)
        if (tile.gradients[k]) window.store(weight * scale * f.slope[k], tile.gradients[k]);
    return value;
  } else if constexpr (mode == Mode::gradient) {
    const auto f = evaluate<Loss, V, N>(loss, x);
    const V factor = weight * scale * (tile.grad_output ? window.load(tile.grad_output) : V(1));
    for (int k = 0; k < N; ++k)
      if (tile.gradients[k]) window.store(factor * f.slope[k], tile.gradients[k]);
    return V(0);
  } else if constexpr (mode == Mode::jvp) {
    const auto f = evaluate<Loss, V, N>(loss, x);
    V change = 0;
    for (int k = 0; k < N; ++k)
      if (tile.tangents[k]) change = change + f.slope[k] * window.load(tile.tangents[k]);
    const V value = weight * change;
    if (tile.value) window.store(value * scale, tile.value);
    return value;
  } else {
    Dual<V> moving[N];
    for (int k = 0; k < N; ++k) moving[k] = {x[k], tile.tangents[k] ? window.load(tile.tangents[k]) : V(0)};
    const auto f = evaluate<Loss, Dual<V>, N>(loss, moving);
    const V factor = weight * scale * (tile.grad_output ? window.load(tile.grad_output) : V(1));
    for (int k = 0; k < N; ++k)
      if (tile.gradients[k]) window.store(factor * f.slope[k].dot, tile.gradients[k]);
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

template <class Loss, class T, int N, Mode mode>
double run_tile(const Tile<T>& tile) {
  using V = Lanes<T>;
  constexpr int kTogether = 4;  // registers added plainly before the sum takes them
  const Loss loss(tile.parameters);
  Sum<V> sum;
  int64_t i = 0;
  while (i + V::size <= tile.count) {
    V together = compute<Loss, T, N, mode>(loss, tile, {i, V::size});
    i += V::size;
    for (int more = 1; more < kTogether && i + V::size <= tile.count; ++more, i += V::size)
      together = together + compute<Loss, T, N, mode>(loss, tile, {i, V::size});
    sum.add(together);
  }
  if (i < tile.count) {
    const int64_t rest = tile.count - i;
    sum.add(compute<Loss, T, N, mode>(loss, tile, {i, rest}).first(rest));
  }
  return sum_of_lanes(sum);
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
