// The Python module fusedloss._C: the losses' ops called directly, and what the build knows about itself.
#include <Python.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <string_view>

#include "lattice/op.h"
#include "pairs/op.h"
#include "pointwise/op.h"
#include "rows/device_pass.h"
#include "rows/op.h"
#include "torch/processor.h"
#include "triplets/op.h"
#include "vectors/op.h"
#ifdef FUSEDLOSS_EMULATED
#include "options.h"
#endif

namespace py = pybind11;

namespace fusedloss {
namespace {

const char* name_of(Domain domain) {
  switch (domain) {
    case Domain::positive: return "positive";
    case Domain::nonnegative: return "nonnegative";
    case Domain::unit: return "unit";
    case Domain::open_unit: return "open_unit";
    case Domain::at_most_one: return "at_most_one";
    case Domain::flag: return "flag";
    case Domain::signs: return "signs";
    case Domain::one_or_two: return "one_or_two";
    case Domain::distance: return "distance";
    default: return "any";
  }
}

const char* name_of(Shapes shapes) {
  switch (shapes) {
    case Shapes::same: return "same";
    case Shapes::broadcast: return "broadcast";
    case Shapes::same_rank: return "same_rank";
    default: return "broadcast_warn";
  }
}

// ---- arguments ------------------------------------------------------------------------------------------------

// A tensor as the caller gave it, or TypeError with the argument's name.
at::Tensor tensor_from(const char* loss, const char* name, PyObject* object) {
  if (THPVariable_Check(object)) return THPVariable_Unpack(object);
  TORCH_CHECK_TYPE(false, loss, ": ", name, " must be a torch.Tensor, got ", Py_TYPE(object)->tp_name);
}
at::Tensor optional_tensor_from(const char* loss, const char* name, PyObject* object) {
  return object == Py_None ? at::Tensor() : tensor_from(loss, name, object);
}

int64_t integer_from(const char* loss, const char* name, PyObject* object) {
  const long long value = PyLong_Check(object) ? PyLong_AsLongLong(object) : -1;
  const bool failed = PyErr_Occurred() != nullptr;
  PyErr_Clear();
  TORCH_CHECK_TYPE(PyLong_Check(object) && !failed, loss, ": ", name, " must be an integer of 64 bits, got ",
                   std::string(py::str(py::handle(object))));
  return value;
}

double number_from(const char* loss, const char* name, PyObject* object) {
  const double value = PyFloat_AsDouble(object);
  if (value == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    TORCH_CHECK_TYPE(false, loss, ": ", name, " must be a number, got ", Py_TYPE(object)->tp_name);
  }
  return value;
}

// The reduction of this name, of those that a loss offers: none, mean, sum and `more`.
Reduction reduction_from(const char* loss, PyObject* object, std::initializer_list<Reduction> more) {
  constexpr std::string_view kNames[] = {"none",    "mean",          "sum",         "batchmean",
                                         "rowmean", "_mean_or_zero", "mean_nonzero"};
  TORCH_CHECK_TYPE(PyUnicode_Check(object), loss, ": reduction must be a string, got ", Py_TYPE(object)->tp_name);
  Py_ssize_t length = 0;
  const char* text = PyUnicode_AsUTF8AndSize(object, &length);
  const std::string_view given(text ? text : "", text ? length : 0);
  for (const Reduction offered : {Reduction::none, Reduction::mean, Reduction::sum})
    if (given == kNames[int(offered)]) return offered;
  const char* beside = "";
  for (const Reduction offered : more) {
    if (given == kNames[int(offered)]) return offered;
    if (offered == Reduction::batchmean || offered == Reduction::rowmean) beside = " (or 'batchmean')";
    if (offered == Reduction::mean_nonzero) beside = " (or 'mean_nonzero')";
  }
  TORCH_CHECK_VALUE(false, loss, ": reduction must be 'none', 'mean' or 'sum'", beside, ", got '", given, "'");
}

// The numbers in a tuple.
class Parameters {
 public:
  Parameters(const char* loss, const Parameter (&about)[kMaxParameters], PyObject* tuple) {
    TORCH_CHECK_TYPE(PyTuple_Check(tuple) && PyTuple_GET_SIZE(tuple) <= kMaxParameters, loss,
                     ": parameters must be a tuple of at most ", kMaxParameters, " numbers");
    count_ = PyTuple_GET_SIZE(tuple);
    for (int k = 0; k < count_; ++k) values_[k] = number_from(loss, about[k].name, PyTuple_GET_ITEM(tuple, k));
  }
  c10::ArrayRef<double> values() const { return {values_, size_t(count_)}; }

