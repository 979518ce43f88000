# Every target sets up what it needs, and says so; `make` alone lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help demo test conformance storm chaos fuzz lint format bench proto setup clean need-root

# PATH as a login shell of root has it: ip and nft are in /usr/sbin.
export PATH := $(CURDIR)/.venv/bin:$(PATH):/usr/sbin:/sbin
# Tests start routers by the hundred, and each would compile all its sources anew.
unexport PYTHONDONTWRITEBYTECODE
# Files of tests are dealt out to so many processes: half of the time most of them wait.
TEST_PROCESSES ?= 3
ARGS ?=
FUZZ_PACKETS ?= 1000000
FUZZ_SECONDS ?= 600
NATIVE_FUZZ_PACKETS ?= 100000000
# AddressSanitizer comes with the toolchain, behind a flag of the unstable ones.
ASAN = RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address
ASAN_TARGET = --target $(shell uname -m)-unknown-linux-gnu

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

demo: need-root ## watch Pods on three nodes talk to each other (root, under a minute once set up)
	@scripts/setup.sh
	@podwire demo $(ARGS)

test: need-root ## run every test (root, six minutes); ARGS="-k icmp -x" for some of them
	@scripts/setup.sh dev bench
	@python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile $(ARGS)

conformance: need-root ## real containerd, podman and libcni on it, real etcd and Kubernetes' client under it (root, seven minutes); ARGS=--quick for the shorter churn
	@scripts/setup.sh dev
	@scripts/conformance-setup.sh
	@python -m pytest -q -n 2 --dist loadfile tests/conformance $(ARGS)

storm: need-root ## 20 rounds of 50 nodes that lease in a real etcd at once, plain and with kill -9 of nodes and etcd (a quarter of an hour); ARGS="--rounds 3"
	@scripts/setup.sh dev
	@python -m tests.etcd_storm $(ARGS)

chaos: need-root ## six nodes under traffic that is checked to the last byte, while all that may fail does, by a seed (root, eleven minutes); ARGS="--minutes 1 --nodes 3 --pods 2 --seed 7"
	@scripts/setup.sh dev
	@python -m tests.chaos $(ARGS)

fuzz: setup ## send a million mutated datagrams and frames to each engine, as many to both, 10⁸ to the compiled data path, then hostile input to every parser for FUZZ_SECONDS=; FUZZ_PACKETS=, NATIVE_FUZZ_PACKETS=, ARGS="--seed 1"
	@command -v cargo >/dev/null || { echo "error: there is no cargo, so the native engine cannot be fuzzed. Install Rust 1.88 or newer; or: python -m tests.fuzz" >&2; exit 1; }
	@scripts/build-native.sh --require
	@python -m tests.fuzz --packets $(FUZZ_PACKETS) $(ARGS)
	@python -m tests.differential --packets $(FUZZ_PACKETS) $(ARGS)
	@cargo run --quiet --locked --profile checked -p podwire-engine --example fuzz -- --packets $(NATIVE_FUZZ_PACKETS) $(ARGS)
	@$(ASAN) cargo test --quiet --locked --profile checked $(ASAN_TARGET) -p podwire-engine --tests
	@$(ASAN) cargo run --quiet --locked --profile checked $(ASAN_TARGET) -p podwire-engine --example fuzz -- --packets $(FUZZ_PACKETS) $(ARGS)
	@python -m tests.fuzzers --seconds $(FUZZ_SECONDS) $(ARGS)

lint: ## check format, style, types and that generated files are fresh
	@scripts/setup.sh dev
	@echo "[lint] ruff format"; ruff format --check --quiet . || { echo "[lint] error: not formatted as ruff does it; run: make format" >&2; exit 1; }
	@echo "[lint] ruff check"; ruff check --quiet .
	@echo "[lint] mypy"; mypy --no-error-summary
	@echo "[lint] proto/generate.py --check"; python proto/generate.py --check
	@if command -v cargo >/dev/null; then \
		echo "[lint] cargo fmt"; cargo fmt --check; \
		echo "[lint] cargo clippy"; cargo clippy --quiet --locked --workspace --all-targets -- -D warnings; \
	else echo "[lint] no cargo here: the Rust sources were not looked at"; fi

format: ## format the code, and mend what ruff can
	@scripts/setup.sh dev
	@ruff check --fix --quiet . || left=$$?; ruff format --quiet .; if command -v cargo >/dev/null; then cargo fmt; fi; exit $${left:-0}

bench: need-root ## measure each engine beside kernel VXLAN and others (root, 35 minutes); ARGS=--promises or ARGS=--quick for less; also writes benchmarks/results/latest.{json,svg}
	@scripts/setup.sh dev bench
	@mkdir -p benchmarks/results
	@python -m benchmarks --json benchmarks/results/latest.json --plot benchmarks/results/latest.svg $(ARGS)

proto: ## make the gRPC stubs and docs/reference/api.md from proto/podwire/v1
	@scripts/setup.sh dev
	@python proto/generate.py

setup: ## install all of it, and do nothing else
	@scripts/setup.sh dev bench

clean: ## remove what was built, and .venv
	@rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

need-root:
	@if [ "$$(id -u)" -ne 0 ]; then echo "error: this makes network namespaces and TUN devices, which takes root. Run: sudo make $(MAKECMDGOALS)" >&2; exit 1; fi
	@if [ ! -c /dev/net/tun ] && ! modprobe tun 2>/dev/null; then echo "error: there is no /dev/net/tun. Load the module (modprobe tun); in a container, start it with --device /dev/net/tun --cap-add NET_ADMIN --cap-add SYS_ADMIN" >&2; exit 1; fi
