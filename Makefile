# Two commands: `make demo` trains the mini oracle on a CPU, `make test` runs the tests.
PYTHON ?= python3
RUN ?= runs/demo
CPU := pip install -q -c constraints-cpu.txt

.PHONY: demo new-run test lint docs

.venv/installed: pyproject.toml constraints-cpu.txt
	test -d .venv || $(PYTHON) -m venv .venv
	.venv/bin/$(CPU) torch
	.venv/bin/$(CPU) -e '.[dev]'
	touch $@

# First of all, so that a finished run is not found only after an installation.
new-run:
	@if test -e "$(RUN)/run.json"; then \
	  echo "$(RUN) holds a run already. Another one: make demo RUN=runs/second." \
	    "Go on with it: .venv/bin/python train.py --preset mini --output_dir $(RUN) --resume" >&2; \
	  exit 1; \
	fi

demo: new-run .venv/installed
	.venv/bin/python train.py --preset mini --output_dir $(RUN)

test: .venv/installed
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

docs: .venv/installed
	.venv/bin/$(CPU) -e '.[docs]'
	.venv/bin/mkdocs build

lint: .venv/installed
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/pyright
