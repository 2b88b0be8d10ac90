"""`shardload chat`: talk with a model in the terminal, or feed it lines through a pipe."""

from __future__ import annotations

import _thread
import contextlib
import json
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

import click

from shardload.cli import output
from shardload.cli.answering import Stop, choose_answering
from shardload.cli.options import (
    key_map_of,
    key_map_options,
    leniency_options,
    quantise_options,
    source_keywords,
    source_options,
    trust_keywords,
    trust_options,
)
from shardload.cli.wording import words_in
from shardload.errors import RemoteCodeError, ShardloadError, UsageError
from shardload.where import Where

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardload.cli.answering import Answering

EXAMPLES = """\b
Examples:
  shardload chat ./chatglm2-6b --trust-remote-code
  shardload chat ./chatglm2-6b --trust-remote-code --adapter ./my-lora
  shardload chat ./llama --load-in-8bit
  shardload chat org/name --revision COMMIT --trust-remote-code --prompt "Hello"
  cat questions.txt | shardload chat ./model --trust-remote-code --greedy --json
"""
HELP = """\
/reset  forget the conversation
/help   show this
/quit   leave (Ctrl-D does, too)
Ctrl-C  stop the answer"""
PROMPT = "> "
_COMMAND = re.compile(r"/[a-z]+")
_REPOS = "shardload.remote_code.repos."  # the modules of a repo's code


@click.command("chat", epilog=EXAMPLES, short_help="Talk with a model.")
@click.argument("where")
@click.option("--prompt", metavar="TEXT", help="Answer this and end.")
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option("--raw", is_flag=True, help="No chat: continue the text as it is.")
@click.option("--adapter", metavar="WHERE", help="LoRA adapter to attach.")
@click.option("--prefix", metavar="WHERE", help="Prefix of P-Tuning v2 for the model's prefix_encoder.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), metavar="N", help="The most tokens of an answer."
)
@click.option("--greedy", is_flag=True, help="Always choose the likeliest token.")
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), metavar="T")
@click.option("--top-p", type=click.FloatRange(min=0, max=1, min_open=True), metavar="P")
@click.option("--top-k", type=click.IntRange(min=1), metavar="K")
@click.option("--seed", type=int, metavar="N", help="Seed of torch's random numbers.")
@click.option("--dtype", default="auto", metavar="DTYPE", help="Cast floating weights.")
@click.option("--device", default="cpu", metavar="DEVICE", help="cpu, cuda, cuda:1, …")
@trust_options
@quantise_options
@leniency_options
@key_map_options
@source_options
@click.option("--json", "as_json", is_flag=True, help="Write one JSON line per turn.")
def command(where: str, prompt: str | None, system: str | None, as_json: bool, **options: Any) -> None:
    """Talk with the model in WHERE: a folder, or org/name[@revision] on the Hub.

    The repo's own stream_chat answers where there is one, else its chat template and generate. In a terminal there
    is a prompt; on a pipe each line is answered by itself, in one conversation.
    """
    # Repos log with arguments that don't fit their messages: Python prints a traceback for each.
    logging.raiseExceptions = False
    before = set(threading.enumerate())
    settings = _settings(options)
    raw, seed = options.pop("raw"), options.pop("seed")
    model, tokenizer = _load(where, options)
    answering = choose_answering(model, tokenizer, settings, system=system, raw=raw)
    if seed is not None:
        import torch

        torch.manual_seed(seed)
    at_terminal = prompt is None and not as_json and sys.stdin.isatty() and sys.stdout.isatty()
    talk = _Talk(answering, at_terminal=at_terminal, as_json=as_json)
    if prompt is not None:
        talk.turn(prompt)
    elif at_terminal:
        output.tell(f"{where}: {type(model).__name__}, by {answering.name}. /help for help.")
        before_it = signal.getsignal(signal.SIGINT)
        try:
            _at_terminal(talk)
        finally:
            signal.signal(signal.SIGINT, before_it)
    else:
        _on_pipe(talk)
    _leave(before)


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Take the settings of generation out of the options: those that were given."""
    names = ("max_new_tokens", "temperature", "top_p", "top_k")
    found = {name: value for name in names if (value := options.pop(name)) is not None}
    if options.pop("greedy"):
        if found.keys() - {"max_new_tokens"}:
            raise UsageError(
                "--greedy draws no token at random", cure="leave out --temperature, --top-p and --top-k"
            )
        return {**found, "do_sample": False}
    return {**found, "do_sample": True} if found.keys() - {"max_new_tokens"} else found


def _load(where: str, options: dict[str, Any]) -> tuple[Any, Any]:
    from shardload.load import from_pretrained
    from shardload.tokenizer import load_tokenizer

    place = Where(where, **source_keywords(options))
    trust, key_map = trust_keywords(options), key_map_of(options)
    # The tokenizer first: it loads quickly, and may be refused.
    tokenizer = load_tokenizer(place, **trust)
    progress = None if not sys.stderr.isatty() else True
    return from_pretrained(place, key_map=key_map, progress=progress, **trust, **options), tokenizer


class _Talk:
    """The turns of a conversation; each answer is shown as it grows."""

    def __init__(self, answering: Answering, *, at_terminal: bool, as_json: bool) -> None:
        self.answering = answering
        self.at_terminal = at_terminal
        self.as_json = as_json
        self._shown = ""
        self._answer = ""

    def command(self, line: str) -> bool:
        """Carry out a line such as /reset, and return whether to go on."""
        if line == "/quit":
            return False
        if line == "/reset":
            self.answering.reset()
            if self.at_terminal:
                output.tell("the conversation is forgotten")
        else:
            output.tell(HELP if line == "/help" else f"there is no command {line}\n{HELP}")
        return True

    def turn(self, query: str) -> None:
        """Answer; an interrupt stops the answer only. Raises RemoteCodeError when the repo's code fails."""
        self._shown = self._answer = ""
        start = time.perf_counter()
        stop = Stop()
        ended = "complete"
        try:
            with _interruptible(stop):
                self.answering.answer(query, self._show, stop)
        except KeyboardInterrupt:
            ended = "interrupted"
        except (ShardloadError, BrokenPipeError):
            raise
        except Exception as error:
            raise _failed(error) from error
        finally:
            if self._shown and not self.as_json:
                output.say("")
        ended = "interrupted" if stop.wanted else ended
        if self.as_json:
            seconds = round(time.perf_counter() - start, 3)
            document = {"prompt": query, "answer": self._answer, "ended": ended, "seconds": seconds}
            output.say(json.dumps(document))
        elif not self._shown:
            output.say("")

    def _show(self, answer: str) -> None:
        """Write the new end of the answer; text that is written already stays, even if the answer changes."""
        self._answer = answer
        if self.as_json or len(answer) <= len(self._shown):
            return
        new, self._shown = answer[len(self._shown) :], answer
        # A model's text is untrusted: at a terminal it must not move the cursor.
        output.write(_printable(new) if self.at_terminal else new)


