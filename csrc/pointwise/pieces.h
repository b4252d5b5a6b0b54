// A pass on a device in pieces whose indices have 32 bits and whose dimensions are few. Nearly always there is one.
#pragma once
#include <algorithm>

#include "pointwise/device.h"

namespace fusedloss::pointwise {

// All views of a pass, each with that of a piece.
template <class Visit>
void for_each_view(DevicePass& pass, Piece& piece, Visit visit) {
  for (int k = 0; k < kMaxOperands; ++k) {
    visit(pass.operands[k], piece.operands[k]);
    visit(pass.tangents[k], piece.tangents[k]);
    visit(pass.gradients[k], piece.gradients[k]);
  }
  visit(pass.weight, piece.weight);
  visit(pass.grad_output, piece.grad_output);
  visit(pass.value, piece.value);
}

template <class Use>
class Pieces {
 public:
  Pieces(DevicePass& pass, Use use) : pass_(pass), use_(use) {
    piece_.scale = pass.scale;
    piece_.factor = numbers_at(pass.factor);
    piece_.divisor = pass.divisor;
    piece_.parameters = pass.parameters;
    piece_.domain = interval_of(pass.domain);
  }

  void run() {
    const int d = dimension_to_halve();
    if (d < 0) return use_(make());
    const int64_t size = pass_.sizes[d];
    if (size == 1) return without(d);
    const int64_t first = size >= 2 * kRound ? size / 2 / kRound * kRound : size / 2;
    part(d, 0, first);
    part(d, first, size - first);
  }

 private:
  // Parts of one dimension start at multiples of this, if they can: tensors that are aligned stay so.
  static constexpr int64_t kRound = 64;

  // -1 if the pass is a piece.
  int dimension_to_halve() {
    if (pass_.dims > kDeviceDims) return int(std::min_element(pass_.sizes, pass_.sizes + pass_.dims) - pass_.sizes);
    int widest = -1;
    int64_t most = 0, count = 1;
    bool fits = true;
    for (int d = 0; d < pass_.dims; ++d) count *= pass_.sizes[d];
    const auto look = [&](auto stride_of) {
      int64_t reach = 0;
      for (int d = 0; d < pass_.dims; ++d) {
        const int64_t along = (pass_.sizes[d] - 1) * stride_of(d);
        reach += along;
        if (along > most) most = along, widest = d;
      }
      fits &= reach < kMostElements;
    };
    look([](int) { return int64_t(1); });
    for_each_view(pass_, piece_, [&](const View& view, PieceView&) {
      if (view.data) look([&](int d) { return view.strides[d]; });
    });
    return fits && count <= kMostElements ? -1 : widest;
  }

  void without(int d) {
    const DevicePass whole = pass_;
    --pass_.dims;
    std::copy(whole.sizes + d + 1, whole.sizes + whole.dims, pass_.sizes + d);
    for_each_view(pass_, piece_, [&](View& view, PieceView&) {
      std::copy(view.strides + d + 1, view.strides + whole.dims, view.strides + d);
    });
    run();
    pass_ = whole;
  }

  void part(int d, int64_t begin, int64_t size) {
    const DevicePass whole = pass_;
    pass_.sizes[d] = size;
    for_each_view(pass_, piece_, [&](View& view, PieceView&) {
      if (view.data) view.data = static_cast<char*>(view.data) + begin * view.strides[d] * size_of(view.dtype);
    });
    run();
    pass_ = whole;
  }

  const Piece& make() {
    piece_.dims = pass_.dims;
    piece_.count = 1;
    for (int d = 0; d < pass_.dims; ++d) piece_.count *= piece_.sizes[d] = uint32_t(pass_.sizes[d]);
    for_each_view(pass_, piece_, [&](const View& view, PieceView& small) {
      small = {numbers_at(view), {}};
      if (!view.data) return;
      for (int d = 0; d < pass_.dims; ++d) small.strides[d] = uint32_t(view.strides[d]);
    });
    return piece_;
  }

  DevicePass& pass_;  // while a piece is in use, that piece
  Piece piece_{};
  Use use_;
};

// Calls use(piece) for each piece of a pass; a pass without elements is one piece. The pass is as before afterwards.
template <class Use>
void for_each_piece(DevicePass& pass, Use use) {
  Pieces<Use>(pass, use).run();
}

}  // namespace fusedloss::pointwise
