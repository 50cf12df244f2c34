# make run       from a fresh clone: train, prune, quantize, export, measure and report on scikit-learn's digits
# make test      the tests
# make check     ruff, mypy, and the tests with warnings as errors; this is what CI runs
# make gpu       on a machine with a GPU: the tests that need one, and both networks trained, exported and measured on it
# make fuzz      20,000 changed files for each reader; INPUTS=100000 for more; not in CI, which tries 900 of each
# make fuzz-guided  the same for one reader, READER=npz, by coverage (atheris); not in CI
# make wheels    for a package index, one with either ONNX Runtime; REPOSITORY=https://host/owner/name, which links of the README lead to
# make mutants   which changes to the modules that decide the tests do not notice; MODULE=benchmarks/statistics.py for one; not in CI
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash

# Processes that share the tests, each up to 2 GB; a file's tests stay together, as they share what was trained for them.
WORKERS ?= 2

.PHONY: run test check types lint gpu wheels mutants fuzz fuzz-guided clean

# One thread: on images this small a second one only waits for the first.
run: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m compress run --recipe k49-digits

test: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope

check: lint types test

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint Dockerfile; else echo "hadolint is not installed; the Dockerfile is not linted"; fi

types: .venv/installed
	$(BIN)/mypy compress

# The marker is newer than pyproject.toml only after an install that went through to its end.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,dev]'
	touch $@

# Tests that need CUDA say so in their reason to skip. onnxruntime-gpu takes the place of onnxruntime: they hide each other.
GPU_PYTHON ?= $(BIN)/python
gpu: $(if $(findstring $(BIN),$(GPU_PYTHON)),.venv/installed)
	$(GPU_PYTHON) -c "import torch; assert torch.cuda.is_available(), 'no CUDA device here'"
	$(GPU_PYTHON) -c "import onnxruntime; assert 'CUDAExecutionProvider' in onnxruntime.get_available_providers()" 2> /dev/null || \
		{ $(GPU_PYTHON) -m pip uninstall --yes --quiet onnxruntime; $(GPU_PYTHON) -m pip install --quiet onnxruntime-gpu; } || true
	$(GPU_PYTHON) -m pytest tests/benchmarks/test_runtimes.py tests/benchmarks/test_run.py tests/train/test_fit.py tests/train/test_distributed.py
	for model in k49 emnist; do \
		$(GPU_PYTHON) -m compress train --model $$model --data digits --epochs 2 --device cuda --runs build/gpu && \
		$(GPU_PYTHON) -m compress export-onnx --model $$model --runs build/gpu && \
		$(GPU_PYTHON) -m compress benchmark --model $$model --runs build/gpu --quick || exit 1; \
	done

wheels: .venv/installed
	$(BIN)/python .ci/wheels.py "$(REPOSITORY)"

# A few minutes per module on one core. Modules, their tests and mutmut's settings are in pyproject.toml, how it is done in tests/mutants.py.
mutants: .venv/mutants
	OMP_NUM_THREADS=1 nice $(BIN)/python tests/mutants.py $(MODULE)

.venv/mutants: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,mutants]'
	touch $@

# Inputs that were never tried before, so many for each reader: 20,000 take some twenty minutes on one core. Those that fail are kept.
INPUTS ?= 20000
fuzz: .venv/installed
	OMP_NUM_THREADS=1 FUZZ_EXAMPLES=$(INPUTS) $(BIN)/python -m pytest tests/fuzz

# One reader by what its code has not seen yet, with atheris, which has no wheels for Windows.
READER ?= npz
fuzz-guided: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	OMP_NUM_THREADS=1 PYTHONPATH=tests/support:tests/fuzz $(BIN)/python tests/fuzz/guided.py "$(READER)" -runs=$(INPUTS)

clean:
	rm -rf .venv build src/*.egg-info
