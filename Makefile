# One way to do each chore. `make demo` and `make test` set everything up first; `make` alone lists the rest.
# Logic is in tools/, since make cannot hold a path with a space. Paths here are relative for the same reason.
MAKEFLAGS += --no-print-directory
python := .venv/bin/python
args ?=

.PHONY: help setup demo test test-long test-lowest lint fix types docs reference bench check-lock lock wheel clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 # /p' Makefile | awk -F'#' '{ printf "%-20s%s\n", $$1, $$2 }'

setup: ## .venv with exactly requirements.lock and this checkout (PYTHON=python3.12 to choose)
	@sh tools/setup.sh $(if $(filter command line,$(origin PYTHON)),'$(PYTHON)')

demo: setup ## a simulated microscope, a copy, accidents, the proof
	@.venv/bin/scopeferry demo $(args)

test: setup ## the tests, without the slow ones
	@$(python) -m pytest -q -n auto -m 'not slow' $(args)

test-long: setup ## all tests
	@$(python) -m pytest -q -n auto $(args)

test-lowest: setup ## the tests with the oldest versions pyproject.toml allows at run time (needs uv)
	@sh tools/test_lowest.sh $(args)

lint: setup ## style, import directions, lock
	@$(python) -m ruff check
	@$(python) -m ruff format --check
	@.venv/bin/lint-imports --no-cache --no-logo
	@$(python) tools/check_lock.py

fix: setup ## what lint can mend by itself
	@$(python) -m ruff check --quiet --fix
	@$(python) -m ruff format

types: setup ## mypy, strict
	@$(python) -m mypy

docs: setup ## the documentation, strict and offline, into site/
	@$(python) -m mkdocs --quiet build --strict

reference: setup ## docs/reference from the program itself
	@$(python) tools/reference.py

bench: setup ## comparisons against other programs, in one run
	@$(python) bench/transfer.py $(args)

check-lock: setup
	@$(python) tools/check_lock.py

lock: ## write requirements.lock anew (needs uv)
	@sh tools/lock.sh $(args)

wheel: setup ## the wheel, into dist/
	@$(python) -m hatchling build -t wheel

clean: ## what set-up, tests and builds left
	@rm -rf .venv .venv-* build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
