# `make book` builds the book, `make test` proves it. Each sets up all it needs in .venv; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

# The shipped translator: chapter 15 with these parameters. One thread, so that a busy machine does not matter.
THREADS ?= 1
SHIPPED := -p VOCAB_SIZE 6000 -p D_MODEL 256 -p NUM_HEADS 4 -p D_FF 512 -p NUM_ENCODER_LAYERS 3 -p NUM_DECODER_LAYERS 2 \
  -p DROPOUT 0.15 -p STEPS 11500 -p WARMUP_STEPS 1000 -p COOL_DOWN_STEPS 7000 -p MAX_TOKENS 1024 -p BFLOAT16 True

.DEFAULT_GOAL := help
.PHONY: help book pdf test lab labs try execute sync stamp train tried speedrun bench data release links clean lint types unit notebooks prove site

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

book: $(READY)  ## build the book and print where it is
	@$(BIN)/jupyter-book build -W -n --keep-going --quiet .
	@echo "The book: $(CURDIR)/_build/html/index.html"

pdf: $(READY)  ## print the whole book as one PDF (needs Chromium; some minutes) and say where it is
	@$(BIN)/jupyter-book build -W -n --keep-going --quiet --builder singlehtml .
	@$(BIN)/python -m tools.pdf _build/singlehtml/index.html _build/transformers-piece-by-piece.pdf

MODEL ?= de-en
try: $(READY)  ## write a page that translates, by your own model (MODEL=folder), into build/try
	@$(BIN)/python -m transformer_lib.book.in_the_browser "$(MODEL)" --output build/try $(OPTIONS)

lab: $(READY)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter trust notebooks/*.ipynb # else JupyterLab takes the diagrams out of the stored outputs
	$(BIN)/jupyter lab --notebook-dir=notebooks

labs: $(READY)  ## Run All on every chapter in a real JupyterLab (needs Chromium; half an hour)
	LAB_CHAPTERS=all $(BIN)/python -m pytest tests/site/test_jupyterlab.py

sync: $(READY)  ## write transformer_lib from the chapters
	$(BIN)/ruff format notebooks/*.ipynb
	$(BIN)/python -m tools.export_modules

stamp: $(READY)  ## write the setup cell and the run times into the chapters
	$(BIN)/python -m tools.notebooks stamp

execute: sync stamp  ## run all chapters anew and store their outputs (CHAPTERS="05 12" for some)
	$(BIN)/python -m tools.notebooks execute $(CHAPTERS)

train: $(READY)  ## train the shipped translator anew (an hour or two; interrupted, it goes on)
	mkdir -p build
	cd build && OMP_NUM_THREADS=$(THREADS) ../$(BIN)/papermill ../notebooks/15-training-a-translator.ipynb trained.ipynb \
	  $(SHIPPED) -p SAVE_TO "$(CURDIR)/build/de-en" --execution-timeout 20000
	mkdir -p transformer_lib/pretrained/de-en
	cp build/de-en/weights.safetensors transformer_lib/pretrained/de-en

tried: $(READY)  ## train the variants and the rivals that chapters 3 and 15 show, anew (three hours)
	$(BIN)/python benchmarks/tried.py
	$(BIN)/python benchmarks/translators.py
	$(BIN)/python benchmarks/recurrent.py

speedrun: $(READY)  ## train the two-minute translator of chapter 27, and print the ladder of records
	OMP_NUM_THREADS=2 $(BIN)/python -m experiments.27_speedrun --race

.venv-bench/ready: $(READY) benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	@for site in .venv-bench/lib/python3*/site-packages; do \
	  (cd .venv/lib/python3*/site-packages && pwd; cd $(CURDIR) && pwd) > $$site/borrowed.pth; done
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	@touch $@

bench: .venv-bench/ready  ## the package against its peers, in one run (12 minutes; leave the machine alone meanwhile)
	cd benchmarks && ../.venv-bench/bin/python speed.py

data: $(READY)  ## make the translation pairs, pictures and novels anew from Debian's packages
	$(BIN)/python tools/make_data.py --packages build/packages --output transformer_lib/corpora --page book/data.md
	$(BIN)/python -m tools.make_fashion --packages build/packages --output transformer_lib/corpora --page book/data.md
	$(BIN)/python -m tools.make_novels --packages build/packages --output transformer_lib/corpora --page book/data.md

test: lint types unit notebooks prove book site  ## prove everything (about 30 minutes on 2 cores)
	@echo "All of it holds."

lint: $(READY)  ## style of the code, and package = chapters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tools.export_modules --check
	$(BIN)/python -m tools.notebooks stamp --check

types: $(READY)  ## types of the package
	$(BIN)/mypy

unit: $(READY)  ## tests of the package, the tools, the data and the book's standard
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/site

notebooks: $(READY)  ## run every notebook again and compare its outputs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --nbval --nbval-current-env \
	  --nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout 600 notebooks

prove: $(READY)  ## run every notebook from an empty folder on the installed wheel, with another seed
	$(BIN)/python -m tools.notebooks prove

site: $(READY)  ## tests of the built book, some in a browser
	$(BIN)/python -m pytest tests/site

links: $(READY)  ## try all links that leave the book (needs a network)
	@$(BIN)/jupyter-book build --builder linkcheck --quiet .

release: $(READY)  ## build and check what is published, and tag it; refuses while something is missing
	$(BIN)/python -m tools.release
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	git tag "v$$($(BIN)/python -m tools.release --version)"
	@echo "Tagged. To publish: git push --tags, and twine upload dist/*"

clean:  ## remove what was built (not .venv)
	rm -rf _build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
