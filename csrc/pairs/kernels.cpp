// The ops of losses over pairs below autograd. On meta tensors (and the fake ones of torch.compile) checks and shapes
// are all.
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <numeric>

#include "pairs/belonging.h"
#include "pairs/device_pass.h"
#include "pairs/op.h"
#include "pairs/sweep.h"
#include "torch/allocate.h"
#include "torch/below_autograd.h"
#include "torch/checks.h"

namespace fusedloss::pairs {

// ---- checks ---------------------------------------------------------------------------------------------------

// Where the vectors that belong to rows are no columns, what the loss calls its second operand is those.
const char* name_of(const Description& about, int place, bool apart) {
  if (!apart) return about.operands[place];
  return place == kSecond ? "negatives" : place == kPositive ? about.operands[kSecond] : about.operands[place];
}
namespace {
void check_floating(const Description& about, const char* name, const at::Tensor& tensor, const at::Tensor& first) {
  check_real(about.name, name, tensor);
  check_device(about.name, name, tensor, about.operands[kFirst], first);
  TORCH_CHECK_TYPE(c10::isFloatingType(tensor.scalar_type()), about.name, ": ", name,
                   " must be a floating-point tensor, got ", tensor.scalar_type());
}
void check_matrix(const Description& about, const char* name, const at::Tensor& tensor, const at::Tensor& first) {
  check_floating(about, name, tensor, first);
  TORCH_CHECK_VALUE(tensor.dim() == 2, about.name, ": ", name, " must be a matrix of vectors, of shape (N, D), got ",
                    tensor.sym_sizes());
  TORCH_CHECK_VALUE(tensor.sym_size(1) == first.sym_size(1), about.name, ": the vectors of ", name,
                    " must be as long as those of ", about.operands[kFirst], ", ", first.sym_size(1), ", got shape ",
                    tensor.sym_sizes());
}
void check_number(const Description& about, int place, const at::Tensor& tensor, const at::Tensor& first) {
  if (!tensor.defined()) return;
  check_floating(about, about.operands[place], tensor, first);
  TORCH_CHECK_VALUE(tensor.sym_numel() == 1, about.name, ": ", about.operands[place],
                    " must be one number, got a tensor of shape ", tensor.sym_sizes());
}
// That there is a column, or a vector, that belongs to every row.
void check_counts(const Description& about, const Arguments& a, const c10::SymInt& rows) {
  const c10::SymInt columns = a.columns().sym_size(0);
  const char *const first = about.operands[kFirst], *const second = about.operands[kSecond];
  if (a.operands[kPositive].defined()) {
    TORCH_CHECK_VALUE(!a.symmetric, about.name, ": symmetric is not possible with negatives");
    TORCH_CHECK_VALUE(a.operands[kPositive].sym_size(0) == rows, about.name, ": ", second,
                      " must have a vector for each of the ", rows, " of ", first, ", got shape ",
                      a.operands[kPositive].sym_sizes());
  } else if (!about.by_label) {
    const bool fits = !a.offset || a.symmetric ? columns == rows : *a.offset >= 0 && columns >= rows + *a.offset;
    TORCH_CHECK_VALUE(fits, about.name, ": ", second, " must have a vector for each of the ", rows, " of ", first,
                      ", got shape ", a.columns().sym_sizes());
  }
}
}  // namespace

Checked check(const Description& about, const Arguments& a) {
  const at::Tensor& first = a.operands[kFirst];
  check_real(about.name, about.operands[kFirst], first);
  check_has_kernels(about.name, about.operands[kFirst], first);
  check_matrix(about, about.operands[kFirst], first, first);
  const bool apart = a.operands[kPositive].defined();
  if (!about.by_label) check_matrix(about, name_of(about, kSecond, apart), a.operands[kSecond], first);
  if (apart) check_matrix(about, name_of(about, kPositive, apart), a.operands[kPositive], first);
  for (const int place : {kScale, kBias}) check_number(about, place, a.operands[place], first);
  check_result_type(about.name, a.dtype);
  TORCH_CHECK_VALUE(a.reduction == Reduction::none || a.reduction == Reduction::mean || a.reduction == Reduction::sum,
                    about.name, ": reduction number ", int(a.reduction), " is not one of this loss");
  TORCH_CHECK_VALUE(a.parameters.size() == 2, about.name, ": expected 2 parameters, got ", a.parameters.size());
  const c10::SymInt rows = first.sym_size(0);
  if (about.by_label) check_labels(about.name, a.labels, about.operands[kFirst], first);
  check_counts(about, a, rows);
  Checked known;
  known.shape.push_back(rows);
  known.dtype = a.dtype.value_or(first.scalar_type());
  bool wide = known.dtype == at::kDouble;
  for (const int place : {kFirst, kSecond, kPositive})
    wide |= a.operands[place].defined() && a.operands[place].scalar_type() == at::kDouble;
  known.compute = wide ? at::kDouble : at::kFloat;
  return known;
}

namespace kernels {
namespace {

// The checked arguments of one call, and the sweep that is being put together from them.
class Call {
 public:
  Call(const Loss& loss, const Arguments& a) : about_(*loss.about), a_(a), known_(check(about_, a)) {
    plan_.wide = known_.compute == at::kDouble;
    plan_.on_gpu = on_device(a.operands[kFirst]);
    plan_.symmetric = a.symmetric;
    plan_.numbers = a.operands[kFirst].options().dtype(known_.compute);
    plan_.tile.offset = a.offset.value_or(0);
    plan_.tile.differentiates = false;
  }
  Call(const Call&) = delete;

