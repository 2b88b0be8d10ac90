"""Take each fix out of a copy of the package and show that the test of its trap then fails.

    python scripts/take_fixes_out.py [--write docs/traps.md] [NAME …]

A fix is taken out by replacing its text; a text that is not found is an error, so this list can't go stale
unnoticed. Each row runs one test in a copy of `shardload/` and `tests/`, first whole (it has to pass), then
without the fix (it has to fail).
"""

# ruff: noqa: E501 - the texts that are taken out are as long as they are
from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Fix:
    """What guards against one trap: the text in `file` that `without` replaces, and the test that must notice."""

    trap: str
    test: str
    file: str
    text: str
    without: str


FIXES = [
    Fix(
        "torch.device('meta') alone leaves computed tables on meta",
        "test_skip_init_leaves_no_parameter_in_memory_and_a_refused_table_is_as_computed",
        "shell.py",
        "        model = make()\n",
        '        with torch.device("meta"):\n            model = make()\n',
    ),
    Fix(
        "skip_init makes real parameters",
        "test_a_parameter_is_on_meta_as_soon_as_it_is_made",
        "construction.py",
        "        if not data.is_meta:\n",
        "        if False:\n",
    ),
    Fix(
        "parameters made past nn.Parameter stay real",
        "test_a_parameter_made_in_its_own_way_is_swept_to_meta",
        "shell.py",
        "        _sweep(model, state.born)\n",
        "",
    ),
    Fix("the collector runs while a shell is built", "test_the_shell_pauses_the_collector", "construction.py", "        with default_dtype_kept(), gc_paused():\n", "        with default_dtype_kept():\n"),
    Fix(
        "initialisers run in a shell",
        "test_initialisers_cost_nothing_in_a_shell",
        "construction.py",
        "        for name in _initialisers():\n",
        "        for name in []:\n",
    ),
    Fix(
        "a filter of all keys at every module (hooked subtree)",
        "test_work_is_linear_in_the_number_of_tensors[True]",
        "walker.py",
        "buckets.get(name, {})",
        "{k: v for k, v in state.items() if k.startswith(prefix + name)}",
    ),
    Fix(
        "a search of all modules for every key (plain modules)",
        "test_work_is_linear_in_the_number_of_tensors[False]",
        "stream.py",
        'module = self.comparison.zones.plain[f"{prefix}." if prefix else ""]',
        'module = next(m for p, m in list(self.comparison.zones.plain.items()) if p.strip() == (f"{prefix}." if prefix else ""))',
    ),
    Fix(
        "a root hook that renames is passed over",
        "test_a_root_hook_that_renames_loses_nothing",
        "walker.py",
        "    if module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks:\n",
        "    if module._load_state_dict_post_hooks:\n",
    ),
    Fix(
        "a module with a loader of its own is loaded before its second shard is there",
        "test_a_hook_that_fuses_gets_all_its_tensors_from_two_shards",
        "stream.py",
        "if self.waiting[root] == 0:",
        "if self.arrived.get(root):",
    ),
    Fix(
        "hook-fused keys are judged by their names",
        "test_a_hook_that_fuses_gets_all_its_tensors_from_two_shards",
        "rehearsal.py",
        "            result = _walk_on_meta(root, entries, versions, _Watch(plan, shell))\n",
        "            result = _walk_on_meta(root, entries, versions, _Watch(plan, shell))\n"
        "            result.missing = [name for name in shell.slots if name not in entries]\n",
    ),
    Fix(
        "the rehearsal leaves meta tensors and broken ties behind",
        "test_the_rehearsal_judges_hooks_and_leaves_parameters_buffers_and_ties_alone",
        "rehearsal.py",
        "            snapshot.restore()\n",
        "            pass\n",
    ),
    Fix(
        "no rehearsal: what hooks make is not judged before the load",
        "test_the_rehearsal_judges_hooks_and_leaves_parameters_buffers_and_ties_alone",
        "comparison.py",
        "rehearse(self.plan, shell, self.zones.roots, self.versions)",
        "rehearse(self.plan, shell, (), self.versions)",
    ),
    Fix(
        "lists that hooks edit in place keep what the rehearsal did",
        "test_hooks_run_twice_first_on_meta",
        "walker.py",
        "            for container, content in containers:\n",
        "            for container, content in ():\n",
    ),
    Fix(
        "a hook that looks at values stops the plan",
        "test_a_hook_that_looks_at_values_is_judged_at_the_load",
        "rehearsal.py",
        "        except Exception as error:",
        "        except ZeroDivisionError as error:",
    ),
    Fix(
        "a hook that looks at values is not judged at all",
        "test_a_hook_that_looks_at_values_is_judged_at_the_load",
        "stream.py",
        "        if faults:\n",
        "        if False:\n",
    ),
    Fix(
        "stored versions do not reach the modules",
        "test_metadata_versions_reach_the_modules",
        "walker.py",
        "**versions.get(prefix[:-1], {}), ",
        "",
    ),
    Fix(
        "num_batches_tracked of an old checkpoint is called missing",
        "test_num_batches_tracked_of_an_old_checkpoint_is_not_missing",
        "walker.py",
        "{**versions.get(prefix[:-1], {}), ",
        '{"version": 2, ',
    ),
    Fix(
        "an override that copies in place copies into meta",
        "test_an_override_that_copies_in_place_fills_a_shell",
        "stream.py",
        "loans = self.stand_ins.lend(module, prefix)",
        "loans: list = []",
    ),
    Fix(
        "an override that ignores its weight leaves it uninitialised",
        "test_an_override_that_ignores_its_weight_never_leaves_it_uninitialised",
        "stand_in.py",
        "        if unwritten or (",
        "        if (",
    ),
    Fix(
        "set_extra_state is passed over",
        "test_extra_state_is_loaded",
        "walker.py",
        "    if kind.set_extra_state is not nn.Module.set_extra_state:\n",
        "    if False:\n",
    ),
    Fix(
        "an entry that is no tensor is dropped",
        "test_an_entry_that_is_no_tensor_is_never_dropped",
        "plan.py",
        "            plan.faults.append(_not_a_tensor(name, stored, checkpoint))\n",
        "            pass\n",
    ),
    Fix(
        "an overridden load_state_dict is passed over",
        "test_an_overridden_load_state_dict_is_declined_by_name",
        "comparison.py",
        "    if kind.load_state_dict is not nn.Module.load_state_dict:\n",
        "    if False:\n",
    ),
    Fix(
        "what a module does when its weight is set is passed over",
        "test_it_is_filled_as_torch_fills_it[own __setattr__]",
        "stream.py",
        "        if type(module).__setattr__ is nn.Module.__setattr__:\n            slots: ",
        "        if True:\n            slots: ",
    ),
    Fix(
        "parameters kept in lists stay on meta",
        "test_parameters_that_a_module_also_keeps_in_a_list_are_the_loaded_ones",
        "finish.py",
        "    renew()\n",
        "",
    ),
    Fix(
        "a stored copy of a computed buffer is a fault",
        "test_a_stored_copy_of_a_computed_buffer_is_a_note",
        "plan.py",
        "    elif is_recomputed(slot):\n        plan.computed.append(key)\n",
        "    elif is_recomputed(slot):\n        plan.faults.append(unexpected_fault(key, ref))\n",
    ),
    Fix(
        "a stored copy of a computed buffer below a hook is a fault",
        "test_a_stored_copy_of_a_computed_buffer_is_a_note_below_a_hook_too",
        "rehearsal.py",
        "        if slot is not None and is_recomputed(slot):\n",
        "        if False:\n",
    ),
    Fix(
        "what the class itself declares is a fault",
        "test_keys_that_the_class_declares_are_lines_and_not_faults",
        "plan.py",
        "    declared = getattr(shell.model, attribute, None) or ()\n",
        "    declared = ()\n",
    ),
    Fix(
        "a tie is broken by assigning",
        "test_one_stored_copy_fills_both_names_of_a_tie",
        "finish.py",
        "    retie(shell, filled)\n",
        "",
    ),
    Fix(
        "two stored copies of a tie: the last one wins in silence",
        "test_two_stored_copies_of_a_tie_that_differ_are_never_overwritten_in_silence",
        "filling.py",
        "        compare_stored_copies(shell, comparison.plan, checkpoint, copy=copy)\n",
        "",
    ),
    Fix(
        "every name of a tie has to be stored",
        "test_one_stored_copy_fills_both_names_of_a_tie",
        "comparison.py",
        "        settle_ties(self.plan, shell)\n",
        "",
    ),
    Fix(
        "a slice keeps the whole tensor alive",
        "test_a_region_does_not_keep_the_tensor_alive",
        "shard.py",
        "    if region is None:\n"
        "        with Shard(file.local_path(), expected=expected, mappings=mappings) as shard:\n            return shard.tensor(ref)\n",
        "    with Shard(file.local_path()) as shard:\n        return shard.tensor(ref)[region or ()]\n",
    ),
    Fix(
        "every view has the storage of the whole file",
        "test_each_parameter_has_a_storage_of_its_own_extent",
        "shard.py",
        "            flat = torch.frombuffer(self._map, dtype=dtype, count=count, offset=ref.span.start)\n",
        "            whole = torch.frombuffer(self._map, dtype=torch.uint8)\n"
        "            flat = whole[ref.span.start : ref.span.start + count * dtype.itemsize].view(dtype)\n",
    ),
    Fix(
        "an unaligned tensor is handed to kernels",
        "test_an_unaligned_tensor_is_copied",
        "shard.py",
        "if self._map is None or ref.span.start % dtype.itemsize:",
        "if self._map is None:",
    ),
    Fix(
        "a file that was cut is read past its end",
        "test_a_file_that_was_cut_after_it_was_opened_is_a_clean_error",
        "shard.py",
        "        if ref.span.stop > self._opened[1]:\n",
        "        if False:\n",
    ),
    Fix(
        "a file that changes under a mapping is not noticed",
        "test_a_file_that_changes_while_it_is_loaded_is_noticed",
        "shard.py",
        "        if error is None and closed != self._opened:\n",
        "        if False:\n",
    ),
    Fix(
        "copy=True maps all the same",
        "test_copy_true_survives_a_file_that_is_cut_later",
        "stream.py",
        "with Shard(path, copy=self.copy, ",
        "with Shard(path, ",
    ),
    Fix(
        "a fault in the middle leaves half a model",
        "test_a_fault_in_the_middle_puts_everything_back",
        "filling.py",
        "            module._parameters.update(parameters)\n",
        "            pass\n",
    ),
    Fix(
        "every read maps the file again",
        "test_neither_reads_nor_loads_hold_descriptors_and_reads_share_a_mapping",
        "shard.py",
        "        if self._mappings is None:\n",
        "        if True:\n",
    ),
    Fix(
        "every shard keeps a descriptor",
        "test_neither_reads_nor_loads_hold_descriptors_and_reads_share_a_mapping",
        "mapping.py",
        "    if libc is None:\n        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)\n",
        "    if libc is not None:\n        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)\n",
    ),
    Fix(
        "skip_init imports sympy",
        "test_a_load_with_skip_init_does_not_import_sympy",
        "construction.py",
        '        _replace(nn.Module, "to_empty", _to_empty_on_meta(nn.Module.to_empty))\n',
        "",
    ),
    Fix(
        "the caller's own module is taken for a shell's",
        "test_a_module_of_the_callers_keeps_its_weights",
        "shell.py",
        "        if id(module) not in born:\n",
        "        if False:\n",
    ),
    Fix(
        "a table on the device of a weight lands on meta",
        "test_a_table_on_the_device_of_a_weight_is_real",
        "construction.py",
        '        _replace(nn.Parameter, "device", property(_device_of))\n',
        "",
    ),
    Fix(
        "a loader that writes a part leaves the rest as NaN",
        "test_an_override_that_writes_a_part_leaves_the_rest_as_the_class_makes_it",
        "stand_in.py",
        "        if key in self._values:\n",
        "        if False:\n",
    ),
    Fix(
        "what a loader wrote into an existing module stays after a failure",
        "test_an_override_that_copies_in_place_into_a_real_module_is_undone",
        "stand_in.py",
        "            return parameter.detach().clone()\n",
        "            return parameter.detach()\n",
    ),
    Fix(
        "an override that assigns as torch does costs memory",
        "test_an_override_that_assigns_as_torch_does_needs_no_memory",
        "rehearsal.py",
        "                if parameter is not None and parameter is before.get(name):\n",
        "                if parameter is not None:\n",
    ),
    Fix(
        "a root hook is a way to load nothing",
        "test_a_root_hook_is_no_way_to_load_nothing",
        "comparison.py",
        "        if allowed and not self.plan.direct and not taken:\n",
        "        if allowed and not self.plan.direct and not any(self.plan.handed.values()):\n",
    ),
    Fix(
        "leniency takes a quantised checkpoint for another",
        "test_leniency_does_not_take_a_quantised_checkpoint_for_another",
        "comparison.py",
        " or any(finding.declines for finding in self.report.findings):\n",
        ":\n",
    ),
    Fix(
        "copies of a tie that come through a hook are not compared",
        "test_two_copies_of_a_tie_that_come_through_a_hook_are_compared_too",
        "ties.py",
        "        if first is not second and not same_bytes(first, second):\n",
        "        if False:\n",
    ),
    Fix(
        "a buffer that nobody initialised passes for a value",
        "test_an_uninitialised_buffer_is_no_value_either",
        "finish.py",
        "class_values(shell, [*lacking, *suspects])",
        "class_values(shell, lacking)",
    ),
    Fix(
        "a stored value for a plain attribute is passed over",
        "test_a_stored_value_for_a_plain_attribute_is_never_passed_over",
        "plan.py",
        "        plan.faults.append(replace(unexpected_fault(key, ref), note=PLAIN_ATTRIBUTE))\n",
        "        plan.computed.append(key)\n",
    ),
    Fix(
        "versions are lost under a key map",
        "test_versions_follow_a_key_map",
        "comparison.py",
        "        self.versions = _renamed_versions(checkpoint, self.plan)\n",
        "        self.versions = checkpoint.versions\n",
    ),
    Fix(
        "two names of one stored tensor are one memory",
        "test_a_second_name_gets_memory_of_its_own_unless_it_is_tied",
        "stream.py",
        "        if placed is stored and key in self.comparison.plan.copied:\n",
        "        if False:\n",
    ),
    Fix(
        "a loader that counts on contiguous tensors is handed a turned view",
        "test_hooks_get_what_a_converted_file_would_give",
        "stream.py",
        "        elif key in self.comparison.plan.turned:\n",
        "        elif False:\n",
    ),
    Fix(
        "a key map is applied to another checkpoint",
        "test_a_map_is_read_from_its_file_and_refused_for_another_checkpoint",
        "plan.py",
        "    key_map.require_fit(checkpoint.tensors, mapped)\n",
        "",
    ),
    Fix(
        "save leaves out what its key map can't make again",
        "test_what_would_be_lost_is_refused",
        "saving.py",
        "        _refuse_loss(state, key_map.map_headers(made).tensors)\n",
        "",
    ),
    Fix(
        "headers import torch",
        "test_opening_a_folder_does_not_import_torch",
        "checkpoint.py",
        "from types import MappingProxyType\n",
        "from types import MappingProxyType\n\nimport torch  # noqa: F401\n",
    ),
    Fix(
        "the package imports its parts at once",
        "test_importing_shardload_brings_in_nothing_heavy",
        "__init__.py",
        '__version__ = "0.1.0"\n',
        '__version__ = "0.1.0"\nimport shardload.loading.fill  # noqa: E402, F401\n',
    ),
    Fix(
        "local checkpoints import huggingface_hub",
        "test_a_local_load_imports_neither_huggingface_hub_nor_transformers",
        "checkpoint.py",
        "from types import MappingProxyType\n",
        "from types import MappingProxyType\n\nimport huggingface_hub  # noqa: F401\nhuggingface_hub.HfApi\n",
    ),
]  # fmt: skip


