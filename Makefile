# The interface of this repository: `make` lists what can be done. Variables that may be set:
#   PYTHON=python3.12     the interpreter that .venv is made from
#   VENV=.venv            where it is made
#   TEST_WORKERS=4        processes that run tests side by side

PYTHON ?= python3
VENV ?= .venv
TEST_WORKERS ?= logical
ARGS ?=

BIN := $(VENV)/bin
# Stamps: a finished set-up is not repeated unless one of the REQUIREMENTS files changes.
INSTALLED := $(VENV)/installed
INSTALLED_DEV := $(VENV)/installed-dev
REQUIREMENTS := pyproject.toml setup.py constraints.txt

# Tests run on the CPU, one thread each because several run at once, and reach no network.
TEST_ENV := CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 MPLBACKEND=Agg
# As `fit` does on the CPU (dla_train/training/host_memory.py): keep freed memory instead of mapping and clearing it anew.
TEST_ENV += MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 OMP_WAIT_POLICY=PASSIVE
# loadgroup: tests that share something expensive (mark xdist_group) stay in one process.
PYTEST := $(BIN)/pytest -n $(TEST_WORKERS) --maxprocesses=4 --dist=loadgroup

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## list the targets
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r target text; do printf '%-14s %s\n' "$$target" "$$text"; done

.PHONY: setup
setup: $(INSTALLED_DEV) ## make .venv and install the package with its development tools
	@echo "$(VENV) is ready: . $(BIN)/activate"

.PHONY: demo
demo: $(INSTALLED) ## train a small DLA model on the CPU (a few minutes)
	$(BIN)/dla-train fit --recipe tiny --resume auto $(ARGS)

.PHONY: study
study: $(INSTALLED) ## compare the memories on recall tasks: 144 short trainings on the CPU; goes on where it stopped
	$(BIN)/python -m dla_train.study $(ARGS)

# Triton's interpreter replaces the compiler for the whole process, so its tests run in a process of their own. They run
# first, so that the summary of the larger group ends the output. Without ARGS, pytest reads only files with such tests,
# because importing the others takes long. pytest exits with 5 if ARGS selects none of them.
INTERPRETED := $(if $(ARGS),,$$(grep --recursive --files-with-matches --include='test_*.py' 'mark\.interpret' tests))

.PHONY: test
test: $(INSTALLED_DEV) ## run the tests (CPU only)
	$(TEST_ENV) TRITON_INTERPRET=1 $(PYTEST) -m 'interpret and not slow' $(INTERPRETED) $(ARGS) $(if $(ARGS),|| [ $$? -eq 5 ])
	$(TEST_ENV) $(PYTEST) $(ARGS)

# The ends of the ranges in pyproject.toml: lowest-direct for the oldest versions, highest for the newest.
RESOLUTION ?= lowest-direct
RANGE_VENV = .venv-$(RESOLUTION)

.PHONY: test-ranges
test-ranges: ## run the tests with the oldest versions that pyproject.toml allows; RESOLUTION=highest: with the newest (6 GB)
	$(PYTHON) -m venv --clear $(RANGE_VENV)
	$(RANGE_VENV)/bin/python -m pip install --quiet uv
	$(RANGE_VENV)/bin/uv pip install --python $(RANGE_VENV)/bin/python --resolution $(RESOLUTION) -r pyproject.toml --extra dev
	$(RANGE_VENV)/bin/uv pip install --python $(RANGE_VENV)/bin/python --no-deps -e .
	@touch $(RANGE_VENV)/installed $(RANGE_VENV)/installed-dev
	$(MAKE) test VENV=$(RANGE_VENV)

.PHONY: test-slow
test-slow: $(INSTALLED_DEV) ## run the tests that take minutes
	$(TEST_ENV) TRITON_INTERPRET=1 $(PYTEST) -m 'interpret and slow' --timeout=3600 $(INTERPRETED) $(ARGS) $(if $(ARGS),|| [ $$? -eq 5 ])
	$(TEST_ENV) $(PYTEST) -m 'slow and not gpu and not cluster and not interpret' --timeout=3600 $(ARGS)

# These run straight from a checkout, without the package installed: a GPU machine may only have torch, Triton and pytest.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_ENV := PYTHONPATH=.:kernels:data
# Compiling and computing exact values take most of the time of these tests, so with pytest-xdist several processes of one
# thread each run them.
GPU_WORKERS ?= 8
GPU_TESTS := tests/kernels/test_triton_gpu.py tests/kernels/test_triton_sanitizer.py tests/training/test_liger_gpu.py

.PHONY: test-cluster
test-cluster: $(INSTALLED_DEV) ## run jobs on a Slurm started for it (root; skipped where Slurm is not installed)
	$(TEST_ENV) $(BIN)/pytest -m cluster tests/cluster -rs $(ARGS)

