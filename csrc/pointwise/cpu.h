// The tile functions of a loss on the CPU: its formula over registers of lanes.
// Compiled once for every loss and instruction set, by files that CMake writes (cmake/Kernels.cmake).
#pragma once
#include "core/some_lanes.h"
#include "core/stream.h"
#include "core/sum.h"
#include "pointwise/compute.h"

namespace fusedloss::pointwise::inline FUSEDLOSS_SET {

// The lanes of a tile from i on. What is seldom there is said to be, so that the way without it has no jumps: they
// cost small tensors more than the arithmetic does.
template <class T>
class TileAccess {
 public:
  using V = Lanes<T>;
  TileAccess(const Tile<T>& tile, int64_t i) : tile_(tile), i_(i) {}

  FUSEDLOSS_INLINE V operand(int k) const { return V::load(tile_.operands[k] + i_); }
  FUSEDLOSS_INLINE V tangent(int k) const { return V::load(tile_.tangents[k] + i_); }
  FUSEDLOSS_INLINE V weight() const { return V::load(tile_.weight + i_); }
  FUSEDLOSS_INLINE V grad_output() const { return V::load(tile_.grad_output + i_); }
  FUSEDLOSS_INLINE V scale() const { return tile_.scale; }
  FUSEDLOSS_INLINE bool has_tangent(int k) const { return tile_.tangents[k]; }
  FUSEDLOSS_INLINE bool has_weight() const { return seldom(tile_.weight); }
  FUSEDLOSS_INLINE bool has_grad_output() const { return seldom(tile_.grad_output); }
  FUSEDLOSS_INLINE void value(V x) {
    if (seldom(tile_.value)) put(x, tile_.value, tile_.streams_value);
  }
  FUSEDLOSS_INLINE bool wants_gradient(int k) const {
    return k == 0 ? usual(tile_.gradients[0]) : seldom(tile_.gradients[k]);
  }
  FUSEDLOSS_INLINE void gradient(int k, V x) { put(x, tile_.gradients[k], tile_.streams_gradients[k]); }

 private:
  FUSEDLOSS_INLINE void put(V x, T* data, bool streams) {
    if (seldom(streams))
      stream(x, data + i_);
    else
      x.store(data + i_);
  }

  const Tile<T>& tile_;
  const int64_t i_;
};

// The lanes of a sum as one number.
template <class T>
[[gnu::noinline]] double sum_of_lanes(const Sum<Lanes<T>>& lanes) {
  Sum<double> sum;
  for (int lane = 0; lane < Lanes<T>::size; ++lane) sum.add(lanes.total.raw[lane]);
  for (int lane = 0; lane < Lanes<T>::size; ++lane)
    if (__builtin_isfinite(lanes.lost.raw[lane])) sum.add(lanes.lost.raw[lane]);
  return value_of(sum);
}

// Computes all elements by one and the same code, so that an element's bits do not depend on its place: where the last
// register would reach past the end it starts earlier, and does some elements again. Before the first element there
// must be room for that.
// The tile is a copy: of one that others see the compiler would read every pointer again after each store.
template <class T, int N, Mode mode, class Formula>
double run_registers(Formula formula, const Tile<T> tile) {
  using V = Lanes<T>;
  constexpr int kTogether = 4;  // registers added plainly before the sum takes them
  Sum<V> sum;
  V together = 0;
  int waiting = 0;
  for (int64_t i = 0; i < tile.count; i += V::size) {
    const int64_t rest = tile.count - i;
    TileAccess<T> at(tile, rest < V::size ? tile.count - V::size : i);
    const V values = compute<N, mode>(formula, at);
    together = together + (rest < V::size ? select(first_lanes<V>(V::size - rest), V(0), values) : values);
    if (++waiting < kTogether) continue;
    sum.add(together);
    together = 0;
    waiting = 0;
  }
  sum.add(together);
  const Sum<V> all = sum;  // a copy: what the loop adds to would else lie in memory
  return sum_of_lanes(all);
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
