"""A plugin that applies every cure that any tests provoke: `pytest -p tests.cures.suite tests/loading …`.

A public function or command that is refused is called again with what the error's cure says: keywords or options, edits
of config.json, files to delete, another path. What is refused again, or loads weights that the files do not hold, is a
cure that does not cure. The second calls disturb the tests that provoked them: only the table of this plugin counts.
With SHARDLOAD_CURES=FILE the counts are added to those of a JSON file (`__main__.py` reads them), and so are
those of commands that the tests start as processes of their own (`process.py`).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shardload.cli
import shardload.keywords as front
from shardload.errors import Cures, MismatchError, RemoteCodeError, ShardloadError, keywords_of, said
from tests.cures.expects import expects_a_refusal
from tests.cures.kinds import Tally, choices, kind_of
from tests.cures.typed import REPORT_MAP, Typed, copied, typed

if TYPE_CHECKING:
    from collections.abc import Iterator

TALLY = Tally()
_depth = [0]
_errors: list[Any] = []
_entry_point, _run, _fail = front.entry_point, shardload.cli.run, shardload.cli._fail
_MADE = {"adapter", "prefix"}  # what brings numbers of its own
_RAN = re.compile("the repo's own code failed|the checkpoint does not fit")
_WITH_VALUE = frozenset(
    {"--map", "--key-map", "--allow-missing", "--allow-unexpected", "--state-dict", "--dtype"}
)
_ROOT = Path(__file__).parents[2]
_CHANGES_NUMBERS = {"quantization_config", "load_in_8bit", "load_in_4bit"}
_MOST_BYTES = 50_000_000  # a folder that is copied so that its config.json can be edited


def _watched(function: Any) -> Any:
    return _with_cures(_entry_point(function))


def _with_cures(made: Any) -> Any:
    names = inspect.signature(made).parameters.keys()

    @functools.wraps(made)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if _depth[0]:
            return made(*arguments, **keywords)
        _depth[0] += 1
        again = _Again(made, names, arguments, keywords)
        try:
            result = made(*arguments, **keywords)
            again.apply_found(result)
            return result
        except ShardloadError as error:
            again.apply(error.code, error.cure, getattr(error, "report", None))
            raise
        finally:
            _depth[0] -= 1

    return call


class _Again:
    """A call that can be made again with a cure."""

    def __init__(
        self, function: Any, names: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        self.function, self.names, self.arguments, self.keywords = function, names, arguments, keywords

    def apply_found(self, result: Any) -> None:
        """Apply the cure of a report, or of an examination, that found something."""
        name, cure = self.function.__name__, getattr(result, "cure", None)
        if cure is None or not result.findings:
            return
        if name == "examine":
            from shardload import from_pretrained

            loads = _Again(
                from_pretrained, inspect.signature(from_pretrained).parameters.keys(), *self._given()
            )
            loads.apply(result.findings[0].code, cure, result)
        elif name == "check":
            self.apply(result.findings[0].code, cure, result)

    def _given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.arguments, {k: v for k, v in self.keywords.items() if k not in {"like", "adapter"}}

    def apply(self, code: str, cure: str | None, report: Any) -> None:
        for choice in choices(cure):
            kind = kind_of(code, choice)
            steps = typed(str(choice))
            for_a_target = "with fill" in steps.text and self.function.__name__ == "fill"
            if not steps.is_whole or for_a_target or not steps.keywords.keys() <= set(self.names):
                TALLY.printed(kind)
                continue
            if steps.keywords.get("key_map") == REPORT_MAP:
                steps.keywords["key_map"] = report.key_map
            with tempfile.TemporaryDirectory() as scratch:
                steps.write_below(Path(scratch))
                with _commanded(steps, Path(scratch)):
                    arguments = self._places(steps, Path(scratch))
                    if arguments is None:
                        TALLY.printed(kind)
                        continue
                    why = self._fails(code, arguments, {**self.keywords, **steps.keywords})
            TALLY.applied(kind, why and f"{self.function.__name__}: {choice}\n    {why}")

    def _places(self, steps: Typed, scratch: Path) -> tuple[Any, ...] | None:
        """Return the arguments, with a copy of the folder where files are to be changed; None where there is none."""
        names = [*self.names]
        opened = "checkpoint" in names
        place = names.index("checkpoint") if opened else names.index("where") if "where" in names else 0
        given = list(self.arguments)
        if not (steps.path or steps.changes_files):
            return self.arguments
        if steps.path and place < len(given):
            given[place] = shardload.open_checkpoint(steps.path) if opened else steps.path
            return tuple(given)
        folder = _folder(given[place]) if place < len(given) else None
        if folder is None:
            return None
        given[place] = copied(folder, scratch / "copy")
        steps.edit(given[place])
        return tuple(given)

    def _fails(self, code: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> str | None:
        given = dict(zip(self.names, arguments, strict=False))
        by_name = not given.keys().isdisjoint(keywords)  # what was given by its place is given by name
        try:
            result = self.function(*(() if by_name else arguments), **(given if by_name else {}) | keywords)
        except Exception as again:
            if code == "E-UNTRUSTED" and isinstance(again, (RemoteCodeError, MismatchError)):
                return None  # the code was allowed to run; what it does then is no matter of consent
            return f"{type(again).__name__}: {again}"[:600]
        if self.function.__name__ == "check" and result.faults:
            return f"check: {len(result.faults)} faults are left"
        if self.function.__name__ in {"from_pretrained", "fill"} and not _MADE & keywords.keys():
            if code == "E-QUANT":
                return None  # weights are made plain: what their numbers are is tested beside each format
            from tests.cures.truth import differs  # imports what is to be watched

            kind = type(keywords.get("target"))
            quantises = kind.__name__.startswith("Quantised") or kind.__module__.startswith("tests.")
            if quantises or _CHANGES_NUMBERS & keywords.keys():
                return None  # the numbers are the quantiser's, or the target's of a test: tested beside those
            model = result if self.function.__name__ == "from_pretrained" else arguments[0]
            return differs(getattr(model, "model", model), arguments, keywords, self.function.__name__)
        return None


def _folder(where: Any) -> Path | None:
    """Return a local folder that may be copied."""
    with contextlib.suppress(TypeError):
        path = Path(where)
        if path.is_dir() and sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) < _MOST_BYTES:
            return path
    return None


def run(arguments: Any) -> int:
    """Run a command; where it fails, type what its cure says."""
    if _depth[0]:
        return _run(arguments)
    _depth[0] += 1
    _errors.clear()
    try:
        code = _run(arguments)
        for error in _errors[:1]:
            _type_cures(list(arguments), error, shardload.cli.words_of(arguments))
        return code
    finally:
        _depth[0] -= 1


def _seen(cause: Any, arguments: Any, *, as_json: bool) -> int:
    if isinstance(cause, ShardloadError) and not _errors:
        _errors.append(cause)
    return _fail(cause, arguments, as_json=as_json)


def _type_cures(arguments: list[str], error: ShardloadError, words: Any) -> None:
    for choice in choices(error.cure):
        if isinstance(error.cure, Cures) and any(
            words(*each) is None for each in keywords_of(choice).items()
        ):
            continue  # the command has no words for it, and another one is printed
        kind = kind_of(f"{error.code} $", choice)
        steps = typed(said(choice, words), as_command=True)
        given = [*_without(arguments, steps.options), *steps.options]
        folder = next(
            (n for n, text in enumerate(given) if n and not text.startswith("-") and _folder(text)), None
        )
        if not steps.is_whole or ((steps.path or steps.changes_files) and folder is None):
            TALLY.printed(kind)
            continue
        out = io.StringIO()
        with tempfile.TemporaryDirectory() as scratch:
            steps.write_below(Path(scratch))
            if folder is not None and (steps.path or steps.changes_files):
                given[folder] = steps.path or str(copied(Path(given[folder]), Path(scratch) / "copy"))
                steps.edit(Path(given[folder]))
            with (
                _commanded(steps, Path(scratch)),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(out),
            ):
                code = _run(given)
        ran = error.code == "E-UNTRUSTED" and _RAN.search(out.getvalue())
        fails = not ran and code not in ({0, 1, 3} if arguments[0] in {"doctor", "diff"} else {0})
        TALLY.applied(kind, f"{' '.join(given)}\n    {out.getvalue()[-600:]}" if fails else None)


@contextlib.contextmanager
def _commanded(steps: Typed, scratch: Path) -> Iterator[None]:
    """Run the commands of a cure; what they write (a map here, a lock of their own) is there for the block only."""
    if not steps.commands:
        yield
        return
    has_usual = "SHARDLOAD_LOCK" in os.environ or Path("shardload.lock").exists()
    usual = Path(os.environ.get("SHARDLOAD_LOCK", "shardload.lock"))
    before = usual.read_bytes() if usual.is_file() else None
    if not has_usual:
        os.environ["SHARDLOAD_LOCK"] = str(scratch / "shardload.lock")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for command in steps.commands:
                given = shlex.split(command)[1:]
                _run([*given, "--yes"] if given[0] == "trust" and "--yes" not in given else given)
        yield
    finally:
        Path("map.json").unlink(missing_ok=True)
        if not has_usual:
            os.environ.pop("SHARDLOAD_LOCK")
        elif before is not None:
            usual.write_bytes(before)
        else:
            usual.unlink(missing_ok=True)


def _without(arguments: list[str], options: list[str]) -> list[str]:
    """Return the arguments without the options that a cure gives anew: a keyword is given once."""
    new = {text for text in options if text.startswith("--")}
    if new & {"--map", "--key-map"}:
        new |= {"--map", "--key-map"}
    kept: list[str] = []
    rest = iter(arguments)
    for text in rest:
        if text not in new:
            kept.append(text)
        elif text in _WITH_VALUE:
            next(rest, None)
    return kept


def _watch_methods(kind: type) -> None:
    """Apply the cures of what a class's own public methods refuse."""
    for name, member in list(vars(kind).items()):
        function = getattr(member, "__func__", member)
        if name.startswith("_") or not inspect.isfunction(function) or inspect.isgeneratorfunction(function):
            continue
        seen = _with_cures(function)
        setattr(kind, name, type(member)(seen) if isinstance(member, (classmethod, staticmethod)) else seen)


