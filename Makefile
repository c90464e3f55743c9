# make report | test | test-slow | bench | lab | lint | clean: the environment is made on first use, in .venv
PYTHON ?= python3
VENV ?= .venv
PROFILE ?= demo
# DATA=/path sets the profile's root; PARAMS='-p shots=[0,1]' passes any parameter on
DATA ?=
PARAMS ?=
# BENCH='encode metrics' runs these benchmarks only
BENCH ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
STRIP := --keep-id --extra-keys "metadata.papermill metadata.widgets metadata.language_info cell.metadata.papermill"

.PHONY: report test test-slow bench lab lint format clean

report: $(READY)
	$(BIN)/python -m vlmad_lib.report $(PROFILE) $(if $(DATA),-p "root=$(DATA)") $(PARAMS)

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

bench: $(READY)
	$(BIN)/python tests/benchmarks $(BENCH)

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir notebooks

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify $(STRIP) notebooks/*.ipynb

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout $(STRIP) notebooks/*.ipynb

clean:
	rm -rf $(VENV) data/cache data/demo data/demo_auxiliary reports/out build *.egg-info .pytest_cache .ruff_cache

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@
