# Everything that one does with Diptych. A fresh machine needs Python 3.11 and make, nothing else.

PYTHON ?= python3.11
ifeq (, $(shell command -v $(PYTHON) 2>/dev/null))
PYTHON := python3
endif

VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv

.DEFAULT_GOAL := help
.PHONY: help env env-training serve train-omniglot test check format lock bench audit clean

help:  ## Show what there is.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The environment: stamps in .venv say what is installed, so that nothing is installed twice.
$(UV): requirements/uv.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $(UV)

$(VENV)/.service: $(UV) requirements/service.txt pyproject.toml
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/service.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

$(VENV)/.training: $(VENV)/.service requirements/dev.txt
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@touch $@

env: $(VENV)/.service  ## Make .venv with what serving needs; EXTRAS=heic,openvino,tracing for more.
	@test -z "$(EXTRAS)" || $(UV) pip install --quiet --python $(BIN)/python \
	    --constraint requirements/dev.txt --editable ".[$(EXTRAS)]"

env-training: $(VENV)/.training  ## Make .venv with everything: training, tests, linters.

serve: env  ## Serve the bundled checkpoint on 127.0.0.1:8000, data in ./data.
	@exec $(BIN)/diptych serve

# DATA is Omniglot's images_background (github.com/brendenlake/omniglot); the recipe is training/recipes/omniglot.toml.
OUTPUT ?= runs/omniglot
train-omniglot: env-training  ## Train the bundled checkpoint anew: make train-omniglot DATA=.../images_background
	@test -n "$(DATA)" || { echo "make train-omniglot DATA=path/to/images_background [OUTPUT=$(OUTPUT)]" >&2; exit 2; }
	$(BIN)/diptych train "$(DATA)" --output "$(OUTPUT)" --recipe omniglot

test: env-training  ## Run the whole test suite, two files at a time.
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: env-training  ## Lint, format check, types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env-training  ## Format the code and mend what the linter can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env-training  ## Measure accuracy and speed: make bench DATA=.../shared-data
	@test -n "$(DATA)" || { echo "make bench DATA=path/to/data (see benchmarks/run.py)" >&2; exit 2; }
	@command -v wrk >/dev/null || { echo "make bench needs wrk: apt-get install wrk" >&2; exit 2; }
	$(UV) pip install --quiet --python $(BIN)/python litserve==0.2.19
	$(BIN)/python -m benchmarks.run "$(DATA)"

audit: $(UV)  ## Look for known holes in what is installed (asks PyPI's advisory service).
	$(UV) tool run pip-audit --require-hashes --disable-pip -r requirements/service.txt

lock: $(UV)  ## Resolve the dependencies anew into requirements/.
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	    pyproject.toml -o requirements/service.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	    pyproject.toml --extra dev -c requirements/service.txt -o requirements/dev.txt
	echo "uv" | $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	    --no-header - -o requirements/uv.txt

clean:  ## Remove the environment and caches; data and runs stay.
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