 private:
  double values_[kMaxParameters] = {};
  int count_;
};

// torch's warning where operands of different shapes are most often a mistake. One target for all columns of a third
// operand (a tensor of quantiles) is none.
void warn_of_broadcast(const Description& about, const at::Tensor& input, const at::Tensor& target, bool third) {
  if (about.shapes != Shapes::broadcast_and_warn || third || input.sym_sizes() == target.sym_sizes()) return;
  std::ostringstream message;
  message << "Using a " << about.operands[1] << " size (" << target.sym_sizes() << ") that is different to the "
          << about.operands[0] << " size (" << input.sym_sizes()
          << "): they are broadcast, which is most often a mistake in a loss.";
  // In Python, because it looks for the caller's line outside of this package.
  py::module_::import("fusedloss._reduction").attr("warn_caller")(message.str());
}

// ---- the losses -----------------------------------------------------------------------------------------------

// Functions of Python's own calling convention: the machinery of a generic binding would be a third of a call at 32
// elements. `use` makes the tensor.
template <class Use>
PyObject* answer(Use use) {
  try {
    return THPVariable_Wrap(use());
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  } catch (...) {
    torch::translate_exception_to_python(std::current_exception());
    return nullptr;
  }
}

template <class Loss>
const Loss& loss_of(PyObject* self) {
  return *static_cast<const Loss*>(PyCapsule_GetPointer(self, nullptr));
}

// NAME(input, target, extra, weight, parameters, reduction)
PyObject* call_pointwise(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return answer([&] {
    const auto& loss = loss_of<pointwise::Loss>(self);
    const Description& about = *loss.about;
    const char* name = about.name;
    TORCH_CHECK_TYPE(count == 6, name, ": expected (input, target, extra, weight, parameters, reduction)");
    const Parameters parameters(name, about.parameters, arguments[4]);
    const pointwise::Arguments a{
        {tensor_from(name, about.operands[0], arguments[0]), tensor_from(name, about.operands[1], arguments[1]),
         optional_tensor_from(name, about.operands[2] ? about.operands[2] : "extra", arguments[2])},
        optional_tensor_from(name, "weight", arguments[3]),
        parameters.values(),
        reduction_from(name, arguments[5], {about.grouped}),
        {}};
    warn_of_broadcast(about, a.operands[0], a.operands[1], a.operands[2].defined());
    const py::gil_scoped_release release;
    return pointwise::call_value(loss, a);
  });
}

// NAME(input, target, weight, sample_weight, parameters, axis, ignore_index, reduction)
template <auto function>
PyObject* call_rows(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return answer([&] {
    const auto& loss = loss_of<rows::Loss>(self);
    const rows::Description& about = *loss.about;
    const char* name = about.name;
    TORCH_CHECK_TYPE(count == 8, name,
                     ": expected (input, target, weight, sample_weight, parameters, axis, ignore_index, reduction)");
    const Parameters parameters(name, about.parameters, arguments[4]);
    const rows::Arguments a{
        {tensor_from(name, about.operands[0], arguments[0]), tensor_from(name, about.operands[1], arguments[1])},
        optional_tensor_from(name, about.weight, arguments[2]),
        optional_tensor_from(name, about.row_weight, arguments[3]),
        parameters.values(),
        integer_from(name, "axis", arguments[5]),
        integer_from(name, "ignore_index", arguments[6]),
        reduction_from(name, arguments[7],
                       {about.batchmean ? Reduction::batchmean : Reduction::sum, Reduction::mean_or_zero}),
        {}};
    const py::gil_scoped_release release;
    return function(loss, a);
  });
}

bool flag_from(const char* loss, const char* name, PyObject* object) {
  TORCH_CHECK_TYPE(PyBool_Check(object), loss, ": ", name, " must be a bool, got ", Py_TYPE(object)->tp_name);
  return object == Py_True;
}

// NAME(log_probs, targets, input_lengths, target_lengths, blank, zero_infinity, from_logits, reduction)
PyObject* call_lattice(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return answer([&] {
    const auto& loss = loss_of<lattice::Loss>(self);
    const char* name = loss.about->name;
    TORCH_CHECK_TYPE(count == 8, name, ": expected (log_probs, targets, input_lengths, target_lengths, blank, ",
                     "zero_infinity, from_logits, reduction)");
    const lattice::Arguments a{{tensor_from(name, "log_probs", arguments[0])},
                               tensor_from(name, "targets", arguments[1]),
                               tensor_from(name, "input_lengths", arguments[2]),
                               tensor_from(name, "target_lengths", arguments[3]),
                               integer_from(name, "blank", arguments[4]),
                               flag_from(name, "zero_infinity", arguments[5]),
                               flag_from(name, "from_logits", arguments[6]),
                               reduction_from(name, arguments[7], {}),
                               {}};
    const py::gil_scoped_release release;
    return lattice::call_value(loss, a);
  });
}

// NAME(first, second, positive, scale, bias, labels, symmetric, normalize, reduction); scale and bias are numbers or
// tensors.
PyObject* call_pairs(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return answer([&] {
    const auto& loss = loss_of<pairs::Loss>(self);
    const pairs::Description& about = *loss.about;
    const char* name = about.name;
    TORCH_CHECK_TYPE(count == 9, name, ": expected (first, second, positive, scale, bias, labels, symmetric, ",
                     "normalize, reduction)");
    double parameters[] = {1, 0};
    const auto number_or_tensor = [&](pairs::Place place, double& number) {
      if (THPVariable_Check(arguments[place])) return THPVariable_Unpack(arguments[place]);
      number = number_from(name, about.operands[place], arguments[place]);
      return at::Tensor();
    };
    const at::Tensor scale = number_or_tensor(pairs::kScale, parameters[0]);
    const at::Tensor bias = number_or_tensor(pairs::kBias, parameters[1]);
    const auto optional = [&](pairs::Place place) {
      return optional_tensor_from(name, name_of(about, place, arguments[pairs::kPositive] != Py_None),
                                  arguments[place]);
    };
    const pairs::Arguments a{{tensor_from(name, about.operands[pairs::kFirst], arguments[0]), optional(pairs::kSecond),
                              optional(pairs::kPositive), scale, bias},
                             optional_tensor_from(name, "labels", arguments[5]),
                             parameters,
                             {},
                             flag_from(name, "symmetric", arguments[6]),
                             flag_from(name, "normalize", arguments[7]),
                             reduction_from(name, arguments[8], {}),
                             {}};
    const py::gil_scoped_release release;
    return pairs::call_value(loss, a);
  });
}

// NAME(first, second, third, weight, parameters, normalize, reduction)
PyObject* call_vectors(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return answer([&] {
    const auto& loss = loss_of<vectors::Loss>(self);
    const vectors::Description& about = *loss.about;
    const char* name = about.name;
    TORCH_CHECK_TYPE(count == 7, name, ": expected (", about.operands[0], ", ", about.operands[1], ", ",
                     about.operands[2], ", weight, parameters, normalize, reduction)");
    const Parameters parameters(name, about.parameters, arguments[4]);
    const vectors::Arguments a{
        {tensor_from(name, about.operands[0], arguments[0]), tensor_from(name, about.operands[1], arguments[1]),
         tensor_from(name, about.operands[2], arguments[2]), optional_tensor_from(name, "weight", arguments[3])},
        parameters.values(),
        flag_from(name, "normalize", arguments[5]),
        reduction_from(name, arguments[6], {}),
        {}};
    const py::gil_scoped_release release;
    return vectors::call_value(loss, a);
  });
}

// Binds every loss of a family under its name.
// The number of this way to mine.
int64_t mining_from(const char* loss, PyObject* object) {
  constexpr std::string_view kNames[triplets::kMinings] = {"batch_hard", "semi_hard", "all"};
  TORCH_CHECK_TYPE(PyUnicode_Check(object), loss, ": mining must be a string, got ", Py_TYPE(object)->tp_name);
  const std::string given = py::str(py::handle(object));
  for (int64_t mining = 0; mining < triplets::kMinings; ++mining)
    if (given == kNames[mining]) return mining;
  TORCH_CHECK_VALUE(false, loss, ": mining must be 'batch_hard', 'semi_hard' or 'all', got '", given, "'");
}

// NAME(embeddings, labels, margin, mining, squared, normalize, reduction)
PyObject* call_triplets(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return answer([&] {
    const auto& loss = loss_of<triplets::Loss>(self);
    const char* name = loss.about->name;
    TORCH_CHECK_TYPE(count == 7, name,
                     ": expected (embeddings, labels, margin, mining, squared, normalize, reduction)");
    const triplets::Arguments a{{tensor_from(name, "embeddings", arguments[0])},
                                tensor_from(name, "labels", arguments[1]),
                                number_from(name, "margin", arguments[2]),
                                mining_from(name, arguments[3]),
                                flag_from(name, "squared", arguments[4]),
                                flag_from(name, "normalize", arguments[5]),
                                reduction_from(name, arguments[6], {Reduction::mean_nonzero}),
                                {}};
    const py::gil_scoped_release release;
    return triplets::call_value(loss, a);
  });
}

// Binds every loss of a family under its name.
template <class Losses>
void bind_losses(py::module_& module, const Losses& losses, decltype(call_pointwise) function) {
  static std::array<PyMethodDef, std::tuple_size_v<Losses>> methods;
  for (size_t k = 0; k < losses.size(); ++k) {
    const char* name = losses[k].about->name;
    methods[k] = {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, nullptr};
    const py::capsule self(&losses[k]);
    module.attr(name) = py::reinterpret_steal<py::object>(
        PyCFunction_NewEx(&methods[k], self.ptr(), py::str("fusedloss._C").release().ptr()));
  }
}

// cross_entropy_inplace: cross_entropy, whose backward pass overwrites the input with its gradient.
void bind_in_place(py::module_& module) {
  static PyMethodDef method{"cross_entropy_inplace",
                            reinterpret_cast<PyCFunction>(
                                reinterpret_cast<void (*)()>(&call_rows<rows::autograd::value_with_in_place_backward>)),
                            METH_FASTCALL, nullptr};
  for (const rows::Loss& loss : rows::losses()) {
    if (loss.about->name != std::string_view("cross_entropy")) continue;
    const py::capsule self(&loss);
    module.attr(method.ml_name) = py::reinterpret_steal<py::object>(PyCFunction_NewEx(&method, self.ptr(), nullptr));
  }
}

py::list describe(const Parameter (&all)[kMaxParameters]) {
  py::list parameters;
  for (const Parameter& parameter : all)
    if (parameter.name)
      parameters.append(py::dict(py::arg("name") = parameter.name, py::arg("domain") = name_of(parameter.domain)));
  return parameters;
}

py::dict describe(const pointwise::Loss& loss) {
  const Description& about = *loss.about;
  py::list operands, optional;
  for (int k = 0; k < kMaxOperands && about.operands[k]; ++k)
    (k < about.required_operands ? operands : optional).append(about.operands[k]);
  return py::dict(py::arg("name") = about.name, py::arg("operands") = operands, py::arg("optional_operands") = optional,
                  py::arg("parameters") = describe(about.parameters), py::arg("shapes") = name_of(about.shapes),
                  py::arg("weighted_mean") = about.weighted_mean);
}

py::dict describe(const lattice::Loss& loss) { return py::dict(py::arg("name") = loss.about->name); }

py::dict describe(const pairs::Loss& loss) {
  return py::dict(py::arg("name") = loss.about->name, py::arg("by_label") = loss.about->by_label);
}
py::dict describe(const triplets::Loss& loss) { return py::dict(py::arg("name") = loss.about->name); }

py::dict describe(const rows::Loss& loss) {
  const rows::Description& about = *loss.about;
  return py::dict(py::arg("name") = about.name, py::arg("labels") = rows::takes_labels(about.targets),
                  py::arg("dense") = rows::takes_dense(about.targets) && about.targets != rows::Targets::lists,
                  py::arg("parameters") = describe(about.parameters), py::arg("weighted_mean") = about.weighted_mean);
}

py::dict describe(const vectors::Loss& loss) {
  const vectors::Description& about = *loss.about;
  return py::dict(py::arg("name") = about.name, py::arg("vectors") = about.vectors(),
                  py::arg("parameters") = describe(about.parameters), py::arg("soft_target") = about.soft_target);
}

template <class Losses>
py::list describe_all(const Losses& losses) {
  py::list all;
  for (const auto& loss : losses) all.append(describe(loss));
  return all;
}

}  // namespace
}  // namespace fusedloss

