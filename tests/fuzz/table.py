"""The table of docs/safety.md: threat, promise, tests, and figures that were counted when it was written."""

# ruff: noqa: E501, RUF001  a table reads best as it is; a multiplication sign is one
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.checkpoint import test_bombs, test_contradictions, test_paths
from tests.checkpoint.formats.test_gadgets import BROKEN, CALLS, TRICKS
from tests.checkpoint.formats.test_not_a_checkpoint import BROKEN as NOT_CHECKPOINTS
from tests.checkpoint.formats.test_not_a_checkpoint import KNOWN
from tests.checkpoint.formats.test_safetensors import LIES
from tests.checkpoint.sources.test_hub_faults import FAULTS, PLACES
from tests.cli.test_payloads import PAYLOADS
from tests.remote_code.test_hostile_configs import CONFIGS
from tests.remote_code.test_reach import REACHES
from tests.transformers_shim._chat_template.test_rendering import HOSTILE as TEMPLATES

if TYPE_CHECKING:
    from collections.abc import Mapping

BEGIN, END = "<!-- written by make fuzz -->", "<!-- end -->"


@dataclass(frozen=True)
class Row:
    """`tests` are files, or file::function; `fuzz` names targets of `tests.fuzz`, `disturbed` kinds of its
    `disturbances`; `figure` says what was counted.
    """

    threat: str
    promise: str
    tests: tuple[str, ...]
    figure: str
    fuzz: tuple[str, ...] = ()
    disturbed: tuple[str, ...] = ()


