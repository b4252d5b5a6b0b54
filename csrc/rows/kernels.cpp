// The rows' ops below autograd. On meta tensors (and the fake ones of torch.compile) checks and shapes are all.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/TypeProperties.h>
#include <ATen/ops/movedim.h>
#include <ATen/ops/zeros.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/SmallVector.h>

#include "core/sum.h"
#include "rows/device_pass.h"
#include "rows/op.h"
#include "rows/tiles.h"
#include "torch/allocate.h"
#include "torch/below_autograd.h"
#include "torch/checks.h"
#include "torch/views.h"

namespace fusedloss::rows {
namespace {

// ---- checks ---------------------------------------------------------------------------------------------------

void check_devices(const Description& about, const Arguments& a) {
  check_has_kernels(about.name, about.operands[0], a.operands[0]);
  check_device(about.name, about.operands[1], a.operands[1], about.operands[0], a.operands[0]);
  check_device(about.name, about.weight, a.weight, about.operands[0], a.operands[0]);
  check_device(about.name, about.row_weight, a.sample_weight, about.operands[0], a.operands[0]);
}

void check_types(const Description& about, const Arguments& a) {
  for (int k = 0; k < kMaxOperands; ++k) check_real(about.name, about.operands[k], a.operands[k]);
  TORCH_CHECK_TYPE(c10::isFloatingType(a.operands[0].scalar_type()), about.name, ": ", about.operands[0],
                   " must be a floating-point tensor, got ", a.operands[0].scalar_type());
  if (a.weight.defined()) check_real(about.name, about.weight, a.weight);
  if (a.sample_weight.defined()) check_real(about.name, about.row_weight, a.sample_weight);
  check_result_type(about.name, a.dtype);
}

// Whether the target is a number for every class; it must fit the input in one of the two ways that the loss takes.
bool is_dense(const Description& about, const Arguments& a, c10::SymIntArrayRef rows) {
  const at::Tensor &input = a.operands[0], &target = a.operands[1];
  if (about.targets == Targets::lists)
    TORCH_CHECK_TYPE(c10::isIntegralType(target.scalar_type(), /*includeBool=*/false), about.name, ": ",
                     about.operands[1], " must hold the indices of classes, of an integer type, got ",
                     target.scalar_type());
  if (takes_dense(about.targets) && target.sym_sizes() == input.sym_sizes()) return true;
  TORCH_CHECK_VALUE(takes_labels(about.targets), about.name, ": ", about.operands[1], " must have the shape of ",
                    about.operands[0], ", ", input.sym_sizes(), ", got ", target.sym_sizes());
  TORCH_CHECK_VALUE(target.sym_sizes() == rows, about.name, ": ", about.operands[1], " must have the shape of ",
                    about.operands[0], " without its axis of classes, ", rows,
                    takes_dense(about.targets) ? ", or with it" : "", ", got ", target.sym_sizes());
  TORCH_CHECK_TYPE(c10::isIntegralType(target.scalar_type(), /*includeBool=*/false), about.name, ": ",
                   about.operands[1], " must hold the indices of classes, of an integer type, got ",
                   target.scalar_type());
  return false;
}

void check_weights(const Description& about, const Arguments& a, const Checked& known) {
  TORCH_CHECK_VALUE(!a.weight.defined() || about.weighs_mass || !known.dense || !takes_labels(about.targets),
                    about.name, ": ", about.weight, " is for labels; a target of the input's shape has none");
  if (a.weight.defined())
    TORCH_CHECK_VALUE(a.weight.dim() == 1 && a.weight.sym_size(0) == known.classes, about.name, ": ", about.weight,
                      " must have one number for each of the ", known.classes, " classes, got shape ",
                      a.weight.sym_sizes());
  if (a.sample_weight.defined())
    check_fits(about.name, about.row_weight, a.sample_weight, known.rows, about.operands[0]);
}

at::ScalarType promoted(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() == b.scalar_type() || !c10::isFloatingType(b.scalar_type())) return a.scalar_type();
  return at::native::result_type(
      at::native::update_result_type_state(b, at::native::update_result_type_state(a, at::native::ResultTypeState())));
}

}  // namespace

