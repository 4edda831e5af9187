# Every target sets itself up: on a fresh machine with only Python 3.11 or newer, `make demo` is the first and only command.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test slow lint types notebooks browser base ablate clean

BIN := .venv/bin
INSTALLED := .venv/installed
KOLIBRI := .cache/kolibri-0.19.5-py2.py3-none-any.whl
# The first of these that is 3.11 or newer. Another one: make PYTHON=/path/to/python3 test
PYTHON ?= $(shell for name in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
# Demo, tests and notebooks never ask the Hub: what would need it fails here and at once, not later on a machine without a network.
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

help:  ## List the targets
	@awk -F ':.*## *' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED)  ## The whole way on the shipped tiny model: data, routing, experts, training, report
	@$(OFFLINE) $(BIN)/local-experts run configs/runs/quickstart.yaml

test: $(INSTALLED)  ## The default tests
	@$(OFFLINE) $(BIN)/python -m pytest

slow: $(INSTALLED)  ## The tests marked slow
	@$(OFFLINE) $(BIN)/python -m pytest -m slow

lint: $(INSTALLED)  ## ruff check and ruff format, over modules, tests and notebooks
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(INSTALLED)  ## pyright over the three packages and the tests
	@$(BIN)/pyright --pythonpath $(BIN)/python

# Widgets are not saved: without a kernel nothing can be moved, and each has text or a page that stands in its place.
# NOTEBOOKS=notebooks/02_routing_and_experts.ipynb takes one of them.
NOTEBOOKS ?= notebooks/*.ipynb
notebooks: $(INSTALLED)  ## Execute every notebook into a temporary folder; with SAVE=1 in place, to be committed
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(OFFLINE) $(BIN)/jupyter nbconvert --to notebook --execute --ExecutePreprocessor.timeout=1800 \
		--ExecutePreprocessor.store_widget_state=False \
		$(if $(SAVE),--inplace,--output-dir "$$folder") $(NOTEBOOKS)
	@$(if $(SAVE),$(BIN)/jupyter nbconvert --to notebook --inplace --coalesce-streams $(NOTEBOOKS))

browser:  ## Debian's chromium for the tests in a browser, where there is none and this is root
	@if command -v chromium chromium-browser google-chrome >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && timeout 120 apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	then echo "chromium is installed"; else echo "no browser, and none could be installed: the tests in one are" \
		"skipped. On Debian and Ubuntu: apt install chromium"; fi

base: $(INSTALLED) $(KOLIBRI)  ## Train the shipped base model again from scratch (about 45 minutes on two cores)
	@$(BIN)/local-experts base --config configs/base/tiny_glm.yaml
	@$(BIN)/local-experts base-check --model finetune/tiny_glm --kolibri $(KOLIBRI)

# 104 MB, read as a zip file and never installed: most of the running text the base is trained on.
$(KOLIBRI):
	@$(BIN)/python -m pip download --quiet --no-deps kolibri==0.19.5 -d $(dir $(KOLIBRI))

ablate: $(INSTALLED)  ## The quickstart with chosen, random, all and no experts; writes the README's table
	@$(OFFLINE) $(BIN)/local-experts ablate configs/runs/quickstart.yaml --save --readme README.md

clean:  ## Remove the environment, the runs and every cache
	@rm -rf .venv .cache runs build dist .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Dots are packages found, so that a slow line can be told from a stuck one.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed, and python3 here is" \
		"$$(python3 --version 2>&1 || true). Install one, or name it: make PYTHON=/path/to/python3 ..." >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) comes without venv." \
		"On Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@$(BIN)/python -c '' 2>/dev/null || { echo "Creating .venv with $$("$(PYTHON)" --version)"; \
		"$(PYTHON)" -m venv --clear .venv; }
	@echo "Installing into .venv: about two minutes, more on a slow line (once; again only when its list changes)"
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt \
		-e '.[catalogues,notebooks,dev]' | while read -r line; do case "$$line" in \
		Collecting*) printf . ;; "Installing collected"*) printf '\nUnpacking, about a minute\n' ;; esac; done
	@touch $@
