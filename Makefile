# make demo, make test: on a fresh Linux machine with Python 3.11 or 3.12 and nothing else.
PYTHON ?= python3
CORES ?= all
BIN := .venv/bin
# Snakemake looks for jobs anew once per timespan and finished job: at its default of 1 s that takes a sixth of a core
CALM := --max-jobs-per-timespan 500/5s

.PHONY: install demo figures report test test-all test-slurm mutants lint format lock clean

install: .venv/.installed ## create .venv from the hashed lock

.venv/.installed: envs/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --require-hashes -r envs/requirements.txt
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

demo: .venv/.installed ## the embedded demo: results/demo
	$(BIN)/snakemake --nolock --cores $(CORES) --rerun-incomplete $(CALM)

figures: .venv/.installed ## redraw the demo's tables and figures, and its page
	$(BIN)/python -m paper_figures --results results/demo
	$(BIN)/dpsapf write-report --results results/demo --configfile config/config.yaml --report results/demo/report.html

report: .venv/.installed ## Snakemake's own report of the demo: its jobs, their times and code
	$(BIN)/snakemake --report results/demo/snakemake.html

test: .venv/.installed ## every test but the slowest
	$(BIN)/python -m pytest -n auto --dist loadfile --durations=10

test-all: .venv/.installed ## every test, and which lines they reach
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slurm" --cov --cov-report=term

test-slurm: .venv/.installed ## the workflow on a real Slurm of one node, through faults; needs root and Debian's slurm-wlm, munge
	$(BIN)/python -m pytest -m slurm tests/slurm

mutants: .venv/.installed ## break the privacy code one place at a time; every mutant must fail a test (long; goes on where it stopped)
	$(BIN)/python -m tests.mutation.mutate --jobs 2 --results .mutants.json

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/lint-imports

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

lock: .venv/.installed ## renew the lock and the conda file made of it
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --no-header -o envs/requirements.txt
	$(BIN)/python envs/make_environment.py

clean: ## remove the demo's results
	rm -rf results/demo
