"""from_pretrained: a checkpoint becomes a model. Every step below is a public function of its own."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from shardload import remote_code
from shardload._system.ranks import together, told_early
from shardload.checkpoint.checkpoint import open_checkpoint
from shardload.checkpoint.json_file import read_config
from shardload.checkpoint.shard import DTYPES
from shardload.dtypes import parse_dtype
from shardload.errors import MismatchError, UnsupportedError
from shardload.keywords import entry_point_within, place_of, trust_of
from shardload.loading.fill import fill
from shardload.loading.finish import switch_to_eval
from shardload.loading.fitting_class import fitting_class, with_unnamed
from shardload.loading.provenance import REPORTS
from shardload.loading.stream import expected_ahead
from shardload.model.shell import build_shell
from shardload.placement.any_quantisation import NOT_ASKED, quantisation_of, settled, target_for
from shardload.placement.asked_devices import over_devices
from shardload.placement.device import OnDevice
from shardload.placement.model_ranks import ranks_asked
from shardload.remote_code.plain_config import (
    GIVEN,
    called_with_config,
    given_class,
    is_plain,
    plain_config,
    with_dtype,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    import torch
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh
    from typing_extensions import TypeVar, Unpack

    from shardload._system.progress import ProgressOption
    from shardload.adapters.on_load import AdapterOnLoad
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.keymap import KeyMap, Names
    from shardload.keywords import LoadKeywords
    from shardload.loading.leniency import Patterns
    from shardload.loading.prefix_on_load import PrefixOnLoad
    from shardload.loading.report import Report
    from shardload.model.shell import Shell
    from shardload.placement.any_quantisation import AnyQuantisation
    from shardload.placement.asked_devices import Asked
    from shardload.placement.layout import Layout
    from shardload.where import Where, WhereLike

    class LoadedModel(nn.Module):
        """A model whose class only its repo knows: whatever is asked of it (`chat`, `generate`), a checker allows."""

        def __getattr__(self, name: str) -> Any: ...

    Model = TypeVar("Model", bound=nn.Module, default=LoadedModel)

# A constructor makes some parameters several times, and hooks may split a stored tensor into one an expert.
_PARAMETERS = 25_000
_PARAMETERS_A_TENSOR = 16


@entry_point_within(partial(told_early, ranks_asked))
def from_pretrained(
    where: WhereLike,
    *,
    model_class: Callable[[Any], Model] | None = None,
    auto_class: str | None = None,
    config: Any = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    adapter: str | os.PathLike[str] | None = None,
    merge: bool = False,
    prefix: str | os.PathLike[str] | None = None,
    strict: bool = True,
    allow_missing: Patterns = (),
    allow_unexpected: Patterns = (),
    key_map: KeyMap | Names | str | os.PathLike[str] | None = None,
    copy: bool = False,
    verify: bool = False,
    spill: str | os.PathLike[str] | None = None,
    device_map: Any = None,
    max_memory: int | Mapping[Any, Any] | None = None,
    progress: ProgressOption = None,
    device_mesh: DeviceMesh | None = None,
    tp_plan: Mapping[str, str] | str | None = None,
    distributed_config: Any = None,
    read: Literal["slice", "once"] = "slice",
    timeout: float = 3600.0,
    quantization_config: Any = None,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    **keywords: Unpack[LoadKeywords],
) -> Model:
    """Load a checkpoint into the model that it belongs to, and return the model in eval mode.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> model = shardload.from_pretrained(
        ...     "tiny", model_class=lambda config: torch.nn.Linear(4, 2), dtype="bfloat16"
        ... )
        >>> model.weight.dtype, model.training
        (torch.bfloat16, False)
        >>> shardload.report_of(model).loaded
        2

    `where` is a folder, a checkpoint file, `org/name[@revision]` on the Hub, or an address in a store
    (`s3://bucket/prefix`; `storage_options` reach it, and without `disk` a repo of the Hub is read as a store is: see
    docs/stores.md). `model_class` is a class or function
    that takes the config; without it the repo's `auto_map` names the class (`auto_class` picks an entry), or else
    `architectures` names one of an installed transformers. Code of the repo runs only with `trust_remote_code=True`;
    code from the Hub also needs `revision=` (a full commit) or a lock file that approves it. With "locked", or the
    path of a lock file, only approved code runs (`shardload trust` writes the file). `remote_base` says who serves
    that code's imports of transformers: shardload's stand-in ("shim"), the stand-in with the installed library's own
    model files ("parts"), or the installed "transformers"; by default the first of these that lacks no name.

    `dtype="stored"` keeps every tensor's stored dtype, and so does "auto", but for classes of transformers: these are
    loaded in one dtype, as there, which is the config's. Another dtype casts floating parameters and persistent
    buffers, and the constructor sees it as `config.torch_dtype`. What the constructor computes in torch's default dtype
    comes out in that dtype, or in the one that most bytes are stored in; a dtype that the class names it keeps.

    `adapter` is a LoRA adapter to attach on top, judged before the base is loaded; with `merge=True` it is added to
    the weights while they are read, before their only cast, and the model has no adapter layers. `prefix` is a file of
    P-Tuning v2: its weights are for the model's `prefix_encoder`, which the class makes as the config then has the
    file's `pre_seq_len` and `prefix_projection`. `revision` is a branch, tag or commit, `code_revision` the commit of
    code that another repo holds, `subfolder` a folder inside the repo, `variant` a part of the weight files' names such
    as "fp16"; `allow_links` follows links that lead out of a folder. `load_in_8bit`, `load_in_4bit` and
    `quantization_config` (transformers' BitsAndBytesConfig, or a mapping of its options) quantise the weights of
    Linears by bitsandbytes while they are read, or a configuration of torchao by that: see docs/quantised.md. The other
    keywords are those of `fill`.

    With `device_mesh` (of `init_device_mesh`) or `distributed_config` (transformers' DistributedConfig, or any object
    or dict with `fsdp_size`, `tp_size`, `dp_replicate_size`), each rank of a process group calls this, and gets its
    part of one model. `tp_plan` maps names of modules to "colwise", "rowwise", "colwise_rep" or "rowwise_rep"; "auto"
    is the plan of a class of transformers. FSDP wraps the repeated blocks, whatever the class. See docs/scale.md.

    `device_map` lays the model over devices: "auto", "balanced", "sequential", a device, or {"layers.3": "disk"}; then
    `max_memory` may be what each may hold: {0: "20GiB", "cpu": "60GiB"}. See docs/device_maps.md.

    `report_of(model)` returns the report of the load. Synonyms of other loaders are taken (`torch_dtype`), what has no
    effect here is accepted with a note (`low_cpu_mem_usage`), and a setting that the config has is set on it
    (`num_labels=3`, `attn_implementation="eager"`); other keywords are declined by name. Raises subclasses of
    ShardloadError; the checkpoint is judged before a weight is read.
    """
    asked = quantization_config, load_in_8bit, load_in_4bit
    quantised = quantisation_of(*asked) if any(each not in NOT_ASKED for each in asked) else None
    into = dict(zip(("quantization_config", "load_in_8bit", "load_in_4bit"), asked, strict=True))
    beside = {"merge": merge, "prefix": prefix, "device_map": device_map, **into}
    layout = _layout(device_mesh, tp_plan, distributed_config, **beside)
    leniency = {"strict": strict, "allow_missing": allow_missing, "allow_unexpected": allow_unexpected}
    over = None
    if device_map is not None:
        over, max_memory = over_devices(device_map, max_memory, device, copy=copy)
    load = _Load(model_class, auto_class, config, dtype, quantised, key_map, leniency, keywords)
    with together(lambda: layout.ranks if layout else (), timeout) as ranks:
        with ranks.judging():
            on = OnDevice(layout.device(device) if layout else device).device  # refused here if it is none
            load.open(where)
            if prefix is not None:
                load.put_in_front(prefix)
            load.stage("open")
        # What a class draws while it is made, a buffer of random numbers say, is equal on all ranks.
        with expected_ahead(load.checkpoint, layout, read), ranks.same_random(), ranks.judging():
            load.settle_class(stored=layout is None)
            load.build(on, spill, over)
            load.judge_on_top(adapter, merge=merge, early=layout is not None)
            if layout is not None:
                layout.shard(load.shell)
            load.stage("shell")
        load.fill(
            max_memory=max_memory, progress=progress, copy=copy, verify=verify, read=read, timeout=timeout
        )
        return cast("Model", load.finish(device))


class _Load:
    """One load: what the caller asked for, and what its steps have made so far. The steps are called in their order."""

    place: Where
    dtype: torch.dtype | None
    checkpoint: Checkpoint
    loaded: remote_code.LoadedConfig
    resolved: remote_code.ResolvedClass
    target: Any
    shell: Shell
    report: Report

    def __init__(
        self,
        model_class: Callable[[Any], nn.Module] | None,
        auto_class: str | None,
        config: Any,
        dtype: str | torch.dtype,
        quantised: AnyQuantisation | None,
        key_map: KeyMap | Names | str | os.PathLike[str] | None,
        leniency: dict[str, Any],
        keywords: LoadKeywords,
    ) -> None:
        self._of = model_class, auto_class
        self._config, self._keywords = config, keywords
        self._asked = dtype
        self._quantised, self._key_map, self._leniency = quantised, key_map, leniency
        self._in_front: PrefixOnLoad | None = None
        self._on_top: AdapterOnLoad | None = None
        self._one_dtype = False
        self._notes: list[str | None] = [*keywords.get("_notes", ())]
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stage(self, name: str) -> None:
        """Take the seconds since the last stage."""
        now = time.perf_counter()
        self._seconds[name], self._last = now - self._last, now

    def open(self, where: WhereLike) -> None:
        """Open the checkpoint; of a training checkpoint with several state dicts, the one that fits."""
        self.place = place_of(where, self._keywords)
        self.dtype = None if self._asked in ("auto", "stored") else parse_dtype(self._asked)
        try:
            self.checkpoint = open_checkpoint(self.place)
        except UnsupportedError as error:
            if error.code != "E-STATES":
                raise
            from shardload.loading.fitting_state import state_that_fits

            fits = state_that_fits(error, self.place, self._trial_shell, self._key_map)
            self.checkpoint = open_checkpoint(fits)

    def put_in_front(self, prefix: str | os.PathLike[str]) -> None:
        """Let the config ask for a prefix of P-Tuning v2."""
        from shardload.loading.prefix_on_load import PrefixOnLoad

        self._in_front = PrefixOnLoad(self.place.elsewhere(prefix))
        self.checkpoint, self._config = self._in_front.on(self.checkpoint, self._config)

    def settle_class(self, *, stored: bool) -> None:
        """Settle config and class; with `stored`, weights that bitsandbytes packed may stay packed."""
        self._into, self._as_stored = self._quantised, False
        if stored and self.dtype is None and self.checkpoint.may_be_packed:
            stored_as = self.checkpoint.config, self.checkpoint.tensors
            self._into, self._as_stored = settled(self._quantised, *stored_as)
        self.loaded, self.resolved = self._made_of(self.checkpoint)
        if self.resolved.of_library and self._asked != "stored":
            self._take_one_dtype(noted=self._asked == "auto" and not self._as_stored)

    def _made_of(self, checkpoint: Checkpoint) -> tuple[remote_code.LoadedConfig, remote_code.ResolvedClass]:
        """Return the config, with the settings of the call, and the class."""
        loaded, resolved = self._of_repo(checkpoint)
        if "_settings" not in self._keywords:
            return loaded, resolved
        from shardload.remote_code.overruled import overruled

        return overruled(loaded, self._keywords["_settings"]), resolved

    def _of_repo(self, checkpoint: Checkpoint) -> tuple[remote_code.LoadedConfig, remote_code.ResolvedClass]:
        """Return the config and the class: the caller's own, or as the repo and its code say."""
        (model_class, auto_class), config, dtype = self._of, self._config, self.dtype
        config_json = checkpoint.config
        given = None if config is None else remote_code.LoadedConfig(with_dtype(config, dtype), GIVEN)
        if callable(model_class) and is_plain(model_class, config, config_json, self._keywords):
            loaded = given or plain_config(checkpoint.source, config_json, dtype)
            return loaded, remote_code.ResolvedClass(
                called_with_config(model_class), *given_class(model_class)
            )
        if config_json is None and model_class is None:
            config_json = read_config(checkpoint.source)  # a broken one is an error where it is needed
            if not config_json and checkpoint.format == "gguf":
                from shardload.checkpoint.gguf_model import without_class

                raise without_class(checkpoint.metadata, checkpoint.tensors, checkpoint.label)
        repo = checkpoint.source, config_json, trust_of(self.place, self._keywords)
        loaded = given or remote_code.load_config(*repo, dtype=dtype, model_class=model_class)
        return loaded, remote_code.resolve_class(*repo, auto_class=auto_class, model_class=model_class)

    def _trial_shell(self, checkpoint: Checkpoint) -> Shell:
        """Return the shell of the model, for a trial."""
        loaded, resolved = self._made_of(checkpoint)
        return build_shell(lambda: resolved.make(loaded.config), at_most=_limit(checkpoint))

    def _take_one_dtype(self, *, noted: bool) -> None:
        """Let all weights have one dtype, as transformers does it for its own classes."""
        from shardload.transformers_classes.one_dtype import cast_note, in_one_dtype

        if noted and self.checkpoint.may_be_packed:
            from shardload.loading.packed import refuse_undecided

            refuse_undecided(self.checkpoint, self._quantised)
        made_in, self.dtype = in_one_dtype(self.loaded.config, self.dtype, self.checkpoint)
        self.loaded = replace(self.loaded, config=made_in)
        self._one_dtype = True
        if noted:
            self._notes.append(cast_note(self.checkpoint, self.dtype))

    def build(self, device: Any, spill: str | os.PathLike[str] | None, over: Asked | None) -> None:
        """Build the shell, of two classes that a repo names the one that the keys fit; say where its weights go."""
        self.target = OnDevice(device, self.dtype, spill)
        if self._into is not None or over is not None:
            make = target_for if over is None else over.target
            self.target = make(self._into, device, self.dtype, spill)
        self.shell = self._shell_of(self.resolved)
        if self.resolved.named is not None:
            made = self.resolved, self.shell, self.checkpoint, self._shell_of, self._key_map
            self.resolved, self.shell, line = fitting_class(*made, **self._leniency)
            self._notes.append(line)
        self.shell.one_dtype = self._one_dtype
        self._notes.append(_take_generation_settings(self.shell.model, self.checkpoint))

    def _shell_of(self, resolved: remote_code.ResolvedClass) -> Shell:
        # Neither a config nor a class may ask for more than the checkpoint can fill, unless the caller says so.
        limit = None if self._leniency["allow_missing"] else _limit(self.checkpoint)
        computed_in = self.dtype or DTYPES.get(self.checkpoint.float_code)
        return build_shell(lambda: resolved.make(self.loaded.config), at_most=limit, dtype=computed_in)

    def judge_on_top(self, adapter: str | os.PathLike[str] | None, *, merge: bool, early: bool) -> None:
        """Judge by the shell what else it gets: the prefix, and the adapter, which a shell gets `early`."""
        if self._in_front:
            self._in_front.judge(self.shell, self.target)
            self._leniency["allow_missing"] = self._in_front.allowed(self._leniency["allow_missing"])
        if adapter is None and not merge:
            return
        from shardload.adapters.on_load import adapter_on_load  # for those who have some

        on = None if adapter is None else self.place.elsewhere(adapter)
        made = self.shell, self.checkpoint, on, self.target
        self._on_top = adapter_on_load(*made, merge=merge, early=early, packed=self._as_stored)

    def fill(self, **of: Any) -> None:
        """Fill the shell; where that is refused, and another class of the repo fits, the error names that one."""
        target = self._on_top.target if self._on_top else self.target
        of = {"key_map": self._key_map, **self._leniency, **of}
        try:
            self.report = fill(self.shell, self.checkpoint, target=target, **of)
        except MismatchError as error:
            made = self.resolved, self.checkpoint, self._shell_of, self._key_map
            raise with_unnamed(error, *made, **self._leniency) from None

    def finish(self, device: str | torch.device) -> nn.Module:
        """Give the model what is not in its checkpoint, and say in the report how it was made."""
        report, model = self.report, self.shell.model
        if self._in_front:
            self._in_front.finish(self.shell, OnDevice(device, self.dtype), report)
        switch_to_eval(model)
        if report.packing and not self._quantised:
            from shardload.loading.packed import forget_quantiser

            forget_quantiser(model)
        if hasattr(type(model), "from_pretrained"):
            left_out = report.left_out
            self._notes.append(remote_code.finish_by_its_class(model, self.checkpoint.source, left_out))
        report.notes += [note for note in self._notes if note]
        report.config_from, report.class_from = self.loaded.origin, self.resolved.origin
        report.remote_base = self.resolved.remote_base
        report.parts = remote_code.files_run(model) if report.remote_base == "parts" else {}
        report.seconds = {**self._seconds, **report.seconds}
        REPORTS.remember(model, report)
        if self._on_top:
            report.adapters.append(self._on_top.finish(model))
        return model


def _limit(checkpoint: Checkpoint) -> int:
    """Return the number of parameters that a class may make for this checkpoint."""
    return _PARAMETERS + _PARAMETERS_A_TENSOR * len(checkpoint.tensors)


def _take_generation_settings(model: nn.Module, checkpoint: Checkpoint) -> str | None:
    """Set the settings of generation before a weight is read, as a file may be broken; return a line for the report."""
    if "generation_config.json" in checkpoint.source.names():
        return remote_code.attach_generation_config(model, checkpoint.source)
    if not checkpoint.config or not hasattr(type(model), "adjust_generation_fn"):
        return None
    from shardload.transformers_classes.generation_settings import take_from_config_json

    return take_from_config_json(model, checkpoint.config, f"config.json of {checkpoint.label}")


def _layout(mesh: DeviceMesh | None, plan: Any, config: Any, **on_top: object) -> Layout | None:
    if mesh is None and plan is None and config is None:
        return None
    from shardload.placement.layout import Layout, refuse_on_top

    refuse_on_top(on_top)
    return Layout.of(mesh, plan, config)
