"""What a person does with a cure: reads the printed text, and types what it says."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_KEYWORD = re.compile(r"(?<![\w.'\"-])([a-z_]+)=(?!=)")
_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*)(?: ('[^']*'|[^\s;']*[^\s;,']))?")
_EDIT = re.compile(r"\bset (?P<fields>.+?) in config\.json")
_FIELD = re.compile(r'([\w.]+) to (\[[^\]]*\]|"[^"]*"|true|false|null|-?\d+)')
_DELETE = re.compile(r"\b(?:delete|remove) (\S+\.(?:json|safetensors|bin))")
_FOLDER = re.compile(
    r"\bpass the (?:path of one|file|folder): (\S[^;()]*)|(?:pass|and) ((?:'[^']*'|\S)+) as the place"
)
_QUOTED = re.compile(r"""'[^']*'(?:"'"'[^']*')*""")  # as a shell has it: 'it'"'"'s'
_COMMAND = re.compile(r"`([^`]+)`|: (shardload [a-z]+ [^;,]+)")
# Steps that nothing here can type: the text is a piece of advice, whatever else it names.
_BY_HAND = re.compile(
    r"\b(leave out [a-z_]+=|leave out --|leave [a-z_]+=\S* out|make the model|convert the files|load_adapter|"
    r"instead of|rather than|without the patterns|pass one of|belong to this|at a terminal|not both|"
    r"pass the file itself|load its base|load the base|build the base|save (it )?again|beside)\b"
)
FLAGS = frozenset(
    "--allow-links --check --copy --greedy --json --locked --merge --no-verify --offline --raw --trust-remote-code "
    "--verify --yes".split()
)
_TYPED = re.compile(r"shardload [a-z]+ (?![A-Z]+\b)[^…]+")  # one of ours, with nothing left to the reader
_CALL = re.compile(r"\bload_adapter\([^)]*\)")  # done to the loaded model
REPORT_MAP = "error.report.key_map"


@dataclass
class Typed:
    """One cure as steps: keywords of the call (or options), fields of config.json, files to delete, another path."""

    text: str
    keywords: dict[str, Any] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    path: str = ""
    commands: list[str] = field(default_factory=list)
    chosen: bool = False  # a value is left to the reader

    @property
    def says_something(self) -> bool:
        return (
            bool(self.keywords or self.options or self.fields or self.deleted or self.path or self.commands)
            and not self.chosen
        )

    @property
    def is_whole(self) -> bool:
        """Whether the text can be typed as it is, with nothing to choose or to do by hand."""
        typed_here = all(_TYPED.fullmatch(command) for command in self.commands)
        return self.says_something and typed_here and not _BY_HAND.search(self.text)

    @property
    def changes_files(self) -> bool:
        """Whether the folder is another one afterwards."""
        return bool(self.fields or self.deleted)

    def write_below(self, scratch: Path) -> None:
        """Have a command that writes a checkpoint write it there; that one is loaded then."""
        for number, command in enumerate(self.commands):
            words = shlex.split(command)
            if "-o" in words[:-1]:
                place = words.index("-o") + 1
                words[place] = self.path = str(scratch / words[place])
                self.commands[number] = shlex.join(words)

    def edit(self, folder: Path) -> None:
        """Do what the cure says to the files of the folder."""
        for name in self.deleted:
            (folder / name).unlink()
        if self.fields:
            path = folder / "config.json"
            config = json.loads(path.read_text())
            for dotted, value in self.fields.items():
                *parents, name = dotted.split(".")
                place = config
                for parent in parents:
                    place = place[parent]
                place[name] = value
            path.write_text(json.dumps(config))


def typed(text: str, *, as_command: bool = False) -> Typed:
    """Return the steps of a printed cure."""
    steps = Typed(text)
    for found in _EDIT.finditer(text):
        steps.fields |= {name: json.loads(value) for name, value in _FIELD.findall(found["fields"])}
        steps.chosen |= not steps.fields or " or " in found["fields"]
    steps.deleted += _DELETE.findall(text)
    steps.commands += [quoted or plain for quoted, plain in _COMMAND.findall(text)]
    if found := _FOLDER.search(text):
        text_of = found[2] or found[1].split(", ")[0].strip()
        quoted = _QUOTED.match(text, found.start(2 if found[2] else 1))
        (steps.path,) = shlex.split(quoted[0]) if quoted else [text_of]
    if as_command:
        for name, value in _OPTION.findall(_COMMAND.sub("", text)):
            values = [] if name in FLAGS else shlex.split(value)
            steps.options += [name, *values]
            steps.chosen |= bool(values) and (value.isupper() or ":" in value)
        return steps
    text = _CALL.sub("", text)
    for found in _KEYWORD.finditer(text):
        value = _literal(text[found.end() :])
        if value == REPORT_MAP:
            steps.keywords[found[1]] = REPORT_MAP
            continue
        try:
            typed_value = ast.literal_eval(value or "…")
        except (SyntaxError, ValueError):
            steps.chosen = True
        else:
            steps.keywords[found[1]] = typed_value
            steps.chosen |= "…" in str(typed_value)
    return steps


def _literal(text: str) -> str | None:
    """Return the Python literal that a text begins with; None for an ellipsis."""
    if text.startswith(("…", "...")):
        return None
    depth, quote = 0, ""
    for place, char in enumerate(text):
        if quote:
            if char == quote and text[place - 1] != "\\":
                quote = ""
                if not depth:
                    return text[: place + 1]
        elif char in "'\"":
            quote = char
        elif char in "[{(":
            depth += 1
        elif char in "]})":
            if not depth:
                return text[:place]
            depth -= 1
            if not depth:
                return text[: place + 1]
        elif not depth and not (char.isalnum() or char in "._+-"):
            return text[:place]
    return text


def copied(folder: Path, to: Path) -> Path:
    """Return a copy of the folder that a cure may change; links stay links."""
    shutil.copytree(folder, to, symlinks=True)
    return to
