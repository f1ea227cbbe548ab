# ftlearn: `make` lists the targets. Everything runs in .venv, made on first use; nothing needs activating.
SHELL  := /bin/bash
PYTHON ?= python3
JOBS   ?= 2
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo lab test check export clean-nbs run-nbs readme docs config data stats bench claims test-gpu test-browser pins

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv and install everything with pip (PYTHON=python3.12 chooses the interpreter)

$(STAMP): settings.ini pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on the PATH. Next: install Python, or name one: make install PYTHON=/path/to/python3"; exit 2; }
	@$(PYTHON) -c "import configparser, sys; c = configparser.ConfigParser(interpolation=None); c.read('settings.ini'); need = c['DEFAULT']['min_python']; have = '.'.join(map(str, sys.version_info[:3])); sys.version_info[:2] >= tuple(map(int, need.split('.'))) or sys.exit('$(PYTHON) is Python ' + have + ', and ftlearn needs ' + need + ' or newer. Next: name a newer one, as in: make install PYTHON=python3.12')"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make a virtual environment. Next: install its venv module (on Debian: apt-get install python3-venv)."; rm -rf $(VENV); exit 2; }
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(PY) -c "from ftlearn.data.sources import path; path('reviews')"
	@touch $@

demo: $(STAMP) ## the whole loop on real data, base against tuned (METHOD= MODEL= DATA= OUT= are passed on)
	@$(VENV)/bin/ftlearn demo $(if $(METHOD),--method "$(METHOD)") $(if $(MODEL),--model "$(MODEL)") $(if $(DATA),--data "$(DATA)") $(if $(OUT),--out "$(OUT)")

lab: $(STAMP) ## open JupyterLab at the first tutorial (LAB="--no-browser" is passed on)
	$(VENV)/bin/jupyter lab --ServerApp.root_dir="$(CURDIR)" nbs/tutorials/00_the_whole_loop.ipynb $(LAB)

test: check ## the quick checks, then every notebook, then pytest (JOBS=1: one at a time)
	$(PY) tools/nbtest.py -j $(JOBS)
	$(PY) -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

check: $(STAMP) ## the quick checks: is everything as it should be? (runs no notebook)
	@$(PY) tools/check.py

test-gpu: $(STAMP) ## the notebooks again with their cells for a GPU; needs one
	@$(PY) tools/nbtest.py -j $(JOBS) --flags cuda

test-browser: $(STAMP) ## the pages in a real Chromium (on Debian: apt-get install chromium)
	$(PY) -m pytest -q -m browser tests

export: clean-nbs ## write the package from the notebooks
	@$(PY) tools/export.py

clean-nbs: $(STAMP) ## clean the notebooks: cell ids, counts, metadata
	@$(PY) tools/clean.py

run-nbs: $(STAMP) ## run notebooks and store their outputs (NBS="00_core 03_stats"; all library notebooks without it)
	$(PY) tools/run_notebooks.py $(NBS)

readme: $(STAMP) ## write README.md from nbs/index.ipynb
	@$(PY) tools/readme.py

data: $(STAMP) ## make data/ again from the packages it comes from (CHECK=1 only compares)
	$(PY) tools/make_data.py $(if $(CHECK),--check)

docs: $(STAMP) ## the course and the library as a site with search, in build/site
	@$(PY) tools/docs.py

config: $(STAMP) ## write pyproject.toml from settings.ini
	@$(PY) tools/config.py

stats: $(STAMP) ## the numbers of the notebooks' form: cells, lines, words
	@$(PY) tools/stats.py

pins: $(STAMP) ## write constraints.txt from what is installed
	@$(PY) tools/pins.py

bench: $(STAMP) ## the benchmarks, one after the other
	@shopt -s nullglob; set -e; n=0; for f in benchmarks/*.py; do if [ $$f = benchmarks/rounds.py ]; then continue; fi; echo "== $$f"; $(PY) $$f; n=$$((n + 1)); done; echo "$$n benchmarks run"

claims: $(STAMP) ## the trials of the claims lab that are not run yet; stop it whenever you like (MINUTES=10, ONLY=difflib)
	$(PY) -m ftlearn.teach.claims --jobs $(JOBS) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ONLY),--only "$(ONLY)")
