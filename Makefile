# `make demo` shows a fleet attesting, `make test` proves the claims, `make lint` keeps the code readable,
# `make bench-link` counts what an attestation costs on the link (as root: it makes network namespaces).
# `make test-net` sends devices through firewalls, NAT, proxies and over bad links (as root, too).
# ONCE=1 lets the demo run through once and say by its exit code whether all went as it should.

.PHONY: demo test test-net lint setup build bench-link

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

# The matrix of paths, links and brokers, up to half an hour and more. NET takes options: make test-net NET="--only NB-IoT"
test-net: setup build
	@$(CARGO) run --quiet --bin keylime-mqtt-test-net -- $(NET)

# Release builds, counted outside the programs. BENCH takes options: make bench-link BENCH="--only quote --cycles 20"
bench-link: setup
	$(CARGO) build --profile device --bin keylime-mqtt-agent
	$(CARGO) build --release --bin keylime-mqtt-bridge --bin keylime-mqtt-bench-link
	@$(CARGO) run --release --quiet --bin keylime-mqtt-bench-link -- $(BENCH)

lint:
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

setup:
	@tests/setup.sh