.PHONY: soak
soak: $(INSTALLED_DEV) ## kill and resume a run of two ranks at 50 random moments, and compare it (half an hour)
	$(TEST_ENV) $(BIN)/python -m tests.soak $(ARGS)

.PHONY: test-gpu
test-gpu: ## test the Triton kernels on this machine's GPU (8 minutes; call again to go on)
	$(GPU_ENV) OMP_NUM_THREADS=1 $(GPU_PYTHON) -m pytest $$($(GPU_PYTHON) -c 'import xdist' 2>/dev/null && echo --numprocesses=$(GPU_WORKERS)) \
		-p tests.kernels.gpu_progress --confcutdir=tests/kernels -m gpu $(GPU_TESTS) -rs --maxfail=20 $(ARGS)

# The GPU for which kernels are compiled, to be executed on the CPU.
TARGET ?= sm_90

.PHONY: test-executed
test-executed: $(INSTALLED_DEV) ## test the kernels as compiled for a GPU that is not here, TARGET=sm_90, executed on the CPU
	$(TEST_ENV) DLA_TEST_EXECUTED=$(TARGET) $(PYTEST) -m gpu tests/kernels/test_triton_gpu.py --timeout=900 $(ARGS)

.PHONY: random-cases
random-cases: $(INSTALLED_DEV) ## execute compiled kernels at random shapes for ten minutes; ARGS='--minutes 60 --seed 1000'
	$(TEST_ENV) $(BIN)/python -m tests.kernels.random_cases $(ARGS)

.PHONY: bench-gpu
bench-gpu: ## time the kernels on this machine's GPU (8 minutes; call again to go on)
	$(GPU_ENV) $(GPU_PYTHON) kernels/benchmarks/bench_gpu.py $(ARGS)

.PHONY: profile-gpu
profile-gpu: ## show where the op's time goes on this machine's GPU, kernel by kernel; ARGS='--shape gdn'
	$(GPU_ENV) $(GPU_PYTHON) kernels/benchmarks/profile_gpu.py $(ARGS)

.PHONY: try-gpu
try-gpu: ## time kernels with other launch options on this machine's GPU; ARGS='keys_backward_kernel:maxnreg=168'
	$(GPU_ENV) $(GPU_PYTHON) kernels/benchmarks/try_options.py $(ARGS)

.PHONY: tune-gpu
tune-gpu: ## find good tile sizes on this machine's GPU for the paper's layers, and write the shipped table
	$(GPU_ENV) $(GPU_PYTHON) -m dla_kernels.tune --layer 128,64,30 128,64,15 --heads 48 $(ARGS)
	$(GPU_ENV) $(GPU_PYTHON) -m dla_kernels.tune --layer 192,384,30 192,384,15 --delta --heads 6 $(ARGS)

.PHONY: test-interpret
test-interpret: $(INSTALLED_DEV) ## run the Triton kernels in the interpreter against the definition
	$(TEST_ENV) TRITON_INTERPRET=1 $(PYTEST) -m 'interpret and not slow' tests/kernels $(ARGS)

.PHONY: kernels-report
kernels-report: $(INSTALLED_DEV) ## compile every kernel for GPUs that are not here: registers, spills, shared memory
	$(BIN)/python kernels/benchmarks/compile_report.py $(ARGS)

.PHONY: kernels-instructions
kernels-instructions: $(INSTALLED_DEV) ## count the machine instructions of every kernel and loop, for a GPU that is not here
	$(BIN)/python kernels/benchmarks/instruction_count.py $(ARGS)

.PHONY: check
check: $(INSTALLED_DEV) ## check format, lint, types and import contracts; changes nothing
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

.PHONY: format
format: $(INSTALLED_DEV) ## format the code and apply the safe lint fixes
	$(BIN)/ruff check --fix --exit-zero --quiet
	$(BIN)/ruff format

.PHONY: build
build: $(INSTALLED_DEV) ## build sdist and wheel into dist/
	$(BIN)/python -m build

.PHONY: clean
clean: ## remove .venv, build products and tool caches; runs and prepared data stay
	rm -rf $(VENV) .venv-* build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find dla_train kernels data recipes tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A .venv without a stamp may be incomplete, or its interpreter may be gone: it is kept if its pip runs, else made anew.
define make_venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "dla-train needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
		"Install a newer one, or name it: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	echo "Making $(VENV) and installing into it: about two minutes and 3 GB, once."; $(PYTHON) -m venv --clear $(VENV); }
endef

$(INSTALLED_DEV): $(REQUIREMENTS)
	$(make_venv)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $(INSTALLED) $(INSTALLED_DEV)

$(INSTALLED): $(REQUIREMENTS)
	$(make_venv)
	$(BIN)/python -m pip install -c constraints.txt -e .
	@touch $(INSTALLED)
