# Everything runs in .venv, which is made on demand and refreshed when pyproject.toml changes.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test lint wheel-test bench gpu oracle-long chaos peers clean distclean

# Interpreters to try, in order; the first of at least 3.11 that can make environments is taken.
PYTHON ?= python3 python3.13 python3.12 python3.11
# torch on machines without an NVIDIA GPU, and the package index to take it from (empty: pip's own).
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
# Triton beside a torch that brings none of its own (a CPU build); others say which they need.
TRITON ?= triton==3.6.0
# A part of the tests, in one process: make test PYTEST_ARGS="tests/kernels -k linear"
PYTEST_ARGS ?=
# Test processes of one thread each; tests that watch the real clock run after them, alone.
WORKERS ?= 2
# Size and seed of make oracle-long: so many random models, and half as many codecs. SEED is also the
# first seed of make chaos.
COUNT ?= 1000
SEED ?= 0
# Parts of make gpu, and where its results go.
PARTS ?= warm check bench peers
OUT ?= out
# More arguments for the bench of make gpu: make gpu BENCH_ARGS="--op linear"
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CAN_MAKE_VENV := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

TRITON_PIN = $$($(BIN)/python -c 'from importlib.metadata import distributions; \
	torch = [d.requires or [] for d in distributions(name="torch")]; \
	print("$(TRITON)" if torch and not any(r.startswith("triton") for r in torch[0]) else "")')

# Names what takes long to download; pip's other words are shown only when it fails.
pip_install = $(PIP) install $(1) 2>$(VENV)/pip.log | sed -u -n 's/^ *Downloading \(.* MB)\)/  \1/p' \
	|| { cat $(VENV)/pip.log >&2; exit 1; }

define install
	@if ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  found=; \
	  for python in $(PYTHON); do \
	    if "$$python" -c '$(CAN_MAKE_VENV)' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "No Python of 3.11 or newer with its venv module among: $(PYTHON)."; \
	    echo "Install one (on Debian and Ubuntu with python3-venv), or name it: make PYTHON=/path/to/python3"; \
	    exit 1; \
	  fi >&2; \
	  echo "Making $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv --clear $(VENV); \
	fi
	@if ! nvidia-smi -L >/dev/null 2>&1; then \
	  echo "No NVIDIA GPU: installing $(TORCH)"; \
	  $(call pip_install,$(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'); \
	fi
	@echo "Installing microturn$(EXTRAS)"
	@$(call pip_install,-e '.$(EXTRAS)' $(TRITON_PIN))
endef

help:
	@echo "make demo        stream a recording through interaction-tiny: demo/reply.{wav,json,png}"
	@echo "make test        the whole test suite"
	@echo "make lint        ruff and mypy"
	@echo "make wheel-test  build the wheel and run the fast tests against it"
	@echo "make bench       the bench's cases under pytest-benchmark; small ones on a CPU"
	@echo "make gpu         on a GPU, nothing installed: tests of kernels, then every case and peer"
	@echo "make oracle-long random models and codecs against transformers and moshi, COUNT and SEED"
	@echo "make chaos       10 million virtual session ticks of random lives and faults: SESSION_TICKS, SEED"
	@echo "make peers       download the libraries that the bench compares with: bench/peers/README.md"
	@echo "make clean       remove what was built (distclean: the environment too)"
	@echo "Variables: PYTHON, TORCH, TORCH_INDEX, PYTEST_ARGS, WORKERS, COUNT, SEED, PARTS, OUT (see the top of this file)"

$(VENV)/.base: pyproject.toml
	$(install)
	@touch $@

# moshi goes without its dependencies: its torch pin is stale, and oracles lists what it needs.
$(VENV)/.dev: EXTRAS := [dev,oracles,interactivity]
$(VENV)/.dev: pyproject.toml
	$(install)
	@$(call pip_install,--no-deps 'moshi==0.2.13')
	@touch $(VENV)/.base $@

demo: $(VENV)/.base
	@mkdir -p demo
	@$(BIN)/microturn run tests/data/jfk.flac --out demo/reply.wav --realtime

PARALLEL = -n $(WORKERS) --dist worksteal
test: $(VENV)/.dev
ifeq ($(strip $(PYTEST_ARGS)),)
	@OMP_NUM_THREADS=1 $(BIN)/python -P -m pytest -q --durations=10 $(PARALLEL) -m "not realtime"
	@$(BIN)/python -P -m pytest -q -m realtime
else
	@$(BIN)/python -P -m pytest -q --durations=10 $(PYTEST_ARGS)
endif

lint: $(VENV)/.dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

# A second environment without pip: the wheel, and behind it the packages of .venv. A .pth file adds
# a folder but does not read the .pth files inside, so the editable checkout stays out of sight.
WHEEL_VENV := .venv-wheel
WHEEL_PYTHON := $(CURDIR)/$(WHEEL_VENV)/bin/python
wheel-test: $(VENV)/.dev
	@rm -rf dist build $(WHEEL_VENV)
	@echo "Building dist/"
	@$(BIN)/python -m build --outdir dist >$(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	@$(BIN)/python -m venv --without-pip $(WHEEL_VENV)
	@$(PIP) --python $(WHEEL_PYTHON) install --quiet --no-deps dist/*.whl
	@site=$$($(WHEEL_PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$$site/packages_of_venv.pth"
	@away=$$(mktemp -d); trap 'rm -rf "$$away"' EXIT; cd "$$away"; \
	$(WHEEL_PYTHON) -P -c 'import sys, microturn.runtime as r; \
	  sys.exit(None if r.__file__.startswith(sys.prefix) else f"not the wheel: {r.__file__}")'; \
	OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(WHEEL_VENV)/bin:$$PATH" $(WHEEL_PYTHON) -P -m pytest -q -p no:cacheprovider \
	  -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) $(PARALLEL) \
	  -m "not oracle and not slow and not realtime" $(CURDIR)/tests $(PYTEST_ARGS)

bench: $(VENV)/.dev
	@$(BIN)/python -P -m pytest -q tests/bench/benchmarks.py $(PYTEST_ARGS)

# From the source tree, by an interpreter that has torch and Triton: .venv where there is one.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
gpu:
	@PYTHONPATH=tests/_typecheck $(GPU_PYTHON) -P -m microturn.bench.gpu \
	  --out "$(OUT)" --parts "$(PARTS)" $(BENCH_ARGS)

oracle-long: $(VENV)/.dev
	@PYTHONPATH=tests/support nice -n 19 $(BIN)/python -P -m oracles.long \
	  --count $(COUNT) --seed $(SEED) --results bench/results

# Random lives and faults on a virtual clock; every promise is checked exactly.
SESSION_TICKS ?= 10000000
chaos: $(VENV)/.dev
	@nice -n 19 $(BIN)/python -P -m microturn.bench.chaos \
	  --session-ticks $(SESSION_TICKS) --seed $(SEED) --results bench/results

# Downloads the peers of the bench into peers/ and lists what to carry to a GPU machine.
peers: $(VENV)/.dev
	@$(BIN)/python bench/peers/kit/fetch.py
	@echo 'On the GPU machine: python3 bench/peers/kit/build.py'
	@echo 'then: MICROTURN_PEERS=peers/site microturn-bench run'

clean:
	rm -rf build dist demo *.egg-info $(WHEEL_VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find kernels model runtime bench profiling tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
