// The pointwise ops below autograd: one implementation for all devices. Checks and shapes are the same everywhere;
// on meta tensors (and the fake ones of torch.compile) that is all.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/TypeProperties.h>
#include <ATen/ops/sum.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/SmallVector.h>

#include <atomic>
#include <optional>

#include "core/sum.h"
#include "pointwise/device_pass.h"
#include "pointwise/op.h"
#include "pointwise/tiles.h"
#include "torch/allocate.h"
#include "torch/checks.h"
#include "torch/views.h"

namespace fusedloss::pointwise {

namespace {

using SymShape = c10::SymDimVector;

// ---- checks ---------------------------------------------------------------------------------------------------

void check_devices(const Description& about, const Arguments& a) {
  check_has_kernels(about.name, about.operands[0], a.operands[0]);
  for (int k = 1; k < kMaxOperands; ++k)
    check_device(about.name, about.operands[k], a.operands[k], about.operands[0], a.operands[0]);
  check_device(about.name, "weight", a.weight, about.operands[0], a.operands[0]);
}

void check_types(const Description& about, const Arguments& a) {
  for (int k = 0; k < kMaxOperands; ++k)
    if (k < about.required_operands || a.operands[k].defined()) {
      TORCH_CHECK_VALUE(about.operands[k], about.name, ": has no operand extra, got a tensor");
      check_real(about.name, about.operands[k], a.operands[k]);
    }
  if (a.weight.defined()) check_real(about.name, "weight", a.weight);
  check_result_type(about.name, a.dtype);
}

void check_settings(const Description& about, const Arguments& a) {
  check_parameters(about.name, about.parameters, a.parameters);
  TORCH_CHECK_VALUE(a.reduction != Reduction::rowmean || a.operands[0].dim() > 0, about.name, ": ", about.operands[0],
                    " must have at least one axis, the last of which is summed; got a 0-d tensor");
  TORCH_CHECK_VALUE(a.reduction <= Reduction::sum || a.reduction == about.grouped, about.name, ": reduction number ",
                    int(a.reduction), " is not one of this loss");
}

// The shape that the required operands have together.
SymShape shape_of(const Description& about, const Arguments& a) {
  const auto first = a.operands[0].sym_sizes();
  SymShape shape(first.begin(), first.end());
  for (int k = 1; k < about.required_operands; ++k) {
    const at::Tensor& t = a.operands[k];
    if (t.sym_sizes() == first) continue;
    TORCH_CHECK_VALUE(about.shapes != Shapes::same, about.name, ": ", about.operands[k], " must have the shape of ",
                      about.operands[0], ", ", first, ", got ", t.sym_sizes());
    TORCH_CHECK_VALUE(about.shapes != Shapes::same_rank || t.dim() == a.operands[0].dim(), about.name, ": ",
                      about.operands[k], " must have as many dimensions as ", about.operands[0], ", whose shape is ",
                      first, ", got ", t.sym_sizes());
    broadcast(shape, about.name, about.operands[k], t, about.operands[0]);
  }
  for (int k = about.required_operands; k < kMaxOperands; ++k)
    check_fits(about.name, about.operands[k], a.operands[k], shape, about.operands[0]);
  check_fits(about.name, "weight", a.weight, shape, about.operands[0]);
  return shape;
}

}  // namespace

at::ScalarType promoted_type(const Description& about, const Arguments& a) {
  auto dtype = a.operands[0].scalar_type();
  bool same = true;
  for (int k = 1; k < about.required_operands; ++k) same &= a.operands[k].scalar_type() == dtype;
  if (!same) {
    at::native::ResultTypeState state;
    for (int k = 0; k < about.required_operands; ++k)
      state = at::native::update_result_type_state(a.operands[k], state);
    dtype = at::native::result_type(state);
  }
  TORCH_CHECK_TYPE(c10::isFloatingType(dtype), about.name, ": ", about.operands[0],
                   " must be a floating-point tensor, got ", a.operands[0].scalar_type());
  return dtype;
}

c10::SymDimVector checked_shape(const Description& about, const Arguments& a) {
  check_types(about, a);
  check_devices(about, a);
  check_settings(about, a);
  return shape_of(about, a);
}

namespace kernels {
namespace {

// ---- one op ---------------------------------------------------------------------------------------------------

// The checked arguments of one call, and the pass that is being put together from them.
class Call {
 public:
  Call(const Loss& loss, const Arguments& a)
      : loss_(loss), about_(*loss.about), a_(a), shape_(checked_shape(about_, a)) {
    const auto promoted = promoted_type(about_, a);
    dtype_ = a.dtype.value_or(promoted);
    bool wide = dtype_ == at::kDouble || promoted == at::kDouble;
    for (const at::Tensor& t : a.operands) wide |= t.defined() && t.scalar_type() == at::kDouble;
    compute_ = wide ? at::kDouble : at::kFloat;
    pass_.parameters = a.parameters.data();
    for (int k = 0; k < kMaxOperands; ++k) show(a.operands[k], pass_.operands[k]);
    show(a.weight, pass_.weight);
  }
  Call(const Call&) = delete;  // shown_ points into it

