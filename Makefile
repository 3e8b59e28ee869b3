# Every target sets up what it needs in .venv; a second call costs no set-up. `make` alone lists the targets.
PYTHON ?= python3
CORPUS ?= storybook
OUT ?= out

BIN := .venv/bin
READY := .venv/.ready
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.DEFAULT_GOAL := help
.PHONY: help setup walkthrough test lab docs pretrain outputs export bench clean

help:
	@echo "make setup        create .venv with the package, the lab and the development tools"
	@echo "make walkthrough  train a baby language model, look inside, write $(OUT)/report.html"
	@echo "                  CORPUS=storybook | stdlib | a text file | a folder | a hub name; OUT=folder"
	@echo "make test         notebooks clean and exported, conventions, notebooks, pytest"
	@echo "make lab          open JupyterLab on the index"
	@echo "make docs         build the website into _docs/"
	@echo "make export       clean the notebooks, export the package, write README.md"
	@echo "make outputs      run notebooks and store their outputs: NB='nbs/anatomy/00_hooks.ipynb ...'"
	@echo "make pretrain     train the model that the package ships: 33,000 steps, more than an hour on two cores"
	@echo "make bench        run every benchmark"
	@echo "make clean        remove what was built (not .venv)"

setup: $(READY) ; @:

$(READY): Makefile settings.ini constraints.txt setup.py pyproject.toml tools/install_hooks.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[lab,dev]'
	$(BIN)/python tools/install_hooks.py
	@touch $@

walkthrough: $(READY)
	$(BIN)/python tools/walkthrough.py --corpus "$(CORPUS)" --out "$(OUT)"

test: $(READY)
	$(BIN)/python tools/run_tests.py

lab: $(READY)
	$(BIN)/jupyter lab --ip=127.0.0.1 $(AS_ROOT) nbs/index.ipynb

docs: $(READY)
	$(BIN)/python tools/build_docs.py

pretrain: $(READY)
	$(BIN)/python tools/pretrain.py

outputs: $(READY)
	@test -n "$(NB)" || { echo "say which notebooks: make outputs NB='nbs/anatomy/00_hooks.ipynb ...'" >&2; exit 2; }
	$(BIN)/python tools/store_outputs.py $(NB)
	@for notebook in $(NB); do $(BIN)/nbdev_clean --fname "$$notebook" || exit 1; done

export: $(READY)
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	$(BIN)/python tools/build_readme.py

bench: $(READY)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

clean:
	rm -rf _docs _proc out build dist .pytest_cache .hypothesis
	find multiformer nbs tests tools benchmarks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
