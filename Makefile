.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## make .venv (once; about two minutes)
	@scripts/setup

demo: ## set up if needed, then show a server with memory at work
	@scripts/demo

test: ## set up if needed, then lint, types and all tests: what CI runs
	@scripts/test

lint: setup ## style and types only
	@scripts/lint

format: setup ## let ruff mend and format the tree
	@scripts/lint --fix
