# trilemma: the commands of every day. `make help` lists them; each is quick and harmless when run again.
#
# Another build of torch (a GPU's, say) is chosen when .venv is made; remove .venv to choose anew:
#   make quickstart TORCH="torch==2.13.0" PIP_FLAGS="--index-url ADDRESS"
# ADDRESS is the index address that pytorch.org's install selector prints. PIP_FLAGS apply to torch alone.

PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
CORE := $(VENV)/.trilemma-core
DEV := $(VENV)/.trilemma-dev
SOURCES := src tests benchmarks docs

.PHONY: help quickstart test extras lock
.DELETE_ON_ERROR:

help:
	@echo "make quickstart  install into .venv, then train, evaluate, sample and report on digits"
	@echo "make test        install the development tools into .venv, then lint, format check, types, tests"
	@echo "make extras      install and use every extra in an environment of its own (half an hour, 3 GB of disk)"
	@echo "make lock        renew constraints.txt from a fresh environment"

quickstart: $(CORE)
	@$(BIN)/trilemma quickstart

test: export OMP_WAIT_POLICY ?= passive
test: $(DEV)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy
	@$(BIN)/python -m pytest

# torch first, so that nothing below chooses its build; the constraints of the rest leave it alone.
$(CORE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit(\
	"trilemma needs Python 3.11 or newer, and $(PYTHON) is %d.%d; try: make PYTHON=python3.11" % sys.version_info[:2])'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "installing trilemma into $(VENV) (once; torch is a large download)" >&2
	@$(PIP) install $(PIP_FLAGS) "$(TORCH)"
	@grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	@$(PIP) install -c $(VENV)/constraints.txt -e .
	@touch $@

$(DEV): $(CORE)
	@$(PIP) install -c $(VENV)/constraints.txt -e '.[dev]'
	@touch $@

extras: $(CORE)
	@nice $(BIN)/python benchmarks/extras.py --torch "$(TORCH)" --pip-flags="$(PIP_FLAGS)"

lock: LOCK := build/lock
lock:
	@rm -rf $(LOCK)
	@$(PYTHON) -m venv $(LOCK)
	@$(LOCK)/bin/python -m pip --quiet install $(PIP_FLAGS) "$(TORCH)"
	@$(LOCK)/bin/python -m pip --quiet install -e '.[dev]'
	@grep '^#' constraints.txt > $(LOCK)/constraints.txt
	@$(LOCK)/bin/python -m pip freeze --exclude-editable | grep -Eiv '^(nvidia|cuda|triton|setuptools)' \
	  | sed -E 's/^(torch==[^+]*)\+.*/\1/' >> $(LOCK)/constraints.txt
	@cp $(LOCK)/constraints.txt constraints.txt
	@rm -rf $(LOCK)
