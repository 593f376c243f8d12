# make help explains itself.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.NOTPARALLEL:
.DEFAULT_GOAL := help

# sudo forgets where Go is. Stamping the build asks git, which refuses a clone of
# another user's.
export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin
export GOFLAGS := $(GOFLAGS) -buildvcs=false
export CGO_ENABLED := 0

# The tag, or the newest version of the changelog and the commit.
ifndef VERSION
VERSION := $(shell git describe --tags --match 'v*' --dirty 2>/dev/null || { \
	sed -n 's/^.. \[\([0-9][^]]*\)\].*/\1/p' CHANGELOG.md | grep -m1 . || echo 0.0.0; \
	git rev-parse --short HEAD 2>/dev/null; } | paste -sd-)
endif
GOBUILD := go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'
COMMAND := ./cmd/edgepolicyd


.PHONY: help
help: ## Say what there is to make
	@echo 'edgepolicyd $(VERSION)'
	echo
	sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24
	echo
	echo 'demo and test need root, and install the Debian packages that they lack.'

.PHONY: build
build: ## Build bin/edgepolicyd for this machine: static, stripped
	$(GOBUILD) -o bin/edgepolicyd $(COMMAND)

.PHONY: build-all
build-all: build/edgepolicyd-amd64 build/edgepolicyd-arm64 build/edgepolicyd-armv7 build/edgepolicyd-armv6 ## Build for amd64, arm64, armv7 and armv6 into build/
	@ls -l $^

.PHONY: build/edgepolicyd-amd64 build/edgepolicyd-arm64 build/edgepolicyd-armv7 build/edgepolicyd-armv6
build/edgepolicyd-amd64 build/edgepolicyd-arm64:
	GOOS=linux GOARCH=$(@:build/edgepolicyd-%=%) $(GOBUILD) -o $@ $(COMMAND)

build/edgepolicyd-armv7 build/edgepolicyd-armv6: build/arm.mod
	GOOS=linux GOARCH=arm GOARM=$(@:build/edgepolicyd-armv%=%) $(GOBUILD) -modfile=build/arm.mod -o $@ $(COMMAND)

# github.com/google/nftables hands an untyped math.MaxUint32 to Sprintf, which
# overflows a 32-bit int. A copy with that one line mended takes its place.
.PHONY: build/arm.mod
build/arm.mod:
	@go mod download github.com/google/nftables
	rm -rf build/nftables
	mkdir -p build
	cp -r "$$(go list -m -f '{{.Dir}}' github.com/google/nftables)" build/nftables
	chmod -R u+w build/nftables
	line='in a single nftables transaction", math.MaxUint32))'
	if [ "$$(grep -cF "$$line" build/nftables/conn.go)" != 1 ]; then
		echo 'the line of google/nftables that does not compile for 32-bit ARM has changed: look whether the copy is needed still' >&2
		exit 1
	fi
	sed -i '/in a single nftables transaction", math.MaxUint32/s/math.MaxUint32/uint32(math.MaxUint32)/' build/nftables/conn.go
	cp go.mod build/arm.mod
	cp go.sum build/arm.sum
	go mod edit -replace github.com/google/nftables=./build/nftables build/arm.mod

.PHONY: packages
packages: build-all ## Build deb and rpm packages into build/packages/
	@rm -rf build/packages
	export SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}
	go run -C packaging/build . -version '$(VERSION)'

.PHONY: install-deps
install-deps: ## Install the Debian packages that the tests and the demo lack
	@tests/install.sh

.PHONY: root
root:
	@if [ "$$(id -u)" != 0 ]; then
		echo 'this needs root (network namespaces, nftables): sudo make $(MAKECMDGOALS)' >&2
		exit 1
	fi

.PHONY: demo
demo: root install-deps build ## Show it: a gateway, its pods, policies, real connections (root); DEMO=-routed
	@echo
	EDGEPOLICYD=$(CURDIR)/bin/edgepolicyd go run ./tests/demo $(DEMO)

.PHONY: lint
lint: ## gofmt and go vet
	@unformatted=$$(gofmt -l cmd internal tests packaging)
	if [ -n "$$unformatted" ]; then
		printf 'not gofmt-ed:\n%s\n' "$$unformatted" >&2
		exit 1
	fi
	go vet ./...
	go -C packaging/build vet ./...

# One package at a time: many of them make namespaces and traffic, and some count
# every packet.
.PHONY: test
test: root ## Everything: packages, four builds, lint, all tests, a little fuzzing (root, 15 minutes at most)
	@start=$$SECONDS
	step() { printf '\n== %s\n' "$$1"; shift; "$$@"; }
	step 'Debian packages' tests/install.sh
	step 'lint' $(MAKE) --no-print-directory lint
	step 'build for four architectures' $(MAKE) --no-print-directory build-all
	$(GOBUILD) -o bin/edgepolicyd $(COMMAND)
	EDGEPOLICYD=$(CURDIR)/bin/edgepolicyd step 'tests' go test -count=1 -p 1 -timeout 10m ./...
	step 'packaging' go -C packaging/build test -count=1 ./...
	step 'fuzzing' tests/fuzz.sh 3s
	printf '\nmake test: all passed, in %d s\n' $$((SECONDS - start))

.PHONY: test-arm
test-arm: root install-deps packages ## Try the arm64 package on an ARM gateway in software, cut its power (root; half an hour the first time)
	@tests/arm/test.sh $(or $(ARM),build/arm)

.PHONY: fuzz
fuzz: ## Fuzz every target for longer: FUZZTIME=2m each
	@tests/fuzz.sh $(or $(FUZZTIME),2m)

.PHONY: bench
bench: root install-deps ## Run all benchmarks, those of tests/bench last: sizes, memory, times
	@packages=$$(grep -rl --include='*_test.go' '^func Benchmark' internal tests | xargs -n1 dirname | sort -u | sed 's,^,./,')
	go test -run '^$$' -bench . -benchmem -p 1 -timeout 30m $$packages

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin build
