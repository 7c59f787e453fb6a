# Everything runs in .venv, made with the tested versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CONSTRAINTS := constraints.txt
EXTRA := dev
RUN ?= reports/run-$(shell date -u +%Y%m%dT%H%M%SZ)

.PHONY: profile test test-oldest test-real fuzz kills docs docs-run lint bench peers report clean

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[$(EXTRA)]'
	touch $@

## Profile SD1.5, plan at 0.8, build the student, measure it against its teacher. The page is written as soon as there
## is a profile, again with the plan, and with the figures at the end (7 minutes on 2 cores, the first page after 3).
profile: report = $(BIN)/asdm-prof report $(RUN)/profile.json -o $(RUN) --force
profile: $(INSTALLED)
	$(BIN)/asdm-prof profile sd15 -o $(RUN)/profile.json
	$(report) --format html
	@echo "Open $(RUN)/report.html; it grows with the plan and the student"
	$(BIN)/asdm-prof plan --budget 0.8 --profile $(RUN)/profile.json -o $(RUN)/plan.json
	$(report) --plan $(RUN)/plan.json --format html
	$(BIN)/asdm build $(RUN)/plan.json -o $(RUN)/student
	$(BIN)/asdm bench --teacher sd15 --student $(RUN)/student -o $(RUN)/bench.json
	$(report) --plan $(RUN)/plan.json --bench $(RUN)/bench.json
	@echo "Open $(RUN)/report.html"

## The suite: small real models, no benchmarks. Two workers of one thread each; what times something has the machine to
## itself for that while. Bytecode is written, as some tests start processes that import everything.
test: export OMP_NUM_THREADS = 1
test: export PYTHONDONTWRITEBYTECODE =
test: $(INSTALLED)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not real and not slow"

## The suite with the oldest versions that pyproject.toml allows, in an environment of its own (5 GB).
test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt EXTRA=test

## Checks at the size of SD1.5 (minutes, 12 GB).
test-real: $(INSTALLED)
	$(BIN)/python -m pytest -q -m real

## N mutations of every kind of file that is read: each must be read, or refused in one sentence (an hour).
N ?= 100000
fuzz: export OMP_NUM_THREADS = 1
fuzz: $(INSTALLED)
	$(BIN)/python -m tests.fuzz --count $(N)

## KILLS kills of every command that writes, at random moments (half an hour).
KILLS ?= 20
kills: export OMP_NUM_THREADS = 1
kills: $(INSTALLED)
	KILLS=$(KILLS) $(BIN)/python -m pytest -q -m "not real" tests/test_kills.py \
		tests/asdm/distill/test_faults.py::test_kills_at_random_moments_change_no_bit

## The documentation, into docs/_build/html; a warning is an error.
docs: $(INSTALLED)
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

## Every block of the README and the documentation, the slow ones too.
docs-run: $(INSTALLED)
	$(BIN)/python -m pytest -q -m "not real" tests/docs

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## The committed measurements of reports/sd15: profile twice, plan, planned student and presets in pairs.
bench: $(INSTALLED)
	BIN=$(BIN) ./benchmarks/sd15.sh

## Other tools' counts of the same UNet, into reports/peers/sd15.json and docs/results.md (5 GB). Each peer is installed by
## itself into .venv-peers, which sees the packages of .venv below its own: nothing in .venv is moved, and a peer that
## does not install is listed with its error.
PEERS = thop ptflops calflops torchinfo deepspeed
peers: $(INSTALLED)
	$(PYTHON) -m venv --clear .venv-peers
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > $$(.venv-peers/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/below.pth
	for peer in $(PEERS); do \
	  .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $$peer || true; \
	done
	.venv-peers/bin/python -m benchmarks.peers

## Everything under reports/sd15 that is rendered, anew from its JSON (the README's picture needs chromium).
report: $(INSTALLED)
	$(BIN)/asdm-prof report reports/sd15/profile.json -o reports/sd15 --force
	chromium --headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars --window-size=1280,860 \
	  --disable-background-networking --disable-component-update --disable-sync \
	  --screenshot=reports/sd15/report.png file://$(CURDIR)/reports/sd15/report.html

clean:
	rm -rf $(VENV) .venv-oldest .venv-peers build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
