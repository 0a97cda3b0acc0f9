# What can be made; `make` alone says it. The work is in scripts/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

export CGO_ENABLED ?= 0

# The version is asked of git here, because go refuses to build in a clone that
# belongs to somebody else if it is to ask itself.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
LDFLAGS := -s -w -X main.linkedVersion=$(VERSION) -X main.linkedRevision=$(REVISION)
FUZZTIME ?= 30s
BENCH_OUT ?= out/bench.json
DEMO_ARGS ?=
MODE ?= fake

.PHONY: help
help: ## Say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{ printf "  make %-16s %s\n", $$1, $$2 }'

# go build is quick when nothing changed, and knows better than make what did.
.PHONY: build
build: ## Build bin/gpuserver and the programs of its guests and tests
	@mkdir -p bin >&2
	go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/ ./cmd/... >&2

.PHONY: setup
setup: ## Install the Debian packages that demo, test and lint need (says so before)
	@scripts/setup test >&2

# Only the program writes to standard output, so that
# make demo DEMO_ARGS='--once --output json' prints one JSON document.
.PHONY: demo
demo: ## Run the whole service on this machine, with a stand-in for GitHub (DEMO_ARGS='--once --jobs 3')
	@scripts/setup demo >&2
	@$(MAKE) build >&2
	@scripts/libvirt-up >&2
	@image=$$(scripts/demo-image) && exec bin/gpuserver demo --image-dir "$$image" $(DEMO_ARGS)

.PHONY: test
test: ## Run all tests, quick ones first
	@scripts/setup test >&2
	@scripts/test

.PHONY: quick
quick: ## Run the tests that boot no VM
	@scripts/test quick

.PHONY: race
race: ## Run the tests that boot no VM under the race detector
	@scripts/setup test >&2
	@scripts/test race

.PHONY: test-vfio
test-vfio: ## Run the tests of GPU passthrough, in an emulated machine with six cards
	@scripts/setup vfio >&2
	@scripts/vfio-lab

.PHONY: test-gpu
test-gpu: ## Run the agent's tests on a real card of NVIDIA, on a machine or VM that has one and its driver
	@go test -count=1 -tags gpu -run TestRealCard -v ./internal/guest

.PHONY: test-openstack
test-openstack: ## Run the tests with a real OpenStack on this machine, with both hypervisors
	@scripts/setup openstack >&2
	@scripts/test-openstack

.PHONY: openstack-up
openstack-up: ## Start an OpenStack to play with (MODE=fake|libvirt), print where its clouds.yaml lies
	@scripts/setup openstack >&2
	@scripts/openstack-lab up $(MODE)

.PHONY: openstack-down
openstack-down: ## End that OpenStack, and leave nothing of it
	@scripts/openstack-lab down

.PHONY: test-full
test-full: test race test-vfio test-openstack ## Run everything that there is to test

.PHONY: fuzz
fuzz: ## Fuzz each parser for FUZZTIME (30s)
	@scripts/fuzz $(FUZZTIME)

.PHONY: bench
bench: build ## Measure the service and write the figures to BENCH_OUT (out/bench.json)
	@mkdir -p "$$(dirname '$(BENCH_OUT)')" >&2
	@scripts/bench '$(BENCH_OUT)' >&2

.PHONY: bench-openstack
bench-openstack: build ## Measure the driver for OpenStack on a real one, and write the figures to BENCH_OUT
	@scripts/setup openstack >&2
	@mkdir -p "$$(dirname '$(BENCH_OUT)')" >&2
	@scripts/bench-openstack '$(BENCH_OUT)' >&2

.PHONY: lint
lint: ## Check the source: go vet, staticcheck, gofumpt, go mod tidy, shellcheck
	@scripts/setup lint >&2
	@scripts/lint

.PHONY: format
format: ## Format the Go source
	@GOBIN=$(CURDIR)/bin/tools go -C tools install mvdan.cc/gofumpt
	@bin/tools/gofumpt -w .

.PHONY: clean
clean: ## Remove what was built here (not the cache of images)
	rm -rf bin out
