#include "pairs/sweep.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <vector>

#include "torch/processor.h"

namespace fusedloss::pairs {
namespace {

constexpr int64_t kBlock = 1024;                   // rows of a tile,
constexpr int64_t kTileNumbers = 1 << 21;          // as far as it has no more numbers than these,
constexpr int64_t kFewest = 64;                    // but so many
constexpr int64_t kPiece = 256;                    // rows of a tile, or columns, that a thread takes at once
constexpr int64_t kKeptBytes = int64_t(64) << 20;  // of products that are not made a second time

// Calls use(begin, count) for pieces of `total` rows. Products of matrices must not be shared between threads: how
// torch would share them changes their bits. So a thread has a piece to itself, and there are always two or more.
template <class Use>
void in_pieces(bool on_gpu, int64_t total, const Use& use) {
  if (on_gpu) return use(0, total);
  const int64_t piece = std::max<int64_t>(std::min(kPiece, (total + 1) / 2), 1), pieces = (total + piece - 1) / piece;
  at::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView below;
    for (int64_t k = begin; k < end; ++k) use(k * piece, std::min(piece, total - k * piece));
  });
}
// Calls use(begin, count) for stretches of a side's rows from `begin` to `end`.
template <class Use>
void in_stretches(const Side& side, int64_t begin, int64_t end, const Use& use) {
  for (const int64_t stretch = side.stretch(); begin < end; begin += stretch)
    use(begin, std::min(stretch, end - begin));
}

void add_product(const at::Tensor& to, const at::Tensor& a, const at::Tensor& b) {
  at::addmm_out(const_cast<at::Tensor&>(to), to, a, b);
}
// The same of bfloat16 rows, of which many processors multiply several times as many in the same time: the factors are
// rounded to that type as well, and so is the product, which is a gradient of that type or a part of one.
void add_short_product(const at::Tensor& to, const at::Tensor& a, const at::Tensor& b) {
  at::Tensor product = at::empty({a.size(0), b.size(1)}, b.options());
  at::mm_out(product, a, b);
  to.add_(product);
}
void add_multiples(const at::Tensor& to, const at::Tensor& factors, const at::Tensor& rows) {
  to.addcmul_(factors.unsqueeze(1), rows);
}

// Vectors and, where they move, how.
struct Rows {
  at::Tensor vectors, moving;
  Rows(const Side& side, int64_t begin, int64_t count) : vectors(side.rows(begin, count)) {
    if (side.moves()) moving = side.moving_rows(begin, count);
  }
};

// Adds to the gradients of some vectors what derivatives by products, and their derivatives, give with the vectors of
// the other side.
template <class Add>
void gather(const Side& to, int64_t begin, int64_t count, const at::Tensor& slopes, const at::Tensor& moving_slopes,
            const Rows& other, const Add& add) {
  if (to.gathers_first()) add(to.gradient(begin, count), slopes, other.vectors);
  if (!to.gathers_second()) return;
  add(to.moving_gradient(begin, count), moving_slopes, other.vectors);
  if (other.moving.defined()) add(to.moving_gradient(begin, count), slopes, other.moving);
}

at::Tensor transposed(const at::Tensor& matrix) { return matrix.defined() ? matrix.t() : matrix; }
at::Tensor piece_of(const at::Tensor& matrix, int64_t dim, int64_t begin, int64_t count) {
  return matrix.defined() ? matrix.narrow(dim, begin, count) : matrix;
}

// Some rows of the matrix of products, and their derivatives along the tangents.
struct Block {
  int64_t begin = 0, count = 0;
  at::Tensor products, moving;
};

// (With fewer numbers a product takes no time, or is not the fast one.)
bool multiplies_fast(const Plan& plan) {
  constexpr int64_t kEnough = 1 << 15;
  const auto fits = [](const Side& side) { return side.are_short() && side.numbers() >= kEnough; };
  return !plan.on_gpu && !plan.moving && multiplies_bfloat16() && fits(*plan.first) && fits(*plan.second);
}

