# `make app` and `make test` are all that a user needs; both install what they need into .venv first.
PYTHON ?= python3
PORT ?= 7860
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help app test lint chromium clean

help:
	@echo "make app    install into $(VENV) and serve the app on http://localhost:$(PORT) (PORT=8080 for another port)"
	@echo "make test   install what tests need and run them all"
	@echo "make lint   ruff (check and format check) and mypy"
	@echo "make clean  remove $(VENV) and caches"

app: $(VENV)/.app
	PORT=$(PORT) $(BIN)/python app.py

test: $(VENV)/.test chromium
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("selfspan needs Python 3.11 or newer; PYTHON= names one")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.app: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.test: requirements-test.txt requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-test.txt
	@touch $@ $(VENV)/.app

# Without a browser, and without the rights to install one, the browser tests are skipped and say why.
chromium:
	@command -v chromium >/dev/null || { \
	  if [ "$$(id -u)" = 0 ]; then as=; else as="sudo -n"; fi; \
	  echo "installing Debian's chromium for the browser tests"; \
	  { $$as apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$as apt-get install -y -qq --no-install-recommends \
	    chromium chromium-driver; } >/dev/null 2>&1 || echo "could not install it: the browser tests will be skipped"; }

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
