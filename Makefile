# Two commands do everything: `make run` and `make test`. Each sets up first.

# Python 3.11 where it is there, else the newest supported Python; one that has venv, and that runs.
PYTHON ?= $(shell for python in python3.11 python3.13 python3.12 python3 python; do \
    $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
    && echo $$python && break; done)
WHICH = import sys; print(sys.base_prefix, sys.version)
MODEL_ID ?= embedded
BIN = .venv/bin
# `make PINS= setup` installs the newest versions that pyproject.toml allows, as the weekly run does.
PINS ?= -c constraints.txt
CHAPTERS_LAST_FIRST = $(shell ls -r notebooks/[0-9]*.ipynb)
# JupyterLab refuses to start as root (in a container, say) unless it is told to.
AS_ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: help setup run lab test faults browser models rerun cluster container links resolve bench lint outputs clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/installed  ## make .venv with everything in it  [PYTHON=/path/to/python3.11]

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'No Python 3.11, 3.12 or 3.13 with venv was found. Install Python 3.11' \
	    '(on Debian and Ubuntu: apt install python3.11 python3.11-venv), or say where one is:' \
	    'make PYTHON=/path/to/python3.11 setup' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("%s is Python %d.%d, and \
	the packages were tested on 3.11, 3.12 and 3.13. Give another one: make PYTHON=/path/to/python3.11 setup" \
	% (sys.executable, *sys.version_info[:2]))'
	@# venv keeps the link to the Python that made .venv first: with another one it would be a mixture of both.
	@if [ -e .venv ] && [ "$$($(BIN)/python -c '$(WHICH)' 2>&1)" != "$$("$(PYTHON)" -c '$(WHICH)')" ]; then \
	    echo 'another Python made .venv: it is made anew'; rm -rf .venv; fi
	"$(PYTHON)" -m venv .venv
	@echo 'installing the packages (2 to 5 minutes; more where torch comes with CUDA)'
	$(BIN)/python -m pip install --quiet --progress-bar off $(PINS) -e '.[course,test,dev]'
	@touch $@

run: setup  ## run the chapters that have changed since their last run; build the book  [MODEL_ID=… CHAPTERS="00 01"]
	$(BIN)/python book/run.py --model-id '$(MODEL_ID)' $(CHAPTERS)

lab: setup  ## step through the notebooks in JupyterLab
	$(BIN)/jupyter lab $(AS_ROOT) --notebook-dir=. notebooks/00_check_your_machine.ipynb

test: setup lint  ## every test: library, handler, real servers, notebooks
	@# Four at a time, since much of the work is waiting. The notebooks run also where a library test failed, with
	@# shorter measurements, the last chapters first, since they take longest.
	@status=0; \
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder || status=$$?; \
	COURSE_QUICK=1 $(BIN)/python -m pytest -n 4 --maxschedchunk=1 --nbmake --nbmake-timeout=900 --timeout=900 \
	    -p no:doctest -o addopts= --durations=15 $(CHAPTERS_LAST_FIRST) || status=$$?; \
	exit $$status

faults: setup  ## plant faults in handlers, exports, servers and their owners: each is found and named
	$(BIN)/python -m pytest -n 4 --dist loadfile -m faults

browser: setup  ## open the book and JupyterLab in Chromium, and click through them
	$(BIN)/python -m pytest -m browser tests/test_book_browser.py tests/test_lab_browser.py

models: setup  ## export, handler and chapters 01 to 05 with models of other architectures  [COURSE_CHAPTERS="00 06"]
	$(BIN)/python -m pytest -n 2 --dist loadfile -m models tests

rerun: setup  ## each cell of each chapter twice in a row: 18 minutes  [COURSE_CHAPTERS="00 06"]
	$(BIN)/python -m pytest -n 2 -m rerun tests/test_notebooks_rerun.py

cluster: setup  ## Ray Serve beside TorchServe, under load, and over hosts (network namespaces: Linux, as root)
	$(BIN)/python -m pytest -m cluster tests/test_ray_app.py tests/test_ray_hosts.py tests/test_ray_token.py

container: setup  ## build the image, run it, break it (installs podman on Debian, as root)
	deploy/image/setup.sh
	$(BIN)/python -m pytest -m container
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=900 --timeout=1800 -p no:doctest -o addopts= \
	    notebooks/06_containerize.ipynb

links: setup  ## ask the sites that README and book link to
	$(BIN)/python -m pytest -m links tests/test_links.py

resolve: setup  ## ask the package index whether each supported Python gets its environment (5 minutes)
	$(BIN)/python -m pytest -m resolve tests/test_packaging.py

bench: setup .venv-bentoml/installed .venv-mlserver/installed  ## measure handlers, and servers: half an hour, alone
	$(BIN)/python benchmarks/run.py

# Servers whose pins are not ours, each in an environment of its own.
.venv-bentoml/installed: SERVER = bentoml==1.4.40
.venv-mlserver/installed: SERVER = mlserver==1.7.1 'uvloop<0.22'
.venv-%/installed: pyproject.toml constraints.txt
	"$(PYTHON)" -m venv .venv-$*
	grep -E '^(torch|transformers|numpy|onnxruntime)==' constraints.txt > .venv-$*/pins.txt
	.venv-$*/bin/python -m pip install --quiet --progress-bar off -c .venv-$*/pins.txt \
	    $(SERVER) onnxruntime -e '.[export,serving]'
	@touch $@

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

outputs: setup  ## run the notebooks in place, to commit fresh outputs
	$(BIN)/python book/run.py --in-place

clean:  ## remove what was built, but not .venv
	rm -rf build model_store/*.mar
