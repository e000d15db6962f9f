# One line per target: `make help`. Variables are explained in README.md.
PYTHON ?= python3
SUITE ?= scenes
RESULTS ?= results
BIN := .venv/bin
STAMP := .venv/.installed
DOCS := .venv/.installed-docs

# Pass on only the variables that the user has set.
FLAGS := --results "$(RESULTS)" \
  $(if $(METHODS),--methods "$(METHODS)") $(if $(SEEDS),--seeds "$(SEEDS)") $(if $(TRIALS),--trials $(TRIALS)) $(if $(DATA),--data "$(DATA)") \
  $(if $(JOBS),--jobs $(JOBS)) $(if $(DEVICES),--devices $(DEVICES)) $(if $(EXECUTOR),--executor $(EXECUTOR)) \
  $(if $(filter 1,$(SUBMIT)),--submit) \
  $(if $(filter 1,$(SAMPLE)),--sample) $(if $(filter 1,$(RETRY)),--retry) $(if $(filter 1,$(DRY)),--dry)

.DEFAULT_GOAL := help
.PHONY: help install bench status report test lint mutants docs wheel clean

help: ## Show this list
	@grep -E '^[a-z]+:.*## ' Makefile | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  Variables: SUITE METHODS SEEDS TRIALS DATA RESULTS JOBS DEVICES EXECUTOR SUBMIT=1 SAMPLE=1 RETRY=1 DRY=1 SET='key.key=value ...'"

install: $(STAMP) ## Create .venv with everything that running and testing needs

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	@touch $(STAMP)

bench: $(STAMP) ## Train the missing runs of SUITE (default: scenes) and show the leaderboard
	@$(BIN)/mtlbench bench "$(SUITE)" $(SET) $(FLAGS)

status: $(STAMP) ## Show the state of every run of SUITE
	@$(BIN)/mtlbench status "$(SUITE)" --results "$(RESULTS)"

report: $(STAMP) ## Rewrite the report of SUITE from the files on disk
	@$(BIN)/mtlbench report "$(SUITE)" --results "$(RESULTS)"

# Threads that wait for each other in a loop would take the cores from the other tests: passive ones sleep. Without stored
# bytecode, each process that the tests start would compile the package again.
test: $(STAMP) ## Run all tests, three at once (many of them wait for other processes)
	@env -u PYTHONDONTWRITEBYTECODE OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 3 --dist worksteal

lint: $(STAMP) ## Check style and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

mutants: $(STAMP) ## Make small faults in the core on purpose and count those that the tests notice (hours)
	@$(BIN)/python -m benchmarks.mutants

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[docs]'
	@touch $(DOCS)

docs: $(DOCS) ## Build the documentation site in site/; a broken link is an error
	@$(BIN)/mkdocs build --strict

wheel: $(STAMP) ## Build the wheel and the source archive in dist/
	@$(BIN)/python -m build -q

clean: ## Remove the environment and caches; results stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache dist site
