"""`shardload chat` as a process: on a pipe, at a terminal, interrupted."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

from shardload import open_checkpoint
from tests.cli import chatty
from tests.cli.conftest import COMMAND, INTERRUPTIBLE
from tests.tiny import save_safetensors


@pytest.fixture
def chat(call_cli, monkeypatch):
    """Run the command in this process, with lines on its stdin."""

    def run_it(folder, *options, lines=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return call_cli("chat", folder, "--trust-remote-code", *options)

    return run_it


def test_a_line_in_is_an_answer_out_with_history_and_reset(tmp_path):
    folder = chatty.write(tmp_path, method=chatty.STREAM)
    done = subprocess.run(
        [*COMMAND, "chat", str(folder), "--trust-remote-code"],
        input="abc\nde\n\n/reset\nfg\n/quit\nnever\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "cba0\ned1\ngf0\n"


def test_the_cure_of_a_model_that_does_not_fit_is_in_options_of_the_chat(tmp_path, chat):
    folder = chatty.write(tmp_path, method=chatty.STREAM)
    table = open_checkpoint(folder).read("table.weight").clone()
    save_safetensors(
        {"module.table.weight": table, "loss.a": torch.ones(3), "loss.b": torch.ones(5)},
        folder / "model.safetensors",
    )
    refused = chat(folder, "--prompt", "abc")
    assert refused.returncode != 0
    cure = refused.stderr.split("cure:  ")[1].strip()
    options = shlex.split(cure.replace(" and ", " "))
    assert all(text.startswith("--") for text in options[::2]), cure
    done = chat(folder, "--prompt", "abc", *options)
    assert (done.returncode, done.stdout) == (0, "cba0\n")


def test_json_is_a_line_a_turn(tmp_path, chat):
    folder = chatty.write(tmp_path, method=chatty.STREAM)
    done = chat(folder, "--json", lines="abc\nde\n")
    turns = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(t["prompt"], t["answer"], t["ended"]) for t in turns] == [
        ("abc", "cba0", "complete"),
        ("de", "ed1", "complete"),
    ]


def test_an_answer_that_fails_names_the_repos_own_line(tmp_path, chat):
    method = chatty.STREAM.replace("history = history or []", "import json; json.loads('x')")
    done = chat(chatty.write(tmp_path, method=method), "--prompt", "abc")
    assert done.returncode == 1
    assert "the answer failed: JSONDecodeError" in done.stderr
    (where,) = re.findall(r"where: (.*):(\d+)", done.stderr)
    assert where[0].endswith("modeling_tiny.py")
    lines = (tmp_path / "modeling_tiny.py").read_text().splitlines()
    assert "json.loads" in lines[int(where[1]) - 1]


def test_one_prompt(tmp_path, chat):
    folder = chatty.write(tmp_path, method=chatty.STREAM)
    done = chat(folder, "--prompt", "abc")
    assert (done.returncode, done.stdout) == (0, "cba0\n")


def expected(folder, text, count):
    """Return what greedy choice gives: the tiny model looks at the last letter only."""
    import shardload

    model = shardload.from_pretrained(folder, trust_remote_code=True)
    tokenizer = shardload.load_tokenizer(folder, trust_remote_code=True)
    token = tokenizer.encode(text, add_special_tokens=False)[-1]
    found = []
    for _ in range(count):
        token = int(model.table.weight[token].argmax())
        found.append(token)
    return tokenizer.decode(found)


def test_the_template_and_generate_where_there_is_no_stream_chat(tmp_path, chat):
    folder = chatty.write(tmp_path, template=chatty.TEMPLATE)
    done = chat(folder, "--greedy", "--max-new-tokens", "5", lines="abc\nde\n")
    assert (done.returncode, done.stderr) == (0, "")
    answer = expected(folder, " ", 5)
    assert done.stdout == f"{answer}\n{answer}\n"


def test_raw_goes_on_with_the_text(tmp_path, chat):
    folder = chatty.write(tmp_path)
    done = chat(folder, "--raw", "--greedy", "--max-new-tokens", "4", "--prompt", "ab")
    assert done.stdout == f"{expected(folder, '$', 4)}\n"
    refused = chat(folder, "--prompt", "ab")
    assert refused.returncode == 2
    assert "--raw" in refused.stderr


def test_the_repos_own_chat_in_its_two_forms(tmp_path, chat):
    done = chat(chatty.write(tmp_path / "a", method=chatty.MESSAGES), "--system", "s", lines="ab\nc\n")
    assert done.stdout == "sab\nsabsabc\n"
    folder = chatty.write(tmp_path / "b", method=chatty.QUERY)
    done = chat(folder, "--greedy", "--max-new-tokens", "3", lines="ab\n")
    assert done.stdout == f"{expected(folder, '$', 3)}\n"


def test_sampling_follows_the_seed(tmp_path, chat):
    folder = chatty.write(tmp_path, template=chatty.TEMPLATE)
    options = ("--temperature", "3", "--max-new-tokens", "20", "--prompt", "a", "--seed")
    answers = [chat(folder, *options, seed).stdout for seed in ("1", "1", "2")]
    assert answers[0] == answers[1] != answers[2]
    refused = chat(folder, "--greedy", "--temperature", "3", "--prompt", "a")
    assert refused.returncode == 2


def test_code_runs_only_when_it_is_trusted(tmp_path, call_cli):
    done = call_cli("chat", chatty.write(tmp_path, method=chatty.STREAM), "--prompt", "a")
    assert (done.returncode, done.stdout) == (4, "")
    assert "--trust-remote-code" in done.stderr


def test_an_error_of_the_repos_code_names_its_line(tmp_path, call_cli):
    method = chatty.STREAM.replace('        text = ""\n', '        raise KeyError("no")\n')
    folder = chatty.write(tmp_path, method=method)
    done = call_cli("chat", folder, "--trust-remote-code", "--prompt", "a")
    assert done.returncode == 1
    assert "KeyError" in done.stderr
    assert "modeling_tiny.py:" in done.stderr


LETTERS = 2000  # of an answer that is interrupted: a hundred seconds of them
METHODS = {
    "stream_chat": {"method": chatty.STREAM},
    "a stream from a thread": {"method": chatty.THREADED},
    "generate": {"template": chatty.TEMPLATE},
}


@pytest.mark.parametrize("way", METHODS)
def test_ctrl_c_stops_the_answer_and_not_the_program(tmp_path, way):
    folder = chatty.write(tmp_path, delay=0.05, **METHODS[way])
    arguments = ["chat", str(folder), "--trust-remote-code", "--max-new-tokens", str(LETTERS)]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    try:
        process.stdin.write(b"a" * LETTERS + b"\n")
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        # Some letters are in the model already, or come before the signal does; most never come.
        while not first.endswith(b"\n"):
            first += process.stdout.read(1)
        assert 1 < len(first.decode()) < LETTERS
        process.stdin.write(b"/reset\n" + b"b" * LETTERS + b"\n")
        again = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=600)
        assert (process.returncode, err) == (0, b"")
        assert 1 < len((again + out).decode()) < LETTERS
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def terminal(folder, *options):
    """Run the command at a pseudo terminal; gives a function that reads until a pattern, and one that types."""
    pid, master = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "dumb"
        os.execv(INTERRUPTIBLE[0], [*INTERRUPTIBLE, "chat", str(folder), "--trust-remote-code", *options])
    seen = [""]

    def read(pattern, seconds=600):
        deadline = time.monotonic() + seconds
        while not re.search(pattern, seen[0]):
            assert time.monotonic() < deadline, f"no {pattern!r} in {seen[0]!r}"
            if select.select([master], [], [], 0.1)[0]:
                try:
                    seen[0] += os.read(master, 4096).decode()
                except OSError:  # the other end is closed
                    break
        text, seen[0] = seen[0], ""
        assert re.search(pattern, text), text
        return text

    def type_in(text):
        os.write(master, text.encode())

    try:
        yield read, type_in, pid
    finally:
        os.close(master)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_at_a_terminal(tmp_path):
    folder = chatty.write(tmp_path, method=chatty.STREAM, delay=0.2)
    with terminal(folder) as (read, type_in, pid):
        assert "TinyChat, by the repo's stream_chat" in read("> $")
        type_in("abc\r")
        assert "cba0" in read(r"cba0\r\n> $")
        type_in("/help\r")
        assert "/reset" in read("> $")
        type_in("x" * 200 + "\r")
        read("xxx\r\nx+$|x{203}")
        type_in("\x03")
        text = read(r"\r\n> $")
        assert "1" not in text
        # Readline sees no signal that comes between its prompt and its wait for keys: a person presses again.
        hint = ""
        for _ in range(300):
            type_in("\x03")
            with contextlib.suppress(AssertionError):
                hint = read("> $", 2)
                break
        assert "Ctrl-D leaves" in hint
        # A second press comes while the first is being handled.
        for _ in range(50):
            type_in("\x03")
        help_text = ""
        for _ in range(
            300
        ):  # Keys that come while the line is being given up are lost: they are pressed again.
            type_in("\x15/help\r")
            with contextlib.suppress(AssertionError):
                help_text = read("(?s)/reset.*> $", 2)
                break
        assert "/reset" in help_text
        type_in("d\r")
        assert "d2" in read(r"\r\nd2\r\n> $")
        type_in("\x04")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
