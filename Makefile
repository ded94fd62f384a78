# Two commands: `make quickstart` runs the whole method, `make test` passes the tests.  Each does its own set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# What depends on jax, once: the steps of the method, a model, a run of every stage. For a second Python, whose jax is
# newer.
NEWEST := $(addprefix tests/,$(addsuffix .py,method/test_x64 method/test_ppo_by_hand method/test_steps method/test_dpo \
  models/test_gpt models/test_llama models/test_lora system/test_keys stages/test_stages))
TWO := $(BIN)/python -m pytest -n 2 --dist worksteal
SPHINX := JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -q --keep-going
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: quickstart test test-fast test-newest test-slow test-release test-oracles test-plan test-browser test-wheel lint docs docs-links lock clean

quickstart: $(VENV)/.runtime
	$(BIN)/instructjax quickstart $(ARGS)

test: lint test-fast

test-fast: $(VENV)/.test
	$(TWO) $(ARGS)

test-newest: $(VENV)/.test
	$(TWO) $(NEWEST) $(ARGS)

test-slow: $(VENV)/.test
	$(TWO) -m slow $(ARGS)

test-release: $(VENV)/.test  ## minutes long, of what the other tests cover in parts; not in CI
	$(TWO) -m release $(ARGS)

test-oracles: $(VENV)/.oracles
	$(TWO) -m oracle $(ARGS)

test-plan: $(VENV)/.plan
	$(BIN)/python -m pytest -m tpu $(ARGS)

test-browser: $(VENV)/.test  ## needs chromium and chromedriver
	$(BIN)/python -m pytest -m browser $(ARGS)

test-wheel: $(VENV)/.test  ## builds the wheel, installs it into an empty environment and runs it there
	scripts/check_wheel.sh $(BIN)/python

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

docs: $(VENV)/.docs  ## the pages and the reference, into build/docs; a link that leads nowhere is an error
	$(SPHINX) -W -b html docs build/docs
	@echo "open build/docs/index.html"

docs-links: $(VENV)/.docs  ## asks the addresses of other sites too
	$(SPHINX) -b linkcheck docs build/links

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else f"InstructJAX needs Python 3.11 or newer and found {v[0]}.{v[1]}: run `make $(MAKECMDGOALS) PYTHON=python3.12`")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.python requirements.lock pyproject.toml
	$(INSTALL) --require-hashes -r requirements.lock
	$(INSTALL) --no-deps -e .
	@touch $@

$(VENV)/.test: $(VENV)/.runtime requirements-test.lock
	$(INSTALL) --require-hashes -r requirements-test.lock
	@touch $@

$(VENV)/.oracles: $(VENV)/.test
	$(INSTALL) -c constraints-oracles.txt -e '.[oracles]'
	@touch $@

$(VENV)/.plan: $(VENV)/.test constraints-plan.txt
	$(INSTALL) -c constraints-plan.txt -e '.[plan]'
	@touch $@

$(VENV)/.docs: $(VENV)/.runtime constraints-docs.txt
	$(INSTALL) -c constraints-docs.txt -e '.[docs]'
	@touch $@

lock:  ## pins names, versions and hashes for every supported Python; no addresses
	uv pip compile pyproject.toml --universal --generate-hashes --no-header --no-annotate --quiet -o requirements.lock
	uv pip compile pyproject.toml --extra test --constraint requirements.lock --universal --generate-hashes --no-header \
	  --no-annotate --quiet -o requirements-test.lock

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .jax-cache
