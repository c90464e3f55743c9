# make report | readme | check | types | test | test-slow | test-fault | test-gpu | test-lab | test-all | browser | bench |
# lab | exercises | lint | format | audit | lock | clean:
# the environment is made on first use, in .venv
PYTHON ?= python3
VENV ?= .venv
PROFILE ?= demo
# DATA=/path sets the profile's root; PARAMS='-p shots=[0,1]' passes any parameter on
DATA ?=
PARAMS ?=
# BENCH='encode metrics' runs these benchmarks only
BENCH ?=
# LOCKED=1 makes the environment of the exact versions in requirements.lock
LOCKED ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
STRIP := --keep-id --extra-keys "metadata.papermill metadata.widgets metadata.language_info cell.metadata.papermill"

.PHONY: report readme check types test test-slow test-fault test-gpu test-lab test-all browser bench lab exercises lint format audit lock clean

report: $(READY)
	$(BIN)/python -m vlmad_lib report $(PROFILE) $(if $(DATA),-p "root=$(DATA)") $(PARAMS)

# what CI runs: code and notebooks, types, the tests, the demo report, its pages in a browser; 20 minutes on two cores
check:
	$(MAKE) lint
	$(MAKE) types
	$(MAKE) test
	$(MAKE) report PROFILE=demo
	$(MAKE) browser

test: $(READY)
	$(BIN)/python -m pytest -m "not slow and not fault and not gpu" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

test-fault: $(READY)
	$(BIN)/python -m pytest -m fault

# an accelerator against the CPU, on a machine that has one
test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

# JupyterLab in Chromium: notebooks run, their panel is used
test-lab: $(READY)
	$(BIN)/python -m pip install --quiet -e ".[browser]"
	$(BIN)/python tests/lab.py

# everything, the demo report in a browser too, and what was survived at the end
test-all: check test-slow
	$(MAKE) test-lab
	$(MAKE) test-fault

# the pages of the newest report in Chromium, where there is one and Playwright can be had
browser: $(READY)
	@if ! command -v chromium > /dev/null; then \
		echo "No Chromium on this machine: the pages of the report were not opened in a browser."; \
	elif ! $(BIN)/python -m pip install --quiet -e ".[browser]"; then \
		echo "Playwright cannot be installed here: the pages of the report were not opened in a browser."; \
	else \
		$(BIN)/python tests/browser.py reports/out/latest; \
	fi

bench: $(READY)
	$(BIN)/python tests/benchmarks $(BENCH)

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir notebooks

# notebooks/exercises: copies without the solutions
exercises: $(READY)
	$(BIN)/python -m vlmad_lib exercises

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify $(STRIP) notebooks/*.ipynb

types: $(READY)
	$(BIN)/mypy

# the README's table and picture, from the newest demo report
readme: $(READY)
	$(BIN)/python tests/readme.py reports/out/latest

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout $(STRIP) notebooks/*.ipynb

clean:
	rm -rf $(VENV) data/cache data/demo data/demo_auxiliary reports/out build *.egg-info .pytest_cache .ruff_cache .mypy_cache

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(LOCKED),-c requirements.lock) -e ".[test]"
	touch $@

# the environment's packages: who needs them, their licences, and faults; and their exact versions
audit: $(READY)
	$(BIN)/python tests/dependencies.py audit

lock: $(READY)
	$(BIN)/python tests/dependencies.py lock
