# Everything one needs, each safe to run again. `make` alone says what there is.
#
#   install ─┬─► demo
#            └─► check ──► test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The environment is made for this place, this lock and this project; the stamp is named after all three.
STAMP := $(VENV)/.installed-$(shell { pwd; cat requirements.lock pyproject.toml; } | cksum | tr ' ' -)

# Warnings of dbt are errors, but for the two settings that keep plain `dbt build` out of the checkout.
DBT_WARNINGS := {"error": "all", "silence": ["ConfigTargetPathDeprecation", "ConfigLogPathDeprecation", "DeprecationsSummary"]}

.PHONY: help install demo check check-python check-sql test test-long clean
.DEFAULT_GOAL := help

help: ## say what there is
	@echo "make TARGET, where TARGET is"
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | awk -F '\t' '{ printf "  %-10s %s\n", $$1, $$2 }'
	@echo "PYTHON=python3.12 chooses the Python of the environment; ARGS='...' goes to mdp demo and to pytest."

install: $(STAMP) ## prepare .venv from requirements.lock, with .venv/bin/mdp in it
	@echo "install: $(VENV) is ready; try $(BIN)/mdp --help"

demo: $(STAMP) ## make a small world of vendor files, load it, build it, show what comes of it
	$(BIN)/mdp demo $(ARGS)

check: $(STAMP) ## lint, formatting, types, SQL and the dbt project; changes nothing
	@$(MAKE) --no-print-directory --jobs 2 check-python check-sql
	@echo "check: all clean"

check-python: $(STAMP)
	@echo "check: ruff"
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo "check: unformatted files; run $(BIN)/ruff format" >&2; exit 1; }
	@echo "check: mypy"
	@$(BIN)/mypy --no-error-summary

check-sql: $(STAMP)
	@echo "check: dbt parse"
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
		MDP_RAW="$$scratch/raw" MDP_LAKE="$$scratch/lake.sqlite" MDP_LAKE_DATA="$$scratch/lake" \
		$(BIN)/dbt --quiet --warn-error-options '$(DBT_WARNINGS)' parse --no-partial-parse \
		--project-dir dbt_project --profiles-dir . --target-path "$$scratch/target" --log-path "$$scratch/logs"
	@echo "check: sqlfluff (a minute)"
	@$(BIN)/sqlfluff lint --disable-progress-bar dbt_project/models dbt_project/tests

test: check ## check, then all tests but the long ones (MDP_CAPTURES=DIR: where the real captures are)
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-long: $(STAMP) ## the long property runs
	$(BIN)/pytest -m long $(ARGS)

clean: ## remove the environment, caches and dbt's leavings; warehouses stay
	rm -rf $(VENV) *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf dbt_project/target dbt_project/logs dbt_project/dbt_packages dbt_project/.user.yml logs target .user.yml
	find loaders market_data tests benchmarks services tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP):
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "install: there is no $(PYTHON); install Python 3.11 or later (Debian: apt-get install python3 python3-venv)," \
		"or name one: make install PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "install: $(PYTHON) is $$($(PYTHON) --version 2>&1), and 3.11 or later is needed; install it" \
		"(Debian: apt-get install python3.11 python3.11-venv) and name it: make install PYTHON=python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "install: $(PYTHON) lacks its venv module; install it (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "install: the pinned packages of requirements.lock into $(VENV) (a minute the first time)"
	@rm -f $(VENV)/.installed-*
	@grep -qsF "$(CURDIR)/$(VENV)" $(VENV)/pyvenv.cfg && $(BIN)/python -m pip --version >/dev/null 2>&1 \
		|| "$(PYTHON)" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
		-r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
