import json
import os
import signal
import subprocess
import sys
import time

import pytest

from shardload.cli import COMMANDS
from tests.cli.conftest import COMMAND, INTERRUPTIBLE


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_has_an_example_and_costs_no_torch(command):
    code = (
        "import sys\n"
        "from shardload.cli import run\n"
        f"code = run([{command!r}, '--help'])\n"
        "assert 'torch' not in sys.modules and 'huggingface_hub' not in sys.modules\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Examples:" in done.stdout
    assert f"shardload {command}" in done.stdout


def test_help_lists_the_commands(run_cli):
    done = run_cli("--help")
    assert done.returncode == 0
    listed = done.stdout.split("Commands:\n")[1].split("\n\n")[0]
    assert tuple(line.split()[0] for line in listed.splitlines()) == COMMANDS


def test_the_package_is_the_command_line_too():
    done = subprocess.run(
        [sys.executable, "-m", "shardload", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("shardload 0.")


def test_version(run_cli):
    done = run_cli("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("shardload 0.")


@pytest.mark.parametrize("arguments", [[], ["map"]])
def test_no_command_shows_the_help_and_is_a_usage_error(run_cli, arguments):
    done = run_cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Commands:" in done.stderr


@pytest.mark.parametrize("arguments", [["explode"], ["inspect", "--nope", "x"], ["inspect"]])
def test_usage_errors_go_to_stderr_with_a_cure(run_cli, arguments):
    done = run_cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "--help" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script_of_completion(run_cli, shell):
    done = run_cli(_SHARDLOAD_COMPLETE=f"{shell}_source")
    assert (done.returncode, done.stderr) == (0, "")
    assert "_shardload_completion" in done.stdout


def test_a_shell_gets_completions(run_cli):
    words = {
        "shardload ma": ["map"],
        "shardload map ": ["apply", "invert"],
        "shardload load --js": ["--json"],
    }
    for typed, wanted in words.items():
        count = str(len(typed.split(" ")) - 1)
        done = run_cli(_SHARDLOAD_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD=count)
        assert done.stdout.split() == [f"plain,{word}" for word in wanted], done.stderr


def test_usage_errors_as_json(run_cli):
    done = run_cli("inspect", "--json")
    assert (done.returncode, done.stderr) == (2, "")
    error = json.loads(done.stdout)["error"]
    assert (error["kind"], error["exit_code"]) == ("UsageError", 2)
    assert "WHERE" in error["what"]


def test_a_reader_that_leaves_is_no_error(write_headers):
    path = write_headers({f"layers.{number}.weight": (number + 1,) for number in range(20_000)})
    command = [*COMMAND, "inspect", str(path), "--tensors"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_an_interrupt_is_quiet_and_leaves_nothing_half_written(tmp_path):
    command = [*INTERRUPTIBLE, "demo", "--folder", str(tmp_path / "repo")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline().startswith("writing")
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in out + err
    assert not list(tmp_path.iterdir())


def test_names_that_stdout_cannot_encode_are_escaped(write_headers, run_cli):
    path = write_headers({"重み": (2,)})
    done = run_cli("inspect", path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0
    assert "\\u91cd" in done.stdout


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("environment", "styled"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_styles_are_for_terminals(small_repo, environment, styled):
    leader, follower = os.openpty()
    clean = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    with subprocess.Popen(
        [*COMMAND, "inspect", str(small_repo)], stdout=follower, env={**clean, "TERM": "xterm", **environment}
    ) as process:
        os.close(follower)
        seen = b""
        while chunk := _read(leader):
            seen += chunk
    os.close(leader)
    assert process.returncode == 0
    assert b"layers.{0-5}" in seen
    assert (b"\x1b" in seen) is styled


def _read(leader):
    try:
        return os.read(leader, 65536)
    except OSError:  # Linux's way of saying that the other end is closed
        return b""
