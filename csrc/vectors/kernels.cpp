// The ops of losses of vectors below autograd. On meta tensors (and the fake ones of torch.compile) checks and shapes
// are all.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/TypeProperties.h>
#include <ATen/ops/sum.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/SmallVector.h>

#include "core/sum.h"
#include "torch/allocate.h"
#include "torch/below_autograd.h"
#include "torch/checks.h"
#include "torch/views.h"
#include "vectors/device_pass.h"
#include "vectors/op.h"

namespace fusedloss::vectors {

// ---- checks ---------------------------------------------------------------------------------------------------

namespace {

void check_tensors(const Description& about, const Arguments& a) {
  const at::Tensor& first = a.operands[0];
  for (int k = 0; k < kMaxOperands; ++k) {
    const at::Tensor& x = a.operands[k];
    if (k == kWeight && !x.defined()) continue;
    check_real(about.name, name_of(about, k), x);
    TORCH_CHECK_TYPE(k >= about.vectors() || c10::isFloatingType(x.scalar_type()), about.name, ": ", name_of(about, k),
                     " must be a floating-point tensor, got ", x.scalar_type());
    if (k == 0)
      check_has_kernels(about.name, name_of(about, k), x);
    else
      check_device(about.name, name_of(about, k), x, about.operands[0], first);
  }
  check_result_type(about.name, a.dtype);
}

// The shape that the vectors have together.
c10::SymDimVector shape_of_vectors(const Description& about, const Arguments& a) {
  const auto first = a.operands[0].sym_sizes();
  c10::SymDimVector shape(first.begin(), first.end());
  for (int k = 0; k < about.vectors(); ++k) {
    const at::Tensor& x = a.operands[k];
    TORCH_CHECK_VALUE(x.dim() > 0, about.name, ": ", about.operands[k],
                      " must have an axis along which its vectors lie, the last; got a 0-d tensor");
    if (k == 0 || x.sym_sizes() == first) continue;
    TORCH_CHECK_VALUE(x.sym_size(-1) == first.back(), about.name, ": the vectors of ", about.operands[k],
                      " must have the length of those of ", about.operands[0], ", whose shape is ", first, ", got ",
                      x.sym_sizes());
    broadcast(shape, about.name, about.operands[k], x, about.operands[0]);
  }
  return shape;
}

bool has_say(const Description& about, const Arguments& a, int k) {
  return k < about.vectors() || (k != kWeight && about.soft_target && c10::isFloatingType(a.operands[k].scalar_type()));
}

at::ScalarType promoted(const Description& about, const Arguments& a) {
  const auto dtype = a.operands[0].scalar_type();
  bool same = true;
  for (int k = 1; k < kWeight; ++k) same &= !has_say(about, a, k) || a.operands[k].scalar_type() == dtype;
  if (same) return dtype;
  at::native::ResultTypeState state;
  for (int k = 0; k < kWeight; ++k)
    if (has_say(about, a, k)) state = at::native::update_result_type_state(a.operands[k], state);
  return at::native::result_type(state);
}

}  // namespace

c10::SymDimVector Checked::shape_of(const Description& about, int k) const {
  c10::SymDimVector shape = rows;
  if (k < about.vectors()) shape.push_back(length);
  return shape;
}

Checked check(const Description& about, const Arguments& a) {
  check_tensors(about, a);
  check_parameters(about.name, about.parameters, a.parameters);
  TORCH_CHECK_VALUE(a.reduction <= Reduction::sum, about.name, ": reduction number ", int(a.reduction),
                    " is not one of this loss");
  Checked known;
  known.rows = shape_of_vectors(about, a);
  known.length = known.rows.back();
  known.rows.pop_back();
  for (int k = about.vectors(); k < kMaxOperands; ++k)
    check_fits(about.name, name_of(about, k), a.operands[k], known.rows, about.operands[0]);
  const auto together = promoted(about, a);
  known.dtype = a.dtype.value_or(together);
  known.compute = together == at::kDouble || known.dtype == at::kDouble ? at::kDouble : at::kFloat;
  return known;
}

namespace kernels {
namespace {

// The checked arguments of one call, and the pass that is being put together from them.
class Call {
 public:
  Call(const Loss& loss, const Arguments& a) : loss_(loss), about_(*loss.about), a_(a), known_(check(about_, a)) {
    pass_.formula = about_.formula;
    pass_.settings = about_.settings(a.parameters.data());
    pass_.settings.normalize = a.normalize;
    for (int k = 0; k < kMaxOperands; ++k) show(k, a.operands[k], place(k).at);
    if (computes()) pass_.length = a.operands[0].size(-1);
  }
  Call(const Call&) = delete;  // shown_ points into it

  bool reduces() const { return a_.reduction != Reduction::none; }
  bool computes() const { return !a_.operands[0].is_meta(); }
  bool on_gpu() const { return on_device(a_.operands[0]); }

