# `make demo` shows a fleet attesting, `make test` proves the claims, `make lint` keeps the code readable,
# `make bench-link` counts what an attestation costs on the link (as root: it makes network namespaces),
# `make chaos` kills, hangs, cuts and fills up everything on a real fleet (as root also disks).
# ONCE=1 lets the demo run through once and say by its exit code whether all went as it should.

.PHONY: demo test lint setup build bench-link chaos

CARGO ?= cargo
# Scenarios wait more than they compute, so a few run at a time even on two cores; more than this, and a
# starved verifier answers late enough to change what a scenario sees.
SCENARIOS_AT_A_TIME ?= 5

demo: setup
	$(CARGO) build --workspace --bins
	@ONCE=$(ONCE) $(CARGO) run --quiet --bin keylime-mqtt-demo

# The scenarios start the agent, the bridge and the embedded broker as processes, so those are built first.
test: setup build
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		$(CARGO) test --workspace --doc -q && $(CARGO) nextest run --config-file tests/nextest.toml --workspace --no-fail-fast; \
	else \
		$(CARGO) test --workspace --no-fail-fast -- --test-threads $(SCENARIOS_AT_A_TIME); \
	fi

build:
	$(CARGO) build --workspace --bins

# Release builds, counted outside the programs. BENCH takes options: make bench-link BENCH="--only quote --cycles 20"
bench-link: setup
	$(CARGO) build --profile device --bin keylime-mqtt-agent
	$(CARGO) build --release --bin keylime-mqtt-bridge --bin keylime-mqtt-bench-link
	@$(CARGO) run --release --quiet --bin keylime-mqtt-bench-link -- $(BENCH)

# SEED=7 draws another plan, the same one each time; KILLS=50 is a shorter run. CHAOS takes further options.
chaos: setup build
	@$(CARGO) run --quiet --bin keylime-mqtt-chaos -- $(CHAOS)

lint:
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

setup:
	@tests/setup.sh