  void take_tangents(const Tensors& tangents) {
    plan_.moving = true;
    for (int k = 0; k < kOperands; ++k) {
      if (!tangents[k].defined()) continue;
      const std::string name = "tangent" + std::to_string(k);
      TORCH_CHECK_VALUE(a_.operands[k].defined(), about_.name, ": ", name, " is of an operand that is not given");
      check_real(about_.name, name.c_str(), tangents[k]);
      check_device(about_.name, name.c_str(), tangents[k], about_.operands[kFirst], a_.operands[kFirst]);
      TORCH_CHECK_VALUE(tangents[k].sym_sizes() == a_.operands[k].sym_sizes(), about_.name, ": ", name,
                        " must have the shape of ", about_.operands[k], ", ", a_.operands[k].sym_sizes(), ", got ",
                        tangents[k].sym_sizes());
      tangents_[k] = tangents[k];
    }
  }
  // A gradient of a reduced result is one number, that of an unreduced one a number for every row.
  void take_grad_output(const at::Tensor& grad_output) {
    check_real(about_.name, "grad_output", grad_output);
    check_device(about_.name, "grad_output", grad_output, about_.operands[kFirst], a_.operands[kFirst]);
    check_fits(about_.name, "grad_output", grad_output, reduces() ? c10::SymDimVector() : known_.shape,
               about_.operands[kFirst]);
    incoming_ = grad_output;
  }
  void make_value() {
    value_ = empty_laid_out_like(a_.operands[kFirst], reduces() ? c10::SymDimVector() : known_.shape, known_.dtype);
  }
  void make_gradients(const Mask& mask) {
    mask_ = mask;
    plan_.tile.differentiates = differentiable(mask);
    for (int k = 0; k < kOperands; ++k)
      if (mask[k] && !computes())
        gradients_[k] = empty_laid_out_like(a_.operands[k], a_.operands[k].sym_sizes(), a_.operands[k].scalar_type());
  }

  void run() {
    if (!computes()) return;
    // Who calls an op without derivatives of its own may give tensors that require a gradient.
    const at::AutoDispatchBelowADInplaceOrView below;
    take_sides();
    take_belonging();
    take_own();
    take_logits();
    take_weights();
    take_results();
    if (nothing_counts())
      forget();
    else
      sweep_all();
    if (value_.defined()) reduce();
    finish_gradients();
  }

