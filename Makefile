# make setup      the environment in .venv: pinned packages, the native library built in place
# make train      two minutes of a character model on Shakespeare's plays; ARGS="model=gru ..." are further overrides
# make test       the tests, without the slow ones; six minutes on two cores
# make test-all   all tests: training runs, the emulated GPU, CUDA builds, sanitizers, Slurm; 15 minutes
# make lint       format, types, layers of imports
# make docs       the documentation as a site in build/site, which opens without a server; 15 seconds
# make bench      the CPU kernels beside torch and, where they are installed, JAX and onnxruntime; under five minutes
# make wheel      in dist/: the sdist, and of it a wheel with the CPU kernels, installed without a compiler
# make clean      remove what was built; runs/ stays

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=
# The package itself and packages of its extras. compat: a plain path instead of an import hook, which a folder called
# prnn would shadow.
INSTALL := PRNN_NO_NATIVE=1 $(BIN)/python -m pip install -qq --no-compile -c constraints.txt --no-build-isolation \
	--config-settings editable_mode=compat
# One worker more than cores: some tests wait, for other processes or a time limit.
PYTEST := $(BIN)/python -m pytest --durations=20 -n $$(($$(nproc) + 1)) --maxprocesses=5

# pip leaves bytecode to the first import. Without it, each process compiles torch's sources for ten seconds.
unexport PYTHONDONTWRITEBYTECODE

NATIVE := $(shell find prnn/csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)

.PHONY: help setup train test test-all lint docs bench wheel clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make/make/p' Makefile

setup: $(STAMP)

# torch comes first: the native library is compiled against the torch that is there (no build isolation), and by
# ninja, on all cores.
$(STAMP): pyproject.toml constraints.txt setup.py $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "prnn needs Python 3.10 or newer; set PYTHON=")'
	@echo 'setup 1/3: the environment $(VENV), some seconds'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'setup 2/3: torch, a download of about 200 MB (gigabytes with CUDA): a minute on a fast line'
	$(BIN)/python -m pip install -qq --no-compile -c constraints.txt torch numpy setuptools wheel ninja
	@echo 'setup 3/3: the other packages, and beside them the native library, compiled: about a minute'
	@echo '(the compiler reports to build/native.log)'
	@mkdir -p build; $(BIN)/python setup.py -q build_ext --inplace >build/native.log 2>&1 & library=$$!; \
	$(INSTALL) -e '.[dev,wandb,tensorboard,export,tune]'; packages=$$?; \
	wait $$library || { cat build/native.log; exit 1; }; exit $$packages
	@touch $@

train: $(STAMP)
	$(BIN)/python -m prnn.train $(if $(findstring trainer.max_,$(ARGS)),,trainer.max_seconds=120) $(ARGS)

test: $(STAMP)
	@echo 'without the slow tests; make test-all runs them too'
	$(PYTEST) --dist worksteal -m 'not slow'

# The longest first, handed out one at a time: no worker is left alone with a long one.
test-all: $(STAMP)
	$(PYTEST) --dist loadgroup --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' \
		| xargs -r $(BIN)/clang-format --dry-run -Werror

docs: $(STAMP)
	@$(BIN)/python -c 'import mkdocstrings_handlers.python, zensical' 2>/dev/null || $(INSTALL) -e '.[docs]'
	@$(BIN)/python -m docs.site

bench: $(STAMP)
	$(BIN)/python -m benchmarks.kernels --suite short $(ARGS)

# Against torch's stable ABI, so for every torch from 2.10 on, whose libraries are left to it.
wheel: $(STAMP)
	@rm -rf build/wheel; mkdir -p build
	@echo 'building the sdist and the wheel, a minute (the tools report to build/wheel.log)'
	@{ PRNN_REQUIRE_NATIVE=1 PRNN_NO_CUDA=1 $(BIN)/python -m build --no-isolation --outdir build/wheel && \
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' \
		--wheel-dir dist build/wheel/*.whl; } >build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }
	mv build/wheel/*.tar.gz dist

clean:
	rm -rf $(VENV) build dist *.egg-info prnn/_native*.so .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find prnn tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
