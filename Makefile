# `make help` lists the targets. Everything needs only Go; what needs more says so.
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

.PHONY: help build run demo test race e2e peers lint fmt fuzz bench bench-accept bench-drain bench-spool bench-recovery bench-inline bench-judging cover clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

build: ## build ./understudy, a static binary
	CGO_ENABLED=0 $(GO) build -trimpath -o understudy ./cmd/understudy

run: ## run a server on the embedded configuration: loopback, high ports, no root
	$(GO) run ./cmd/understudy serve

demo: ## play an outage on loopback, half a minute
	$(GO) run ./cmd/understudy demo

test: ## run the tests
	$(GO) vet ./...
	$(GO) test ./...

race: ## run the tests with the race detector (needs a C compiler)
	$(GO) test -race -short ./...

e2e: ## run the end-to-end tests alone
	$(GO) test -count=1 ./cmd/understudy/...

peers: ## run the tests, those with real peers required (needs Debian's postfix, swaks, … : see HACKING.md)
	UNDERSTUDY_PEERS=1 UNDERSTUDY_PROOFS=1 $(GO) test -count=1 ./...

lint: ## gofmt, vet, staticcheck, known vulnerabilities
	@fmt=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$fmt" ]; then echo "gofmt would change:"; echo "$$fmt"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@.ci/vulncheck

fmt: ## format the code
	gofmt -w $$(git ls-files '*.go')

fuzz: ## fuzz every target for FUZZTIME (default 10s)
	@for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			echo "$$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $${FUZZTIME:-10s} $$pkg || exit 1; \
		done; \
	done

bench-accept: ## taking mail: us, Postfix as a backup MX and smtp-sink in one run (needs postfix)
	UNDERSTUDY_PEERS=1 $(GO) test -run "^$$" -bench Accept -benchtime 20000x ./cmd/understudy

bench-drain: ## handing over: us and Postfix, into a sink and into a real Postfix, at 0 and 100 ms (needs postfix)
	UNDERSTUDY_PEERS=1 $(GO) test -run "^$$" -bench Drain -benchtime 1x ./forwarder

bench-spool: ## the spool beside its two floors: appending with group fdatasync, and one file a message
	$(GO) test -run "^$$" -bench Put -benchtime 3s ./spool
	$(GO) test -run "^$$" -bench Drain -benchtime 100000x ./spool
	UNDERSTUDY_MESSAGES=1000000 $(GO) test -count=1 -run ManyMessages -v ./spool

bench-recovery: ## from the primary's return to the first delivery, 200 outages, unprompted and hinted
	$(GO) test -run "^$$" -bench Recovery ./healthprobe

bench-inline: ## a message's latency directly and through us, at 0 and 20 ms (needs postfix)
	UNDERSTUDY_PEERS=1 $(GO) test -run "^$$" -bench Inline -benchtime 500x ./cmd/understudy

bench-judging: ## what judging a message costs, without and with rspamd (needs rspamd)
	UNDERSTUDY_PEERS=1 $(GO) test -run "^$$" -bench Judg -benchmem ./policy

bench: ## run the benchmarks
	$(GO) test -run '^$$' -bench . -benchmem ./...

cover: ## measure the tests' coverage
	$(GO) test -coverprofile coverage.out ./...
	$(GO) tool cover -func coverage.out | tail -1

clean: ## remove what builds and runs left here
	rm -rf understudy understudy-data coverage.out
