# Every target checks first and says in one line what is missing.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help check-toolchains deps tools build images quickstart down test bench bench-scale soak generate bless image install-single uninstall-single fmt

TOOLS := target/tools
BIN := target/release
JOBS ?= 2
MINUTES ?= 30

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

check-toolchains:
	@tools/check-toolchains.sh

deps: ## Install what Vireo runs on and is tested with: libvirt, QEMU, firmware (Debian packages)
	@tools/install-deps.sh

tools: check-toolchains ## Build the API server, kubectl and helm into target/tools
	@mkdir -p $(TOOLS)
	@standalone/build.sh $(TOOLS)/vireo-standalone
	@tools/install-helm.sh $(TOOLS)

build: check-toolchains deps ## Build controller, node daemon, lab and tools into target/release
	@cargo build --locked --release -j$(JOBS) --workspace

images: build ## Build the tiny guest image
	@$(BIN)/vireo-lab image tiny --out target/images

quickstart: deps tools build images ## Bring up an API, three hosts and a first VM on this machine
	@tools/quickstart.sh

down: ## Undo quickstart
	@if [ -x $(BIN)/vireo-lab ]; then $(BIN)/vireo-lab down; else echo "nothing is up: target/release/vireo-lab was never built"; fi

test: deps tools build images ## Run every check and test
	@tools/test.sh

bench: deps tools build images ## Measure Vireo against bare libvirt on this machine
	@$(BIN)/bench

bench-scale: tools build ## Measure many VMs on many hosts in memory: times, writes, memory; writes docs/performance
	@$(BIN)/bench-scale $(ARGS)

soak: tools build ## Half an hour of churn on many hosts in memory, looking for leaks (MINUTES=30)
	@$(BIN)/soak --minutes $(MINUTES)

generate: check-toolchains ## Write CRDs, policies and references from the types
	@cargo xtask gen

bless: check-toolchains deps ## Rewrite golden files; review the diff before committing
	@cargo xtask bless

fmt: check-toolchains ## Format the code
	@cargo fmt --all

image: ## Build container images from the Containerfile (needs podman, buildah or docker)
	@tools/build-image.sh

install-single: deps tools build ## Turn this machine into a one-host installation
	@tools/install-single.sh

uninstall-single: ## Undo install-single; guests' disks are kept unless PURGE=1
	@tools/uninstall-single.sh
