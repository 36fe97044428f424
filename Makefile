# The project's commands. `make demo` and `make test` need nothing but cargo and python3.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
semoe := $(or $(CARGO_TARGET_DIR),target)/release/semoe
.PHONY: help bootstrap demo test verify fmt-check clippy check-tests doc audit fix bench bench-peers soak fuzz

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

bootstrap: ## Fetch libtorch, install missing packages (idempotent)
	@scripts/bootstrap.sh

demo: bootstrap ## Train on the King James Bible with experts on SSD, export, sample
	cargo build --release --bin semoe
	$(semoe) train configs/demo.toml
	$(semoe) export runs/demo
	$(semoe) sample runs/demo --prompt "In the beginning" --tokens 120

test: bootstrap verify ## Set everything up and pass every test

verify: bootstrap fmt-check clippy check-tests doc audit ## Check everything; changes no file of the project

fmt-check:
	cargo fmt --all --check

clippy:
	cargo clippy --locked --workspace --all-targets -- -D warnings

check-tests:
	INSTA_UPDATE=no cargo test --locked

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

audit:
	@scripts/audit.sh

fix: bootstrap ## Format, and renew what is generated: schema, reference
	cargo fmt --all
	cargo run --quiet --bin semoe -- config schema > configs/schema.json.new
	mv configs/schema.json.new configs/schema.json
	cargo run --quiet --bin semoe -- config reference > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md

bench: bootstrap ## Run the benchmarks and print their ratios
	cargo bench --locked --benches --no-fail-fast

bench-peers: bootstrap ## Compare with transformers, DeepSpeed, llama.cpp; writes docs/benchmarks.md
	scripts/bench_peers.sh

soak: bootstrap ## The long form of the crash tests: 200 kills
	SEMOE_KILLS=200 cargo test --locked --release --test resume_after_kill -- --nocapture

fuzz: bootstrap ## libFuzzer on the parsers of file headers, SEMOE_FUZZ_SECONDS (60) each
	@scripts/fuzz.sh
