# Every target sets up what it needs first; where nothing changed since, that takes no time.
# Extra arguments: make train ARGS="--resume", make test ARGS="-k grammar".
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup desktops train test test-vllm test-osworld test-docker check bench doctor format docs clean
BIN := .venv/bin
CONFIG ?= configs/miniwob-tiny.toml
ARGS ?=
ENGINE ?= docker
APPS ?= small
# One thread each: several processes share the cores, and threads that wait for a busy core are
# slower than none.
export OMP_NUM_THREADS ?= 1
# Packages of another place on PYTHONPATH would shadow the pinned ones.
unexport PYTHONPATH

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## make .venv with the pinned dependencies, and find or install a Chromium
	@scripts/setup

desktops: ## install what real desktops need (Xvfb, openbox, bubblewrap ...), where apt may
	@python3 scripts/setup_desktop.py

train: setup ## train the tiny agent on MiniWoB++ (ARGS="--resume" continues the latest run)
	$(BIN)/dart-gui train $(CONFIG) $(ARGS)

test: setup ## run the tests
	$(BIN)/python -m pytest -rs $(ARGS)

test-vllm: setup ## run the tests that need a real vLLM server, on a CPU
	DART_VLLM="$$($(BIN)/python scripts/setup_vllm.py)" $(BIN)/python -m pytest -rs -m vllm $(ARGS)

test-osworld: setup ## run the tests that need OSWorld's own getters and metrics
	DART_OSWORLD="$$($(BIN)/python scripts/setup_osworld.py)" $(BIN)/python -m pytest -rs -m osworld $(ARGS)

test-docker: setup ## run the tests of desktops in containers, as root (ENGINE=podman, APPS=all: the full image)
	$(BIN)/python scripts/setup_docker.py --engine $(ENGINE) --apps $(APPS) $(BIN)/python -m pytest -rs -m docker $(ARGS)

check: setup ## lint, format and types, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup ## one benchmark: BENCH=learning, browser, episodes, decoupled, update, desktops ... (docs/results)
	$(BIN)/python -m benchmarks.$(or $(BENCH),$(error say which: make bench BENCH=browser)) $(ARGS)

doctor: setup ## check the machine, the browser and the model
	$(BIN)/dart-gui doctor $(ARGS)

format: setup ## apply the formatter and the fixes that are safe
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## write docs/configuration.md from the configuration's own docstrings
	$(BIN)/python scripts/config_docs.py

clean: ## remove what set-up and tools made; runs/ stays
	rm -rf .venv .venv-osworld .venv-vllm .docker deploy/desktop/wheels .browser .browser.partial .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