  at::Tensor value() const { return value_; }
  std::vector<at::Tensor> gradients() const {
    std::vector<at::Tensor> all;
    for (int k = 0; k < kOperands; ++k)
      if (mask_[k]) all.push_back(gradients_[k]);
    return all;
  }
  Results results() const {
    const auto of = [&](int k) {
      return mask_[k] ? gradients_[k] : empty_laid_out_like(a_.operands[kFirst], {c10::SymInt(0)}, known_.compute);
    };
    return {of(0), of(1), of(2), of(3), of(4)};
  }

 private:
  static bool differentiable(const Mask& mask) {
    for (const bool wanted : mask)
      if (wanted) return true;
    return false;
  }
  bool reduces() const { return a_.reduction != Reduction::none; }
  bool computes() const { return !a_.operands[kFirst].is_meta(); }
  int64_t rows() const { return a_.operands[kFirst].size(0); }
  at::Tensor doubles(int64_t count) const { return at::empty({count}, plan_.numbers.dtype(at::kDouble)); }

  // ---- what the sweep needs ----

  void take_side(int place, std::optional<Side>& side) {
    side.emplace(a_.operands[place], tangents_[place], a_.normalize, known_.compute);
    if (mask_[place]) side->gather(plan_.moving);
  }
  void take_sides() {
    take_side(kFirst, first_);
    plan_.first = plan_.second = &*first_;
    if (!a_.operands[kSecond].defined()) return;
    take_side(kSecond, second_);
    plan_.second = &*second_;
  }
  void take_own() {
    if (!a_.operands[kPositive].defined()) return;
    take_side(kPositive, own_);
    plan_.own = &*own_;
    plan_.own_products = at::empty({rows()}, plan_.numbers);
    plan_.tile.own = plan_.own_products.mutable_data_ptr();
    if (!plan_.moving) return;
    plan_.own_moving = at::empty({rows()}, plan_.numbers);
    plan_.tile.own_moving = plan_.own_moving.mutable_data_ptr();
  }
  void take_belonging() {
    if (!about_.by_label) return;
    belonging_.emplace(a_.labels, known_.compute, plan_.on_gpu);
    plan_.tile.labels = belonging_->labels.const_data_ptr();
    plan_.tile.shares = belonging_->shares.const_data_ptr();
  }

  at::Tensor full(double number) const { return at::full({}, number, plan_.numbers.dtype(at::kDouble)); }
  // The logits' scale and bias and their tangents: the parameters, and the operands that multiply or add to them.
  void take_logits() {
    const double factor = a_.parameters[0], bias = a_.parameters[1];
    struct {
      const at::Tensor& tensor;
      double factor, added, otherwise;
    } const parts[] = {{a_.operands[kScale], factor, 0, factor},
                       {a_.operands[kBias], 1, bias, bias},
                       {tangents_[kScale], factor, 0, 0},
                       {tangents_[kBias], 1, 0, 0}};
    std::vector<at::Tensor> on_gpu;
    for (int k = 0; k < 4; ++k) {
      const auto& [tensor, times, added, otherwise] = parts[k];
      if (plan_.on_gpu)
        on_gpu.push_back(tensor.defined() ? tensor.to(at::kDouble).reshape({}) * times + added : full(otherwise));
      else
        logits_[k] = tensor.defined() ? tensor.item().toDouble() * times + added : otherwise;
    }
    plan_.tile.logits = logits_.data();
    if (!plan_.on_gpu) return;
    logits_on_gpu_ = at::stack(on_gpu);
    plan_.tile.logits = logits_on_gpu_.const_data_ptr<double>();
  }

