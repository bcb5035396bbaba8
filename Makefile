# The commands of this repository. `make` alone lists them.
#
# Each makes what it needs first (.venv, system packages when root): see tools/setup. A second run installs
# only what changed. Variables: PYTHON=python3.12, ENGINE=no (tests without vLLM), PYTEST_ARGS="-k dump", JOBS=0 (one test at a time).

SHELL := bash
ENGINE ?= yes
PYTEST_ARGS ?=
# How many tests run at once. A file's tests stay together, and files in their order, so that what is long does not come last.
JOBS ?= 2
python := .venv/bin/python
# mypy wants the package as it installs, with connector/ and tools/ inside it.
typed := .cache/typed
# What `make test-crash` runs, longer than `make test` does, and where each suite leaves its figures.
crash_suites := $(addprefix tests/,crash fsck explore fuzz payload_sums world contract race sanitized soak transport/test_deaths.py e2e/test_storm.py)
figures := .cache/crash-figures.jsonl
# What `make test-rdma` runs in its machine; a bench, for example: RUN="-m bench.fetch_rdma".
RUN ?= -m pytest -p no:cacheprovider -k "not tcp" --timeout 300 tests/rdma tests/fabric tests/peers/test_slow_network.py $(PYTEST_ARGS)
# What `make bench` measures (empty: all) and how much of it (--quick).
BENCH ?=
BENCH_ARGS ?=
export PYTHON

.PHONY: help demo drill test test-crash test-rdma bench docs screenshots lint format clean
.DEFAULT_GOAL := help

help: ## list the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 10

demo: ## show PegaShm on real vLLM engines: kill them, kill the supervisor, lose nothing
	@bash tools/setup/environment.sh engine
	@exec $(python) tools/demo

drill: ## what an operator sees from installation to purge, under every failure, on real engines (5 min)
	@bash tools/setup/environment.sh engine test
	@PEGASHM_DRILL=1 $(python) -m pytest -s -p no:cacheprovider tests/drill $(PYTEST_ARGS)

test: ## run the tests, end to end ones on a real vLLM included
	@bash tools/setup/environment.sh $(if $(filter yes,$(ENGINE)),engine) test
	@exec $(python) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-crash: ## prove crash safety, the long form: every crash point, interleavings, fuzz, storms (30 min)
	@bash tools/setup/environment.sh engine test
	@mkdir -p .cache && rm -f $(figures)
	@PEGASHM_LONG=1 PEGASHM_FIGURES=$(CURDIR)/$(figures) $(python) -m pytest $(crash_suites) $(PYTEST_ARGS)
	@$(python) -m tests.figures $(figures)

test-rdma: ## run the tests of RDMA on real verbs, in an emulated machine with soft-RoCE devices (Debian 12, half an hour)
	@bash tools/setup/environment.sh test
	@$(python) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(v != "3.11" and f".venv has Python {v}; expected 3.11, for which the pyverbs of Debian 12 is built. Type: rm -rf .venv; make test-rdma PYTHON=python3.11")'
	@PEGASHM_FABRIC_TIMES=2 PEGASHM_PATIENCE=6 RDMA_VM_CACHE=$(CURDIR)/.cache/rdma-vm bash tests/rdma/rdma-vm.sh "$$(realpath -s $(python))" $(RUN)

bench: ## measure everything beside its rivals; tables, plots and docs/performance.md (wants a quiet machine)
	@bash tools/setup/environment.sh $(if $(filter yes,$(ENGINE)),engine) test
	@$(python) -m pip install -qq --disable-pip-version-check -r bench/requirements.txt
	@$(python) -m bench.rivals.install || echo "Rivals that could not be installed are left out."
	@$(python) -m bench.record $(BENCH_ARGS) $(BENCH); status=$$?; $(python) -m bench.page && exit $$status

docs: ## build the documentation into .cache/site, for a browser without a network; broken links fail
	@bash tools/docs/build.sh

screenshots: ## take the pictures of the status page for docs/figures again (Chromium, 10 min of traffic)
	@bash tools/setup/environment.sh test
	@$(python) -m tests.page.screenshots

lint: ## check style, types and the core's warnings
	@bash tools/setup/environment.sh test lint
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	.venv/bin/clang-format --dry-run --Werror $(wildcard pegashm/_core/*.hpp)
	@rm -rf $(typed) && mkdir -p $(typed)/pegashm && cp -rs $(CURDIR)/pegashm/. $(typed)/pegashm/ \
	  && ln -s $(CURDIR)/connector $(CURDIR)/tools $(typed)/pegashm/
	cd $(typed) && $(CURDIR)/$(python) -m mypy --config-file $(CURDIR)/pyproject.toml -p pegashm
	cd tools/demo && $(CURDIR)/$(python) -m mypy --strict --explicit-package-bases --cache-dir ../../.mypy_cache *.py
	$(python) -m mypy tools/docs/hooks.py tools/docs/reference.py tools/docs/metrics.py
	$(python) -m pytest -q tests/core tests/packaging

format: ## rewrite the sources in house style
	@bash tools/setup/environment.sh test lint
	$(python) -m ruff check --fix .
	$(python) -m ruff format .
	.venv/bin/clang-format -i $(wildcard pegashm/_core/*.hpp)

clean: ## remove what was built and installed here (shared memory is left alone: pegashm purge)
	rm -rf .venv .cache build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis pegashm/_native.cpp pegashm/*.so