class Sweep {
 public:
  Sweep(const Plan& plan)
      : plan_(plan), first_(*plan.first), second_(*plan.second), short_numbers_(multiplies_fast(plan)) {
    const int64_t columns = std::max<int64_t>(second_.count(), 1);
    rows_ = std::clamp<int64_t>(kTileNumbers / columns, kFewest, kBlock);
    rows_ = std::min(rows_, std::max<int64_t>(first_.count(), 1));
  }

  void run() {
    if (plan_.symmetric) find_columns();
    if (plan_.own) find_own();
    for (size_t k = 0; k < blocks(); ++k) {
      Block block = kept_.size() > k ? std::move(kept_[k]) : made(k);
      run_rows(block);
    }
  }

 private:
  size_t blocks() const { return size_t((first_.count() + rows_ - 1) / rows_); }
  bool differentiates() const { return plan_.tile.differentiates; }

  at::Tensor room_for(int64_t rows) const {
    return at::empty({rows, std::max<int64_t>(second_.count(), 1)}, plan_.numbers).narrow(1, 0, second_.count());
  }
  Block shaped(size_t number, bool kept) {
    Block block{int64_t(number) * rows_, 0, {}, {}};
    block.count = std::min(rows_, first_.count() - block.begin);
    if (!kept && !scratch_.defined()) scratch_ = room_for(rows_);
    if (!kept && plan_.moving && !moving_scratch_.defined()) moving_scratch_ = room_for(rows_);
    block.products = kept ? room_for(block.count) : scratch_.narrow(0, 0, block.count);
    if (plan_.moving) block.moving = kept ? room_for(block.count) : moving_scratch_.narrow(0, 0, block.count);
    return block;
  }
  Block made(size_t number, bool kept = false) {
    const Block block = shaped(number, kept);
    in_pieces(plan_.on_gpu, block.count, [&](int64_t begin, int64_t count) { make_products(block, begin, count); });
    return block;
  }
  void make_products(const Block& block, int64_t begin, int64_t count) const {
    const Rows a(first_, block.begin + begin, count);
    in_stretches(second_, 0, second_.count(), [&](int64_t column, int64_t columns) {
      const Rows b(second_, column, columns);
      at::Tensor products = block.products.narrow(0, begin, count).narrow(1, column, columns);
      at::mm_out(products, a.vectors, b.vectors.t());
      if (!plan_.moving) return;
      const at::Tensor moving = block.moving.narrow(0, begin, count).narrow(1, column, columns);
      if (a.moving.defined())
        at::mm_out(const_cast<at::Tensor&>(moving), a.moving, b.vectors.t());
      else
        moving.zero_();
      if (b.moving.defined()) add_product(moving, a.vectors, b.moving.t());
    });
  }

  Tile tile_of(const Block& block) const {
    Tile tile = plan_.tile;
    tile.first = block.begin;
    tile.rows = block.count;
    tile.columns = second_.count();
    tile.pitch = block.products.stride(0);
    tile.products = block.products.mutable_data_ptr();
    tile.moves = plan_.moving;
    if (plan_.moving) tile.moving = block.moving.mutable_data_ptr();
    return tile;
  }
  Tile tile_with_columns(const Block& block) const {
    Tile tile = tile_of(block);
    if (!plan_.symmetric) return tile;
    tile.column_tops = tops_.const_data_ptr();
    tile.column_inverses = inverses_.const_data_ptr();
    tile.column_logs = logs_.const_data_ptr<double>();
    if (plan_.moving) tile.column_means = means_.const_data_ptr();
    return tile;
  }

  // ---- the softmax over the rows, of every column ----

  void find_columns() {
    const auto wide = plan_.numbers.dtype(at::kDouble);
    tops_ = at::full({second_.count()}, -INFINITY, plan_.numbers);
    const at::Tensor sums = at::zeros({second_.count()}, wide), weighted = at::zeros({second_.count()}, wide);
    const Columns columns{tops_.mutable_data_ptr(), sums.mutable_data_ptr<double>(),
                          plan_.moving ? weighted.mutable_data_ptr<double>() : nullptr};
    int64_t kept_bytes = 0;
    for (size_t k = 0; k < blocks(); ++k) {
      kept_bytes += rows_ * second_.count() * (plan_.wide ? 8 : 4) * (plan_.moving ? 2 : 1);
      const bool keep = kept_bytes <= kKeptBytes;
      Block block = made(k, keep);
      add_columns(block, columns);
      if (keep) kept_.push_back(std::move(block));
    }
    inverses_ = sums.reciprocal().to(plan_.numbers.dtype());
    logs_ = sums.log();
    if (plan_.moving) means_ = (weighted / sums).to(plan_.numbers.dtype());
  }
  void add_columns(const Block& block, const Columns& columns) const {
    const Tile tile = tile_of(block);
    in_pieces(plan_.on_gpu, tile.columns,
              [&](int64_t begin, int64_t count) { plan_.run_columns(tile, columns, begin, begin + count); });
  }

