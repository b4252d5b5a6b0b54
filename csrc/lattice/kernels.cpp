// The ops of losses over a lattice below autograd. On meta tensors (and the fake ones of torch.compile) checks and
// shapes are all.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "lattice/device_pass.h"
#include "lattice/op.h"
#include "torch/allocate.h"
#include "torch/below_autograd.h"
#include "torch/checks.h"
#include "torch/views.h"

namespace fusedloss::lattice {

// ---- checks ---------------------------------------------------------------------------------------------------

namespace {
// They may be on the CPU, where they are read, whatever device the frames are on.
void check_integers(const char* loss, const char* name, const at::Tensor& tensor, const at::Tensor& input) {
  check_real(loss, name, tensor);
  if (tensor.defined() && !tensor.is_cpu()) check_device(loss, name, tensor, "log_probs", input);
  TORCH_CHECK_TYPE(c10::isIntegralType(tensor.scalar_type(), /*includeBool=*/false), loss, ": ", name,
                   " must be of an integer type, got ", tensor.scalar_type());
}

void check_lengths(const char* loss, const char* name, const at::Tensor& lengths, const at::Tensor& input,
                   const Checked& known) {
  check_integers(loss, name, lengths, input);
  const bool fits = known.batched ? lengths.dim() == 1 && lengths.sym_size(0) == known.samples
                                  : lengths.dim() <= 1 && lengths.sym_numel() == 1;
  TORCH_CHECK_VALUE(fits, loss, ": ", name, " must have one number for each sample, of which there are ", known.samples,
                    "; got shape ", lengths.sym_sizes());
}
}  // namespace

Checked check(const Description& about, const Arguments& a) {
  const at::Tensor& input = a.operands[0];
  check_real(about.name, "log_probs", input);
  TORCH_CHECK_TYPE(c10::isFloatingType(input.scalar_type()), about.name,
                   ": log_probs must be a floating-point tensor, got ", input.scalar_type());
  check_has_kernels(about.name, "log_probs", input);
  check_result_type(about.name, a.dtype);
  TORCH_CHECK_VALUE(a.reduction == Reduction::none || a.reduction == Reduction::mean || a.reduction == Reduction::sum,
                    about.name, ": reduction number ", int(a.reduction), " is not one of this loss");
  TORCH_CHECK_VALUE(input.dim() == 2 || input.dim() == 3, about.name,
                    ": log_probs must be of shape (T, N, C), or (T, C) for a single sample, got ", input.sym_sizes());
  Checked known;
  known.batched = input.dim() == 3;
  known.frames = input.sym_size(0);
  known.samples = known.batched ? input.sym_size(1) : c10::SymInt(1);
  known.classes = input.sym_size(-1);
  if (known.batched) known.shape.push_back(known.samples);
  TORCH_CHECK_INDEX(0 <= a.blank && known.classes > a.blank, about.name, ": blank must be the index of one of the ",
                    known.classes, " classes, got ", a.blank);
  check_integers(about.name, "targets", a.targets, input);
  TORCH_CHECK_VALUE(a.targets.dim() == 1 || (known.batched && a.targets.dim() == 2), about.name, ": targets must be ",
                    known.batched ? "of shape (N, S), or those of all samples one after another"
                                  : "of shape (S) for log_probs of shape (T, C)",
                    ", got ", a.targets.sym_sizes());
  TORCH_CHECK_VALUE(a.targets.dim() == 1 || a.targets.sym_size(0) == known.samples, about.name,
                    ": targets must have a row for each of the ", known.samples, " samples, got shape ",
                    a.targets.sym_sizes());
  check_lengths(about.name, "input_lengths", a.input_lengths, input, known);
  check_lengths(about.name, "target_lengths", a.target_lengths, input, known);
  known.dtype = a.dtype.value_or(input.scalar_type());
  known.compute = input.scalar_type() == at::kDouble || known.dtype == at::kDouble ? at::kDouble : at::kFloat;
  return known;
}

namespace kernels {
namespace {

// The checked arguments of one call, and the pass that is being put together from them.
class Call {
 public:
  Call(const Loss& loss, const Arguments& a) : name_(loss.about->name), a_(a), known_(check(*loss.about, a)) {
    if (!computes()) return;
    labels_.emplace(name_, a);
    pass_.frames = known_.frames.expect_int();
    pass_.count = int64_t(labels_->samples.size());
    pass_.classes = known_.classes.expect_int();
    pass_.labels = labels_->labels.data();
    pass_.blank = int32_t(a.blank);
    pass_.from_logits = a.from_logits;
    show(a.operands[0], pass_.input);
  }
  Call(const Call&) = delete;

  bool reduces() const { return a_.reduction != Reduction::none; }
  bool on_gpu() const { return on_device(a_.operands[0]); }
  bool computes() const { return !a_.operands[0].is_meta(); }

