# Paths are relative and recipes run programs as `python -m`: the path of this folder may contain
# spaces, which break make's targets and the shebang lines of installed scripts.

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PY := .venv/bin/python
# The first interpreter that is new enough; PYTHON=… selects another.
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)))
# Parallel test processes: three per two cores, since many tests wait; at least two, at most twelve.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); n=$$((n + n / 2)); \
	[ $$n -lt 2 ] && n=2; [ $$n -gt 12 ] && n=12; echo $$n)
ARGS ?=

# Images of Python often set it. Hundreds of processes of the tests would each compile all of Parley.
unexport PYTHONDONTWRITEBYTECODE

# Settings for the checks: values as in production, of services that are never contacted.
CHECK_ENV := SECRET_KEY=a2f8c19b7e5d4036-this-is-only-for-checks-9d3b6e1f7a5c2048 DEBUG=0 HTTPS=1 \
	ALLOWED_HOSTS=chat.example.org ENV_FILE=/dev/null OPENAI_API_KEY=only-for-checks \
	DATABASE_URL=postgres://parley@127.0.0.1:9/parley REDIS_URL=redis://127.0.0.1:9/0 \
	EMAIL_URL=smtp://127.0.0.1:9 VERIFY_EMAIL=1

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | awk -F ':.*## ' '{ printf "  make %-13s %s\n", $$1, $$2 }'

.PHONY: run
run: .venv/.run ## Run everything on this machine, until Ctrl-C (PORT=8000)
	@$(PY) -m chatproject.local run

.PHONY: staff
staff: .venv/.run ## Create a staff user, while `make run` runs in another terminal
	@$(PY) -m chatproject.local manage createsuperuser

.PHONY: manage
manage: .venv/.run ## Run a manage.py command beside `make run`: make manage ARGS="shell"
	@$(PY) -m chatproject.local manage $(ARGS)

.PHONY: test
test: .venv/.dev ## Run the tests in parallel: make test ARGS="tests/lib -x"
	@$(PY) -m pytest -n $(JOBS) $(ARGS)

.PHONY: chaos
chaos: .venv/.dev ## Inject faults during a hundred replies: make chaos ROUNDS=50 ARGS="--seed 7"
	@$(PY) -m tests.chaos.rounds --rounds $(or $(ROUNDS),50) $(ARGS)

.PHONY: chaos-billing
chaos-billing: .venv/.dev ## Kill processes and Postgres during money transactions (ROUNDS=100)
	@$(PY) -m tests.chaos.billing_kills --rounds $(or $(ROUNDS),100) $(ARGS)

.PHONY: bench
bench: .venv/.dev $(if $(ARGS),,.venv-peers/.bench) ## Measure streaming beside a proxy and Chainlit: half an hour (ARGS="stream --users 200")
	@$(PY) -m bench $(ARGS)

.PHONY: bench-short
bench-short: .venv/.dev ## Run a short bench: nothing lost, nothing doubled, figures not judged
	@$(PY) -m bench stream burst resume stop --users 20 --seconds 3 --system parley

.PHONY: bench-billing
bench-billing: .venv/.dev ## Measure the ledger, alone and with a million entries
	@$(PY) -m bench.billing $(ARGS)

.PHONY: ledger-short
ledger-short: .venv/.dev ## Run a short bench-billing, which ends with check_ledger
	@$(PY) -m bench.billing --seconds 0.3 --operations 1000 --entries 5000 --unjudged

.PHONY: e2e
e2e: .venv/.dev ## Run the tests in a real Chromium
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
		echo "chromium or chromedriver is missing. On Debian: apt-get install chromium chromium-driver"; \
		exit 1; }
	@$(PY) -m pytest -n $(JOBS) --dist loadscope -m "e2e and not long" $(or $(filter tests/%,$(ARGS)),tests/e2e) $(filter-out tests/%,$(ARGS))

.PHONY: firefox
firefox: .venv/.dev ## Run the tests in a real Firefox (skipped without it)
	@$(PY) -m pytest -n 0 -m firefox -rs $(ARGS) tests/e2e

.PHONY: screenshots
screenshots: .venv/.dev ## Write the pictures of docs/images, from a seeded site in Chromium
	@$(PY) -m pytest -n 0 -m gallery $(ARGS) tests/e2e/test_gallery.py

.PHONY: gateways
gateways: .venv/.dev .venv-gateways/.ready ## Run the tests with LiteLLM's proxy in front of the fake provider
	@$(PY) -m pytest -n 0 -m gateway $(ARGS) tests/gateways

.PHONY: eval
eval: .venv/.dev ## Ask the evaluation set of questions over documents, with the model of make run
	@$(PY) -m pytest -n 0 -q -s -m evaluation $(ARGS) tests/evaluation

.PHONY: lint
lint: .venv/.dev ## Check formatting, types, layers, templates, settings
	@$(MAKE) -j2 lint-types lint-others

# Two halves of the same time, for two cores.
.PHONY: lint-types lint-others
lint-types: .venv/.dev
	$(CHECK_ENV) $(PY) -m mypy .

lint-others: .venv/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -c 'from importlinter.cli import lint_imports_command as lint; lint()'
	find templates -name '*.html' -exec .venv/bin/djade --check --target-version 5.2 {} +
	$(PY) -m djlint --lint --quiet templates
	$(CHECK_ENV) $(PY) manage.py check --deploy --fail-level WARNING

