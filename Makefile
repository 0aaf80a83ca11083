# One word for each thing one does here; `make` alone lists them.

# The Python that makes .venv, and where. With USE_PYTHON=… (`make gpu USE_PYTHON=python3`) nothing is installed: that
# interpreter must have the packages of constraints.txt, as images for GPU machines often do.
PYTHON ?= python3
VENV ?= .venv
# Where `make test-oldest` puts the oldest versions that pyproject.toml allows; OLDEST_TORCH=2.13.0 tries another torch.
OLDEST ?= .venv-oldest
OLDEST_TORCH ?=
# Which of oldest, newest, 3.11, 3.12 and 3.13 `make versions` tries, all if none is named, and where.
SETS ?=
VERSIONS ?= build/versions
# Under how many seeds `make test-seeds` runs each test; TESTS=tests/attention takes a part of them.
SEEDS ?= 100
TESTS ?= tests
# Which llama-cpp-python `make llama-cpp` builds.
LLAMA_CPP ?= 0.3.36
# How many of their attacks `make fuzz` and `make faults` do, and with which seed. What was cut short resumes.
SHARE ?= 1.0
SEED ?= 0
# Processes that share the tests, one more than two cores, for some wait; torch gets one thread in each.
WORKERS ?= 3
# Where `make base-model` puts the model, and how many processes train it.
BASE_MODEL ?= build/base-model
PROCESSES ?= 2

ifdef USE_PYTHON
PY := $(USE_PYTHON)
RUNTIME :=
DEVELOPMENT :=
export PYTHONPATH := src
else
PY := $(VENV)/bin/python
RUNTIME := $(VENV)/.installed
DEVELOPMENT := $(VENV)/.installed-dev
endif

PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST := HF_HUB_OFFLINE=1 $(PY) -m pytest
FAILURES := build/gpu/tests.jsonl
BENCHMARKS := $(sort $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)))

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz faults test-slow test-oldest llama-cpp versions test-seeds docs pictures lint format bench gpu \
  models-page base-model clean

help: ## List these words
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

demo: $(RUNTIME) ## Install if need be, then extend a tiny model's context in front of your eyes
	@$(PY) -m longlora.cli demo

test: lint ## Lint, then run the tests, offline
	@$(PYTEST) -n $(WORKERS) --dist loadfile

test-slow: $(DEVELOPMENT) ## Run the tests that `make test` leaves out for time
	@$(PYTEST) -n $(WORKERS) --dist loadfile -m slow

llama-cpp: $(DEVELOPMENT) ## Build llama.cpp for the slow test of what it reads (half an hour on two cores)
	@$(PY) -m pip download --quiet --no-deps --no-binary :all: --dest build/llama-cpp llama-cpp-python==$(LLAMA_CPP)
	@tar -xzf build/llama-cpp/llama_cpp_python-$(LLAMA_CPP).tar.gz -C build/llama-cpp --strip-components=3 --wildcards \
	  '*/llama.cpp/convert_hf_to_gguf.py' '*/llama.cpp/conversion/*' '*/llama.cpp/gguf-py/*'
	@$(PIP_INSTALL) --no-deps --target build/llama-cpp/site llama-cpp-python==$(LLAMA_CPP) diskcache sentencepiece

test-oldest: $(OLDEST)/.installed ## Run the tests with the oldest versions that pyproject.toml allows
	@HF_HUB_OFFLINE=1 $(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile

versions: $(DEVELOPMENT) ## Install wheel and sdist with the oldest, newest and pinned versions on Python 3.11 to 3.13 (SETS=oldest)
	@$(PY) tests/versions.py $(VERSIONS) $(SETS)

test-seeds: $(DEVELOPMENT) ## Run the tests that take a seed, slow ones too, each under 100 (SEEDS=…, TESTS=…)
	@$(PYTEST) -n $(WORKERS) -m "slow or not slow" --seeds $(SEEDS) $(TESTS)

fuzz: $(DEVELOPMENT) ## Give 10,170 bad inputs to what reads them (half an hour; SHARE=0.1 a tenth of them), then guided ones
	@$(PY) -m tests.faults.campaign inputs --share $(SHARE) --seed $(SEED) --counts build/faults-counts.json
	@$(PIP_INSTALL) atheris==3.0.0
	@$(PY) -m tests.faults.guided build/faults/corpus

faults: $(DEVELOPMENT) ## Disturb commands by 670 faults and start them again (two hours; SHARE=0.1, SEED=2), then the slow tests
	@$(PY) -m tests.faults.campaign faults --share $(SHARE) --seed $(SEED) --counts build/faults-counts.json
	@$(PYTEST) -m slow tests/faults

docs: $(DEVELOPMENT) ## Build the documentation site in build/site
	@$(PY) -m sphinx --fail-on-warning --keep-going -q docs build/site
	@echo "build/site/index.html"

pictures: $(RUNTIME) ## Draw the pictures of README and docs, and record the terminal
	@$(PY) scripts/pictures.py
	@$(PY) scripts/recording.py

lint: $(DEVELOPMENT) ## Check style, format, types and the direction of imports
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy src
	@$(PY) -c 'import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())'

format: $(DEVELOPMENT) ## Put the code into its format and mend what ruff can mend
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

bench: $(RUNTIME) ## Run every benchmark
	@$(if $(BENCHMARKS),,echo "There is no benchmark in benchmarks/ yet.")
	@for script in $(BENCHMARKS); do echo "== $$script"; $(PY) "$$script" || exit 1; done

gpu: $(DEVELOPMENT) ## On a machine with CUDA: all tests with CUDA visible, then the benchmarks
	@$(PY) -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make gpu: torch sees no CUDA device here")'
	@mkdir -p build/gpu && rm -f $(FAILURES) && echo "Failures go to $(FAILURES) as they come"
	@PYTHONPATH="benchmarks/gpu:$$PYTHONPATH" LADDER_FAILURES=$(FAILURES) \
	  $(PYTEST) -p no:benchmark -p _failing_tests -n $(WORKERS)
	@$(MAKE) --no-print-directory bench

models-page: $(DEVELOPMENT) ## Write docs/models.md anew: which architectures train with S²-Attn (minutes)
	@HF_HUB_OFFLINE=1 $(PY) -m tests.families.page

base-model: $(RUNTIME) ## Train the tiny base model anew, into build/base-model (a run that was cut short resumes)
	@$(PY) -m torch.distributed.run --nproc-per-node $(PROCESSES) scripts/tiny_base_model.py $(BASE_MODEL)

clean: ## Remove what builds, tests and tools left behind; .venv stays
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here; name one with make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: longlora needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	    "name another with make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) cannot make virtual environments; install them first" \
	    "(on Debian and Ubuntu the package python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# torch first and by its pin, so that it is the build this machine's pip is set up for.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing longlora and its libraries into $(VENV) (some minutes, once)"
	@$(PIP_INSTALL) "$$(grep '^torch==' constraints.txt)"
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the tools for tests and lint into $(VENV)"
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

$(OLDEST)/.installed: pyproject.toml tests/oldest.py
	@echo "Installing the oldest allowed versions into $(OLDEST) (some minutes, once)"
	@$(PYTHON) -m venv $(OLDEST)
	@$(PYTHON) tests/oldest.py $(OLDEST_TORCH) > $(OLDEST)/constraints.txt
	@$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $(OLDEST)/constraints.txt --editable '.[dev]'
	@touch $@
