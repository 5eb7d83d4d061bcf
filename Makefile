# The front door. Commands work on DATABASE_URL, or PGHOST and its kin, or else on an embedded server.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin/python runner.py

# Say what runs, but not on stdout: make query ... > file.csv holds the rows and nothing else.
say = echo '$(subst ','\'',$(1))' >&2; $(1)

.PHONY: help demo migrate rollback status verify queries query purge report psql test chaos bench lint clean migration sums

help: ## print this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ROWS ?= 20000
demo: $(READY) ## migrate the embedded server, load a sample of ROWS sessions, show every query
	$(VENV)/bin/python -m bench.demo $(ROWS)

migrate: $(READY) ## apply the pending migrations (ARGS="--plan" shows them)
	$(RUN) migrate $(ARGS)

rollback: $(READY) ## take back the newest migration (ARGS="--all --allow-data-loss")
	$(RUN) rollback $(ARGS)

status: $(READY) ## show each migration, applied or pending
	@$(call say,$(RUN) status $(ARGS))

verify: $(READY) ## compare the database with what the migrations promise
	@$(call say,$(RUN) verify $(ARGS))

queries: $(READY) ## list the named queries
	@$(call say,$(RUN) queries $(ARGS))

query: $(READY) ## run one: make query NAME=average_session_metrics ARGS="--days 7"
	@$(call say,$(RUN) query $(NAME) $(ARGS))

purge: $(READY) ## delete the sessions begun more than DAYS days ago, with a progress bar: make purge DAYS=400
	$(VENV)/bin/python -m bench.purge $(DAYS)

report: $(READY) ## write report.html, the answers of every query with charts (ARGS="--output other.html")
	$(VENV)/bin/python -m report $(ARGS)

psql: $(READY) ## open psql on the same database
	$(RUN) psql $(ARGS)

test: $(READY) ## run the tests (on TEST_DATABASE_URL, else on an embedded server of their own)
	$(VENV)/bin/python -m pytest $(if $(TEST_DATABASE_URL),--numprocesses 0) $(ARGS)

chaos: $(READY) ## kill migrate after every statement it sends, and the bare yoyo command beside it
	$(VENV)/bin/python -m bench.chaos $(ARGS)

bench: ROWS ?= 200000
bench: $(READY) ## measure against the bare schema and DuckDB, side by side: make bench ROWS=5000000
	$(VENV)/bin/python -m bench.bench $(ROWS) $(ARGS)

lint: $(READY) ## check the format, types and SQL of everything
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/sqlfluff lint queries bench
	$(VENV)/bin/squawk $(SQUAWK) migrations/*.sql

clean: ## stop the embedded server, delete its data and all that make made
	if [ -f $(READY) ]; then $(RUN) embedded --remove; fi
	rm -rf $(VENV) report.html bench/results.json build dist .pytest_cache .ruff_cache .hypothesis

migration: ## start a new migration: make migration NAME=add_session_stats_something
	@case "$(NAME)" in *session_stats*) ;; *) echo "NAME must contain session_stats: make migration NAME=add_session_stats_something" >&2; exit 2;; esac
	tests/new_migration.sh $(NAME)

sums: ## write migrations/SHA256SUMS anew, before a release
	cd migrations && sha256sum *.sql > SHA256SUMS

# squawk's rules that the migrations break on purpose. A rollback drops the table. COMMIT ends the transaction
# that psql -1 began. An index that is built CONCURRENTLY blocks nobody while it waits for its lock, and a
# timeout that interrupts it would leave it INVALID; elsewhere no statement runs long.
SQUAWK := --exclude=ban-drop-table,transaction-nesting,require-lock-timeout,require-statement-timeout --pg-version=15.0

# The packages that pyproject.toml names, at the versions that CI tests.
$(READY): pyproject.toml tests/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); print(*p["project"]["dependencies"], *sum(p["project"]["optional-dependencies"].values(), []), *p["dependency-groups"]["dev"], sep="\n")' > $(VENV)/requirements.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $(VENV)/requirements.txt -c tests/constraints.txt
	touch $(READY)
