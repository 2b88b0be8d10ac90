"""The command line, run on every rank as torchrun would run it: `main("load", "./llama")`."""

from __future__ import annotations

from shardload import cli


def main(*arguments: str) -> None:
    cli.main(arguments)
