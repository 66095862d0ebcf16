# Two commands do all their own set-up: `make demo` and `make test`. A second run starts within seconds.
PYTHON   ?= python3
TORCH    ?= torch==2.13.0
PIP_ARGS ?=
VENV     ?= .venv
CXX      ?= g++
export CXX

BIN   := $(VENV)/bin
# the environment is made anew when torch's version or the dependencies change, the build when a source does
KEY   := $(shell (echo "$(TORCH) $(PIP_ARGS)"; cat pyproject.toml) | cksum | cut -d' ' -f1)
ENV   := $(VENV)/.environment-$(KEY)
BUILT := $(VENV)/.built
SOURCES := setup.py CMakeLists.txt $(shell find csrc -name '*.cpp' -o -name '*.h')

.PHONY: demo test test-full bench-check docs wheel lint clean check-machine
.DEFAULT_GOAL := demo

demo: $(BUILT)
	$(BIN)/sparsekern reproduce deep-roots/nin --batch 1

test: $(BUILT)
	$(BIN)/python tests/run.py

test-full: $(BUILT) $(VENV)/.release-$(KEY)
	$(BIN)/python tests/run.py --full --resume

bench-check: $(BUILT)
	$(BIN)/sparsekern bench check bench/results

# the site, in build/site; a warning is an error. It reads the sources and needs no build.
docs: $(VENV)/.docs-$(KEY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/.docs-$(KEY): $(ENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) $(shell sed -n 's/^docs = \[\(.*\)\]$$/\1/p' pyproject.toml | tr -d ',')
	touch $@

# one wheel for every Python from 3.10 and every torch from 2.10 on, in dist/, checked
wheel: $(VENV)/.release-$(KEY)
	$(BIN)/python tests/wheels/make_wheel.py

$(VENV)/.release-$(KEY): $(ENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) $(shell sed -n 's/^release = \[\(.*\)\]$$/\1/p' pyproject.toml | tr -d ',')
	touch $@

lint: $(BUILT)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

check-machine:
	@command -v $(PYTHON) >/dev/null || { echo "missing: $(PYTHON) (Python 3.10 or newer)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "missing: Python 3.10 or newer; $(PYTHON) is `$(PYTHON) -V`"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "missing: the venv module (Debian: apt install python3-venv)"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || echo "note: Python.h not found; built without _native, no instruction-set control (Debian: apt install python3-dev)"
	@command -v $(CXX) >/dev/null || echo "note: $(CXX) not found; the ops will be served by their references (Debian: apt install g++)"
	@! command -v $(CXX) >/dev/null || [ "`$(CXX) -dumpversion | cut -d. -f1`" -ge 11 ] || echo "note: g++ 11 or newer is needed; this is `$(CXX) -dumpversion`"

$(ENV): | check-machine
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) $(TORCH) numpy
	rm -f $(VENV)/.environment-* $(BUILT)
	touch $@

$(BUILT): $(ENV) $(SOURCES)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e '.[test]'
	touch $@

clean:
	rm -rf build dist $(VENV) sparsekern/*.so *.egg-info