  void take_tangents(const Tensors& tangents) {
    const at::Tensor& tangent = tangents[0];
    check_real(name_, "tangent0", tangent);
    check_device(name_, "tangent0", tangent, "log_probs", a_.operands[0]);
    TORCH_CHECK_TYPE(c10::isFloatingType(tangent.scalar_type()), name_,
                     ": tangent0 must be a floating-point tensor, got ", tangent.scalar_type());
    TORCH_CHECK_VALUE(tangent.sym_sizes() == a_.operands[0].sym_sizes(), name_,
                      ": tangent0 must have the shape of log_probs, ", a_.operands[0].sym_sizes(), ", got ",
                      tangent.sym_sizes());
    pass_.moving = true;
    if (computes()) show(tangent, pass_.tangent);
  }
  // A gradient of a reduced result is one number, that of an unreduced one a number for every sample.
  void take_grad_output(const at::Tensor& grad_output) {
    check_real(name_, "grad_output", grad_output);
    check_device(name_, "grad_output", grad_output, "log_probs", a_.operands[0]);
    check_fits(name_, "grad_output", grad_output, reduces() ? c10::SymDimVector() : known_.shape, "log_probs");
    if (on_gpu()) incoming_ = grad_output.is_floating_point() ? grad_output : grad_output.to(known_.compute);
    if (!computes() || on_gpu()) return;
    const at::Tensor all = grad_output.to(at::kDouble).expand(reduces() ? at::IntArrayRef() : shape()).contiguous();
    const double* incoming = all.const_data_ptr<double>();
    for (int64_t n = 0; n < pass_.count; ++n) labels_->samples[n].factor = incoming[reduces() ? 0 : n];
  }
  void make_value() {
    value_ = empty_laid_out_like(a_.operands[0], reduces() ? c10::SymDimVector() : known_.shape, known_.dtype);
  }
  void make_gradients(const Mask& mask) {
    const at::Tensor& x = a_.operands[0];
    if (mask[0]) take_gradient(empty_laid_out_like(x, x.sym_sizes(), x.scalar_type()));
  }
  void take_gradient(const at::Tensor& gradient) {
    gradient_ = gradient;
    if (computes()) show(gradient_, pass_.gradient);
  }

  void run() {
    if (!computes()) return;
    weigh();
    if (on_gpu()) return run_on_device();
    std::vector<double> values(pass_.count);
    pass_.values = values.data();
    in_threads(wide() ? engine().run_double : engine().run_float);
    if (value_.defined()) reduce(values);
  }
  // Gradients that were made before, by what comes in for their samples.
  void scale() {
    weigh();
    in_threads(wide() ? engine().scale_double : engine().scale_float);
  }

  at::Tensor value() const { return value_; }
  std::vector<at::Tensor> gradients() const {
    return gradient_.defined() ? std::vector<at::Tensor>{gradient_} : std::vector<at::Tensor>();
  }
  Results results() const {
    if (gradient_.defined()) return gradient_;
    return empty_laid_out_like(a_.operands[0], {c10::SymInt(0)}, known_.compute);
  }

 private:
  bool wide() const { return known_.compute == at::kDouble; }
  at::IntArrayRef shape() const { return C10_AS_INTARRAYREF_SLOW(c10::SymIntArrayRef(known_.shape)); }
  void show(const at::Tensor& tensor, FrameView& view) const {
    View memory;
    point(memory, tensor);
    view = {memory.data, memory.dtype, tensor.stride(0), known_.batched ? tensor.stride(1) : 0, tensor.stride(-1)};
  }

  // What a sample's loss counts for in the result.
  double weight_of(const Sample& sample) const {
    if (a_.reduction != Reduction::mean) return 1;
    return 1 / (double(std::max<int64_t>(sample.labels, 1)) * double(pass_.count));
  }
  void weigh() {
    for (Sample& sample : labels_->samples) sample.factor *= weight_of(sample);
    pass_.samples = labels_->samples.data();
  }

  void run_on_device() {
    if (pass_.count == 0 && value_.defined()) value_.fill_(a_.reduction == Reduction::mean ? NAN : 0);
    const at::Tensor none;
    const DeviceCall call{
        name_, wide(), a_.zero_infinity, incoming_, reduces() ? none : value_, reduces() ? value_ : none};
    if constexpr (kHasDevice) lattice::run_on_device(call, pass_, *labels_, a_.operands[0]);
  }

  void in_threads(RunFunction function) const {
    // So many numbers of the input take as long as it takes to wake a thread.
    constexpr int64_t kWorthAThread = 1 << 13;
    const int64_t threads = std::min<int64_t>(
        {pass_.count, at::get_num_threads(), 1 + pass_.count * pass_.frames * pass_.classes / kWorthAThread});
    const int64_t room = wide() ? engine().room_double(pass_) : engine().room_float(pass_);
    const at::Tensor memory = at::empty({threads, room}, at::kByte);
    char* const start = static_cast<char*>(memory.mutable_data_ptr());
    Queue samples(pass_.count);
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      if (begin < end) function(pass_, samples, start + begin * room);
    });
  }

  void reduce(std::vector<double>& values) const {
    double sum = 0;
    for (int64_t n = 0; n < pass_.count; ++n) {
      if (a_.zero_infinity && values[n] == INFINITY) values[n] = 0;
      sum += values[n] * weight_of(labels_->samples[n]);
    }
    if (a_.reduction == Reduction::mean && pass_.count == 0) sum = NAN;
    if (reduces()) return fill(value_, sum);
    value_.copy_(at::from_blob(values.data(), shape(), at::kDouble));
  }

  const char* const name_;
  const Arguments& a_;
  const Checked known_;
  std::optional<Labels> labels_;
  Pass pass_;
  at::Tensor value_, gradient_, incoming_;
};

}  // namespace

FUSEDLOSS_KERNELS(Call)

at::Tensor scaled_samples(const Loss& loss, const at::Tensor& gradient, const at::Tensor& grad_output,
                          const Arguments& a, bool in_place) {
  const at::Tensor result = in_place ? gradient : gradient.clone();
  Call call(loss, a);
  call.take_grad_output(grad_output);
  call.take_gradient(result);
  call.scale();
  return result;
}

}  // namespace kernels

}  // namespace fusedloss::lattice
