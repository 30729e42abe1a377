# All common tasks. A fresh machine needs only Python 3.11 and make.

PYTHON ?= python3.11
ifeq (, $(shell command -v $(PYTHON) 2>/dev/null))
PYTHON := python3
endif

VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv

.DEFAULT_GOAL := help
.PHONY: help env env-training serve train-omniglot test check docs format lock bench audit clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The environment. Stamp files in .venv record what is installed, so that nothing is installed twice.
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

$(VENV)/.docs: $(VENV)/.service requirements/docs.txt
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements/docs.txt
	@touch $@

env: $(VENV)/.service  ## Set up .venv with what serving needs; EXTRAS=heic,openvino,tracing adds more.
	@test -z "$(EXTRAS)" || $(UV) pip install --quiet --python $(BIN)/python \
	    --constraint requirements/dev.txt --editable ".[$(EXTRAS)]"

env-training: $(VENV)/.training  ## Set up .venv with everything: training, tests, linters.

serve: env  ## Serve the bundled checkpoint on 127.0.0.1:8000, with data in ./data.
	@exec $(BIN)/diptych serve

# DATA is Omniglot's images_background (github.com/brendenlake/omniglot); the recipe is training/recipes/omniglot.toml.
OUTPUT ?= runs/omniglot
train-omniglot: env-training  ## Train the bundled checkpoint again: make train-omniglot DATA=.../images_background
	@test -n "$(DATA)" || { echo "make train-omniglot DATA=path/to/images_background [OUTPUT=$(OUTPUT)]" >&2; exit 2; }
	$(BIN)/diptych train "$(DATA)" --output "$(OUTPUT)" --recipe omniglot

test: env-training  ## Run the whole test suite, in two processes.
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: env-training  ## Run the linter, the format check and the type check.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs  ## Build the documents as a site in site/, with warnings as errors.
	$(BIN)/python -m docs.generate

format: env-training  ## Format the code, and fix what the linter can fix.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env-training  ## Measure accuracy and speed: make bench DATA=.../shared-data
	@test -n "$(DATA)" || { echo "make bench DATA=path/to/data (see benchmarks/run.py)" >&2; exit 2; }
	@command -v wrk >/dev/null || { echo "make bench needs wrk: apt-get install wrk" >&2; exit 2; }
	$(UV) pip install --quiet --python $(BIN)/python litserve==0.2.19
	$(BIN)/python -m benchmarks.run "$(DATA)"

audit: $(UV)  ## Look for known security holes in what the service installs (asks PyPI's advisory service).
	$(UV) tool run pip-audit --require-hashes --disable-pip -r requirements/service.txt

lock: $(UV)  ## Resolve the dependencies again into requirements/.
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	    pyproject.toml -o requirements/service.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	    pyproject.toml --extra dev -c requirements/service.txt -o requirements/dev.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	    pyproject.toml --extra docs -c requirements/dev.txt -o requirements/docs.txt
	echo "uv" | $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	    --no-header - -o requirements/uv.txt

clean:  ## Remove the environment, caches and the built site; data and runs stay.
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site
