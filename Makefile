# make demo | test | bench | bench-doctor | bench-mend | bench-tune | bench-samplers: each sets up .venv by itself. Needs Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready
BUDGET ?= 4min

.PHONY: demo test check bench bench-doctor bench-mend bench-tune bench-samplers clean

demo: $(READY)
	$(BIN)/luthier tune mnist --budget $(BUDGET)

test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python bench/speed.py

bench-doctor: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python bench/doctor.py

bench-mend: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python bench/mend.py

bench-tune: $(BENCH_READY)
	$(BIN)/python bench/tune.py

bench-samplers: $(BENCH_READY)
	OMP_NUM_THREADS=1 $(BIN)/python bench/samplers.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

$(BENCH_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $(BENCH_READY)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
