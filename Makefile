# Two commands on a fresh machine: `make demo` and `make test`. Everything goes into .venv folders here.
PYTHON ?= python3
PIP_FLAGS ?= --quiet --disable-pip-version-check
WHAT_INSTALLS := pyproject.toml constraints.txt

.PHONY: demo test test-plain test-oracles test-lowest lint bench bench-full fuzz test-ranks test-gguf disturb memory mutants cures clean

demo: .venv/installed
	.venv/bin/shardload demo

test: test-plain test-oracles test-lowest

# Runtime dependencies and pytest only: no transformers, no NumPy.
test-plain: .venv/installed
	.venv/bin/python -m pytest

# The same suite beside the libraries that it is compared with.
test-oracles: .venv-oracles/installed
	.venv-oracles/bin/python -m pytest

# Every way to shard a model over ranks (processes on loopback) x every way to fill it; some ten minutes of two cores.
test-ranks: .venv-oracles/installed
	SHARDLOAD_RANKS=all .venv-oracles/bin/python -m pytest tests/distributed tests/_system/test_agreement.py \
		tests/placement/test_layout.py tests/writing/test_collective.py tests/adapters/test_over_ranks.py tests/cli/test_over_ranks.py

# A tiny model of every architecture of GGUF that is mapped, as llama.cpp's converter writes it; a minute.
test-gguf: .venv-oracles/installed
	SHARDLOAD_GGUF=all .venv-oracles/bin/python -m pytest tests/checkpoint/test_gguf_table.py

# The fast part of the suite on the lowest release of every dependency but torch (docs/versions.md).
test-lowest: .venv-lowest/installed
	.venv-lowest/bin/python scripts/lowest.py

lint: .venv/installed .venv-lint/installed
	.venv-lint/bin/ruff format --check .
	.venv-lint/bin/ruff check .
	.venv-lint/bin/mypy --python-executable .venv/bin/python

# About ten minutes; needs some 18 GB of free disk. Results go to benchmarks/results/.
bench: .venv-oracles/installed
	.venv-oracles/bin/python -m benchmarks

# More rounds, and ChatGLM2-6B at full size besides (benchmarks/results/full.*): half an hour.
bench-full: .venv-oracles/installed
	.venv-oracles/bin/python -m benchmarks --minutes 24 --pairs 9
	.venv-oracles/bin/python -m benchmarks --only full --pairs 3 --minutes 5

.venv/installed: $(WHAT_INSTALLS)
	$(PYTHON) -m venv .venv
	.venv/bin/pip install $(PIP_FLAGS) -c constraints.txt -e '.[test]'
	@touch $@

.venv-oracles/installed: $(WHAT_INSTALLS)
	$(PYTHON) -m venv .venv-oracles
	.venv-oracles/bin/pip install $(PIP_FLAGS) -c constraints.txt -e '.[test,oracles]'
	@touch $@

.venv-lowest/installed: $(WHAT_INSTALLS) lowest.txt
	$(PYTHON) -m venv .venv-lowest
	grep -v '^torch==' lowest.txt | cat - constraints.txt > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install $(PIP_FLAGS) -c .venv-lowest/constraints.txt \
		-e '.[test,sentencepiece,tiktoken,tokenizers]'
	@touch $@

.venv-lint/installed: $(WHAT_INSTALLS)
	$(PYTHON) -m venv .venv-lint
	.venv-lint/bin/pip install $(PIP_FLAGS) 'ruff==0.17.6' 'mypy==2.4.1'
	@touch $@

# Up to a million inputs of each kind, and 2.5 minutes; loads that are disturbed, and the tests of the table; 500 pairs of
# key sets that fit equally well. About half an hour of one core; writes the table of docs/safety.md.
fuzz: .venv/installed
	nice .venv/bin/python -W ignore -m tests.fuzz
	SHARDLOAD_AMBIGUOUS=125 nice .venv/bin/python -m pytest -q tests/diagnosis/test_ambiguous.py

# Ctrl-C at every moment of a load, 2,000 forks beside threads that load, and 500 loads of transformers beside them: what
# is left behind, what hangs, what is wrong (all zero); some five minutes.
disturb: .venv-oracles/installed
	.venv-oracles/bin/python -W ignore -m tests.interrupts --step 1
	.venv-oracles/bin/python -W ignore -m tests.forks --count 2000
	.venv-oracles/bin/python -W ignore -m tests.oracles.beside_transformers --loads 500

# Random loads, each measured in a process of its own against what was stated for it; about ten minutes.
memory: .venv/installed
	.venv/bin/python -W ignore -m tests.memory_statements --count 200

# Takes the guards of every known trap out, one change at a time, and writes docs/traps.md; four minutes of one core.
mutants: .venv/installed
	nice .venv/bin/python -W ignore -m tests.mutants --write docs/traps.md

# Applies the cures that the rooms of the suite print, and loads; writes the table of docs/doctor.md.
cures: .venv-oracles/installed
	nice .venv-oracles/bin/python -W ignore -m tests.cures

clean:
	rm -rf .venv .venv-oracles .venv-lowest .venv-lint build *.egg-info
