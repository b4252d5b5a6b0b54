// The ops of mined triplets below autograd. On meta tensors (and the fake ones of torch.compile) checks and shapes are
// all.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <limits>
#include <numeric>

#include "torch/allocate.h"
#include "torch/below_autograd.h"
#include "torch/checks.h"
#include "torch/views.h"
#include "triplets/device_pass.h"
#include "triplets/labels.h"
#include "triplets/op.h"

namespace fusedloss::triplets {

// ---- checks ---------------------------------------------------------------------------------------------------

Checked check(const Description& about, const Arguments& a) {
  const at::Tensor& input = a.operands[0];
  check_real(about.name, "embeddings", input);
  TORCH_CHECK_TYPE(c10::isFloatingType(input.scalar_type()), about.name,
                   ": embeddings must be a floating-point tensor, got ", input.scalar_type());
  check_has_kernels(about.name, "embeddings", input);
  check_result_type(about.name, a.dtype);
  TORCH_CHECK_VALUE(a.reduction == Reduction::none || a.reduction == Reduction::mean || a.reduction == Reduction::sum ||
                        a.reduction == Reduction::mean_nonzero,
                    about.name, ": reduction number ", int(a.reduction), " is not one of this loss");
  TORCH_CHECK_VALUE(0 <= a.mining && a.mining < kMinings, about.name, ": mining must be a number from 0 to ",
                    kMinings - 1, ", got ", a.mining);
  TORCH_CHECK_VALUE(std::isfinite(a.margin) && a.margin >= 0, about.name,
                    ": margin must be a finite number of at least 0, got ", a.margin);
  TORCH_CHECK_VALUE(input.dim() == 2, about.name, ": embeddings must be of shape (N, D), got ", input.sym_sizes());
  check_labels(about.name, a.labels, "embeddings", input);
  Checked known;
  known.count = input.sym_size(0);
  known.size = input.sym_size(1);
  if (a.reduction == Reduction::none) known.shape.push_back(known.count);
  known.dtype = a.dtype.value_or(input.scalar_type());
  known.compute = input.scalar_type() == at::kDouble || known.dtype == at::kDouble ? at::kDouble : at::kFloat;
  return known;
}

namespace kernels {
namespace {

// So many operations take as long as it takes to wake a thread.
constexpr int64_t kWorthAThread = 1 << 18;
// So many pairs of a block are kept: as large a part of its anchors as this allows, but not too few to share out.
constexpr int64_t kPairsOfABlock = 1 << 18, kSmallestBlock = 64;

// The checked arguments of one call, and the pass that is being put together from them.
class Call {
 public:
  Call(const Loss& loss, const Arguments& a) : name_(loss.about->name), a_(a), known_(check(*loss.about, a)) {
    if (!computes()) return;
    pass_.count = known_.count.expect_int();
    pass_.size = known_.size.expect_int();
    TORCH_CHECK_NOT_IMPLEMENTED(pass_.count <= std::numeric_limits<int32_t>::max() - 1024, name_,
                                ": more than 2^31 - 1024 embeddings");
    pass_.mining = Mining(a.mining);
    pass_.squared = a.squared;
    pass_.normalize = a.normalize;
    pass_.margin = a.margin;
    pass_.input = view(a.operands[0]);
    if (!on_gpu()) labels_.emplace(a.labels);
    if (!on_gpu()) pass_.groups = labels_->groups(pass_.mining);
  }
  Call(const Call&) = delete;

  void take_tangents(const Tensors& tangents) {
    const at::Tensor& tangent = tangents[0];
    check_real(name_, "tangent0", tangent);
    check_device(name_, "tangent0", tangent, "embeddings", a_.operands[0]);
    TORCH_CHECK_TYPE(c10::isFloatingType(tangent.scalar_type()), name_,
                     ": tangent0 must be a floating-point tensor, got ", tangent.scalar_type());
    TORCH_CHECK_VALUE(tangent.sym_sizes() == a_.operands[0].sym_sizes(), name_,
                      ": tangent0 must have the shape of embeddings, ", a_.operands[0].sym_sizes(), ", got ",
                      tangent.sym_sizes());
    pass_.moving = true;
    if (computes()) pass_.tangent = view(tangent);
  }
  // A gradient of a reduced result is one number, that of an unreduced one a number for every anchor.
  void take_grad_output(const at::Tensor& grad_output) {
    check_real(name_, "grad_output", grad_output);
    check_device(name_, "grad_output", grad_output, "embeddings", a_.operands[0]);
    check_fits(name_, "grad_output", grad_output, known_.shape, "embeddings");
    if (!computes()) return;
    incoming_ = on_gpu() ? grad_output.is_floating_point() ? grad_output : grad_output.to(known_.compute)
                         : grad_output.to(at::kDouble).expand(shape()).contiguous();
  }
  void make_value() { value_ = empty_laid_out_like(a_.operands[0], known_.shape, known_.dtype); }
  void make_gradients(const Mask& mask) {
    const at::Tensor& x = a_.operands[0];
    if (!mask[0]) return;
    gradient_ = empty_laid_out_like(x, x.sym_sizes(), x.scalar_type());
    if (computes()) pass_.gradient = view(gradient_);
  }