class _Popen(subprocess.Popen):  # type: ignore[type-arg]
    """Starts a command of shardload with this plugin in it."""

    def __init__(self, args: Any, *more: Any, env: Any = None, **keywords: Any) -> None:
        if (
            isinstance(args, list)
            and [*map(str, args[1:2])] == ["-m"]
            and args[2] in {"shardload", "shardload.cli"}
        ):
            args = [args[0], "-m", "tests.cures.process", *args[3:]]
            env = dict(os.environ if env is None else env)
            env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), env.get("PYTHONPATH"))))
            env["SHARDLOAD_CURES"] = os.environ.get("SHARDLOAD_CURES", "")
        super().__init__(args, *more, env=env, **keywords)


def watch() -> None:
    """Watch public functions, public methods and commands, from here on."""
    front.entry_point = _watched
    shardload.cli.run, shardload.cli._fail = run, _seen
    for name in ("KeyMap", "Checkpoint"):
        _watch_methods(getattr(shardload, name))


watch()
if os.environ.get("SHARDLOAD_CURES"):
    subprocess.Popen = _Popen  # type: ignore[misc]


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Run the tests that expect a refusal or a finding: the others provoke none, or they would fail."""
    kept = {id(item) for item in items if expects_a_refusal(item)}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table and every cure that failed, and add both to the file that SHARDLOAD_CURES names."""
    terminalreporter.section("cures")
    for line in TALLY.lines():
        terminalreporter.line(line)
    if os.environ.get("SHARDLOAD_CURES"):
        TALLY.add_to(Path(os.environ["SHARDLOAD_CURES"]))
