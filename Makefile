# make install | run | demo | test | bench | soak | tiers | format | lock | clean
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
CODE := $(wildcard wire refreshd proxyd tools)
SYSTEM_PACKAGES := tools/setup/system-packages.sh

.DEFAULT_GOAL := help
.PHONY: help install run demo test bench soak tiers format lock clean

help:
	@echo 'make demo     start engine, agent, origin and cache, show a refresh and a prefetch, stop'
	@echo 'make run      the same, and stay up to be played with (ENGINES=2: two, one of which is killed)'
	@echo 'make install  .venv with refreshd, proxyd and refreshctl'
	@echo 'make test     lint, types and tests (installs Varnish, Traffic Server, nginx, Squid, MariaDB, Redis and HAProxy where it may)'
	@echo 'make soak     10 minutes of load, reloads, upgrades and kills, checked at the end (SOAK_ARGS=--quick: less)'
	@echo 'make tiers    100,000 objects change behind two tiers of caches under readers: is anything stale?'
	@echo 'make bench    the figures; make format: ruff format; make lock: pin the libraries anew; make clean'

install: .venv/.installed

# Done anew only when what it reads has changed. pip runs twice: the pinned libraries, then this tree as it is.
.venv/.installed: requirements.lock setup.cfg pyproject.toml
	@tools/setup/venv.sh $(PYTHON) requirements.lock
	@touch $@

.venv/.test-installed: .venv/.installed requirements-test.lock
	@$(BIN)/python -m pip -qq install --disable-pip-version-check -r requirements-test.lock
	@touch $@

run demo: install
	@$(if $(ENGINES),$(SYSTEM_PACKAGES) mariadbd:mariadb-server redis-server:redis-server)
	@exec $(BIN)/python -m tools.demo $@ $(if $(ENGINES),--engines $(ENGINES))

# The tests come last, so that pytest's closing lines are the last ones.
test: .venv/.test-installed
	@$(SYSTEM_PACKAGES) varnishd:varnish traffic_server:trafficserver nginx:nginx squid:squid mariadbd:mariadb-server redis-server:redis-server \
		'/usr/lib/*/varnish/vmods/libvmod_xkey.so:varnish-modules' haproxy:haproxy nc:netcat-openbsd systemd-analyze:systemd openssl:openssl
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CODE)
	@tests/run.sh $(BIN)/python $(PYTEST_ARGS)

bench: .venv/.installed
	@$(SYSTEM_PACKAGES) varnishd:varnish beanstalkd:beanstalkd redis-server:redis-server mariadbd:mariadb-server nginx:nginx wrk:wrk
	@exec $(BIN)/python -m tools.bench $(BENCH_ARGS)

soak: .venv/.installed
	@exec $(BIN)/python -m tools.soak $(SOAK_ARGS)

tiers: .venv/.installed
	@$(SYSTEM_PACKAGES) varnishd:varnish traffic_server:trafficserver
	@exec $(BIN)/python -m tools.tiers $(TIERS_ARGS)

format: .venv/.test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:
	@tools/setup/lock.sh $(PYTHON)

clean:
	rm -rf .venv .run .bench build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
