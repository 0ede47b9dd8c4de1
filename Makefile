# Two commands do everything: `make run` and `make test`. Each sets up first.

PYTHON ?= $(shell command -v python3.11 || echo python3)
MODEL_ID ?= embedded
BIN = .venv/bin

.PHONY: help setup run lab test container bench lint outputs clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/installed  ## make .venv with everything in it

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	@echo 'installing the packages (2 to 5 minutes; more where torch comes with CUDA)'
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e '.[course,test,dev,ray]'
	touch $@

run: setup  ## run the course, or what of it has not run since a change; bind build/book/index.html  [MODEL_ID=… CHAPTERS="00 01"]
	$(BIN)/python book/run.py --model-id '$(MODEL_ID)' $(CHAPTERS)

lab: setup  ## step through the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=. notebooks/00_check_your_machine.ipynb

test: setup lint  ## every test: library, handler, real servers, notebooks
	@# three side by side, since much of it is waiting; the last chapters first, since they are the longest
	$(BIN)/python -m pytest -n 3 --dist loadfile
	$(BIN)/python -m pytest -n 3 --maxschedchunk=1 --nbmake --nbmake-timeout=300 -p no:doctest -o addopts= \
		--durations=6 $(shell ls -r notebooks/*.ipynb)

container: setup  ## build the image, run it, break it (installs podman on Debian, as root)
	deploy/image/setup.sh
	$(BIN)/python -m pytest -m container
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 -p no:doctest -o addopts= notebooks/06_containerize.ipynb

bench: setup .venv-bentoml/installed  ## measure against LitServe, Ray Serve, BentoML: 25 minutes, nothing else running
	$(BIN)/python benchmarks/run.py

.venv-bentoml/installed: constraints.txt
	$(PYTHON) -m venv .venv-bentoml
	.venv-bentoml/bin/python -m pip install --quiet --progress-bar off bentoml==1.4.40 emoji \
		$(shell grep -E '^(torch|transformers|numpy)==' constraints.txt)
	touch $@

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

outputs: setup  ## run the notebooks in place, to commit fresh outputs
	$(BIN)/python book/run.py --in-place

clean:  ## remove what was built, but not .venv
	rm -rf build model_store/*.mar
