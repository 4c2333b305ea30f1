# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
#
# make demo       everything set up, then the main job on a real lab
# make test       everything set up, then all tests (CI)
# make test-all   every case, without limit
# make bench      what each action costs; plans, clone, monitors and failover beside other ways
# make check      lint, types and the tests that need no lab

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
# The tests make and remove 50,000 files, and sync some: in memory, where a gigabyte of it is free.
IN_MEMORY := $(shell findmnt -bnro AVAIL,OPTIONS /dev/shm | \
	awk '$$1 > 1e9 && !/noexec/ { print "PYTEST_DEBUG_TEMPROOT=/dev/shm"; exit }')

.PHONY: setup demo test test-all check bench lab-up lab-down deb clean

setup:
	@./tools/setup

demo:
	@./tools/plan
	@./tools/setup
	@$(PYTHON) -m lab.demo $(if $(KEEP),--keep)

check: setup
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy
	@.venv/bin/codespell
	@git grep -lE '^#!/.*sh$$' -- ':!*.py' ':!*.md' | xargs shellcheck
	@$(IN_MEMORY) $(PYTEST) -q -n 2 --dist worksteal

test: check
	@$(PYTEST) -m "lab and not extensive" tests/lab/test_demo.py
	@$(PYTEST) -n 2 --dist loadfile -m "lab and not extensive" tests/lab --ignore tests/lab/test_demo.py

test-all: check
	@.venv/bin/pip install -q --disable-pip-version-check -r requirements-oracle.txt
	@$(IN_MEMORY) $(PYTEST) -q -n 2 --dist worksteal -m "extensive and not lab"
	@$(PYTEST) -m "lab"

# Without what it compares with it says so, and measures the rest.
bench: setup
	-@./tools/setup --bench
	@$(PYTHON) -m bench.main $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY))

lab-up: setup
	@.venv/bin/cxm-lab up --keep

lab-down: setup
	@.venv/bin/cxm-lab down

deb: setup
	@./packaging/build

clean:
	@rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