.PHONY: format
format: .venv/.dev ## Format code and templates
	$(PY) -m ruff check --fix --quiet . || true
	$(PY) -m ruff format .
	find templates -name '*.html' -exec .venv/bin/djade --target-version 5.2 {} +

LOCK := $(PY) -m uv pip compile --quiet --generate-hashes --no-header --no-emit-index-url \
	--python-version 3.11
.PHONY: messages
messages: .venv/.dev ## Update the catalogues of the languages, and compile them (docs/translations.md)
	@$(CHECK_ENV) $(PY) manage.py messages $(ARGS)

.PHONY: lock
lock: .venv/.dev ## Pin and hash the requirements again (ARGS=--upgrade: newer versions)
	$(LOCK) $(ARGS) requirements.in -o requirements.txt
	$(LOCK) $(ARGS) --no-deps requirements-embedded.in -o requirements-embedded.txt
	$(LOCK) $(ARGS) requirements-dev.in -o requirements-dev.txt
	$(LOCK) $(ARGS) bench/peers/requirements.in -o bench/peers/requirements.txt
	$(LOCK) $(ARGS) tests/gateways/requirements.in -o tests/gateways/requirements.txt
	$(LOCK) $(ARGS) deploy/audit/requirements.in -o deploy/audit/requirements.txt

.PHONY: audit
audit: .venv-audit/.ready ## Look for known vulnerabilities of all pinned packages, at the package index
	@failed=; for list in requirements.txt requirements-embedded.txt requirements-dev.txt; do \
		echo "=== $$list"; \
		.venv-audit/bin/python -m pip_audit --require-hashes --disable-pip --progress-spinner off -r $$list || failed=1; \
	done; [ -z "$$failed" ]

.PHONY: ci
ci: ## Run lint, test, ledger-short, bench-short and e2e, each to its end, and print a summary
	@rm -f .pytest_cache/v/cache/lastfailed; failed=; for step in lint test ledger-short bench-short e2e; do \
		echo "=== make $$step"; start=$$(date +%s); \
		if $(MAKE) $$step; then verdict=passed; \
		elif case $$step in test | e2e) $(MAKE) again-$$step ;; *) false ;; esac; then \
			verdict="passed, its failed tests alone,"; \
		else verdict=FAILED; failed=1; fi; \
		summary="$$summary$$(printf '%-12s %s in %s s' $$step "$$verdict" $$(($$(date +%s) - start)))|"; \
	done; \
	echo "=== summary"; printf '%s' "$$summary" | tr '|' '\n'; [ -z "$$failed" ]

# A busy machine can break a test's assumption about time. The names of tests that fail beside others and
# pass alone are printed: each is a fault to mend. More than ten failures are no accident.
.PHONY: again-test again-e2e
again-test again-e2e: again-%:
	@$(PY) -c 'import json; names = list(json.load(open(".pytest_cache/v/cache/lastfailed"))); \
		print("=== again, alone:", *names, sep="\n"); raise SystemExit(len(names) > 10)'
	@$(MAKE) $* JOBS=0 ARGS="--last-failed --last-failed-no-failures none"

.PHONY: ci-long
ci-long: .venv/.dev ## Run what make ci leaves out: chaos rounds, kills amid money, long tests, Firefox, gateways
	@$(MAKE) chaos ROUNDS=$(or $(ROUNDS),20)
	@$(MAKE) chaos ROUNDS=$(or $(ROUNDS),20) ARGS=--pooler
	@$(MAKE) chaos-billing ROUNDS=$(or $(ROUNDS),20)
	@$(MAKE) test ARGS="-m long"
	@$(MAKE) firefox
	@$(MAKE) gateways

.PHONY: clean
clean: ## Remove all generated files; .data/ stays
	rm -rf .venv .venv-peers .venv-gateways .venv-audit staticfiles .hypothesis .mypy_cache .ruff_cache \
		.pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- The virtual environment ----------------------------------------------------------------

PIP := $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes

.venv/bin/python:
	@[ -n "$(PYTHON)" ] || { \
		echo "Parley needs Python 3.11 or newer. Install it, or give its path: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; \
		exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "This Python cannot create virtual environments. On Debian and Ubuntu: apt-get install python3-venv"; \
		exit 1; }
	@echo "Creating the virtual environment .venv …"
	@$(PYTHON) -m venv .venv

.venv/.run: requirements.txt requirements-embedded.txt | .venv/bin/python
	@echo "Installing the requirements; the first time this takes a minute or two …"
	@$(PIP) -r requirements.txt
	@# Without dependencies: these wheels require packages that are not used here.
	@$(PIP) --no-deps -r requirements-embedded.txt
	@touch $@

.venv/.dev: requirements-dev.txt .venv/.run
	@echo "Installing the requirements of the tests …"
	@$(PIP) -r requirements-dev.txt
	@touch $@

# Chainlit, for `make bench`, in its own environment: it needs other versions of shared packages.
.venv-peers/.bench: bench/peers/requirements.txt | .venv/bin/python
	@echo "Installing Chainlit, with which Parley is compared; this takes a minute …"
	@$(PY) -m venv --clear .venv-peers
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# LiteLLM, for `make gateways`.
.venv-gateways/.ready: tests/gateways/requirements.txt | .venv/bin/python
	@echo "Installing LiteLLM, a gateway to test with; this takes a minute …"
	@$(PY) -m venv --clear .venv-gateways
	@.venv-gateways/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# pip-audit, for `make audit`.
.venv-audit/.ready: deploy/audit/requirements.txt | .venv/bin/python
	@$(PY) -m venv --clear .venv-audit
	@.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@
