# Corten: two commands on a fresh machine are `make quickstart` and `make test`.

PREFIX ?= /usr/local
DESTDIR ?=
SYSTEMD_DIR ?= $(PREFIX)/lib/systemd/system
TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
CORTEN := $(TARGET_DIR)/$(HOST)/release/corten
BARE := $(TARGET_DIR)/$(HOST)/release/examples/bare

.PHONY: help build quickstart quickstart-clean test test-vm test-upgrade lint bench install uninstall clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

build: ## build the release binary
	@scripts/install-deps.sh build
	cargo build --release --locked -p corten
	@ls -l $(CORTEN)

quickstart: ## install what is missing, build, and run the walkthrough on examples/hello-web
	@scripts/install-deps.sh quickstart
	cargo build --release --locked -p corten
	@scripts/quickstart.sh $(CORTEN)

quickstart-clean: ## stop the walkthrough's app and remove everything it made
	@scripts/quickstart-clean.sh $(CORTEN)

test: ## install what the tests need and run every test
	@scripts/install-deps.sh test
	@scripts/test.sh

test-vm: ## try other cgroups, another kernel and systemd in virtual machines (slow)
	@scripts/install-deps.sh vm
	@scripts/test-vm.sh

test-upgrade: ## have what an older binary runs taken over by this one (OLDER=/path/to/corten)
	@test -x "$(OLDER)" || { echo "say which is the older one: make test-upgrade OLDER=/path/to/corten" >&2; exit 2; }
	@scripts/install-deps.sh test
	cargo build --release --locked -p corten
	@scripts/test-upgrade.sh "$(OLDER)" $(CORTEN)

lint: ## formatting and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

bench: ## measure beside docker, podman, crun and runc where they are installed
	@scripts/install-deps.sh bench
	cargo build --release --locked -p corten -p corten-runtime --bin corten --example bare
	@bench/run.sh $(CORTEN) $(BARE)

install: build ## install binary, completions, man pages, systemd unit (DOCKER_LINK=1 adds a docker link)
	install -D -m 0755 $(CORTEN) $(DESTDIR)$(PREFIX)/bin/corten
	ln -sf corten $(DESTDIR)$(PREFIX)/bin/corten-runtime
	@if [ "$(DOCKER_LINK)" = 1 ]; then ln -sf corten $(DESTDIR)$(PREFIX)/bin/docker; fi
	@scripts/install-extras.sh $(CORTEN) "$(DESTDIR)$(PREFIX)" "$(DESTDIR)$(SYSTEMD_DIR)" "$(PREFIX)"

uninstall: ## remove what install put in place (containers and images stay)
	@scripts/install-extras.sh --remove "$(DESTDIR)$(PREFIX)" "$(DESTDIR)$(SYSTEMD_DIR)"

clean: ## remove build output
	cargo clean
