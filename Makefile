# Everything a developer needs, each as one command. Each target sets up what it needs; `make help` lists them.

MAKEFLAGS += --no-print-directory
SHELL := /bin/sh
.DEFAULT_GOAL := help

# The Python that makes .venv: the first of these that is 3.11 or later, unless PYTHON says which.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
BIN := .venv/bin
# What `make cluster` runs.
KUBERNETES ?= 1.37
CONTAINERD ?= 2.4
# A test that hangs this many seconds ends the run, and its threads' stacks are shown.
HANGS = 240
PYTEST = $(BIN)/python -m pytest -o faulthandler_timeout=$(HANGS) -o faulthandler_exit_on_timeout=true

# How many pods each part of `make soak` sees, and the seed of its dice.
PODS ?= 1000
SEED ?= 20261124

.PHONY: help setup test unit node lint format protos demo bench soak runtime vm cluster parts image clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv with all dependencies (nothing to do when pyproject.toml did not change)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: install it, or name it with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) hack/setup_venv.py

test: setup ## unit and node tests with coverage, in namespaces of their own (no root: in a user namespace)
	@hack/packages iproute2 util-linux dnsmasq-base openssl zstd
	hack/private $(PYTEST) tests/unit tests/node --check-leftovers --cov --cov-report=term:skip-covered $(ARGS)

unit: setup ## unit tests only (no root, no namespaces); ARGS="-k word" picks some
	$(PYTEST) tests/unit $(ARGS)

node: setup ## node tests only: the real kernel in namespaces of their own
	@hack/packages iproute2 util-linux dnsmasq-base
	hack/private $(PYTEST) tests/node --check-leftovers $(ARGS)

lint: setup ## ruff, mypy --strict, import layers, generated stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python hack/protos.py --check

format: setup ## let ruff format and fix the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: setup ## regenerate nri_dranet/pb from protos/
	$(BIN)/python hack/protos.py

demo: setup ## one pod from claim to running to deleted, with stand-ins for kubelet, runtime and API server
	@hack/packages iproute2 util-linux
	@$(BIN)/nri-dranet demo $(ARGS)

bench: setup ## the numbers: hook, prepare, start, memory
	@hack/packages iproute2 util-linux
	@$(BIN)/python hack/bench.py $(ARGS)

soak: parts ## thousands of pods with kills, restarts, outages and link flaps (an hour; root, Go 1.26); SEED=7 for another course
	@hack/packages iproute2 util-linux
	NRI_DRANET_SOAK=$(PODS) NRI_DRANET_SOAK_SEED=$(SEED) hack/private \
	  $(BIN)/python -m pytest -s tests/node/driver/faults/test_soak.py $(ARGS)
	NRI_DRANET_SOAK_RUNTIME=50 NRI_DRANET_SOAK_SEED=$(SEED) $(BIN)/python -m pytest -s tests/runtime/test_soak.py -m runtime

parts: setup ## build the real containerd, runc and CNI plugins from their Go modules, once, into the user's cache
	@hack/packages iproute2 util-linux gcc libc6-dev pkgconf libseccomp-dev
	@$(BIN)/python -m hack.parts containerd runc cni

runtime: parts ## the driver against real containerd 2.4 and 1.7 (root, Go 1.26)
	$(PYTEST) tests/runtime -m runtime $(ARGS)

vm: setup ## the driver on a guest kernel with RDMA, SR-IOV, VRF and more (Debian 12, amd64, Go 1.26)
	@hack/packages iproute2 util-linux gcc make zstd binutils libc6-dev pkgconf libseccomp-dev
	$(PYTEST) tests/vm -m vm $(ARGS)

# The first test starts the cluster and makes the image; a command of a test may be given four minutes.
cluster: HANGS = 600
cluster: setup ## the chart on a real Kubernetes cluster (root, Go 1.26); KUBERNETES=1.34 CONTAINERD=1.7 for the oldest
	@hack/packages iproute2 util-linux procps openssl gcc libc6-dev pkgconf libseccomp-dev
	@$(BIN)/python -m hack.cluster build --kubernetes "$(KUBERNETES)" --containerd "$(CONTAINERD)"
	$(PYTEST) tests/cluster --kubernetes "$(KUBERNETES)" --containerd "$(CONTAINERD)" $(ARGS)

image: setup ## the container image and its SBOM in build/, without a container engine
	@$(BIN)/python -m hack.image $(ARGS)

clean: ## remove .venv and everything else that was made here (not the user's cache)
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage htmlcov dist build
