# Two commands do everything on a fresh machine with Python 3.11+, a C++ compiler and make:
#   make demo    set up, build, train on real data, show the comparison
#   make test    set up, build, run all tests
PYTHON ?= python3
# torch is installed first and the extension is built against it; give another requirement to use another build of it.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
# Warnings are errors for those who develop: from the first `make check` on.
WERROR ?= $(if $(wildcard $(VENV)/.strict),ON,OFF)
SANITIZED := build/sanitized
EMULATED := build/emulated
# Python finds a sanitizer's run-time library only if it is loaded first.
PRELOAD = LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
EMULATED_TESTS := $(addprefix tests/test_, values.py gradients.py properties.py ops.py opinfo.py validation.py \
  composability.py modules.py large.py) \
  $(addprefix tests/test_rows_, values.py gradients.py identities.py opinfo.py references.py transforms.py validation.py \
  composability.py) \
  $(addprefix tests/test_lattice_, values.py gradients.py opinfo.py transforms.py validation.py composability.py) \
  $(addprefix tests/test_pairs_, gradients.py) \
  $(addprefix tests/test_triplets_, validation.py) \
  $(addprefix tests/test_vectors_, values.py)
CONFIGURE = $(BIN)/cmake -S . -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja
SOURCES := $(shell find csrc cmake python -type f -not -name '*.pyc' 2>/dev/null) CMakeLists.txt pyproject.toml

.PHONY: help build demo test test-sanitized test-emulated mutants check format bench clean

help:
	@echo "make demo            set up, build, train on real data, show the comparison with torch"
	@echo "make test            set up, build, run all tests"
	@echo "make test-sanitized  run the core tests with address and undefined-behaviour sanitizers"
	@echo "make test-emulated   run the tests on the CUDA kernels, without a GPU (tests/cuda_emulator)"
	@echo "make mutants         seed defects in the CUDA kernels and show that the tests find each"
	@echo "make check           ruff, mypy --strict, clang-format, warnings as errors"
	@echo "make format          rewrite the sources as 'make check' wants them"
	@echo "make bench           measure against torch eager and torch.compile"
	@echo "make clean           remove what the above made, the virtual environment included"

$(VENV)/.set-up: pyproject.toml
	@echo "== Setting up $(VENV): torch and the tools (about two minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)" numpy
	$(BIN)/python -c 'import tomllib; groups = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	  print("\n".join(requirement for group in groups.values() for requirement in group))' > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/.built: $(VENV)/.set-up $(SOURCES)
	@echo "== Building fusedloss (two to three minutes on 2 cores, three to five with CUDA kernels; seconds after a small change)"
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --force-reinstall \
	  --config-settings=cmake.define.FUSEDLOSS_WERROR=$(WERROR) .
	@touch $@

build: $(VENV)/.built

demo: build
	@echo "== Training on scikit-learn's data with fusedloss and with torch (under four minutes)"
	$(BIN)/python examples/train_tabular.py
	$(BIN)/python examples/train_images.py

test: build
	@echo "== Running all tests (some minutes)"
	$(BIN)/python -m pytest -n $(JOBS)

# (What is deselected judges a digit that products and sums have only if they are fused, as sanitized ones never are.)
test-sanitized: $(VENV)/.set-up
	@echo "== Building with sanitizers (about four minutes) and running the core tests on that build"
	$(CONFIGURE) -B $(SANITIZED) -DFUSEDLOSS_CUDA=OFF -DFUSEDLOSS_SANITIZE=address,undefined \
	  -DFUSEDLOSS_SETS=$$($(BIN)/python -c 'import torch; print(torch.backends.cpu.get_cpu_capability())') > /dev/null
	$(BIN)/cmake --build $(SANITIZED) --parallel $(JOBS)
	$(BIN)/cmake --install $(SANITIZED) --prefix $(SANITIZED)/site > /dev/null
	cp -r python/fusedloss/. $(SANITIZED)/site/fusedloss/
	PYTHONPATH=$(CURDIR)/$(SANITIZED)/site $(PRELOAD) $(BIN)/python -m pytest -q -m core -n $(JOBS) \
	  --deselect tests/test_rows_gradients.py::test_second_derivatives_of_long_rows \
	  --deselect 'tests/test_vectors_gradients.py::test_second_derivatives[triplet_margin_with_distance_loss[squared, swap, normalize]-torch.float64]'

# The kernels of all losses, then those of a few with sanitizers, in the build that `make mutants` starts from.
test-emulated: $(VENV)/.set-up
	@echo "== Building the CUDA kernels for the emulator and running the tests on them"
	$(CONFIGURE) -B $(EMULATED) -DFUSEDLOSS_EMULATED=ON > /dev/null
	$(BIN)/cmake --build $(EMULATED) --parallel $(JOBS)
	$(BIN)/cmake --install $(EMULATED) --prefix $(EMULATED)/site > /dev/null
	cp -r python/fusedloss/. $(EMULATED)/site/fusedloss/
	PYTHONPATH=$(CURDIR)/$(EMULATED)/site $(BIN)/python -m pytest -q -n $(JOBS) \
	  --emulated $$(echo $(EMULATED)/_emu*.so) $(EMULATED_TESTS)
	printf '%s\n' kernels rows lattice pairs triplets vectors | \
	  xargs -P $(JOBS) -I{} $(BIN)/python tests/cuda_emulator/check_{}.py $$(echo $(EMULATED)/_emu*.so)
	EMULATOR_ORDERS=1 $(BIN)/python tests/cuda_emulator/mutants.py --only nothing --jobs $(JOBS)

mutants: $(VENV)/.set-up
	@echo "== Seeding defects in the CUDA kernels (149, each about 20 seconds)"
	$(BIN)/python tests/cuda_emulator/mutants.py --jobs $(JOBS)

check: $(VENV)/.set-up
	@echo "== Checking style, types and warnings"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror
	@test -e $(VENV)/.strict || rm -f $(VENV)/.built
	@touch $(VENV)/.strict
	$(MAKE) build

format: $(VENV)/.set-up
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

bench: build
	@echo "== Measuring against torch eager and torch.compile (about twenty minutes; 'make bench ARGS=--quick' for two)"
	$(BIN)/python -m fusedloss bench $(ARGS)

clean:
	rm -rf $(VENV) build out dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
