# The front door. Commands work on DATABASE_URL, else the PG* environment variables, else the embedded server.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python runner.py

.PHONY: help demo migrate rollback status verify queries query purge report attach detach psql test chaos bench lint clean migration

help: ## print this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ROWS ?= 20000
demo: $(VENV)/.demo ## migrate the embedded server, load a sample of ROWS sessions, show every query
	@$(BIN)/python -m bench.demo $(ROWS)

# No command is echoed, so that stdout is what the runner prints: make query NAME=... > file.csv

migrate: $(VENV)/.run ## apply the pending migrations (ARGS="--plan" shows them)
	@$(RUN) migrate $(ARGS)

rollback: $(VENV)/.run ## take back the newest migration (ARGS="--all --allow-data-loss")
	@$(RUN) rollback $(ARGS)

status: $(VENV)/.run ## list the migrations, applied or pending
	@$(RUN) status $(ARGS)

verify: $(VENV)/.run ## compare the database with what the migrations promise
	@$(RUN) verify $(ARGS)

queries: $(VENV)/.run ## list the named queries
	@$(RUN) queries $(ARGS)

query: $(VENV)/.run ## run one: make query NAME=average_session_metrics ARGS="--days 7"
	@$(RUN) query $(NAME) $(ARGS)

purge: $(VENV)/.run ## delete the sessions that began more than DAYS days ago, after asking (ARGS="--dry-run" or "--yes")
	@$(RUN) purge --days "$(DAYS)" $(ARGS)

attach: $(VENV)/.run ## record sessions from the application's messages, by triggers (ARGS="--gap-minutes 30")
	@$(RUN) attach $(ARGS)

detach: $(VENV)/.run ## stop recording from the application's messages; the sessions stay
	@$(RUN) detach $(ARGS)

psql: $(VENV)/.run ## open psql on the same database
	@$(RUN) psql $(ARGS)

report: $(VENV)/.report ## write report.html: the answers of the queries, with charts (ARGS="--output other.html")
	@$(RUN) report $(ARGS)

test: $(VENV)/.dev ## run the tests (on TEST_DATABASE_URL, else on an embedded server of their own)
	$(BIN)/python -m pytest $(if $(TEST_DATABASE_URL),--numprocesses 0) $(ARGS)

chaos: $(VENV)/.dev ## kill migrate after every statement it sends, and the bare yoyo command beside it
	$(BIN)/python -m bench.chaos $(ARGS)

bench: ROWS ?= 200000
bench: $(VENV)/.dev ## measure against the bare schema and DuckDB, side by side: make bench ROWS=5000000
	$(BIN)/python -m bench.bench $(ROWS) $(ARGS)
	$(BIN)/python -m bench.live

lint: $(VENV)/.dev ## check the format, types and SQL of everything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/sqlfluff lint queries bench
	$(BIN)/squawk $(SQUAWK) migrations/*.sql

clean: ## stop the embedded server, delete its data and everything that make created
	@if [ -f $(VENV)/.demo ]; then $(RUN) embedded --remove; fi
	rm -rf $(VENV) report.html bench/results.json build dist .pytest_cache .ruff_cache .hypothesis

migration: ## start a new migration: make migration NAME=add_session_stats_something
	@case "$(NAME)" in *session_stats*) ;; *) echo "NAME must contain session_stats: make migration NAME=add_session_stats_something" >&2; exit 2;; esac
	tests/new_migration.sh $(NAME)

# squawk's rules that the migrations break on purpose. A rollback drops what was created. The specification's columns
# are TIMESTAMP and INTEGER. COMMIT ends the transaction that psql -1 began. While CREATE INDEX CONCURRENTLY waits for
# its lock, nothing waits behind it, and a timeout would leave the index INVALID; no other statement runs long.
SQUAWK := --pg-version=15.0 --exclude=ban-drop-table,ban-drop-function,prefer-timestamp-tz,prefer-bigint-over-int,$\
    transaction-nesting,require-lock-timeout,require-statement-timeout

# What is installed, each on top of the one before: the dependencies of the project, then the extras and groups
# named here, as pyproject.toml has them. .run is all that a deployment needs; the embedded server is not in it.
$(VENV)/.run: EXTRAS :=
$(VENV)/.report: EXTRAS := report
$(VENV)/.demo: EXTRAS := embedded demo
$(VENV)/.dev: EXTRAS := report dev
$(VENV)/.report $(VENV)/.demo: $(VENV)/.run
$(VENV)/.dev: $(VENV)/.demo

# Prints the requirements of the project and of the extras and groups in its arguments.
REQUIREMENTS := import sys, tomllib; \
	p = tomllib.load(open("pyproject.toml", "rb")); \
	more = p["project"]["optional-dependencies"] | p["dependency-groups"]; \
	print(*p["project"]["dependencies"], *(line for name in sys.argv[1:] for line in more[name]), sep="\n")

# At the versions that CI tests. Says what it does on stderr.
$(VENV)/.run $(VENV)/.report $(VENV)/.demo $(VENV)/.dev: pyproject.toml tests/constraints.txt | $(BIN)/pip
	@echo "installing the packages for $(@F)" >&2
	@$(BIN)/python -c '$(REQUIREMENTS)' $(EXTRAS) > $@.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $@.txt -c tests/constraints.txt >&2
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)
