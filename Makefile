# Two commands matter: `make demo` and `make test`. Everything else serves them.
PYTHON ?= python3
SERVE ?= 1
PORT ?= 8501
N ?= 1000
NOTEBOOKS ?= 0
MINUTES ?= 60
N_PEOPLE ?= 10
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.up-to-date

# Threads that wait for work should not keep the cores from those that have some.
export OMP_WAIT_POLICY ?= PASSIVE
# Many processes import the package: what the first has compiled is kept for the others.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test exhaustive coverage check docs format models claims benchmarks screenshots bench-browser bench-people fuzz clean

demo: $(STAMP)  ## run the whole pipeline on the shipped language model, then open the app (SERVE=0: do not)
	$(BIN)/saelab demo --out runs/demo
ifneq ($(SERVE),0)
	$(BIN)/saelab browse runs --port $(PORT)
endif

test: $(STAMP)  ## every test; browser tests are skipped where no Chromium is found
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --nbmake tests notebooks

exhaustive: $(STAMP)  ## what CI tries at a few places, at all; the papers' claims on the tiny model: half an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 -m exhaustive --nbmake tests notebooks

coverage: $(STAMP)  ## `make test`, and how many of saelab's lines it runs; fails below the floor in tests/covered.py
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p covered -n auto --maxprocesses 4 --nbmake tests notebooks

check: $(STAMP)  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check --output-format min-text
	$(BIN)/lint-imports

docs: $(STAMP)  ## the documentation site, to build/site (NOTEBOOKS=1: executes the notebooks, minutes)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. DOCS_NOTEBOOKS=$(NOTEBOOKS) $(BIN)/python -m mkdocs build --strict

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

models: $(STAMP)  ## docs' table of language models, as the checks find it
	PYTHONPATH=tests $(BIN)/python tests/lm/table.py

claims: $(STAMP)  ## measure the papers' claims that have changed, and write docs' table of them
	$(BIN)/saelab claims --device cpu --out runs/claims
	PYTHONPATH=tests $(BIN)/python -m claims.table runs/claims/claims.json

benchmarks: $(STAMP)  ## docs' tables of measured and planned figures, from saelab/bench/measured
	PYTHONPATH=tests $(BIN)/python -m benchmarks.table

screenshots: $(STAMP)  ## every page of the browser in light and dark, to build/screenshots
	test -d runs/demo || $(BIN)/saelab demo --out runs/demo
	PYTHONPATH=tests $(BIN)/python -m apps.screenshots runs/demo --out build/screenshots

bench-browser: $(STAMP)  ## how fast the browser is at 65,536 latents; makes two such runs first
	PYTHONPATH=tests $(BIN)/python -m benchmarks.browser --json build/browser.json

bench-people: $(STAMP)  ## does one server stand N_PEOPLE readers for MINUTES: memory, times of pages
	PYTHONPATH=tests $(BIN)/python -m benchmarks.people --people $(N_PEOPLE) --minutes $(MINUTES) --json build/people.json

fuzz: $(STAMP)  ## damage files of runs and of a store in N ways, and look how each is read
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m fuzz --n $(N)

clean:
	rm -rf $(VENV) build *.egg-info

# torch first, alone: whatever is installed after it finds its requirement met. Python compiles a module
# when it is first imported, of thousands only those that are used.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[all,test,dev]'
	touch $(STAMP)