  // ---- vectors that are no columns ----

  void find_own() {
    in_stretches(*plan_.own, 0, first_.count(), [&](int64_t begin, int64_t count) {
      const Rows a(first_, begin, count), b(*plan_.own, begin, count);
      const auto dot = [](const at::Tensor& x, const at::Tensor& y) { return (x * y).sum(at::IntArrayRef{1}); };
      plan_.own_products.narrow(0, begin, count).copy_(dot(a.vectors, b.vectors));
      if (!plan_.moving) return;
      const at::Tensor moving = plan_.own_moving.narrow(0, begin, count).zero_();
      if (a.moving.defined()) moving.add_(dot(a.moving, b.vectors));
      if (b.moving.defined()) moving.add_(dot(a.vectors, b.moving));
    });
  }

  // ---- rows and gradients ----

  void run_rows(const Block& block) const {
    const Tile tile = tile_with_columns(block);
    in_pieces(plan_.on_gpu, block.count, [&](int64_t begin, int64_t count) {
      plan_.run_rows(tile, begin, begin + count);
      if (differentiates()) gather_first(block, begin, count);
    });
    if (!differentiates() || !second_.gathers()) return;
    if (short_numbers_) return gather_second_of_short(block);
    const Rows a(first_, block.begin, block.count);
    in_pieces(plan_.on_gpu, second_.count(), [&](int64_t begin, int64_t count) {
      gather(second_, begin, count, block.products.narrow(1, begin, count).t(),
             transposed(piece_of(block.moving, 1, begin, count)), a, add_product);
    });
  }
  void gather_second_of_short(const Block& block) const {
    const at::Tensor a = first_.short_rows(block.begin, block.count);
    in_pieces(plan_.on_gpu, second_.count(), [&](int64_t begin, int64_t count) {
      const at::Tensor slopes = block.products.narrow(1, begin, count).to(at::kBFloat16);
      add_short_product(second_.gradient(begin, count), slopes.t(), a);
    });
  }
  void gather_first(const Block& block, int64_t begin, int64_t count) const {
    const int64_t row = block.begin + begin;
    const at::Tensor slopes = block.products.narrow(0, begin, count), moving = piece_of(block.moving, 0, begin, count);
    if (first_.gathers() && short_numbers_)
      add_short_product(first_.gradient(row, count), slopes.to(at::kBFloat16), second_.short_rows(0, second_.count()));
    else if (first_.gathers())
      in_stretches(second_, 0, second_.count(), [&](int64_t column, int64_t columns) {
        gather(first_, row, count, slopes.narrow(1, column, columns), piece_of(moving, 1, column, columns),
               Rows(second_, column, columns), add_product);
      });
    if (!plan_.own) return;
    const at::Tensor own = plan_.own_products.narrow(0, row, count),
                     own_moving = piece_of(plan_.own_moving, 0, row, count);
    if (first_.gathers()) gather(first_, row, count, own, own_moving, Rows(*plan_.own, row, count), add_multiples);
    if (plan_.own->gathers()) gather(*plan_.own, row, count, own, own_moving, Rows(first_, row, count), add_multiples);
  }

  const Plan& plan_;
  Side &first_, &second_;
  const bool short_numbers_;  // whether gradients come from products of these
  int64_t rows_;
  at::Tensor scratch_, moving_scratch_;
  std::vector<Block> kept_;
  at::Tensor tops_, inverses_, logs_, means_;
};

}  // namespace

void sweep(const Plan& plan) { Sweep(plan).run(); }

}  // namespace fusedloss::pairs
