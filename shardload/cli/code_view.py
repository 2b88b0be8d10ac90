"""`shardload inspect --code`: the names that a repo's code imports from transformers and others. Runs none of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from shardload.cli import output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.remote_code.asked_names import AskedName, AskedPackage
    from shardload.remote_code.listing import ListedFile
    from shardload.where import Where

_MEANINGS = {
    "not available": "answers False",
    "base": "as the general class: settings from config.json alone",
    "placeholder": "raises when it is used",
    "not there": "the code goes on without it",
    "lacks it": "importing the code fails",
}


def show(where: Where, *, as_json: bool) -> None:
    """Show the files that loading `where` would run, the names they import, and those that the stand-in lacks."""
    from shardload.checkpoint.json_file import read_config
    from shardload.checkpoint.sources import find_source
    from shardload.library_parts.release import installed
    from shardload.remote_code.asked_names import asked_names, library_files
    from shardload.remote_code.listing import code_files

    source, _ = find_source(where)
    config = read_config(source)
    files = code_files(source, config)
    names, packages = asked_names(source, config)
    parts = library_files(source, config)
    if as_json:
        output.say_json(
            {
                "where": source.label,
                "revision": source.revision,
                "files": [asdict(file) for file in files],
                "names": [asdict(name) for name in names],
                "packages": [asdict(package) for package in packages],
                "parts": [{"module": module, "sha256": sha256} for module, sha256 in parts.items()],
            }
        )
        return
    title = output.paint(output.escape(source.label), bold=True)
    if not files:
        output.say(f"{title}\n  config.json names no code of the repo's own")
        return
    release = installed()
    blocks = [
        _file_lines(files),
        _name_lines(names),
        _part_lines(parts, release.name if release else ""),
        _package_lines(packages),
    ]
    output.say("\n\n".join("\n".join(block) for block in ([title], *blocks) if block))


def _file_lines(files: tuple[ListedFile, ...]) -> list[str]:
    rows = [("file that would run", "sha256")]
    rows += [
        (output.escape(file.name), file.sha256[:12] if file.sha256 else f"of {output.escape(file.label)}")
        for file in files
    ]
    return _table(rows)


def _name_lines(names: tuple[AskedName, ...]) -> list[str]:
    if not names:
        return []
    rows = [("name of transformers", "shardload's stand-in", "asked for at")]
    for asked in names:
        meaning = _MEANINGS.get(asked.answer)
        answer = f"{asked.answer}: {meaning}" if meaning else asked.answer
        if asked.part is not None:
            answer = f"{asked.answer}; has a part"
        rows.append((output.escape(asked.name), answer, output.escape(f"{asked.file}:{asked.line}")))
    counts = Counter(asked.answer for asked in names)
    summary = ", ".join(f"{answer} {count}" for answer, count in counts.items())
    return [*_table(rows), "", f"  {len(names)} names: {summary}"]


def _part_lines(parts: dict[str, str], release: str) -> list[str]:
    if not parts:
        return []
    rows = [(f"file of {release} that would run beside it, where a placeholder does not do", "sha256")]
    rows += [(f"{module.replace('.', '/')}.py", sha256[:12]) for module, sha256 in parts.items()]
    return _table(rows)


def _package_lines(packages: tuple[AskedPackage, ...]) -> list[str]:
    if not packages:
        return []
    rows = [("package", "", "imported at")]
    for package in packages:
        here = "installed" if package.installed else "not installed"
        if not package.installed and package.guarded:
            here += "; in a try, an if or a function"
        rows.append((output.escape(package.name), here, output.escape(f"{package.file}:{package.line}")))
    return _table(rows)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = output.columns(rows, indent="  ")
    return [output.paint(lines[0], dim=True), *lines[1:]]
