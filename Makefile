.PHONY: install install-test lint test test-kernels test-cluster test-all check bench lines

install:          ## what serving needs
	pip install -q -c constraints.txt -e .

install-test:     ## what tests need
	pip install -q -c constraints.txt -e '.[test]'

lint:             ## format, lint, types, layers
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	python scripts/containers/values_table.py --check

test:             ## fast tests
	python -m pytest

test-kernels:     ## kernels for GPUs, without one (two minutes)
	python -m pytest -m 'interpreter and not slow' tests/engine

test-cluster:     ## those that start a Ray cluster on this machine (four minutes)
	python -m pytest -m cluster tests/cluster

test-all:         ## slow ones too
	python -m pytest -m 'not gpu'

check: lint test

bench:            ## what mixing adapters costs on this machine
	stoa bench lora

lines:            ## lines of code per room
	@for room in src/stoa/*/ src/stoa/engine/*/; do printf '%6d  %s\n' "$$(find $$room -name '*.py' -o -name '*.[ch]' | xargs cat | wc -l)" "$$room"; done
