"""The package as it is installed: what it holds, what it says about its build, and that its documentation runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.metadata
import inspect
import io
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fusedloss
from fusedloss import _compatibility, functional
from fusedloss.testing.catalogue import LOSSES
from fusedloss.testing.lattice_catalogue import LATTICE_LOSSES
from fusedloss.testing.pair_catalogue import PAIR_LOSSES
from fusedloss.testing.row_catalogue import ROW_LOSSES
from fusedloss.testing.triplet_catalogue import TRIPLET_LOSSES
from fusedloss.testing.vector_catalogue import VECTOR_LOSSES

ROOT = Path(__file__).resolve().parent.parent
DESCRIPTIONS = fusedloss._C.losses()
ROW_DESCRIPTIONS = fusedloss._C.row_losses()
LATTICE_DESCRIPTIONS = fusedloss._C.lattice_losses()
PAIR_DESCRIPTIONS = fusedloss._C.pair_losses()
TRIPLET_DESCRIPTIONS = fusedloss._C.triplet_losses()
VECTOR_DESCRIPTIONS = fusedloss._C.vector_losses()
FOUND = pkgutil.walk_packages(fusedloss.__path__, "fusedloss.")
TOGETHER = {"vocab_parallel_cross_entropy"}  # of several ranks: test_distributed.py
MODULES = ["fusedloss", *(module.name for module in FOUND if module.name != "fusedloss._C")]
NEEDED = {"DEFAULT": set(), "AVX2": {"avx2", "fma"}, "AVX512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "fma"}}


# ---- what it holds ------------------------------------------------------------------------------------------------


def test_no_loss_is_left_out_of_the_tests() -> None:
    described = [*DESCRIPTIONS, *ROW_DESCRIPTIONS, *LATTICE_DESCRIPTIONS, *VECTOR_DESCRIPTIONS]
    described += [*PAIR_DESCRIPTIONS, *TRIPLET_DESCRIPTIONS]
    names = [about["name"] for about in described]
    assert len(names) == len(set(names))
    # One function has several ops where one of its arguments asks for another formula.
    names = [name.removesuffix("_with_logits") if name.partition("_")[0] in ("kl", "js") else name for name in names]
    # And some are put together from other losses.
    assert {*names, "sparse_categorical_cross_entropy", *TOGETHER} == set(functional.__all__)
    tested = [*LOSSES, *ROW_LOSSES, *LATTICE_LOSSES, *VECTOR_LOSSES, *PAIR_LOSSES, *TRIPLET_LOSSES]
    assert {loss.name for loss in tested} | TOGETHER == set(functional.__all__)
    assert len({loss.id for loss in tested}) == len(tested)


@pytest.mark.parametrize("about", DESCRIPTIONS, ids=lambda about: about["name"])
def test_the_catalogue_agrees_with_the_function(about: fusedloss._C._Loss) -> None:  # type: ignore[name-defined]
    """Names in error messages come from there; they must be those that the caller wrote."""
    signature = inspect.signature(getattr(functional, about["name"])).parameters
    assert list(signature)[: len(about["operands"])] == about["operands"]
    assert set(about["optional_operands"]) <= set(signature)
    assert {p["name"] for p in about["parameters"]} <= set(signature)
    tested = {name for loss in LOSSES if loss.name == about["name"] for name in loss.keyword_operands}
    assert tested == set(about["optional_operands"])
    assert {"reduction", "weight"} <= set(signature)
    assert about["weighted_mean"] == (about["name"] in ("mse_loss", "l1_loss"))


@pytest.mark.parametrize("about", VECTOR_DESCRIPTIONS, ids=lambda about: about["name"])
def test_the_catalogue_of_vectors_agrees_with_the_function(about: fusedloss._C._VectorLoss) -> None:  # type: ignore[name-defined]
    signature = inspect.signature(getattr(functional, about["name"])).parameters
    losses = [loss for loss in VECTOR_LOSSES if loss.name == about["name"]]
    assert {len(loss.vectors) for loss in losses} == {about["vectors"]}
    assert any("target" in loss.differentiable for loss in losses) == about["soft_target"]
    assert {"reduction", "weight", "normalize"} <= set(signature)
    of_distances = {"p", "eps"} if "distance_function" in signature else set()
    assert {p["name"] for p in about["parameters"]} - of_distances <= set(signature)


@pytest.mark.parametrize("about", ROW_DESCRIPTIONS, ids=lambda about: about["name"])
def test_the_catalogue_of_rows_agrees_with_the_function(about: fusedloss._C._RowLoss) -> None:  # type: ignore[name-defined]
    name = about["name"].removesuffix("_with_logits")
    signature = inspect.signature(getattr(functional, name)).parameters
    assert {p["name"] for p in about["parameters"]} <= set(signature)
    assert "reduction" in signature
    assert about["weighted_mean"] == (name in ("cross_entropy", "nll_loss"))
    assert about["labels"] or about["dense"] or name == "multilabel_margin_loss"


def test_all_is_what_is_there() -> None:
    for module in (fusedloss, functional):
        assert len(module.__all__) == len(set(module.__all__))
        for name in module.__all__:
            assert hasattr(module, name)
    public = {n for n, f in vars(functional).items() if inspect.isfunction(f)}
    assert {n for n in public if not n.startswith("_")} == set(functional.__all__)


@pytest.mark.parametrize("name", functional.__all__)
def test_every_function_is_documented_and_typed(name: str) -> None:
    function = getattr(functional, name)
    text = inspect.getdoc(function) or ""
    for part in ("f = ", "Args:", "Returns:", "Raises:", "Example:", ">>>", "References:"):
        assert part in text, f"{name} has no {part}"
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^ +(\w+, )*{argument}(, \w+)*: ", text, re.MULTILINE), f"{name}: {argument}"
        assert argument in function.__annotations__
    assert "return" in function.__annotations__


def test_the_package_is_marked_as_typed() -> None:
    assert (Path(inspect.getfile(fusedloss)).parent / "py.typed").is_file()


def test_the_stub_of_the_compiled_module_names_what_is_in_it() -> None:
    stub = ast.parse((Path(inspect.getfile(fusedloss)).parent / "_C.pyi").read_text())
    declared = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    declared |= {node.target.id for node in stub.body if isinstance(node, ast.AnnAssign)}
    assert declared == {name for name in vars(fusedloss._C) if not name.startswith("_")}


def test_the_fixtures_are_shared() -> None:
    assert (Path(__file__).parent / "conftest.py").is_file()


# ---- version and build --------------------------------------------------------------------------------------------


def test_the_version_is_that_of_the_installed_package() -> None:
    assert fusedloss.__version__ == importlib.metadata.version("fusedloss")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", fusedloss.__version__)


def test_build_info() -> None:
    info = fusedloss.build_info()
    assert set(info) == {"torch", "compiler", "instruction_sets", "instruction_set", "cuda_architectures"}
    assert info["torch"] == torch.__version__
    assert re.search(r"\d+\.\d+", info["compiler"])
    assert info["instruction_set"] in info["instruction_sets"]
    assert "DEFAULT" in info["instruction_sets"]
    assert isinstance(info["cuda_architectures"], list)


@pytest.mark.parametrize("running", ["2.12.1", "2.14.0+cu130", "3.13.0"])
def test_another_torch_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, running: str) -> None:
    monkeypatch.setattr(torch, "__version__", running)
    with pytest.raises(ImportError) as error:
        _compatibility.check_torch()
    message = str(error.value)
    assert running in message and fusedloss.build_info()["torch"] in message and "pip install" in message


def test_a_patch_release_or_another_build_of_the_same_torch_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    major, minor = torch.__version__.split(".")[:2]
    for running in (f"{major}.{minor}.0", f"{major}.{minor}.9+cu999", f"{major}.{minor}.1a0+git123"):
        monkeypatch.setattr(torch, "__version__", running)
        _compatibility.check_torch()


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_import_itself_is_refused_before_the_compiled_module_is_loaded() -> None:
    done = python(
        "import sys, torch\n"
        "torch.__version__ = '9.9.0'\n"
        "try:\n    import fusedloss\n"
        "except ImportError as error:\n    print('9.9.0' in str(error), 'fusedloss._C' in sys.modules)\n"
    )
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_the_import_is_quiet_and_leaves_torch_as_it_was() -> None:
    done = python(
        "import torch, warnings\n"
        "before = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()\n"
        "warnings.simplefilter('error')\n"
        "import fusedloss\n"
        "assert before == (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def processor_flags() -> set[str]:
    file = Path("/proc/cpuinfo")
    match = re.search(r"^flags\s*:(.*)$", file.read_text(), re.MULTILINE) if file.is_file() else None
    return set(match[1].split()) if match else set()


@pytest.fixture(scope="session")
def results_of(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """Values and gradients of all losses under one instruction set."""
    folder = tmp_path_factory.mktemp("sets")
    made: dict[str, dict[str, object]] = {}

    def results(name: str) -> dict[str, object]:
        if name not in made:
            file = folder / f"{name}.pt"
            done = python(
                "import torch\n"
                "from fusedloss.testing.catalogue import LOSSES\n"
                "from fusedloss.testing.lattice_catalogue import LATTICE_LOSSES\n"
                "from fusedloss.testing.pair_catalogue import PAIR_LOSSES\n"
                "from fusedloss.testing.row_catalogue import ROW_LOSSES\n"
                "from fusedloss.testing.triplet_catalogue import TRIPLET_LOSSES\n"
                "from fusedloss.testing.vector_catalogue import VECTOR_LOSSES\n"
                "import fusedloss\n"
                "results = {'set': fusedloss.build_info()['instruction_set']}\n"
                "for loss in [*LOSSES, *ROW_LOSSES, *LATTICE_LOSSES, *VECTOR_LOSSES, *PAIR_LOSSES, *TRIPLET_LOSSES]:\n"
                "    for dtype in (torch.float32, torch.float64, torch.bfloat16):\n"
                "        operands, keywords = loss.sample((37, 61), dtype)\n"
                "        operands[0].requires_grad_()\n"
                "        values = loss(*operands, **keywords, reduction='none')\n"
                "        (gradient,) = torch.autograd.grad(values.sum(), operands[0])\n"
                "        results[f'{loss.id} {dtype}'] = (values.detach(), gradient)\n"
                f"torch.save(results, {str(file)!r})\n",
                ATEN_CPU_CAPABILITY=name.lower(),
            )
            assert done.returncode == 0, done.stderr
            made[name] = torch.load(file)
        return made[name]

    return results


@pytest.mark.parametrize("name", ["DEFAULT", "AVX2", "AVX512"])
def test_every_instruction_set_gives_the_same_within_rounding(name: str, results_of) -> None:  # type: ignore[no-untyped-def]
    if name not in fusedloss.build_info()["instruction_sets"]:
        pytest.skip(f"this build has no {name}")
    if not NEEDED[name] <= processor_flags():
        pytest.skip(f"this processor has no {name}")
    results, plain = results_of(name), results_of("DEFAULT")
    assert results["set"] == name
    for key in plain.keys() - {"set"}:
        values, gradient = plain[key]
        # A few units in the last place of the type; where terms cancel, of the terms. Distances of
        # triplets and sums over a batch are as large as the largest result.
        unit = 16 * torch.finfo(values.dtype).eps
        for one, other in ((results[key][0], values), (results[key][1], gradient)):
            terms = float(other.abs().max()) if key.startswith("triplet") else 1.0
            torch.testing.assert_close(one, other, rtol=unit, atol=unit * terms, msg=lambda m, key=key: f"{key}: {m}")


def test_an_unknown_instruction_set_is_no_crash() -> None:
    done = python("import fusedloss; print(fusedloss.build_info()['instruction_set'])", ATEN_CPU_CAPABILITY="nonsense")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in fusedloss.build_info()["instruction_sets"]


# ---- documentation that runs --------------------------------------------------------------------------------------


def examples_of(module: ModuleType) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in examples_of(module):
        output = io.StringIO()
        test.globs["torch"] = torch
        runner.run(test, out=output.write)
        assert runner.failures == 0, output.getvalue()


@pytest.mark.parametrize("name", functional.__all__)
def test_every_function_has_an_example(name: str) -> None:
    assert [e for t in doctest.DocTestFinder().find(getattr(functional, name), name) for e in t.examples]


def test_the_examples_of_the_guide_run() -> None:
    results = doctest.testfile(str(ROOT / "docs" / "choosing.md"), module_relative=False, verbose=False)
    assert results.attempted and not results.failed


def python_blocks(file: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", file.read_text(), re.MULTILINE | re.DOTALL)


def test_the_code_of_the_readme_runs() -> None:
    """All blocks in turn, as a reader would type them; what one defines the next may use."""
    blocks = python_blocks(ROOT / "README.md")
    assert blocks, "README.md has no block of Python"
    done = python("\n".join(blocks))
    assert done.returncode == 0, done.stderr


def test_the_readme_has_no_name_that_is_not_there() -> None:
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"\bfusedloss\.(functional\.)?([a-zA-Z]\w*)", text):
        where = functional if name[0] else fusedloss
        assert hasattr(where, name[1]), f"README.md names {'.'.join(filter(None, name))}"