def _printable(text: str) -> str:
    return "".join(char if char in "\n\t" else output.escape(char) for char in text)


@contextlib.contextmanager
def _interruptible(stop: Stop) -> Iterator[None]:
    """Let Ctrl-C end the answer: at once if this thread makes it, at the next token if another thread does.

    A thread of the repo's own can't be interrupted, and would wait for ever for its answer to be read; the second
    Ctrl-C does not wait for it.
    """
    before = set(threading.enumerate())

    failures: list[BaseException] = []

    def handle(_number: int, _frame: Any) -> None:
        if failures:
            raise failures[0]
        others = [thread for thread in threading.enumerate() if thread not in before and thread.is_alive()]
        if stop.wanted or not others:
            raise KeyboardInterrupt
        stop.wanted = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hear(failed: threading.ExceptHookArgs) -> None:
        # Else the main thread would wait for this thread's answer for ever.
        if failed.exc_value is not None:
            failures.append(failed.exc_value)
            _thread.interrupt_main()

    old, old_hook = signal.signal(signal.SIGINT, handle), threading.excepthook
    threading.excepthook = hear
    try:
        yield
    finally:
        threading.excepthook = old_hook
        signal.signal(signal.SIGINT, old)


def _at_terminal(talk: _Talk) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - its import gives input() editing and history
    while True:
        try:
            line = _typed().strip()
        except EOFError:
            output.say("")
            return
        except KeyboardInterrupt:
            output.say("")
            output.tell("/quit or Ctrl-D leaves")
            continue
        if not line:
            continue
        try:
            if not _one(talk, line):
                return
        except ShardloadError as error:
            output.complain(error.said(words_in(click.get_current_context())))


def _typed() -> str:
    """Return the next line; Ctrl-C interrupts the wait for it, and is then ignored until an answer or wait begins.

    Pressed twice, it would else come a second time while the first is being handled, and end the conversation.
    """
    waiting = True

    def handle(_number: int, _frame: Any) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
    line = input(PROMPT)
    waiting = False
    return line


def _on_pipe(talk: _Talk) -> None:
    for line in sys.stdin:
        text = line.strip()
        if text and not _one(talk, text):
            return


def _one(talk: _Talk, line: str) -> bool:
    if _COMMAND.fullmatch(line):
        return talk.command(line)
    talk.turn(line)
    return True


def _failed(error: Exception) -> RemoteCodeError:
    """Return the error of an answer, at the last line of the repo's own code, or where it was raised."""
    steps = [
        (f.f_globals.get("__name__"), f.f_code.co_filename, n)
        for f, n in traceback.walk_tb(error.__traceback__)
    ]
    own = [step for step in steps if str(step[0]).startswith(_REPOS)]
    places = [f"{file}:{line}" for _, file, line in own or steps]
    return RemoteCodeError(
        f"the answer failed: {type(error).__name__}: {error}", where=places[-1] if places else None
    )


def _leave(before: set[threading.Thread]) -> None:
    """End the process, even if a thread of the repo still waits for a reader of its answer."""
    others = [
        thread
        for thread in threading.enumerate()
        if thread not in before and not thread.daemon and thread.is_alive()
    ]
    for thread in others:
        thread.join(timeout=1)
    if any(thread.is_alive() for thread in others):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
