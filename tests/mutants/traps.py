"""The table of traps, read by `python -m tests.mutants` and tests/test_mutants.py."""

from __future__ import annotations

from tests.mutants.trap import Trap

TRAPS = (
    # Hooks and loaders of a module's own.
    Trap(
        "a filter of all keys at every module (hooked subtree)",
        "tests/test_call_budget.py::test_work_is_linear_in_the_number_of_tensors[True]",
        exempt="the trap is an added step: no mutant adds one",
    ),
    Trap(
        "a search of all modules for every key (plain modules)",
        "tests/test_call_budget.py::test_work_is_linear_in_the_number_of_tensors[False]",
        exempt="the trap is an added step: no mutant adds one",
    ),
    Trap(
        "a root hook that renames is passed over",
        "tests/model/test_module_loaders.py::test_a_root_hook_that_renames_loses_nothing",
        ("shardload.model.shell:_Look._place",),
        fix="_pre_hooks",
    ),
    Trap(
        "a module with a loader of its own is loaded before its second shard is there",
        "tests/loading/test_subtrees.py::test_a_hook_that_fuses_gets_all_its_tensors_from_two_shards",
        ("shardload.loading.subtrees:Subtrees.deliver",),
        fix="_waiting[root] == 0",
    ),
    Trap(
        "hook-fused keys are judged by their names",
        "tests/loading/test_subtrees.py::test_a_hook_that_fuses_gets_all_its_tensors_from_two_shards",
        ("shardload.loading.plan:match",),
        fix="hands_over",
    ),
    Trap(
        "the rehearsal leaves meta tensors and broken ties behind",
        "tests/loading/test_rehearsal.py"
        "::test_the_rehearsal_judges_hooks_and_leaves_parameters_buffers_and_ties_alone",
        ("shardload.loading.rehearsal:rehearse", "shardload.model.module_loaders:Snapshot.restore"),
        fix="restore",
    ),
    Trap(
        "no rehearsal: what hooks make is not judged before the load",
        "tests/loading/test_rehearsal.py"
        "::test_the_rehearsal_judges_hooks_and_leaves_parameters_buffers_and_ties_alone",
        ("shardload.loading.judge:Comparison.__init__", "shardload.loading.rehearsal:rehearse"),
        fix="self_loading",
    ),
    Trap(
        "lists that hooks edit in place keep what the rehearsal did",
        "tests/loading/test_rehearsal.py::test_hooks_run_twice_first_on_meta",
        ("shardload.model.module_loaders:Snapshot.restore", "shardload.model.module_loaders:_containers"),
        fix="container",
    ),
    Trap(
        "a hook that looks at values stops the plan",
        "tests/loading/test_rehearsal.py::test_a_hook_that_looks_at_values_is_judged_at_the_load",
        ("shardload.loading.rehearsal:rehearse",),
        fix="except Exception",
    ),
    Trap(
        "a hook that looks at values is not judged at all",
        "tests/loading/test_rehearsal.py::test_a_hook_that_looks_at_values_is_judged_at_the_load",
        ("shardload.loading.subtrees:Subtrees._walk",),
        fix="if faults` → False",
    ),
    Trap(
        "stored versions do not reach the modules",
        "tests/model/test_module_loaders.py::test_metadata_versions_reach_the_modules",
        ("shardload.model.module_loaders:_walk",),
        fix="versions",
    ),
    Trap(
        "num_batches_tracked of an old checkpoint is called missing",
        "tests/model/test_module_loaders.py::test_num_batches_tracked_of_an_old_checkpoint_is_not_missing",
        ("shardload.model.shell:_Look._place",),
        fix="`kind._load_from_state_dict",
    ),
    Trap(
        "set_extra_state is passed over",
        "tests/model/test_module_loaders.py::test_extra_state_is_loaded",
        ("shardload.model.shell:_Look._place",),
        fix="`kind.set_extra_state",
    ),
    Trap(
        "an overridden load_state_dict is passed over",
        "tests/loading/test_judge.py::test_an_overridden_load_state_dict_is_declined_by_name",
        ("shardload.loading.judge:_refuse_own_load_state_dict",),
    ),
    Trap(
        "what a module does when its weight is set is passed over",
        "tests/test_kinds_of_modules.py::test_it_is_filled_as_torch_fills_it[own __setattr__-shell]",
        ("shardload.loading.stream:_Stream._assign",),
        fix="__setattr__",
    ),
    # Loaders that write in place.
    Trap(
        "an override that copies in place copies into meta",
        "tests/loading/test_in_place.py::test_an_override_that_copies_in_place_fills_a_shell",
        ("shardload.loading.in_place:StandIns.lend",),
    ),
    Trap(
        "an override that ignores its weight leaves it uninitialised",
        "tests/loading/test_in_place.py"
        "::test_an_override_that_ignores_its_weight_never_leaves_it_uninitialised",
        ("shardload.loading.in_place:_Loan.settle", "shardload.loading.in_place:_Loan.__init__"),
        fix="unwritten",
    ),
    Trap(
        "a loader that writes a part leaves the rest as NaN",
        "tests/loading/test_in_place.py"
        "::test_an_override_that_writes_a_part_leaves_the_rest_as_the_class_makes_it",
        ("shardload.loading.in_place:StandIns._value",),
        fix="if key in self._values",
    ),
    Trap(
        "what a loader wrote into an existing module stays after a failure",
        "tests/loading/test_in_place.py::test_an_override_that_copies_in_place_into_a_real_module_is_undone",
        ("shardload.loading.in_place:StandIns.lend",),
        fix="for ",
    ),
    Trap(
        "an override that assigns as torch does costs memory",
        "tests/loading/test_in_place.py::test_an_override_that_assigns_as_torch_does_needs_no_memory",
        ("shardload.loading.rehearsal:_Watch.__call__",),
        fix="before",
    ),
    # What is stored, and what the class computes.
    Trap(
        "an entry that is no tensor is dropped",
        "tests/loading/test_plan.py::test_an_entry_that_is_no_tensor_is_never_dropped",
        ("shardload.loading.plan:_hand_over_objects",),
        fix="not_a_tensor_fault",
    ),
    Trap(
        "a stored copy of a computed buffer is a fault",
        "tests/loading/test_plan.py::test_a_stored_copy_of_a_computed_buffer_is_a_note",
        ("shardload.loading.plan:_match_one", "shardload.loading.plan:is_recomputed"),
    ),
    Trap(
        "a stored copy of a computed buffer below a hook is a fault",
        "tests/loading/test_rehearsal.py::test_a_stored_copy_of_a_computed_buffer_is_a_note_below_a_hook_too",
        ("shardload.loading.rehearsal:faults_of",),
        fix="is_recomputed",
    ),
    Trap(
        "what the class itself declares is a fault",
        "tests/loading/test_plan.py::test_keys_that_the_class_declares_are_lines_and_not_faults",
        ("shardload.loading.leniency:_ignored_by_class", "shardload.loading.leniency:set_aside"),
    ),
    Trap(
        "a stored value for a plain attribute is passed over",
        "tests/loading/test_plan.py::test_a_stored_value_for_a_plain_attribute_is_never_passed_over",
        ("shardload.loading.plan:_match_one", "shardload.loading.plan:is_recomputed"),
        fix="is_stored",
    ),
    Trap(
        "a buffer that nobody initialised passes for a value",
        "tests/loading/test_finish.py::test_an_uninitialised_buffer_is_no_value_either",
        ("shardload.loading.class_values:ClassValues.initialise",),
        fix="uninitialised",
    ),
    Trap(
        "parameters kept in lists stay on meta",
        "tests/model/test_aliases.py::test_parameters_that_a_module_also_keeps_in_a_list_are_the_loaded_ones",
        ("shardload.loading.finish:finish", "shardload.model.aliases:References.renew"),
        fix="references",
    ),
    # Ties.
    Trap(
        "a tie is broken by assigning",
        "tests/loading/test_ties.py::test_one_stored_copy_fills_both_names_of_a_tie",
        ("shardload.loading.finish:finish", "shardload.loading.ties:retie"),
        fix="ties",
    ),
    Trap(
        "every name of a tie has to be stored",
        "tests/loading/test_ties.py::test_one_stored_copy_fills_both_names_of_a_tie",
        ("shardload.loading.judge:Comparison.__init__", "shardload.loading.plan:settle_ties"),
        fix="ties",
    ),
    Trap(
        "two stored copies of a tie: the last one wins in silence",
        "tests/loading/test_ties.py::test_two_stored_copies_of_a_tie_that_differ_are_never_overwritten_in_silence",
        ("shardload.loading.ties:compare_stored_copies", "shardload.loading.ties:_equal"),
    ),
    Trap(
        "copies of a tie that come through a hook are not compared",
        "tests/loading/test_ties.py::test_two_copies_of_a_tie_that_come_through_a_hook_are_compared_too",
        ("shardload.loading.ties:_refuse_different",),
    ),
    # Files and memory.
    Trap(
        "a slice keeps the whole tensor alive",
        "tests/checkpoint/test_regions.py::test_a_region_does_not_keep_the_tensor_alive",
        ("shardload.checkpoint.regions:read_tensor",),
        fix="`if taken.shape == block.shape` → True",
    ),
    Trap(
        "every view has the storage of the whole file",
        "tests/loading/test_stream.py::test_each_parameter_has_a_storage_of_its_own_extent",
        exempt="the trap is an added step: no mutant adds one",
    ),
    Trap(
        "an unaligned tensor is handed to kernels",
        "tests/checkpoint/test_shard.py::test_an_unaligned_tensor_is_copied",
        ("shardload.checkpoint.shard:Shard.tensor",),
        fix="% itemsize",
    ),
    Trap(
        "a file that was cut is read past its end",
        "tests/checkpoint/test_shard.py::test_a_file_that_was_cut_after_it_was_opened_is_a_clean_error",
        ("shardload.checkpoint.shard:Shard.tensor",),
        fix="stop >",
    ),
    Trap(
        "a file that changes under a mapping is not noticed",
        "tests/loading/test_stream.py::test_a_file_that_changes_while_it_is_loaded_is_noticed",
        ("shardload.checkpoint.shard:Shard.__exit__",),
        fix="closed",
    ),
    Trap(
        "copy=True maps all the same",
        "tests/loading/test_stream.py::test_copy_true_survives_a_file_that_is_cut_later",
        ("shardload.loading.stream:_Stream.shard",),
        fix="copy",
    ),
    Trap(
        "a fault in the middle leaves half a model",
        "tests/loading/test_fill.py::test_a_fault_in_the_middle_puts_everything_back",
        ("shardload.loading.fill:_all_or_nothing",),
        fix="update",
    ),
    Trap(
        "every read maps the file again",
        "tests/checkpoint/test_shard.py"
        "::test_neither_reads_nor_loads_hold_descriptors_and_reads_share_a_mapping",
        ("shardload.checkpoint.shard:Shard._mapping", "shardload.checkpoint.regions:read_tensor"),
        fix="if self._mappings is None` → True",
    ),
    Trap(
        "every shard keeps a descriptor",
        "tests/checkpoint/test_shard.py"
        "::test_neither_reads_nor_loads_hold_descriptors_and_reads_share_a_mapping",
        ("shardload._system.file_mapping:_map",),
        fix="if libc is None` → True",
    ),
    # Judgements and key maps.
    Trap(
        "a root hook is a way to load nothing",
        "tests/loading/test_judge.py::test_a_root_hook_is_no_way_to_load_nothing",
        ("shardload.loading.judge:Comparison.refuse_if_faulty",),
        fix="taken",
    ),
    Trap(
        "leniency takes a quantised checkpoint for another",
        "tests/loading/test_judge.py::test_leniency_does_not_take_a_quantised_checkpoint_for_another",
        ("shardload.loading.judge:Comparison.refuse_if_faulty",),
        fix="declines",
    ),
    Trap(
        "versions are lost under a key map",
        "tests/loading/test_judge.py::test_versions_follow_a_key_map",
        ("shardload.loading.judge:Comparison.__init__", "shardload.loading.judge:_renamed_versions"),
        fix="if checkpoint.versions` → False",
    ),
    Trap(
        "two names of one stored tensor are one memory",
        "tests/loading/test_fill_key_map.py::test_a_second_name_gets_memory_of_its_own_unless_it_is_tied",
        ("shardload.loading.stream:_Stream._load",),
        fix="copied",
    ),
    Trap(
        "a loader that counts on contiguous tensors is handed a turned view",
        "tests/loading/test_fill_key_map.py::test_hooks_get_what_a_converted_file_would_give",
        ("shardload.loading.subtrees:Subtrees.deliver",),
        fix="turned",
    ),
    Trap(
        "a key map is applied to another checkpoint",
        "tests/loading/test_fill_key_map.py::test_a_map_is_read_from_its_file_and_refused_for_another_checkpoint",
        ("shardload.loading.plan:_apply",),
        fix="require_fit",
    ),
    Trap(
        "save leaves out what its key map can't make again",
        "tests/writing/test_save_key_map.py::test_what_would_be_lost_is_refused",
        ("shardload.writing.model_output:model_output", "shardload.writing.model_output:_refuse_loss"),
    ),
    # Imports.
    Trap(
        "headers import torch",
        "tests/checkpoint/test_checkpoint.py::test_opening_a_folder_does_not_import_torch",
        ("shardload.checkpoint.checkpoint:import torch",),
    ),
    Trap(
        "the package imports its parts at once",
        "tests/test_public.py::test_importing_shardload_brings_in_nothing_heavy",
        ("shardload:import shardload.loading.fill",),
    ),
    Trap(
        "local checkpoints import huggingface_hub",
        "tests/test_load.py::test_a_local_load_imports_neither_huggingface_hub_nor_transformers",
        ("shardload.checkpoint.checkpoint:import huggingface_hub",),
    ),
    # The construction of a model.
    Trap(
        "torch.device('meta') alone leaves computed tables on meta",
        "tests/model/test_meta_init.py"
        "::test_skip_init_leaves_no_parameter_in_memory_and_a_refused_table_is_as_computed",
        exempt="the trap is an added step: no mutant adds one",
    ),
    Trap(
        "skip_init makes real parameters",
        "tests/model/test_meta_init.py::test_a_parameter_is_on_meta_as_soon_as_it_is_made",
        ("shardload.model.construction:Construction._add",),
        fix="is_meta",
    ),
    Trap(
        "parameters made past nn.Parameter stay real",
        "tests/model/test_construction.py::test_a_parameter_is_on_meta_however_it_is_made[the old constructor]",
        ("shardload.model.construction:Construction.settle", "shardload.model.meta_init:_registered"),
    ),
    Trap(
        "the collector visits torch's million objects while a shell is built",
        "tests/_system/test_gc_freeze.py::test_a_call_inside_another_leaves_the_outer_one_frozen",
        ("shardload._system.gc_freeze:gc_frozen",),
        fix="gc.freeze",
    ),
    Trap(
        "initialisers run in a shell",
        "tests/model/test_meta_init.py::test_initialisers_cost_nothing_in_a_shell",
        ("shardload.model.meta_init:_initialised",),
        fix="is_meta",
    ),
    Trap(
        "skip_init imports sympy",
        "tests/model/test_meta_init.py::test_a_load_with_skip_init_does_not_import_sympy",
        ("shardload.model.meta_init:_empty_like",),
    ),
    Trap(
        "the caller's own module is taken for a shell's",
        "tests/model/test_shell.py::test_a_module_of_the_callers_keeps_its_weights",
        ("shardload.model.construction:Construction.touch",),
        fix="_made",
    ),
    Trap(
        "a table on the device of a weight lands on meta",
        "tests/model/test_meta_init.py::test_a_table_on_the_device_of_a_weight_is_real",
        ("shardload.model.meta_init:_device",),
    ),
)
