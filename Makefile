# Everything runs in .venv, made with the tested versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUN ?= reports/run-$(shell date -u +%Y%m%dT%H%M%SZ)

.PHONY: profile test test-real lint bench report clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

## Profile SD1.5, plan at 0.8, build the student, measure it against its teacher, write the report.
profile: $(INSTALLED)
	$(BIN)/asdm-prof profile sd15 -o $(RUN)/profile.json
	$(BIN)/asdm-prof plan --budget 0.8 --profile $(RUN)/profile.json -o $(RUN)/plan.json
	$(BIN)/asdm build $(RUN)/plan.json -o $(RUN)/student
	$(BIN)/asdm bench --teacher sd15 --student $(RUN)/student -o $(RUN)/bench.json
	$(BIN)/asdm-prof report $(RUN)/profile.json --plan $(RUN)/plan.json --bench $(RUN)/bench.json -o $(RUN)
	@echo "Open $(RUN)/report.html"

## The suite: small real models, no benchmarks.
test: $(INSTALLED)
	$(BIN)/python -m pytest -q

## Checks at the size of SD1.5 (minutes, 12 GB).
test-real: $(INSTALLED)
	$(BIN)/python -m pytest -q -m real

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## The committed measurements of reports/sd15: profile twice, plan, planned student and presets in pairs.
bench: $(INSTALLED)
	BIN=$(BIN) ./reports/sd15.sh

## Everything under reports/sd15 that is rendered, anew from its JSON (the README's picture needs chromium).
report: $(INSTALLED)
	$(BIN)/asdm-prof report reports/sd15/profile.json -o reports/sd15 --force
	chromium --headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars --window-size=1280,860 \
	  --disable-background-networking --disable-component-update --disable-sync \
	  --screenshot=reports/sd15/report.png file://$(CURDIR)/reports/sd15/report.html

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
