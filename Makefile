# Everything runs in .venv, which these rules make from the hash-pinned locks: requirements.lock for `make run`,
# requirements-dev.lock on top of it for the rest. A stamp in .venv says which lock is installed.

PYTHON ?=
HOST ?=
PORT ?=
ARGS ?=
UPGRADE ?=
# two more than there are processors: many tests wait for something
JOBS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 2)
TEST_SECONDS ?= 1800
SECONDS ?=
PEOPLE ?=
KILLS ?=
TURNS ?=
DATABASE ?=
WORKERS ?=
SEED ?=
EXAMPLES ?=
BROWSERS ?= chromium firefox webkit

PY  := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q
UV_COMPILE := $(PY) -m uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate $(if $(UPGRADE),--upgrade)
# INT lets the tests stop their servers; whatever hangs after that is killed.
LIMIT := $(if $(shell command -v timeout),timeout --foreground -s INT -k 30 $(TEST_SECONDS))

# What Python has compiled is kept: the tests start hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test rules check lint types architecture format bench soak chaos fuzz wheel sbom lock clean browser browsers pictures

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@echo '  Options: run HOST= PORT= · test ARGS="-k name" · PYTHON=python3.12 (before .venv is made)'

run: .venv/.runtime ## serve on http://127.0.0.1:8000 (HOST= and PORT= override)
	@$(PY) -m turnkeeper serve $(if $(HOST),--host '$(HOST)') $(if $(PORT),--port '$(PORT)')

test: .venv/.dev browser ## run every test: SQLite, PostgreSQL, Redis and a browser (ARGS= goes to pytest, JOBS= at once)
	@$(LIMIT) $(PY) -m pytest $(if $(ARGS),$(ARGS),-n $(JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder)

rules: .venv/.dev browser ## run the tests of docs/rules.md and print what they show of each rule (ARGS= goes to pytest)
	@$(LIMIT) $(PY) -m tests.rules $(ARGS)

check: lint types architecture test ## all that CI runs; do this before a commit

lint: .venv/.dev ## is it formatted, and does the linter agree?
	@$(PY) -m ruff format --check --quiet || { echo 'Not formatted. Run: make format'; exit 1; }
	@$(PY) -m ruff check --quiet

types: .venv/.dev ## do the types hold?
	@$(PY) -m mypy --no-error-summary

architecture: .venv/.dev ## does every module import only what it may?
	@$(PY) -m pytest -q tests/test_architecture.py

format: .venv/.dev ## format the code and sort its imports
	@$(PY) -m ruff check --quiet --fix --exit-zero
	@$(PY) -m ruff format

bench: .venv/.dev browser ## measure (ARGS= goes to the benchmarks)
	@$(PY) -m benchmarks $(ARGS)

pictures: .venv/.dev browser ## take the pictures of the README again
	@$(PY) -m benchmarks.pictures

soak: .venv/.dev ## an hour of mixed load: does anything grow, fail or get lost? (SECONDS=, PEOPLE=, SEED=)
	@SECONDS='$(SECONDS)' PEOPLE='$(PEOPLE)' SEED='$(SEED)' $(PY) -m benchmarks.soak

chaos: .venv/.dev ## kill the server 200 times under running turns: is anything lost? (KILLS=, TURNS=, SEED=, DATABASE=, WORKERS=)
	@KILLS='$(KILLS)' TURNS='$(TURNS)' SEED='$(SEED)' DATABASE='$(DATABASE)' WORKERS='$(WORKERS)' $(PY) -m tests.chaos

fuzz: .venv/.dev ## let schemathesis look for an answer that /openapi.json does not describe (EXAMPLES=, SEED=, DATABASE=)
	@EXAMPLES='$(EXAMPLES)' SEED='$(SEED)' DATABASE='$(DATABASE)' $(PY) -m tests.fuzz

wheel: .venv/.runtime ## build dist/turnkeeper-….whl
	@$(PY) -m hatchling build --target wheel

sbom: .venv/.runtime ## write what a release is made of to dist/turnkeeper.cdx.json (CycloneDX)
	@mkdir -p dist
	@$(PY) -m benchmarks.sbom > dist/turnkeeper.cdx.json

lock: .venv/bin/python .venv/bin/pip ## pin again what pyproject.toml asks for (UPGRADE=1: newer versions too)
	@$(PY) -m uv --version >/dev/null 2>&1 || $(PIP) install uv
	@$(UV_COMPILE) pyproject.toml --group build -o requirements.lock >/dev/null
	@$(UV_COMPILE) pyproject.toml --group dev -c requirements.lock -o requirements-dev.lock >/dev/null

clean: ## remove .venv, caches and builds; var/, with your data, stays
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. bin/pip comes last, so an interrupted start is begun again; bin/python goes when its Python goes.
.venv/bin/python .venv/bin/pip:
	@for python in $(if $(PYTHON),'$(PYTHON)',python3 python3.14 python3.13 python3.12 python3.11); do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		echo 'Setting up .venv (once, about a minute) …'; \
		"$$python" -m venv --clear .venv && exit; \
		rm -rf .venv; exit 1; \
	done; \
	echo 'Turnkeeper needs Python 3.11 or newer, and $(if $(PYTHON),$(PYTHON) is not,there is none on the PATH). Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3' >&2; exit 1

# The locks are complete, so pip has nothing to resolve: left to it, it may look at newer versions that have no hash.
.venv/.runtime: requirements.lock pyproject.toml .venv/bin/python .venv/bin/pip
	@echo 'Installing what it needs to run …'
	@$(PIP) install --require-hashes --no-deps -r requirements.lock
	@$(PIP) install --no-index --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: requirements-dev.lock .venv/.runtime
	@echo 'Installing what it needs to be tested …'
	@$(PIP) install --require-hashes --no-deps -r requirements-dev.lock
	@touch $@

# $(call debian,PACKAGES): install them, where that can be done without asking
debian = { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo 'Installing $(1) with apt-get (once) …' && \
	apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $(1) >/dev/null; }

BROWSER := chromium chromium-driver fonts-dejavu-core

browser: .venv/.dev
	@$(PY) -m tests.servers || $(call debian,$(BROWSER) chromium-headless-shell) || $(call debian,$(BROWSER)) || \
		echo 'No Chromium with chromedriver: tests in a browser will fail. Install both, or set CHROMIUM=/path/to/chromium.' >&2

browsers: browser ## run what people do most in Chromium, Firefox and WebKit (BROWSERS=firefox for one of them)
	@which firefox-esr WebKitWebDriver Xvfb >/dev/null || $(call debian,firefox-esr webkit2gtk-driver xvfb) || \
		echo 'Firefox ESR, WebKitGTK with WebKitWebDriver, or Xvfb is missing: install them. Tests will fail.' >&2
	@BROWSERS='$(BROWSERS)' $(LIMIT) $(PY) -m pytest $(if $(ARGS),$(ARGS),tests/browser/test_journeys.py)