  bool reduces() const { return a_.reduction != Reduction::none; }
  bool computes() const { return !a_.operands[0].is_meta(); }
  bool on_gpu() const { return on_device(a_.operands[0]); }

  void take_tangents(const Tensors& tangents) {
    constexpr const char* kNames[kMaxOperands] = {"tangent0", "tangent1", "tangent2"};
    for (int k = 0; k < kMaxOperands; ++k) {
      if (!tangents[k].defined()) continue;
      check_real(about_.name, kNames[k], tangents[k]);
      check_device(about_.name, kNames[k], tangents[k], about_.operands[0], a_.operands[0]);
      check_fits(about_.name, kNames[k], tangents[k], shape_, about_.operands[0]);
      show(tangents[k], pass_.tangents[k]);
    }
  }
  // A gradient of a reduced result is one number, that of an unreduced one a tensor.
  void take_grad_output(const at::Tensor& grad_output) {
    grad_output_ = grad_output;
    check_real(about_.name, "grad_output", grad_output);
    check_device(about_.name, "grad_output", grad_output, about_.operands[0], a_.operands[0]);
    check_fits(about_.name, "grad_output", grad_output, reduces() ? SymShape{} : shape_, about_.operands[0]);
    if (!reduces()) return show(grad_output_, pass_.grad_output);
    if (on_gpu())
      point(pass_.factor, floating(grad_output_));
    else if (computes())
      pass_.scale *= grad_output.item().toDouble();
  }
  // Where results go: the value of an unreduced loss, and gradients in the shape of the loss.
  void make_value() {
    value_ = reduces() ? empty_laid_out_like(a_.operands[0], {}, dtype_)
                       : empty_laid_out_like(a_.operands[0], shape_, dtype_);
    if (!reduces()) show(value_, pass_.value);
  }
  void make_gradients(const Mask& mask) {
    if (reduces() && computes()) pass_.scale /= denominator();
    for (int k = 0; k < kMaxOperands; ++k) {
      const at::Tensor& x = a_.operands[k];
      if (!mask[k] || !x.defined()) continue;
      const auto dtype = x.sym_sizes() == c10::SymIntArrayRef(shape_) ? x.scalar_type() : compute_;
      gradients_[k] = empty_laid_out_like(x, shape_, dtype);
      show(gradients_[k], pass_.gradients[k]);
    }
  }

  // Runs the pass; `checked` refuses elements outside of their domain.
  void run(Mode mode, bool checked = false) {
    if (!computes()) return;
    lay_out(pass_, C10_AS_INTARRAYREF_SLOW(c10::SymIntArrayRef(shape_)), shown_);
    const Restriction& restriction = about_.restriction;
    std::optional<Check> check;
    if (restriction.operand >= 0 && a_.operands[restriction.operand].defined())
      check = {restriction.operand, restriction.domain(pass_.parameters)};
    if (on_gpu()) return run_on_device(mode, check);
    const double sum = run_blocks(mode, checked && check ? &*check : nullptr);
    if (value_.defined() && reduces()) fill(value_, sum / denominator());
  }

  at::Tensor value() const { return value_; }
  // The gradients that were made, in the shapes of their operands.
  std::vector<at::Tensor> gradients() const {
    std::vector<at::Tensor> made;
    for (int k = 0; k < kMaxOperands; ++k)
      if (gradients_[k].defined()) made.push_back(gradient(k));
    return made;
  }
  Results results() const { return {gradient(0), gradient(1), gradient(2)}; }

 private:
  at::Tensor gradient(int k) const {
    const at::Tensor& x = a_.operands[k];
    if (!gradients_[k].defined()) return empty_laid_out_like(a_.operands[0], {c10::SymInt(0)}, compute_);
    if (x.sym_sizes() == c10::SymIntArrayRef(shape_)) return gradients_[k];
    return summed_to(gradients_[k], x.sym_sizes()).to(x.scalar_type());
  }
  void show(const at::Tensor& tensor, View& view) {
    if (!tensor.defined()) return;
    shown_.push_back({on_gpu() ? &floating(tensor) : &tensor, &view});
  }

  // The CUDA kernels read floating types only: integers are rare there, and every type more makes all kernels larger.
  const at::Tensor& floating(const at::Tensor& tensor) {
    if (c10::isFloatingType(tensor.scalar_type())) return tensor;
    converted_.push_back(tensor.to(compute_));
    return converted_.back();
  }

  void run_on_device(Mode mode, const std::optional<Check>& check) {
    if (check) pass_.domain = check->domain;
    if (value_.defined() && reduces()) {
      point(pass_.sum, value_);
      pass_.denominator = denominator();
    }
    if constexpr (kHasDevice)
      pointwise::run_on_device(loss_, pass_, mode, a_.operands[2].defined() ? 3 : 2, compute_ == at::kDouble,
                               a_.operands[0]);
  }

