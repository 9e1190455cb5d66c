# Every target sets up what it needs by itself; CI and people call the same ones. `make` alone lists them.
# All are .PHONY: a file named `train` and folders named `tests` and `docs` exist.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BENCH_VENV ?= .venv-bench
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
REPORTS := build/reports
# Written last, so an interrupted set-up is done again and a finished one never is.
READY := $(VENV)/.ready
BENCH_READY := $(BENCH_VENV)/.ready
PINS := requirements/constraints.txt requirements/dev.txt requirements/install pyproject.toml
SHELL_FILES := .ci/run requirements/install requirements/lock requirements/lock-image requirements/lock-clients \
	$(filter-out image/healthcheck image/__pycache__ image/%.py image/%.txt image/%.yml image/%.yaml image/%.json,$(wildcard image/*))
PYTHON_FILES := container tests examples $(wildcard train serve image/healthcheck image/*.py)

# What the image's targets take from the command line or the environment; image/build says what each means.
VARIANT ?= cpu
IMAGE ?= moorage
TAG ?= $(VARIANT)
# The others reach it only where they are given: an empty one would mean something else.
export VARIANT IMAGE TAG
TEST_IMAGE = MOORAGE_TEST_IMAGE=$(IMAGE):cpu $(PYTEST) tests/image --junitxml=$(REPORTS)/image.xml $(ARGS)
# Test files that run at once.
JOBS ?= 2
# Containers are tested where there is an engine and the image.
HAS_IMAGE = $(shell docker image inspect $(IMAGE):cpu >/dev/null 2>&1 && echo tests/image)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): $(PINS)
	@requirements/install $(VENV) requirements/dev.txt
	@touch $@

$(BENCH_READY): $(PINS) requirements/bench.txt
	@requirements/install $(BENCH_VENV) requirements/bench.txt
	@touch $@

.PHONY: setup
setup: $(READY) ## Make the environment (.venv); the other targets do it by themselves

.PHONY: demo
demo: $(READY) ## Train, interrupt and resume on real data; prints what was lost
	@$(BIN)/python examples/demo.py

.PHONY: test
test: $(READY) ## Run every test this machine can; JUnit XML in build/reports
	@mkdir -p $(REPORTS)
	@# Ranks wait a good deal of their time: two files at once. Containers want the machine to themselves.
	@ranks=0; $(PYTEST) tests/unit tests/ranks -n $(JOBS) --dist loadfile --junitxml=$(REPORTS)/test.xml $(ARGS) || ranks=$$?; \
	image=5; \
	if [ -n "$(HAS_IMAGE)" ]; then image=0; $(TEST_IMAGE) || image=$$?; \
	else echo 'left out: real containers: `make engine base build`, then `make test`'; fi; \
	case $$ranks,$$image in 0,0 | 0,5 | 5,0) ;; 5,5) echo 'no test has been run'; exit 5 ;; *) exit 1 ;; esac

.PHONY: test-image
test-image: $(READY) ## Run the tests of the CPU image in real containers (after `make build`)
	@mkdir -p $(REPORTS)
	@$(TEST_IMAGE)

.PHONY: test-cuda
test-cuda: $(READY) ## Build the CUDA variant and test what needs no GPU of it (gigabytes)
	@image/test-cuda

.PHONY: test-gpu
test-gpu: $(READY) ## Run what only a machine with an NVIDIA GPU can show
	@$(PYTEST) tests/gpu -s $(ARGS)

.PHONY: engine
engine: ## Start a docker engine, installing Debian's where there is none
	@image/engine

.PHONY: base
base: ## Make debian:bookworm-local by debootstrap, for an engine that reaches no registry
	@image/base

.PHONY: build
build: ## Build the image: VARIANT=cpu|cuda, BASE_IMAGE, IMAGE, TAG, COMPILER=0, EFA=1, NO_CACHE=1
	@image/build

.PHONY: size
size: ## Say what the image's size is made of
	@image/size $(ARGS)

.PHONY: push
push: $(READY) ## Push the image to its registry, ECR or another: REGISTRY, REPOSITORY
	@$(BIN)/python image/push.py $(ARGS)

.PHONY: sbom
sbom: ## Write the image's bill of materials: build/reports/sbom-<variant>.json
	@image/sbom

.PHONY: scan
scan: $(READY) ## Fail for a vulnerability that ECR found in the pushed image and nobody allowed
	@$(BIN)/python image/scan.py $(ARGS)

.PHONY: chaos
chaos: $(READY) ## Run the kill and stop tests at their full counts (long)
	@mkdir -p $(REPORTS)
	@MOORAGE_CHAOS=full $(PYTEST) tests/ranks $(HAS_IMAGE) -m full -s -o timeout=3600 --durations=0 \
		--junitxml=$(REPORTS)/chaos.xml $(ARGS)

.PHONY: bench
bench: $(BENCH_READY) ## Measure against torchrun, the official toolkit, DDP, accelerate, Lightning
	@PYTHONPATH=tests $(BENCH_VENV)/bin/python -m bench $(ARGS)

.PHONY: bench-serve
bench-serve: $(BENCH_READY) ## Measure `serve` against Starlette, LitServe, gunicorn + Flask (needs wrk)
	@PYTHONPATH=tests $(BENCH_VENV)/bin/python -m bench serving

.PHONY: lint
lint: $(READY) ## Check style, types, import arrows, shell files and workflows; changes nothing
	@$(BIN)/ruff check $(PYTHON_FILES)
	@$(BIN)/ruff format --check $(PYTHON_FILES)
	@$(BIN)/mypy
	@$(BIN)/python tests/arrows.py
	@$(BIN)/shellcheck $(SHELL_FILES)
	@$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/zizmor --offline --quiet .github/workflows

.PHONY: fix
fix: $(READY) ## Apply what lint can mend by itself
	@$(BIN)/ruff check --fix $(PYTHON_FILES)
	@$(BIN)/ruff format $(PYTHON_FILES)

.PHONY: lock
lock: ## Choose the newest versions that work together: requirements/constraints.txt, and the image's locks
	@requirements/lock
	@requirements/lock-image
	@requirements/lock-clients

.PHONY: clean
clean: ## Remove environments, reports and caches
	@rm -rf $(VENV) $(BENCH_VENV) .venv-tools build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis container/*.egg-info
	@find container tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