def run_test(folder: Path, test: str) -> bool:
    """Return whether a test passes in `folder`."""
    name = test.partition("[")[0]
    file = next(
        path for path in sorted((folder / "tests").rglob("test_*.py")) if f"def {name}(" in path.read_text()
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            str(file.relative_to(folder)),
            "-k",
            name,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        if "SIGBUS" in done.stdout or done.returncode < 0:
            return False
        raise SystemExit(f"{test} could not be run:\n{done.stdout}\n{done.stderr}")
    return done.returncode == 0


def try_fix(fix: Fix) -> tuple[bool, bool]:
    """Return whether the test passes with the fix, and whether it fails without."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for part in ("shardload", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        passes = run_test(folder, fix.test)
        path = folder / "shardload" / fix.file
        source = path.read_text()
        if source.count(fix.text) != 1:
            raise SystemExit(
                f"{fix.file} has this text {source.count(fix.text)} times, not once:\n{fix.text}"
            )
        path.write_text(source.replace(fix.text, fix.without))
        return passes, not run_test(folder, fix.test)


def main() -> int:
    """Run the rows that are named (all by default), print the table, and return 1 when a row is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of traps or tests; all rows by default")
    parser.add_argument("--write", type=Path, help="write the table to this Markdown file")
    options = parser.parse_args()
    chosen = [
        fix
        for fix in FIXES
        if not options.names or any(name in f"{fix.trap} {fix.test}" for name in options.names)
    ]
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(try_fix, chosen))
    lines = ["| trap | test | with the fix | without it |", "|---|---|---|---|"]
    for fix, (passes, fails) in zip(chosen, verdicts, strict=True):
        lines.append(
            f"| {fix.trap} | `{fix.test}` | {'passes' if passes else 'FAILS'} | {'fails' if fails else 'PASSES'} |"
        )
    table = "\n".join(lines)
    print(table)
    if options.write:
        options.write.write_text(
            "# Traps, and the tests that know them\n\nMade by `python scripts/take_fixes_out.py --write docs/traps.md`: "
            f"{len(chosen)} fixes, each taken out of a copy of the package.\n\n{table}\n"
        )
    return 0 if all(passes and fails for passes, fails in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