  void run() {
    if (!computes()) return;
    if (on_gpu()) return run_on_device();
    std::vector<double> results(2 * pass_.count);
    pass_.values = results.data();
    pass_.above = results.data() + pass_.count;
    if (incoming_.defined() && !reduces()) pass_.factors = incoming_.const_data_ptr<double>();
    if (pass_.groups.anchor_count > 0)
      run_here();
    else if (gradient_.defined())
      gradient_.zero_();
    if (value_.defined()) reduce();
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
  bool reduces() const { return a_.reduction != Reduction::none; }
  bool on_gpu() const { return on_device(a_.operands[0]); }
  bool computes() const { return !a_.operands[0].is_meta(); }
  // Vectors of no numbers have one without memory.
  bool makes_gradient() const { return pass_.gradient.data != nullptr; }
  bool wide() const { return known_.compute == at::kDouble; }
  at::IntArrayRef shape() const { return C10_AS_INTARRAYREF_SLOW(c10::SymIntArrayRef(known_.shape)); }
  static VectorView view(const at::Tensor& tensor) {
    View memory;
    point(memory, tensor);
    return {memory.data, memory.dtype, tensor.stride(0), tensor.stride(1)};
  }

  void run_on_device() {
    const DeviceCall call{name_, wide(), a_.reduction, a_.labels, incoming_, value_, gradient_};
    if constexpr (kHasDevice) triplets::run_on_device(call, pass_, a_.operands[0]);
  }

  // A block's size depends on nothing but the call: on it depends in which order sums are rounded.
  void choose_block() {
    const Groups& groups = pass_.groups;
    pass_.block = groups.anchor_count;
    if (makes_gradient() || pass_.moving)
      pass_.block = std::min(pass_.block, std::max(kPairsOfABlock / groups.most_pairs, kSmallestBlock));
  }

  void run_here() {
    choose_block();
    const Functions& run = wide() ? engine().of_double : engine().of_float;
    const int64_t anchors = pass_.groups.anchor_count, numbers = pass_.count * pass_.size;
    const int64_t threads = std::min<int64_t>(at::get_num_threads(), 1 + anchors * numbers / kWorthAThread);
    const int64_t own_room = run.own_room(pass_), shared_room = run.shared_room(pass_);
    const at::Tensor memory = at::empty({shared_room + threads * own_room}, at::kByte);
    char *const shared = static_cast<char*>(memory.mutable_data_ptr()), *const own = shared + shared_room;
    const auto in_threads = [&](int64_t pieces, auto use) {
      Queue queue(pieces);
      at::parallel_for(0, std::min(threads, pieces), 1, [&](int64_t begin, int64_t end) {
        if (begin < end) use(queue, own + begin * own_room);
      });
    };
    const int64_t panels = divided_up(pass_.count, run.read_piece);
    in_threads(panels, [&](Queue& queue, char*) { run.read(pass_, queue, shared); });
    for (Block block{0, 0}; block.first < anchors; block.first += block.count) {
      block.count = std::min(pass_.block, anchors - block.first);
      in_threads(divided_up(block.count, run.mine_piece),
                 [&](Queue& queue, char* room) { run.mine(pass_, block, queue, shared, room); });
      if (!makes_gradient()) continue;
      at::parallel_for(0, pass_.count, divided_up(pass_.count, threads),
                       [&](int64_t begin, int64_t end) { run.give(pass_, block, begin, end, shared); });
    }
    if (!makes_gradient()) return;
    pass_.scale = over_terms(incoming_.defined() && reduces() ? *incoming_.const_data_ptr<double>() : 1);
    in_threads(panels, [&](Queue& queue, char* room) { run.write(pass_, queue, shared, room); });
  }
  static int64_t divided_up(int64_t count, int64_t by) { return (count + by - 1) / by; }

  double sum_of(const double* numbers) const { return std::accumulate(numbers, numbers + pass_.count, 0.0); }
  // What is summed over all terms, as the reduction wants it.
  double over_terms(double sum) const {
    double terms = 1;
    if (a_.reduction == Reduction::mean) terms = labels_->terms(pass_.mining);
    if (a_.reduction == Reduction::mean_nonzero) terms = sum_of(pass_.above);
    return terms > 0 ? sum / terms : 0;
  }
  void reduce() const {
    if (reduces()) return fill(value_, over_terms(sum_of(pass_.values)));
    value_.copy_(at::from_blob(pass_.values, shape(), at::kDouble));
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

}  // namespace kernels

}  // namespace fusedloss::triplets
