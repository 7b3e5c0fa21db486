# `make demo` shows a fleet attesting, `make test` proves the claims, `make lint` keeps the code readable,
# `make bench-link` counts what an attestation costs on the link (as root: it makes network namespaces).
# `make test-net` sends devices through firewalls, NAT, proxies and over bad links (as root, too).
# `make chaos` kills, hangs, cuts and fills up everything on a real fleet (as root also disks).
# `make lies` puts a hostile broker between devices and bridge.
# `make fuzz` feeds every reader of foreign bytes: TARGET=one of tests/fuzz/corpus, SECONDS=how long each.
# ONCE=1 lets the demo run through once and say by its exit code whether all went as it should.

.PHONY: demo test test-net lint setup build bench-link chaos lies fuzz

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

# A hostile broker and hostile devices, long form: the simulated exchange for the bulk, real parts for the proof. SEED=…
# repeats a plan; LIES takes options: make lies LIES="--verdicts 200"
lies: setup
	@mkdir -p .run
	$(CARGO) build --release --workspace --bins
	LIES_TABLE=$(CURDIR)/.run/lies-simulated.tsv $(CARGO) test --release -p keylime-mqtt-schemas --test exchange -- \
		--ignored --nocapture each_lie_in_each_flow_fifty_times
	@$(CARGO) run --release --quiet --bin keylime-mqtt-lies -- --simulated .run/lies-simulated.tsv $(LIES)

# Release builds. SEED=7 draws another plan, the same one each time; KILLS=50 is a shorter run. CHAOS takes further options.
chaos: setup
	$(CARGO) build --release --workspace --bins
	@$(CARGO) run --release --quiet --bin keylime-mqtt-chaos -- $(CHAOS)

lint:
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@tests/deny.sh

fuzz:
	@TARGET=$(TARGET) SECONDS_EACH=$(SECONDS) tests/fuzz/fuzz.sh

setup:
	@tests/setup.sh
