# 'make demo' and 'make test' work from a fresh clone: they make .venv and install what they need.
# PYTHON=..., TORCH=... and TORCH_PIP_ARGS=... are passed on to scripts/setup.sh, which says what they mean.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test lint format types unit mutants evidence verify bench doctor clean

VENV := .venv
BIN := $(VENV)/bin
SETUP := scripts/setup.sh
INPUTS := pyproject.toml constraints.txt $(SETUP)
DEMO_ARGS ?= --plot demo.png --json demo.json
BENCH_ARGS ?= --help
PYTEST_ARGS ?=
MUTANTS_ARGS ?=
VERIFY_ARGS ?=

export PYTHON TORCH TORCH_PIP_ARGS

help:
	@echo "make demo     embed real sentences from 8 threads: plain threads, a lock, a batch queue side by side"
	@echo "make test     lint, types, tests, mutants of the Metal kernels, the quick set of the evidence"
	@echo "make lint     ruff check, ruff format --check, mypy"
	@echo "make mutants  break each barrier and each bounds guard of the Metal kernels in turn; the checks must notice"
	@echo "make verify   all the evidence: models, proofs, bounds, kernels, planted bugs; VERIFY_ARGS=--quick for a few minutes"
	@echo "make format   let ruff mend and format the code"
	@echo "make bench    steelworks bench for a model of your own, with BENCH_ARGS=\"--model package.module:factory\""
	@echo "make doctor   what device, torch and hazards apply on this machine"
	@echo "make clean    remove .venv and all that tools have written"

$(VENV)/stamp-demo: $(INPUTS)
	@echo "== setting up (once; re-runs skip this)"
	@sh $(SETUP) demo

$(VENV)/stamp-test: $(INPUTS)
	@echo "== setting up (once; re-runs skip this)"
	@sh $(SETUP) test

demo: $(VENV)/stamp-demo
	@echo "== demo: one model, 8 threads, real sentences"
	@$(BIN)/steelworks demo $(DEMO_ARGS)

doctor: $(VENV)/stamp-demo
	@$(BIN)/steelworks doctor

bench: $(VENV)/stamp-demo
	@$(BIN)/steelworks bench $(BENCH_ARGS)

lint: $(VENV)/stamp-test
	@echo "== ruff check"
	@$(BIN)/ruff check .
	@echo "== ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "== mypy"
	@$(BIN)/mypy

# The tests of the runtime run alone: they are about threads. Kernels and proofs share the cores, the longest files first.
EVIDENCE := tests/verification tests/kernels tests/metalsim tests/ops tests/nn tests/triton
unit: $(VENV)/stamp-test
ifeq ($(strip $(PYTEST_ARGS)),)
	@echo "== pytest: kernels, operations and proofs, on all cores"
	@$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m "not evidence" $(EVIDENCE)
	@echo "== pytest: the runtime"
	@$(BIN)/python -m pytest $(EVIDENCE:%=--ignore=%)
else
	@echo "== pytest"
	@$(BIN)/python -m pytest $(PYTEST_ARGS)
endif

mutants: $(VENV)/stamp-test
	@echo "== mutants of the Metal kernels"
	@$(BIN)/python -m verification.mutants.metal $(MUTANTS_ARGS)

evidence: $(VENV)/stamp-test
	@echo "== steelworks verify --quick"
	@$(BIN)/steelworks verify --quick

verify: $(VENV)/stamp-test
	@$(BIN)/steelworks verify $(VERIFY_ARGS)

test: $(VENV)/stamp-test
	@echo "== test: lint, types, the tests, mutants of the Metal kernels, then the quick set of the evidence"
	@if (for step in lint unit mutants evidence; do $(MAKE) --no-print-directory $$step || exit 1; done); \
		then echo "verdict: make test passed (ruff, mypy, pytest, mutants and evidence)"; \
		else \
			if [ -f $(VENV)/missing-compiler ]; then \
				echo "evidence missing: no Metal kernel was run or checked, and no mutant of one tried. $$(cat $(VENV)/missing-compiler)"; fi; \
			if [ -f $(VENV)/missing-java ]; then \
				echo "evidence missing: no TLA+ model was checked or replayed. $$(cat $(VENV)/missing-java)"; fi; \
			if [ -f $(VENV)/missing-lean ]; then \
				echo "evidence missing: no proof was checked. $$(cat $(VENV)/missing-lean)"; fi; \
			if [ -f $(VENV)/missing-cbmc ]; then \
				echo "evidence missing: no bounds were proven. $$(cat $(VENV)/missing-cbmc)"; fi; \
			if [ -f $(VENV)/missing-objc ]; then \
				echo "evidence missing: the driver's race was not reproduced. $$(cat $(VENV)/missing-objc)"; fi; \
			echo "verdict: make test FAILED; the first failing step is the last one named '==' above"; exit 1; fi

format: $(VENV)/stamp-test
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis demo.png demo.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