PYBIND11_MODULE(FUSEDLOSS_MODULE, module) {
  using namespace fusedloss;
  bind_losses(module, pointwise::losses(), call_pointwise);
  bind_losses(module, rows::losses(), call_rows<rows::call_value>);
  bind_losses(module, lattice::losses(), call_lattice);
  bind_losses(module, vectors::losses(), call_vectors);
  bind_losses(module, pairs::losses(), call_pairs);
  bind_losses(module, triplets::losses(), call_triplets);
  bind_in_place(module);
  module.def("losses", [] { return describe_all(pointwise::losses()); });
  module.def("row_losses", [] { return describe_all(rows::losses()); });
  module.def("lattice_losses", [] { return describe_all(lattice::losses()); });
  module.def("vector_losses", [] { return describe_all(vectors::losses()); });
  module.def("pair_losses", [] { return describe_all(pairs::losses()); });
  module.def("triplet_losses", [] { return describe_all(triplets::losses()); });
  module.def("check_targets", torch::wrap_pybind_function_no_gil(rows::check_targets));
  module.def("build_info", [] {
    return py::dict(py::arg("torch") = FUSEDLOSS_TORCH_VERSION, py::arg("compiler") = FUSEDLOSS_COMPILER,
                    py::arg("instruction_sets") = kInstructionSets, py::arg("instruction_set") = name_of(chosen_set()),
                    py::arg("cuda_architectures") = FUSEDLOSS_CUDA_NAMES);
  });
#ifdef FUSEDLOSS_EMULATED
  module.def("set_order", &emulator::set_order);
  module.def("statistics", [] {
    const emulator::Statistics all = emulator::statistics();
    return py::dict(py::arg("launches") = all.launches, py::arg("blocks") = all.blocks,
                    py::arg("barriers") = all.barriers, py::arg("warp_operations") = all.warp_operations);
  });
#endif
}