Checked check(const Description& about, const Arguments& a) {
  check_types(about, a);
  check_devices(about, a);
  check_parameters(about.name, about.parameters, a.parameters);
  TORCH_CHECK_VALUE(a.reduction != Reduction::rowmean && (about.batchmean || a.reduction != Reduction::batchmean),
                    about.name, ": reduction number ", int(a.reduction), " is not one of this loss");
  const at::Tensor& input = a.operands[0];
  const int64_t dims = input.dim();
  TORCH_CHECK_VALUE(dims > 0, about.name, ": ", about.operands[0], " must have an axis of classes, got a 0-d tensor");
  TORCH_CHECK_INDEX(-dims <= a.axis && a.axis < dims, about.name, ": axis must be from ", -dims, " to ", dims - 1,
                    " for ", about.operands[0], " of shape ", input.sym_sizes(), ", got ", a.axis);
  Checked known;
  known.axis = a.axis < 0 ? a.axis + dims : a.axis;
  known.classes = input.sym_size(known.axis);
  for (int64_t d = 0; d < dims; ++d)
    if (d != known.axis) known.rows.push_back(input.sym_size(d));
  known.dense = is_dense(about, a, known.rows);
  check_weights(about, a, known);
  const auto together = known.dense ? promoted(input, a.operands[1]) : input.scalar_type();
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
    show_classes(a.operands[0], pass_.operands[0]);
    if (!known_.dense) show_labels(a.operands[1]);
    show(a.sample_weight, pass_.row_weight);
    pass_.parameters = a.parameters.data();
    pass_.ignored = a.ignore_index;
    pass_.reads_label_only = about_.reads_label_only;
    // (Measured. Rows across must fit into the first cache; lists are looked up class by class.)
    pass_.few_classes = about_.targets == Targets::lists ? 64 : known_.dense ? 128 : 256;
    if (!computes()) return;
    pass_.classes = a.operands[0].size(known_.axis);
    if (!a.weight.defined()) return;
    weight_ = a.weight.to(known_.compute).contiguous();
    pass_.weight = weight_.const_data_ptr();
  }
  Call(const Call&) = delete;  // shown_ points into it

  bool reduces() const { return a_.reduction != Reduction::none; }
  bool computes() const { return !a_.operands[0].is_meta(); }
  bool on_gpu() const { return on_device(a_.operands[0]); }

  void take_tangents(const Tensors& tangents) {
    constexpr const char* kNames[kMaxOperands] = {"tangent0", "tangent1"};
    pass_.moving = true;
    for (int k = 0; k < kMaxOperands; ++k) {
      if (!tangents[k].defined()) continue;
      check_real(about_.name, kNames[k], tangents[k]);
      check_device(about_.name, kNames[k], tangents[k], about_.operands[0], a_.operands[0]);
      TORCH_CHECK_VALUE(tangents[k].sym_sizes() == a_.operands[0].sym_sizes() && (k == 0 || known_.dense), about_.name,
                        ": ", kNames[k], " must have the shape of ", about_.operands[0], ", ",
                        a_.operands[0].sym_sizes(), ", got ", tangents[k].sym_sizes());
      show_classes(tangents[k], pass_.tangents[k]);
    }
  }
  // A gradient of a reduced result is one number, that of an unreduced one a number for every row.
  void take_grad_output(const at::Tensor& grad_output) {
    check_real(about_.name, "grad_output", grad_output);
    check_device(about_.name, "grad_output", grad_output, about_.operands[0], a_.operands[0]);
    check_fits(about_.name, "grad_output", grad_output, reduces() ? c10::SymDimVector() : known_.rows,
               about_.operands[0]);
    if (!reduces())
      show(grad_output, pass_.grad_output);
    else if (on_gpu())
      point(pass_.factor, floating(grad_output));
    else if (computes())
      pass_.scale *= grad_output.item().toDouble();
  }
  void make_value() {
    value_ = empty_laid_out_like(a_.operands[0], reduces() ? c10::SymDimVector() : known_.rows, known_.dtype);
    pass_.sums_values = reduces();
    if (!reduces()) show(value_, pass_.value);
  }
  void make_gradients(const Mask& mask) {
    for (int k = 0; k < kMaxOperands; ++k) {
      const at::Tensor& x = a_.operands[k];
      if (!mask[k]) continue;
      TORCH_CHECK_TYPE(k == 0 || (known_.dense && about_.targets != Targets::lists), about_.name,
                       ": labels have no gradient");
      take_gradient(k, empty_laid_out_like(x, x.sym_sizes(), x.scalar_type()));
    }
  }
  void take_gradient(int k, const at::Tensor& gradient) {
    gradients_[k] = gradient;
    show_classes(gradients_[k], pass_.gradients[k]);
  }

  void run() {
    if (!computes()) return;
    show_dense_target();
    lay_out_rows();
    if (on_gpu()) return run_on_device();
    const double denominator = divide_by_count();
    const double sum = run_blocks();
    if (!value_.defined() || !reduces()) return;
    fill(value_, denominator == 0 && a_.reduction == Reduction::mean_or_zero ? 0 : sum / denominator);
  }

  // Gradients that were made before, by what comes in for their rows.
  void scale() {
    lay_out_rows();
    divide_by_count();
    const auto scale_blocks = wide() ? engine().scale_double : engine().scale_float;
    in_blocks(tiling(), [&](int64_t begin, int64_t end) { scale_blocks(pass_, begin, end); });
  }

  at::Tensor value() const { return value_; }
  std::vector<at::Tensor> gradients() const {
    std::vector<at::Tensor> made;
    for (const at::Tensor& gradient : gradients_)
      if (gradient.defined()) made.push_back(gradient);
    return made;
  }
  Results results() const { return {given(0), given(1)}; }

 private:
  at::Tensor given(int k) const {
    if (gradients_[k].defined()) return gradients_[k];
    return empty_laid_out_like(a_.operands[0], {c10::SymInt(0)}, known_.compute);
  }
  void show(const at::Tensor& tensor, View& view) {
    if (tensor.defined()) shown_.push_back({on_gpu() ? &floating(tensor) : &tensor, &view});
  }
  void show_classes(const at::Tensor& given, ClassView& view) {
    const at::Tensor& tensor = on_gpu() ? floating(given) : given;
    if (computes()) view.step = tensor.stride(known_.axis);
    shown_.push_back({&tensor, &view, known_.axis});
  }
  void lay_out_rows() {
    lay_out(pass_, C10_AS_INTARRAYREF_SLOW(c10::SymIntArrayRef(known_.rows)), shown_);
    pass_.across = -1;  // rows are walked in the order of the input's memory only
  }
  // (A device gets lists as how often every class is in them.)
  void show_dense_target() {
    if (!known_.dense) return;
    const bool lists = about_.targets == Targets::lists;
    pass_.takes_lists = lists && !on_gpu();
    show_classes(lists && on_gpu() ? members() : a_.operands[1], pass_.operands[1]);
  }
  // On a device they are contiguous: a label that is no class is then named by where it stands in memory.
  void show_labels(const at::Tensor& labels) {
    shown_.push_back({on_gpu() ? &kept(labels.to(at::kLong).contiguous()) : &labels, &pass_.labels});
  }

  // ---- on a device ----

  // The CUDA kernels read numbers of floating types only: integers are rare there.
  const at::Tensor& floating(const at::Tensor& tensor) {
    return c10::isFloatingType(tensor.scalar_type()) ? tensor : kept(tensor.to(known_.compute));
  }
  const at::Tensor& kept(at::Tensor tensor) {
    converted_.push_back(std::move(tensor));
    return converted_.back();
  }
  void run_on_device() {
    if (reduces() && a_.reduction != Reduction::sum) find_denominator();
    if (value_.defined() && reduces()) point(pass_.sum, value_);
    if constexpr (kHasDevice) rows::run_on_device(loss_, pass_, known_.dense, wide(), a_.operands[0]);
  }
  // By what the sum over the rows is divided: the device knows it where that is seen from labels and weights.
  void find_denominator() {
    const bool weighted = about_.weighted_mean, never_zero = a_.reduction == Reduction::mean_or_zero;
    if constexpr (kHasDevice)
      if (pass_.labels.data || (weighted && pass_.row_weight.data)) {
        const at::Tensor& count = kept(count_on_device(loss_, pass_, weighted, never_zero, wide(), a_.operands[0]));
        pass_.divisor = count.const_data_ptr<double>();
        return;
      }
    pass_.denominator = pass_.count == 0 && never_zero ? 1 : double(pass_.count);
    pass_.scale /= pass_.denominator;
  }

  // How often every class is in the row's list, for a device; also then it is the host that looks.
  const at::Tensor& members() {
    const at::Tensor lists = a_.operands[1].to(at::kCPU, at::kLong).movedim(known_.axis, -1).contiguous();
    at::Tensor result = at::zeros(lists.sizes(), lists.options().dtype(known_.compute));
    const int64_t* list = lists.const_data_ptr<int64_t>();
    const int64_t classes = lists.size(-1);
    for (int64_t row = 0; row < lists.numel(); row += classes)
      for (int64_t k = row; k < row + classes && list[k] != -1; ++k) {
        TORCH_CHECK_INDEX(0 <= list[k] && list[k] < classes, about_.name, ": every ", about_.operands[1],
                          " must be the index of a class, from 0 to ", classes - 1,
                          ", or the end of the list, -1; got ", list[k], " in row ", row / classes, " at place ",
                          k - row);
        if (known_.compute == at::kDouble)
          ++result.mutable_data_ptr<double>()[row + list[k]];
        else
          ++result.mutable_data_ptr<float>()[row + list[k]];
      }
    return kept(result.to(a_.operands[0].device()).movedim(-1, known_.axis));
  }

  // ---- what counts ----

  // Looks at what must be known before anything is written; returns by what the sum of the rows is divided.
  double divide_by_count() {
    const bool mean = reduces() && a_.reduction != Reduction::sum;
    Count all{double(pass_.count), pass_.count};
    pass_.sums_weights = mean && about_.weighted_mean;
    if (pass_.labels.data || pass_.takes_lists || (pass_.sums_weights && pass_.row_weight.data)) all = count();
    if (!all.in_range) pass_.takes_lists ? void(members()) : refuse_label();  // (the first refuses too)
    double denominator = 1;
    if (mean) denominator = about_.weighted_mean ? all.weight : double(all.rows);
    const bool nothing = denominator == 0 && a_.reduction == Reduction::mean_or_zero;
    pass_.scale = nothing ? 0 : pass_.scale / denominator;
    return denominator;
  }

  Count count() const {
    constexpr int64_t kBlock = 1 << 12;
    const int64_t blocks = (pass_.count + kBlock - 1) / kBlock;
    const auto engine_count = wide() ? engine().count_double : engine().count_float;
    std::vector<Count> counts(blocks);
    at::parallel_for(0, blocks, /*grain_size=*/4, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        counts[block] = engine_count(pass_, block * kBlock, std::min(kBlock, pass_.count - block * kBlock));
    });
    Count all;
    Sum<double> weight;
    for (const Count& part : counts) {
      weight.add(part.weight);
      all.rows += part.rows;
      all.in_range &= part.in_range;
    }
    all.weight = value_of(weight);
    return all;
  }

  // Looks the label up again in the target's own order, to name it by its index.
  [[noreturn]] void refuse_label() const {
    const at::Tensor labels = a_.operands[1].to(at::kLong).contiguous();
    const int64_t* data = labels.const_data_ptr<int64_t>();
    int64_t first = 0;
    while (data[first] == a_.ignore_index || (0 <= data[first] && data[first] < pass_.classes)) ++first;
    const bool ignores = a_.ignore_index != std::numeric_limits<int64_t>::min();
    TORCH_CHECK_INDEX(false, about_.name, ": every ", about_.operands[1], " must be the index of a class, from 0 to ",
                      pass_.classes - 1, ignores ? ", or ignore_index = " + std::to_string(a_.ignore_index) : "",
                      "; got ", data[first], " at index ", at::IntArrayRef(index_of(first, labels.sizes())));
  }

  // ---- the pass ----

  bool wide() const { return known_.compute == at::kDouble; }
  Tiling tiling() const { return {pass_, wide() ? engine().double_lanes : engine().float_lanes}; }
  template <class Use>
  static void in_blocks(const Tiling& tiling, Use use) {
    at::parallel_for(0, tiling.blocks(), tiling.blocks_for_a_thread(), use);
  }
  double run_blocks() const {
    const Tiling tiling = this->tiling();
    std::vector<double> sums(tiling.blocks());
    in_blocks(tiling, [&](int64_t begin, int64_t end) {
      if (wide())
        engine().run_double(pass_, loss_.functions->of_double, begin, end, sums.data());
      else
        engine().run_float(pass_, loss_.functions->of_float, begin, end, sums.data());
    });
    Sum<double> sum;
    for (const double part : sums) sum.add(part);
    return value_of(sum);
  }

  const Loss& loss_;
  const Description& about_;
  const Arguments& a_;
  const Checked known_;
  DevicePass pass_;
  c10::SmallVector<Shown, 10> shown_;
  // What is needed beside the arguments: room for all of it, because shown_ points here.
  c10::SmallVector<at::Tensor, 10> converted_;
  at::Tensor weight_, value_;
  Tensors gradients_;
};

}  // namespace

FUSEDLOSS_KERNELS(Call)

void backward_into(const Loss& loss, const at::Tensor& grad_output, const Arguments& a, const at::Tensor& gradient) {
  Call call(loss, a);
  call.take_grad_output(grad_output);
  call.take_gradient(0, gradient);
  call.run();
}

at::Tensor scaled_rows(const Loss& loss, const at::Tensor& gradient, const at::Tensor& grad_output, const Arguments& a,
                       bool in_place) {
  const at::Tensor result = in_place ? gradient : gradient.clone();
  Call call(loss, a);
  call.take_grad_output(grad_output);
  call.take_gradient(0, result);
  call.scale();
  return result;
}

}  // namespace kernels

}  // namespace fusedloss::rows