  void take_tangents(const Tensors& tangents) {
    constexpr const char* kNames[kMaxOperands] = {"tangent0", "tangent1", "tangent2", "tangent3"};
    pass_.moving = true;
    for (int k = 0; k < kMaxOperands; ++k) {
      if (!tangents[k].defined()) continue;
      check_real(about_.name, kNames[k], tangents[k]);
      check_device(about_.name, kNames[k], tangents[k], about_.operands[0], a_.operands[0]);
      check_fits(about_.name, kNames[k], tangents[k], known_.shape_of(about_, k), about_.operands[0]);
      TORCH_CHECK_VALUE(k >= about_.vectors() || (tangents[k].dim() > 0 && tangents[k].sym_size(-1) == known_.length),
                        about_.name, ": ", kNames[k], " must have vectors of length ", known_.length, ", got shape ",
                        tangents[k].sym_sizes());
      show(k, tangents[k], place(k).tangent);
    }
  }
  // A gradient of a reduced result is one number, that of an unreduced one a number for every row.
  void take_grad_output(const at::Tensor& grad_output) {
    check_real(about_.name, "grad_output", grad_output);
    check_device(about_.name, "grad_output", grad_output, about_.operands[0], a_.operands[0]);
    check_fits(about_.name, "grad_output", grad_output, reduces() ? c10::SymDimVector() : known_.rows,
               about_.operands[0]);
    if (!reduces())
      show_rows(grad_output, pass_.grad_output);
    else if (on_gpu())
      point(pass_.factor, floating(grad_output));
    else if (computes())
      pass_.scale *= grad_output.item().toDouble();
  }
  void make_value() {
    value_ = empty_laid_out_like(a_.operands[0], reduces() ? c10::SymDimVector() : known_.rows, known_.dtype);
    if (!reduces()) show_rows(value_, pass_.value);
  }
  // A gradient is made for every row; that of a broadcast operand is summed afterwards.
  void make_gradients(const Mask& mask) {
    for (int k = 0; k < kMaxOperands; ++k) {
      const at::Tensor& x = a_.operands[k];
      if (!mask[k] || !x.defined()) continue;
      TORCH_CHECK_TYPE(k < about_.vectors() || k == kWeight || about_.soft_target, about_.name, ": ",
                       name_of(about_, k), " has no gradient");
      const c10::SymDimVector shape = known_.shape_of(about_, k);
      gradients_[k] = empty_laid_out_like(x, shape, is_whole(k) ? x.scalar_type() : known_.compute);
      show(k, gradients_[k], place(k).gradient);
    }
  }

  void run() {
    if (!computes()) return;
    lay_out(pass_, C10_AS_INTARRAYREF_SLOW(c10::SymIntArrayRef(known_.rows)), shown_);
    pass_.across = -1;  // rows are walked in the order of the first vectors' memory only
    pass_.denominator = a_.reduction == Reduction::mean ? double(pass_.count) : 1;
    pass_.scale /= pass_.denominator;
    if (on_gpu()) return run_on_device();
    const double sum = run_blocks();
    if (value_.defined() && reduces()) fill(value_, sum / pass_.denominator);
  }

  at::Tensor value() const { return value_; }
  std::vector<at::Tensor> gradients() const {
    std::vector<at::Tensor> made;
    for (int k = 0; k < kMaxOperands; ++k)
      if (gradients_[k].defined()) made.push_back(gradient(k));
    return made;
  }
  Results results() const { return {gradient(0), gradient(1), gradient(2), gradient(3)}; }

 private:
  // Whether operand k is not broadcast.
  bool is_whole(int k) const { return a_.operands[k].sym_sizes() == c10::SymIntArrayRef(known_.shape_of(about_, k)); }
  at::Tensor gradient(int k) const {
    const at::Tensor& x = a_.operands[k];
    if (!gradients_[k].defined()) return empty_laid_out_like(a_.operands[0], {c10::SymInt(0)}, known_.compute);
    if (is_whole(k)) return gradients_[k];
    return summed_to(gradients_[k], x.sym_sizes()).to(x.scalar_type());
  }
  Operand& place(int k) {
    if (k < about_.vectors()) return pass_.vectors[k];
    return k == kWeight ? pass_.weight : pass_.target;
  }
  void show(int k, const at::Tensor& tensor, VectorView& view) {
    k < about_.vectors() ? show_vectors(tensor, view) : show_rows(tensor, view);
  }
  void show_vectors(const at::Tensor& tensor, VectorView& view) {
    if (computes()) view.step = tensor.stride(-1);
    shown_.push_back({&tensor, &view, tensor.dim() - 1});
  }
  void show_rows(const at::Tensor& tensor, View& view) {
    if (tensor.defined()) shown_.push_back({on_gpu() ? &floating(tensor) : &tensor, &view});
  }

  // The CUDA kernels read numbers of floating types only: integers are rare there.
  const at::Tensor& floating(const at::Tensor& tensor) {
    if (c10::isFloatingType(tensor.scalar_type())) return tensor;
    converted_.push_back(tensor.to(known_.compute));
    return converted_.back();
  }
  void run_on_device() {
    if (value_.defined() && reduces()) point(pass_.sum, value_);
    if constexpr (kHasDevice) vectors::run_on_device(loss_, pass_, wide(), a_.operands[0]);
  }

  bool wide() const { return known_.compute == at::kDouble; }
  double run_blocks() const {
    std::vector<double> sums(pass_.blocks());
    const auto run = wide() ? engine().run_double : engine().run_float;
    at::parallel_for(0, pass_.blocks(), pass_.blocks_for_a_thread(),
                     [&](int64_t begin, int64_t end) { run(pass_, begin, end, sums.data()); });
    Sum<double> sum;
    for (const double part : sums) sum.add(part);
    return value_of(sum);
  }

  const Loss& loss_;
  const Description& about_;
  const Arguments& a_;
  const Checked known_;
  DevicePass pass_;
  c10::SmallVector<Shown, 16> shown_;
  // What the device needs beside the arguments: room for all of it, because shown_ points here.
  c10::SmallVector<at::Tensor, 8> converted_;
  at::Tensor value_;
  Tensors gradients_;
};

}  // namespace

FUSEDLOSS_KERNELS(Call)

}  // namespace kernels

}  // namespace fusedloss::vectors
