# `make` lists the targets.

CARGO ?= cargo

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-16s %s\n' "$$name" "$$text"; \
	done

.PHONY: run
run: ## serve on http://localhost:8080; settings as in FAIL_RATE=0.1 make run
	$(CARGO) run --release --locked --quiet

.PHONY: build
build: ## build target/release/tiny-probe
	$(CARGO) build --release --locked

.PHONY: test
test: ## run every test
	$(CARGO) test --locked

.PHONY: lint
lint: ## check format, clippy, shell scripts
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- --deny warnings
	RUSTDOCFLAGS='--deny warnings' $(CARGO) doc --locked --no-deps --quiet
	shellcheck scripts/*.sh .ci/run

.PHONY: smoke
smoke: build ## start the built binary on a free port and ask it with curl
	SERVER=event-loop scripts/with-service.sh scripts/smoke.sh
	SERVER=tiny-http scripts/with-service.sh scripts/smoke.sh

.PHONY: check-metrics
check-metrics: build ## have promtool check the exposition
	SERVER=event-loop scripts/with-service.sh scripts/check-metrics.sh
	SERVER=tiny-http scripts/with-service.sh scripts/check-metrics.sh

.PHONY: clean
clean: ## remove what was built
	$(CARGO) clean