  // By what the sum over the elements is divided, for the value and for the gradients.
  double denominator() {
    if (!denominator_) denominator_ = make_denominator();
    return *denominator_;
  }
  double make_denominator() {
    const auto numel = double(c10::multiply_integers(C10_AS_INTARRAYREF_SLOW(c10::SymIntArrayRef(shape_))));
    switch (a_.reduction) {
      case Reduction::mean: return about_.weighted_mean && a_.weight.defined() ? sum_of_weights(numel) : numel;
      case Reduction::batchmean: return a_.operands[0].dim() == 0 ? 1 : double(a_.operands[0].size(0));
      case Reduction::rowmean: {
        double rows = 1;
        for (size_t d = 0; d + 1 < shape_.size(); ++d) rows *= double(shape_[d].expect_int());
        return rows;
      }
      default: return 1;
    }
  }
  double sum_of_weights(double numel) {
    const at::Tensor sum = at::sum(a_.weight, at::kDouble);
    const double repeats = numel / double(a_.weight.numel());
    if (!on_gpu()) return sum.item().toDouble() * repeats;
    converted_.push_back(sum);
    pass_.divisor = sum.const_data_ptr<double>();
    return repeats;
  }

  bool run_range(Mode mode, const Check* check, int64_t begin, int64_t end, double* sums) const {
    const int arity = a_.operands[2].defined() ? 1 : 0;
    if (compute_ == at::kDouble)
      return engine().run_double(pass_, loss_.functions->of_double[arity][int(mode)], check, begin, end, sums);
    return engine().run_float(pass_, loss_.functions->of_float[arity][int(mode)], check, begin, end, sums);
  }

  double run_blocks(Mode mode, const Check* check) const {
    const int64_t blocks = Tiling(pass_).blocks();
    std::vector<double> sums(blocks);
    std::atomic<bool> passed = true;
    at::parallel_for(0, blocks, kBlocksPerThread, [&](int64_t begin, int64_t end) {
      if (!run_range(mode, check, begin, end, sums.data())) passed = false;
    });
    if (!passed) refuse(check->operand, check->domain);
    Sum<double> sum;
    for (const double part : sums) sum.add(part);
    return value_of(sum);
  }

  // Looks the element up again in the operand's own order, to name it by its index.
  [[noreturn]] void refuse(int operand, Domain domain) const {
    const at::Tensor values = a_.operands[operand].to(at::kDouble).contiguous();
    const double* data = values.const_data_ptr<double>();
    int64_t first = 0;
    while (std::isnan(data[first]) || contains(domain, data[first])) ++first;
    TORCH_CHECK_VALUE(false, about_.name, ": every element of ", about_.operands[operand], " must be ",
                      describe(domain), ", got ", data[first], " at index ",
                      at::IntArrayRef(index_of(first, values.sizes())));
  }

  // Below this a second thread costs more than it brings.
  static constexpr int64_t kBlocksPerThread = 2;

  const Loss& loss_;
  const Description& about_;
  const Arguments& a_;
  SymShape shape_;
  at::ScalarType dtype_, compute_;
  std::optional<double> denominator_;
  DevicePass pass_;
  c10::SmallVector<Shown, 16> shown_;
  // What the device needs beside the arguments: room for all of them, because shown_ points here.
  c10::SmallVector<at::Tensor, 3 * kMaxOperands> converted_;
  at::Tensor value_, grad_output_;
  Tensors gradients_;
};

}  // namespace

at::Tensor value(const Loss& loss, const Arguments& a) {
  Call call(loss, a);
  call.make_value();
  call.run(Mode::value, /*checked=*/true);
  return call.value();
}

std::tuple<at::Tensor, std::vector<at::Tensor>> value_and_gradient(const Loss& loss, Mask mask, const Arguments& a) {
  Call call(loss, a);
  call.make_value();
  call.make_gradients(mask);
  call.run(Mode::value_and_gradient, /*checked=*/true);
  return {call.value(), call.gradients()};
}

Results backward(const Loss& loss, const at::Tensor& grad_output, Mask mask, const Arguments& a) {
  Call call(loss, a);
  call.take_grad_output(grad_output);
  call.make_gradients(mask);
  call.run(Mode::gradient);
  return call.results();
}

at::Tensor jvp(const Loss& loss, const Tensors& tangents, const Arguments& a) {
  Call call(loss, a);
  call.take_tangents(tangents);
  call.make_value();
  call.run(Mode::jvp);
  return call.value();
}

Results hvp(const Loss& loss, const at::Tensor& grad_output, const Tensors& tangents, Mask mask, const Arguments& a) {
  Call call(loss, a);
  call.take_grad_output(grad_output);
  call.take_tangents(tangents);
  call.make_gradients(mask);
  call.run(Mode::hvp);
  return call.results();
}

}  // namespace kernels

}  // namespace fusedloss::pointwise