  // What 'mean' divides by. Where labels are on a device, only the device knows it.
  double divisor() const {
    if (a_.reduction != Reduction::mean) return 1;
    return double(std::max<int64_t>(belonging_ ? belonging_->count : rows(), 1));
  }
  at::Tensor divided(const at::Tensor& sum) const {
    const bool on_device_only = a_.reduction == Reduction::mean && belonging_ && plan_.on_gpu;
    return on_device_only ? sum / belonging_->count_on_device : sum / divisor();
  }
  void take_weights() {
    if (!plan_.tile.differentiates) return;
    const double part = a_.symmetric ? 0.5 : 1;
    if (!plan_.on_gpu && reduces()) {
      const double incoming = incoming_.defined() ? incoming_.item().toDouble() : 1;
      weights_ = at::full({rows()}, incoming * part / divisor(), plan_.numbers);
    } else {
      const at::Tensor weight = divided(incoming_.defined() ? incoming_.to(at::kDouble) : full(1)) * part;
      weights_ = weight.to(known_.compute).expand({rows()}).contiguous();
    }
    plan_.tile.weights = weights_.const_data_ptr();
  }
  void take_results() {
    const auto room = [&](bool wanted, double*& pointer) {
      if (!wanted) return at::Tensor();
      const at::Tensor numbers = doubles(rows());
      pointer = numbers.mutable_data_ptr<double>();
      return numbers;
    };
    values_ = room(value_.defined(), plan_.tile.values);
    scale_slopes_ = room(mask_[kScale], plan_.tile.scale_slopes);
    bias_slopes_ = room(mask_[kBias], plan_.tile.bias_slopes);
  }
  // Then what the vectors hold goes nowhere: NaN times 0 would.
  bool nothing_counts() const { return belonging_ && !plan_.on_gpu && belonging_->count == 0; }
  void forget() {
    for (const at::Tensor& results : {values_, scale_slopes_, bias_slopes_})
      if (results.defined()) results.zero_();
  }
  void sweep_all() {
    if constexpr (kHasDevice)
      if (plan_.on_gpu) return sweep_on_device(plan_, about_, a_.operands[kFirst]);
    const bool wide = plan_.wide, softmax = about_.kind == Kind::softmax;
    const Engine& e = engine();
    plan_.run_rows =
        softmax ? (wide ? e.softmax_double : e.softmax_float) : (wide ? e.sigmoid_double : e.sigmoid_float);
    plan_.run_columns = wide ? e.columns_double : e.columns_float;
    sweep(plan_);
  }

  // ---- results ----

  // In one order, whatever the number of threads.
  static double total_of(const at::Tensor& numbers) {
    const double* const all = numbers.const_data_ptr<double>();
    return std::accumulate(all, all + numbers.numel(), 0.0);
  }
  void reduce() {
    if (!reduces()) {
      value_.copy_(values_);
    } else if (plan_.on_gpu) {
      value_.copy_(divided(values_.sum()));
    } else {
      fill(value_, total_of(values_) / divisor());
    }
  }
  void finish_number(int place, const at::Tensor& slopes, double factor) {
    if (!mask_[place]) return;
    const at::Tensor& operand = a_.operands[place];
    gradients_[place] = empty_laid_out_like(operand, operand.sym_sizes(), operand.scalar_type());
    if (plan_.on_gpu)
      gradients_[place].copy_((slopes.sum() * factor).reshape(operand.sizes()));
    else
      fill(gradients_[place], total_of(slopes) * factor);
  }
  void finish_gradients() {
    const auto take = [&](int place, const std::optional<Side>& side) {
      if (!mask_[place]) return;
      gradients_[place] = side->finished();
      if (nothing_counts()) gradients_[place].zero_();
      if (belonging_ && plan_.on_gpu) gradients_[place].masked_fill_(belonging_->nothing_counts, 0);
    };
    take(kFirst, first_);
    take(kSecond, second_);
    take(kPositive, own_);
    finish_number(kScale, scale_slopes_, a_.parameters[0]);
    finish_number(kBias, bias_slopes_, 1);
  }

  const Description& about_;
  const Arguments& a_;
  const Checked known_;
  Tensors tangents_, gradients_;
  Mask mask_{};
  Plan plan_{};
  std::optional<Side> first_, second_, own_;
  std::optional<Belonging> belonging_;
  std::array<double, 4> logits_{};
  at::Tensor incoming_, logits_on_gpu_, weights_, values_, scale_slopes_, bias_slopes_, value_;
};

}  // namespace

FUSEDLOSS_KERNELS(Call)

}  // namespace kernels

}  // namespace fusedloss::pairs
