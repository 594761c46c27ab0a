# PROFILE is cargo's profile for `build` and `demo`: release (default) or dev.
PROFILE ?= release

.PHONY: build test lint mongod versions soak demo bench deny deb rpm tarball test-browser test-charts test-systemd

build:
	cargo build --locked --profile $(PROFILE)

# Tests wait for servers more than they compute.
export RUST_TEST_THREADS ?= $(shell echo $$(($$(nproc) * 3 / 2)))

# SNAPSYNC_MONGOD, or a mongod on PATH, is used instead of a fetched 6.0.5 if it is there.
test: mongod versions
	cargo test --locked

# Wants chromium and chromedriver.
test-browser: mongod
	cargo test --locked --test browser

# Wants root, and boots a Debian of its own; the first time it fetches one.
test-systemd: mongod
	cargo test --locked --test systemd -- --nocapture

# Wants helm and promtool.
test-charts:
	cargo test --locked --test packaging -- --ignored

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --test browser --test systemd -- -D warnings
	cargo test --locked --test policy --test tidy

mongod:
	@if [ -z "$$SNAPSYNC_MONGOD" ] && ! command -v mongod >/dev/null; then scripts/fetch-mongod.sh; fi

# The versions that tests follow from and to.
versions:
	@for version in 6.0.5 6.0.27 5.0.4 4.4.2 4.2.6; do scripts/fetch-mongod.sh $$version || exit; done

# SOAK_SECONDS (3600) of random histories, SOAK_LANES (12) side by side; SNAPSYNC_SEED begins with a given one.
soak: mongod
	SOAK_SECONDS=$${SOAK_SECONDS:-3600} SOAK_LANES=$${SOAK_LANES:-12} cargo test --locked --test it random::history -- --nocapture

# DEMO_DOCUMENTS (200000) and DEMO_SECONDS (30) say how much and how long.
demo: mongod
	cargo build --locked --profile $(PROFILE) --bin snapsync --example demo
	@cargo run --locked --quiet --profile $(PROFILE) --example demo

# What and how much is measured: docs/benchmarks.md. An hour or more at full size, alone on the machine.
bench: mongod
	cargo bench --locked --bench side_by_side

deny:
	cargo deny --offline check licenses bans sources

# Each prints the path of what it made.
deb rpm tarball:
	@PROFILE=$(PROFILE) scripts/package.sh $@
