# Each target sets up .venv by itself; nothing but Python 3.11 or newer needs to be there.
#
#   make train   train a residual policy; flags in ARGS, e.g. make train ARGS="--base oracle --seed 1"
#   make test    run the tests but the slow ones; e.g. make test ARGS="-x tests/test_packaging.py", ARGS="-m slow"
#   make lint    run ruff and mypy
#   make mutants mutation testing of the core, for hours on a few cores; again to go on where it stopped
#   make venv    only set up .venv
#   make clean   remove .venv and what tools cached here (never runs/)
#
# Tests run in two processes, in one with WORKERS=0. Another Python: make PYTHON=python3.12 test.
# The JAX that fits an NVIDIA driver is chosen by train/hardware.py.

PYTHON ?= python3
ARGS ?=
WORKERS ?= 2
VENV_PYTHON := .venv/bin/python
PIP := $(VENV_PYTHON) -m pip --disable-pip-version-check
MUTANTS := .cache/mutants/sample

.PHONY: help train test lint mutants venv clean

help:
	@sed -n 's/^#   //p' Makefile

train: venv
	.venv/bin/so101 train $(ARGS)

test: venv
	@if [ ! -e .venv/.tests ] || [ pyproject.toml -nt .venv/.tests ]; then \
		$(PIP) install --editable ".[test]" && touch .venv/.tests; fi
	$(VENV_PYTHON) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

lint: venv
	$(VENV_PYTHON) -m ruff check
	$(VENV_PYTHON) -m ruff format --check
	$(VENV_PYTHON) -m mypy

mutants: venv
	@$(PIP) install --quiet --editable ".[test]" && mkdir -p .cache/mutants
	@if [ ! -e $(MUTANTS).json ]; then $(VENV_PYTHON) -m bench.mutants sample --out $(MUTANTS).json; fi
	$(VENV_PYTHON) -m bench.mutants run $(MUTANTS).json --results $(MUTANTS).jsonl --workers $(WORKERS) $(ARGS)
	$(VENV_PYTHON) -m bench.mutants report $(MUTANTS).json --results $(MUTANTS).jsonl --out $(MUTANTS)_report.json
	$(VENV_PYTHON) -m bench.mutants named --results .cache/mutants/named.jsonl --workers $(WORKERS) $(ARGS)

# $(call need_python,COMMAND): stop with a clear line unless COMMAND is a new enough Python; leaves $$version set.
define need_python
version=$$($(1) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3]); sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null) || { echo "error: Python 3.11 or newer is needed, but $(1) is $${version:-not there}." \
	"Name another, as in: make PYTHON=python3.12 $(MAKECMDGOALS) (after 'make clean' if .venv is the old one)" >&2; exit 1; }
endef

.venv/bin/pip:
	@$(call need_python,$(PYTHON)); \
	$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "error: $(PYTHON) ($$version) lacks the venv module. On Debian and Ubuntu:" \
		"apt-get install python$${version%.*}-venv" >&2; exit 1; }; \
	echo "Setting up .venv with Python $$version"; \
	$(PYTHON) -m venv .venv

# .venv/.installed holds the choice of JAX: a GPU that appears later is used from the next make on, and a machine
# without one leaves a .venv that it shares alone. Both CUDA plugins at once would claim the same device.
venv: .venv/bin/pip
	@$(call need_python,$(VENV_PYTHON)); \
	extra=$$($(VENV_PYTHON) -P train/hardware.py extra) || exit 1; \
	had=$$(cat .venv/.installed 2>/dev/null); extra=$${extra:-$$had}; \
	if [ -e .venv/.installed ] && [ ! pyproject.toml -nt .venv/.installed ] && [ "$$extra" = "$$had" ]; then exit 0; fi; \
	case "$$extra" in cuda12) other=cuda13;; cuda13) other=cuda12;; *) other=;; esac; \
	if [ "$$other" ]; then $(PIP) uninstall -qq --yes jax-$$other-plugin jax-$$other-pjrt || exit 1; fi; \
	$(PIP) install --editable ".[dev$${extra:+,$$extra}]" && echo "$$extra" > .venv/.installed

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +
