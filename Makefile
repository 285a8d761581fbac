# Needs Python >= 3.10, a C compiler and a package index for pip. If cmake and ninja are missing, pip installs them for the build.
# Each Python version has its own environment under .venv/. It is made once, and updated when the files it is built from change.

.DEFAULT_GOAL := help
.PHONY: help test test-all test-under-load soak lateness demo lint sanitize sanitize-python env clean

export SKBUILD_CMAKE_DEFINE := TRIO_AIO_WERROR=ON

# A name in PATH may be a shim that does not run, and Debian's python3 may lack ensurepip, so each candidate is run.
# $(call find,candidates in order of preference,condition on the version)
find = $(shell for p in $(1); do "$$p" -c 'import ensurepip, sys, venv; sys.exit(not (sys.version_info[:2] $(2)))' 2>/dev/null \
	&& command -v "$$p" && break; done)
pyenv = $(wildcard $(HOME)/.pyenv/versions/$(1)*/bin/python)
PYTHON ?= $(call find,python3.13 $(call pyenv,3.13) python3 python $(call pyenv,3.),>= (3$(comma) 10))
comma := ,
PYTHON := $(PYTHON)

ifneq ($(PYTHON),)
VENV := .venv/$(shell "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
endif
READY := $(VENV)/.ready

# The suite starts some hundred interpreters. Without bytecode on the disk each of them compiles all that it imports, for a second.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/bytecode
RUN := $(VENV)/bin/python

# pip builds pyfuse3 from source, with the headers of libfuse 3.
pyfuse3 = ! pkg-config --exists fuse3 2>/dev/null || $(1) -m pip install --quiet --disable-pip-version-check 'pyfuse3>=3.2' || \
	echo 'pyfuse3 could not be built: the tests on a filesystem that misbehaves cannot run'

help: ## Show this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

# One test process for each CPU, at most four: each has its own filesystems. ARGS="-n 0" runs the tests in one process, as -s needs.
PARALLEL = -n auto --maxprocesses 4 --dist worksteal

test: $(READY) ## Run the tests that can run here, except the slow ones; ARGS goes to pytest
	$(RUN) -m pytest $(PARALLEL) -m "not slow" $(ARGS)

# Slow tests install packages and run the suites of other projects: each may take five minutes, and not one, before it counts as hung.
test-all: $(READY) ## Run all tests; then all but the slow ones on Python 3.10
	$(RUN) -m pytest $(PARALLEL) -o faulthandler_timeout=300 $(ARGS)
ifneq ($(VENV),.venv/3.10)
	@p='$(call find,python3.10 $(call pyenv,3.10),== (3$(comma) 10))'; \
	if [ -n "$$p" ]; then $(MAKE) --no-print-directory test PYTHON="$$p"; else echo 'Python 3.10 was not found'; fi
endif

test-under-load: $(READY) ## Run the tests N (20) times while other programs keep the CPUs busy; list all that failed
	$(RUN) -m tests.under_load --runs $(or $(N),20) -- $(PARALLEL) -m "not slow" $(ARGS)

soak: $(READY) ## Compare files with their model for SECONDS (60) on all filesystems; stop at the first difference
	$(RUN) -m tests.soak --seconds $(or $(SECONDS),60) $(ARGS)

lateness: $(READY) ## Make each call on frozen, late and slow devices, and print whether the event loop waited; ARGS='--device ext4'
	$(RUN) -m tests.lateness $(ARGS)

demo: $(READY) ## Write 256 MiB, read it back through every lane, compare, cancel, and show the rates
	$(RUN) examples/quickstart.py

lint: $(VENV)/.lint ## Check style and types
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(VENV)/bin/lint-imports --no-cache
	$(RUN) -m mypy
	$(RUN) -m mypy --strict tests/typed_usage.py
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" PYTHONPATH=.:typings pyright --verifytypes trio_aio --ignoreexternal

# When a check fails, the message has the seed. Pass it to the program as the third argument to repeat the failure.
sanitize: build/sanitize/address,undefined build/sanitize/thread ## Run the native code under Address-, UB- and ThreadSanitizer
	@for program in $^; do echo "$$program"; $(STILL) ./$$program build/sanitize $(or $(SECONDS),10) || exit 1; done

# ThreadSanitizer cannot map its memory where newer kernels place programs at random, so switch that off.
STILL = $(shell setarch -R true 2>/dev/null && echo setarch -R)

build/sanitize/%: $(wildcard tests/native/stress*.[ch] trio_aio/_native/*.[ch])
	@mkdir -p $(@D)
	$(CC) -std=c11 -g -O1 -Wall -Wextra -Werror -fsanitize=$* -fno-sanitize-recover=all -Itrio_aio/_native -o $@ \
		$(wildcard tests/native/stress*.c trio_aio/_native/*.c) -pthread

sanitize-python: $(VENV)-sanitize/.ready ## Run the tests of engine, lowlevel and security on an extension with Address- and UBSanitizer
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" PYTHONMALLOC=malloc \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 $(VENV)-sanitize/bin/python -m pytest $(or $(ARGS),tests/engine tests/lanes tests/native/test_lowlevel.py tests/files/test_security.py)

$(VENV)-sanitize/.ready: $(READY)
	test -x $(@D)/bin/python || "$(PYTHON)" -m venv $(@D)
	CC="$(CC)" CFLAGS="-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all" SKBUILD_BUILD_DIR=build/$(@D) \
		$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	$(call pyfuse3,$(@D)/bin/python)
	touch $@

env: $(READY) ## Make or update the environment

clean: ## Remove environments and build trees
	rm -rf .venv build

$(READY): pyproject.toml $(wildcard trio_aio/_native/*.c trio_aio/_native/*.h trio_aio/_native/*.txt)
	$(if $(PYTHON),,$(error No Python >= 3.10 with venv and ensurepip was found; name one: make PYTHON=/path/to/python))
	test -x $(RUN) || "$(PYTHON)" -m venv $(VENV)
	SKBUILD_BUILD_DIR=build/$(VENV) $(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[test,bench]'
	$(call pyfuse3,$(RUN))
	touch $@

$(VENV)/.lint: $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check 'ruff>=0.8' 'mypy>=1.13' 'import-linter>=2.13' 'pyright[nodejs]>=1.1.390'
	touch $@
