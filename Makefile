# Needs a Python >= 3.10, a C compiler and a package index for pip. cmake and ninja come with the isolated build where they are missing.
# One environment for each Python version, under .venv/, made once and brought up to date when the build's inputs change.

.DEFAULT_GOAL := help
.PHONY: help test test-all demo lint env clean

VERSIONS := 3.10 3.13

# A name in PATH may be a shim that does not run, and Debian's python3 may lack ensurepip: each candidate has to prove itself.
# $(call find,names or paths, in order of preference,condition on v)
find = $(shell for p in $(1); do "$$p" -c 'import ensurepip, sys, venv; v = sys.version_info[:2]; sys.exit(not ($(2)))' \
	>/dev/null 2>&1 && command -v "$$p" && break; done)
python_named = $(call find,python$(1) python3 python $(wildcard $(HOME)/.pyenv/versions/$(1).*/bin/python),"%d.%d" % v == "$(1)")

# Looked for only by the targets that need it: a shim takes its time to say no.
ifneq ($(filter test demo lint env,$(MAKECMDGOALS)),)
ifeq ($(origin PYTHON),undefined)
PYTHON := $(call find,python3.13 python3 python3.14 python3.12 python3.11 python3.10 python \
	$(wildcard $(HOME)/.pyenv/versions/3.*/bin/python),v >= (3$(comma) 10))
endif
ifeq ($(strip $(PYTHON)),)
$(error No Python >= 3.10 with venv and ensurepip was found; name one: make PYTHON=/path/to/python)
endif
version := $(shell "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ifeq ($(version),)
$(error $(PYTHON) does not run)
endif
endif
comma := ,