ROWS = (
    Row(
        "A pickle that runs code",
        "`torch.load` and `pickle` are never called: a reader of our own knows tensors and plain data, and nothing "
        "that runs. No keyword asks for another way, and there is no fallback.",
        ("tests/checkpoint/formats/test_gadgets.py", "tests/test_no_unpickling.py"),
        f"{len(CALLS)} calls, {len(TRICKS)} tricks and {len(BROKEN)} broken pickles, zip and legacy; 30 of them through "
        "`from_pretrained`: 0 side effects, 0 imports, 0 files opened",
        ("zip .bin files", "legacy .bin files"),
    ),
    Row(
        "Code of a repo",
        "Only the caller's argument decides, a config or an adapter never votes. Code of the Hub runs at a full commit or "
        "where a lock file approves its bytes; code of another repo is approved by itself; changed bytes are refused "
        "with a diff; nobody is asked without a terminal.",
        (
            "tests/remote_code/test_hostile_configs.py",
            "tests/remote_code/test_trust.py",
            "tests/remote_code/test_trust_lock.py",
            "tests/remote_code/test_reach.py",
            "tests/cli/test_trust.py",
        ),
        f"{len(CONFIGS)} hostile configs, as configs and in adapters: the sentinel never ran; {len(REACHES)} ways to reach "
        "outside are seen by parsing",
        ("configs",),
    ),
    Row(
        "Paths in an index, a config or an adapter; links",
        "Relative names only; the file lies below the root, or is the Hub cache's own blob. Links that leave a folder are "
        "followed with `allow_links=True` alone.",
        (
            "tests/checkpoint/test_paths.py",
            "tests/checkpoint/sources/test_names.py",
            "tests/checkpoint/sources/test_folder.py",
        ),
        f"{len(test_paths.NAMES)} names × {len(test_paths.PLACES)} documents and {len(test_paths.LINKED)} linked files: an "
        "audit hook saw 0 files opened outside",
    ),
    Row(
        "Lying safetensors headers",
        "What is accepted, the safetensors library accepts with the same names, shapes and bytes. Refused besides: keys "
        "twice, unknown fields, dimensions above 2^63-1.",
        ("tests/checkpoint/formats/test_safetensors.py",),
        f"{len(LIES)} headers, each with its error",
        ("safetensors headers",),
    ),
    Row(
        "A key that stands twice in JSON",
        "Refused in every document: index, config, tokenizer, adapter, key map, lock file.",
        ("tests/checkpoint/test_contradictions.py::test_a_key_that_stands_twice_is_refused_by_name",),
        f"{len(test_contradictions.TWICE)} documents",
    ),
    Row(
        "An index that is not its shards'",
        "What it names must lie where it says; a tensor in two shards is refused unless the index settles it. "
        "What it leaves out of its shards is loaded too, with a note, as by transformers.",
        (
            "tests/checkpoint/test_contradictions.py::test_an_index_that_is_not_its_shards_is_refused",
            "tests/checkpoint/test_contradictions.py::test_a_tensor_in_two_shards_is_settled_by_the_index_and_by_nothing_else",
            "tests/checkpoint/test_checkpoint.py",
        ),
        f"{len(test_contradictions.DISAGREE)} disagreements",
        ("indexes",),
    ),
    Row(
        "A file that is cut, overwritten or replaced while it is used",
        "Size, inode and time of change are checked when it is opened and at the end. `copy=True` reads instead of "
        "mapping: an error, never a signal. A mapped weight in use is at the mercy of its file.",
        ("tests/fuzz/test_changes.py",),
        "{changes}",
    ),
    Row(
        "Flipped content",
        "`shardload verify`, and `verify=True` in the pass of a load, hold every byte against the Hub's listing, its "
        "cache or SHA256SUMS; `--values` looks for NaN, Inf, matrices and tails of zeros.",
        ("tests/compare/test_verify.py",),
        "one bit flipped in 50 places of all files: 50 caught by `verify`; in 50 places of weights: 50 refused by a load",
    ),
    Row(
        "Bombs: zip, huge header, deep JSON, 10^12 elements",
        "Counted before they are parsed, judged before anything is allocated; stored zip entries only.",
        (
            "tests/checkpoint/test_bombs.py",
            "tests/checkpoint/formats/test_gadgets.py::test_bombs_stay_small_and_quick",
            "tests/checkpoint/formats/test_safetensors.py::test_bombs_stay_small_and_quick",
        ),
        f"{len(test_bombs.BOMBS)} here and 15 weight files: each below 200 MB, interpreter included, and 20 s of a processor",
    ),
    Row(
        "A config that asks for any size",
        "A model over 4 times its checkpoint and over 1 GB is refused before what is missing is made, unless "
        "`allow_missing` names it; constructors that make parameters without end are ended.",
        ("tests/model/test_shell_sizes.py",),
        "refused before any of it is in memory",
    ),
    Row(
        "A file that is no checkpoint",
        "Named for what it is (LFS pointer, HTML page, GGUF, archive, empty, …), with what to do.",
        ("tests/checkpoint/formats/test_not_a_checkpoint.py",),
        f"{len(NOT_CHECKPOINTS) + len(KNOWN)} kinds of files",
    ),
    Row(
        "Chat templates",
        "Jinja2's immutable sandbox without a loader, in a process of its own, limited in time, memory and output.",
        ("tests/transformers_shim/_chat_template/test_rendering.py",),
        f"{len(TEMPLATES)} hostile templates: 0 escapes, each within its processor time",
    ),
    Row(
        "Names that attack a terminal",
        "Control, bidi and invisible characters are escaped wherever a name is printed; JSON output is ASCII. No page "
        "(HTML) is written by this version.",
        ("tests/cli/test_payloads.py",),
        f"{len(PAYLOADS)} payloads × 22 commands, reports, errors, adapters",
    ),
    Row(
        "A crash or a full disk while writing",
        "One writer: written in a hidden folder, flushed, moved in by renames, an index last; a journal by which the "
        "next call completes what was killed; a lock against a second writer; nothing through links. A full disk is said "
        "before it happens where it can be known.",
        (
            "tests/_system/test_atomic_file.py",
            "tests/test_saving.py::test_a_save_over_another_that_is_killed_never_leaves_a_mixture",
            "tests/test_saving.py::test_a_save_over_another_that_fails_between_two_files_leaves_the_old_one",
            "tests/writing/test_killed_saves.py",
            "tests/writing/test_killed_writing.py",
            "tests/writing/test_staging.py",
        ),
        "killed or failed at every step: whole, old or absent, never a mixture; a disk that is really full",
    ),
    Row(
        "A network that cuts, stalls, lies and refuses",
        "Retried, resumed or said, with the file's name; the cache is never left with a wrong file.",
        (
            "tests/checkpoint/sources/test_hub_faults.py",
            "tests/checkpoint/sources/test_hub.py",
            "tests/checkpoint/sources/test_hub_errors.py",
            "tests/checkpoint/sources/test_hub_repo.py",
            "tests/checkpoint/sources/test_ranges.py",
            "tests/test_load_hub.py",
        ),
        f"{len(FAULTS)} faults × {len(PLACES)} places: every one mended or one typed error; healed, the same cache gives the "
        "right bytes",
    ),
    Row(
        "A key map of somebody else",
        "A map is data: names and arithmetic on shapes. Applied and inverted it gives the same headers; a mutated file "
        "is one typed error or a map that is written as it was read.",
        ("tests/keymap/test_key_map_random.py", "tests/keymap/test_document.py"),
        "every rule, and random compositions of up to six, four layouts of shards each",
        ("key map round trips", "key map files"),
    ),
    Row(
        "Ctrl-C",
        "At any event of a load or a save: torch, its modes, threads and files are as before, and the next one works.",
        (
            "tests/test_interrupts.py::test_ctrl_c_leaves_nothing_behind",
            "tests/test_interrupts.py::test_the_next_save_after_ctrl_c_completes",
        ),
        "loads mapped, cast and copied, and saves, interrupted at every so-many-th event",
        disturbed=("interrupts",),
    ),
    Row(
        "Forks",
        "A child that is forked while threads load holds no lock that nobody opens: it loads.",
        ("tests/test_interrupts.py::test_children_forked_while_threads_load_can_load",),
        "children beside two threads that load",
        disturbed=("forks",),
    ),
    Row(
        "Threads that load at the same time",
        "Each gets its own checkpoint's weights; torch is as before.",
        ("tests/fuzz/test_disturbances.py",),
        "four threads, four checkpoints, mapped, copied and cast",
        disturbed=("threads",),
    ),
    Row(
        "Two writers and a reader of one folder",
        "A reader gets one of both models, whole, or an error; so does whoever comes last.",
        ("tests/fuzz/test_disturbances.py",),
        "two processes that save while a third loads: 0 mixtures",
        disturbed=("writers",),
    ),
    Row(
        "Tensors that share bytes in the file",
        "Parameters never share memory: a step on one moves no other, as with torch's own loader.",
        ("tests/loading/test_shared_bytes.py",),
        "random views of one storage, zip and legacy, mapped and copied",
        disturbed=("shared bytes",),
    ),
)


def written(passed: Mapping[str, int], tallies: Mapping[str, str], changes: str) -> str:
    """Return the table in Markdown. `passed` counts passed tests by selector; `tallies` are of targets and kinds."""
    lines = ["| threat | promise | tests | figure |", "|---|---|---|---|"]
    for row in ROWS:
        tests = "<br>".join(f"`{selector}` {passed[selector]:,}" for selector in row.tests)
        figures = [row.figure.replace("{changes}", changes)]
        figures += [f"{name}: {tallies[name]}" for name in (*row.fuzz, *row.disturbed)]
        lines.append(f"| {row.threat} | {row.promise} | {tests} | {'<br>'.join(figures)} |")
    return "\n".join(lines)
