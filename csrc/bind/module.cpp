// The Python module fusedloss._C: the pointwise ops called directly, and what the build knows about itself.
#include <Python.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <string_view>

#include "pointwise/op.h"
#ifdef FUSEDLOSS_EMULATED
#include "options.h"
#endif

namespace py = pybind11;

namespace fusedloss {
namespace {

using pointwise::Loss;

const char* name_of(Domain domain) {
  switch (domain) {
    case Domain::positive: return "positive";
    case Domain::nonnegative: return "nonnegative";
    case Domain::unit: return "unit";
    case Domain::open_unit: return "open_unit";
    case Domain::at_most_one: return "at_most_one";
    case Domain::flag: return "flag";
    case Domain::signs: return "signs";
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
at::Tensor tensor_from(const Description& about, const char* name, PyObject* object) {
  if (THPVariable_Check(object)) return THPVariable_Unpack(object);
  TORCH_CHECK_TYPE(false, about.name, ": ", name, " must be a torch.Tensor, got ", Py_TYPE(object)->tp_name);
}
at::Tensor optional_tensor_from(const Description& about, const char* name, PyObject* object) {
  return object == Py_None ? at::Tensor() : tensor_from(about, name, object);
}

Reduction reduction_from(const Description& about, PyObject* object) {
  constexpr std::string_view kNames[] = {"none", "mean", "sum", "batchmean", "rowmean"};
  TORCH_CHECK_TYPE(PyUnicode_Check(object), about.name, ": reduction must be a string, got ", Py_TYPE(object)->tp_name);
  Py_ssize_t length = 0;
  const char* text = PyUnicode_AsUTF8AndSize(object, &length);
  const std::string_view given(text ? text : "", text ? length : 0);
  const int offered[] = {0, 1, 2, int(about.grouped)};
  for (const int k : offered)
    if (given == kNames[k]) return static_cast<Reduction>(k);
  TORCH_CHECK_VALUE(false, about.name, ": reduction must be 'none', 'mean' or 'sum'",
                    about.grouped == Reduction::sum ? "" : " (or 'batchmean')", ", got '", given, "'");
}

// The numbers in a tuple.
class Parameters {
 public:
  Parameters(const Description& about, PyObject* tuple) {
    count_ = PyTuple_GET_SIZE(tuple);
    for (int k = 0; k < count_; ++k) {
      PyObject* item = PyTuple_GET_ITEM(tuple, k);
      values_[k] = PyFloat_AsDouble(item);
      if (values_[k] == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        TORCH_CHECK_TYPE(false, about.name, ": ", about.parameters[k].name, " must be a number, got ",
                         Py_TYPE(item)->tp_name);
      }
    }
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

// NAME(input, target, extra, weight, parameters, reduction), without the machinery of a generic binding: at 32
// elements that machinery would be a third of the call.
PyObject* call(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  try {
    const Loss& loss = *static_cast<const Loss*>(PyCapsule_GetPointer(self, nullptr));
    const Description& about = *loss.about;
    TORCH_CHECK_TYPE(count == 6 && PyTuple_Check(arguments[4]) && PyTuple_GET_SIZE(arguments[4]) <= kMaxParameters,
                     about.name, ": expected (input, target, extra, weight, parameters, reduction)");
    const Parameters parameters(about, arguments[4]);
    const pointwise::Arguments a{
        {tensor_from(about, about.operands[0], arguments[0]), tensor_from(about, about.operands[1], arguments[1]),
         optional_tensor_from(about, about.operands[2] ? about.operands[2] : "extra", arguments[2])},
        optional_tensor_from(about, "weight", arguments[3]),
        parameters.values(),
        reduction_from(about, arguments[5]),
        {}};
    warn_of_broadcast(about, a.operands[0], a.operands[1], a.operands[2].defined());
    at::Tensor result;
    {
      py::gil_scoped_release release;
      result = pointwise::call_value(loss, a);
    }
    return THPVariable_Wrap(std::move(result));
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  } catch (...) {
    torch::translate_exception_to_python(std::current_exception());
    return nullptr;
  }
}

void bind_losses(py::module_& module) {
  static std::array<PyMethodDef, pointwise::kLosses> methods;
  for (int k = 0; k < pointwise::kLosses; ++k) {
    const Loss& loss = pointwise::losses()[k];
    methods[k] = {loss.about->name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call)), METH_FASTCALL,
                  nullptr};
    const py::capsule self(const_cast<Loss*>(&loss));
    module.attr(loss.about->name) = py::reinterpret_steal<py::object>(
        PyCFunction_NewEx(&methods[k], self.ptr(), py::str("fusedloss._C").release().ptr()));
  }
}

py::dict describe(const Loss& loss) {
  const Description& about = *loss.about;
  py::list operands, optional, parameters;
  for (int k = 0; k < kMaxOperands && about.operands[k]; ++k)
    (k < about.required_operands ? operands : optional).append(about.operands[k]);
  for (const Parameter& parameter : about.parameters)
    if (parameter.name)
      parameters.append(py::dict(py::arg("name") = parameter.name, py::arg("domain") = name_of(parameter.domain)));
  return py::dict(py::arg("name") = about.name, py::arg("operands") = operands, py::arg("optional_operands") = optional,
                  py::arg("parameters") = parameters, py::arg("shapes") = name_of(about.shapes),
                  py::arg("weighted_mean") = about.weighted_mean);
}

}  // namespace
}  // namespace fusedloss

PYBIND11_MODULE(FUSEDLOSS_MODULE, module) {
  using namespace fusedloss;
  bind_losses(module);
  module.def("losses", [] {
    py::list all;
    for (const Loss& loss : pointwise::losses()) all.append(describe(loss));
    return all;
  });
  module.def("build_info", [] {
    return py::dict(py::arg("torch") = FUSEDLOSS_TORCH_VERSION, py::arg("compiler") = FUSEDLOSS_COMPILER,
                    py::arg("instruction_sets") = pointwise::kInstructionSets,
                    py::arg("instruction_set") = pointwise::instruction_set(),
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
