# Each target does all the set-up that it needs.
.PHONY: help serve test lint format bench bench-quick bench-page bench-shared faults cluster sim mutants fuzz docs coverage audit clean
BIN := .venv/bin
RELAY ?=
ARGS ?=

help:
	@echo "make serve [RELAY=host:port]   run a server on 127.0.0.1:2525"
	@echo "make test                      the whole test suite"
	@echo "make coverage                  the suite, with branch coverage of smtp/ and queue/ held at 95 %"
	@echo "make lint                      ruff, mypy --strict, the architecture test"
	@echo "make bench                     Pillarbox beside Postfix and others; all of it takes three quarters of an hour"
	@echo "make bench-quick               the rows that say most, in under two minutes"
	@echo "make bench-page                make bench, and docs/benchmarks.md of it"
	@echo "make bench-shared              the queue on PostgreSQL beside SQLite, over nodes, and as it grows"
	@echo "make faults                    a fault at every step, on both kinds of queue: three minutes"
	@echo "make cluster                   three nodes under fire, 20,000 messages counted"
	@echo "make sim                       2,000 simulated worlds, each from a seed: three minutes"
	@echo "make mutants                   planted faults, found by the simulation; ARGS=--all: every one, found by the suite"
	@echo "make fuzz                      a coverage-guided fuzzer (atheris) on every parser, a minute each"
	@echo "make audit                     known holes in the installed versions; wants the advisory database, no part of CI"
	@echo "make docs                      generate docs/reference from the code"

.venv/.installed: pyproject.toml
	@sh tools/make-venv.sh

serve: .venv/.installed
	@echo "First message:  $(BIN)/pillarbox send --to you@example.org --subject Hello"
	@echo "See it there:   $(BIN)/pillarbox queue list"
	@exec $(BIN)/pillarbox serve --listen 127.0.0.1:2525 $(if $(RELAY),--relay $(RELAY),--no-direct) $(ARGS)

# All of it: most tests four at a time (they wait more than they work), then those that measure, one after the other.
test:
	@sh tools/make-venv.sh empty
	@sh tools/install-test-programs.sh & programs=$$!; sh tools/make-venv.sh && wait $$programs
ifeq ($(ARGS),)
	$(BIN)/python -m pytest -n 4 --dist worksteal -m "not alone"
	$(BIN)/python -m pytest -m alone
else
	$(BIN)/python -m pytest $(ARGS)
endif

# Tests that measure time or memory run without the tracer, which would be measured as well.
coverage: .venv/.installed
	@sh tools/install-test-programs.sh
	$(BIN)/python -m pytest -n 4 --dist worksteal -m "not alone" --cov=pillarbox --cov-branch --cov-report=
	$(BIN)/python -m pytest -m alone
	$(BIN)/python -m coverage report --include='src/pillarbox/smtp/*,src/pillarbox/queue/*' --fail-under=95

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

audit: .venv/.installed
	@sh tools/audit.sh

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.installed
	@sh tools/install-test-programs.sh
	@sh tools/install-bench-peers.sh
	$(BIN)/python -m bench $(ARGS)

bench-quick: .venv/.installed
	@sh tools/install-test-programs.sh
	$(BIN)/python -m bench --quick $(ARGS)

bench-page: .venv/.installed
	@sh tools/install-test-programs.sh
	@sh tools/install-bench-peers.sh
	$(BIN)/python -m bench --page $(ARGS)

bench-shared: .venv/.installed
	@sh tools/install-test-programs.sh
	$(BIN)/python -m bench.shared $(ARGS)

faults: .venv/.installed
	@sh tools/install-test-programs.sh
	$(BIN)/python -m tests.faults
	$(BIN)/python -m tests.faults --journal
	$(BIN)/python -m tests.faults --postgres

cluster: .venv/.installed
	@sh tools/install-test-programs.sh
	$(BIN)/python -m tests.cluster $(ARGS)

sim: .venv/.installed
	$(BIN)/python -m tests.sim $(ARGS)

mutants: .venv/.installed
	$(BIN)/python -m tests.mutants $(ARGS)

fuzz: .venv/.installed
	@$(BIN)/python -c "import atheris" 2>/dev/null || $(BIN)/python -m pip install --quiet "atheris>=3"
	$(BIN)/python -m tests.fuzz $(ARGS)

docs: .venv/.installed
	$(BIN)/python tools/make_reference.py
	$(BIN)/python tools/make_api.py
	$(BIN)/python tools/make_man.py
	$(BIN)/python tools/make_grafana.py

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .coverage bench/results
