# The two commands of the README are `make demo` and `make test`; both build their own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test docs bench gpu clean lint

# pip, not uv: with the constraint it takes the CPU build of torch where the machine offers one (README, "Set-up").
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# One thread: two that wait for each other make small tensors several times slower, and numbers depend on how many there are.
demo: export OMP_NUM_THREADS = 1
demo: $(VENV)/installed
	rm -rf $(DEMO)
	$(BIN)/espalier fit --config examples/digits-rigl.yaml --out $(DEMO)/rigl
	$(BIN)/espalier fit --config examples/digits-cigl.yaml --out $(DEMO)/cigl
	$(BIN)/espalier evaluate $(DEMO)/cigl $(DEMO)/rigl --picture $(DEMO)/reliability.png
	$(BIN)/espalier report $(DEMO)/rigl $(DEMO)/cigl --out $(DEMO)/page.html

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# One thread a worker, as above.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations 25 -m "not slow"

# Strict: a broken link or name fails. The variable quiets a banner of the theme about a future MkDocs.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/installed
	$(BIN)/python examples/benchmarks/step_time.py
	$(BIN)/python examples/benchmarks/growth.py
	$(BIN)/python examples/benchmarks/state_bytes.py

# On a machine with a CUDA device, whose build of torch is installed already (docs/gpus.md); what is cut off goes on next time.
gpu:
	OMP_NUM_THREADS=1 $(PYTHON) examples/benchmarks/gpu.py --out runs/gpu

clean:
	rm -rf $(VENV) runs dist site .mypy_cache .ruff_cache .hypothesis
