"""from_pretrained: a checkpoint becomes a model. Every step below is a public function of its own."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from shardload import remote_code
from shardload.checkpoint.checkpoint import open_checkpoint
from shardload.checkpoint.json_file import read_config
from shardload.checkpoint.shard import DTYPES
from shardload.checkpoint.sources import find_source
from shardload.dtypes import parse_dtype
from shardload.errors import MismatchError, UnsupportedError
from shardload.keywords import entry_point, place_of, trust_of
from shardload.loading.fill import fill
from shardload.loading.finish import switch_to_eval
from shardload.loading.fitting_class import fitting_class, with_unnamed
from shardload.loading.provenance import REPORTS
from shardload.model.shell import build_shell
from shardload.placement.device import OnDevice
from shardload.placement.quantisation import Quantisation
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
    from typing_extensions import Unpack

    from shardload._system.progress import ProgressOption
    from shardload.adapters.on_load import AdapterOnLoad
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.keymap import KeyMap, Names
    from shardload.keywords import ModelKeywords, RepoKeywords
    from shardload.loading.leniency import Patterns
    from shardload.loading.report import Report
    from shardload.model.shell import Shell
    from shardload.placement.layout import Layout
    from shardload.where import Where, WhereLike

# A constructor makes some parameters several times, and hooks may split a stored tensor into one an expert.
_PARAMETERS = 25_000
_PARAMETERS_A_TENSOR = 16


@entry_point
def from_pretrained(
    where: WhereLike,
    *,
    model_class: Callable[[Any], nn.Module] | None = None,
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
    max_memory: int | None = None,
    progress: ProgressOption = None,
    device_mesh: DeviceMesh | None = None,
    tp_plan: Mapping[str, str] | str | None = None,
    distributed_config: Any = None,
    read: Literal["slice", "once"] = "slice",
    timeout: float = 3600.0,
    quantization_config: Any = None,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    **keywords: Unpack[ModelKeywords],
) -> nn.Module:
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

    `where` is a folder, a checkpoint file, or `org/name[@revision]` on the Hub. `model_class` is a class or function
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
    Linears by bitsandbytes while they are read: see docs/quantised.md. The other keywords are those of `fill`.

    With `device_mesh` (of `init_device_mesh`) or `distributed_config` (transformers' DistributedConfig, or any object
    or dict with `fsdp_size`, `tp_size`, `dp_replicate_size`), each rank of a process group calls this, and gets its
    part of one model. `tp_plan` maps names of modules to "colwise", "rowwise", "colwise_rep" or "rowwise_rep"; "auto"
    is the plan of a class of transformers. FSDP wraps the repeated blocks, whatever the class. See docs/scale.md.

    `report_of(model)` returns the report of the load. Keywords of other loaders (`device_map`, `torch_dtype`, …) are
    declined by name. Raises subclasses of ShardloadError; the checkpoint is judged before a weight is read.
    """
    asked = quantization_config is not None or load_in_8bit or load_in_4bit
    quantised = Quantisation.of(quantization_config, load_in_8bit, load_in_4bit) if asked else None
    beside: Any = {"merge": merge or None, "prefix": prefix, "quantization_config": quantised}
    layout = _layout(device_mesh, tp_plan, distributed_config, **beside)
    leniency: Any = {"strict": strict, "allow_missing": allow_missing, "allow_unexpected": allow_unexpected}
    clock, in_front = _Clock(), None
    with layout.together(timeout) if layout else nullcontext() as ranks:
        with ranks.judging() if ranks else nullcontext():
            on = OnDevice(layout.device(device) if layout else device).device  # refused here if it is none
            place = place_of(where, keywords)
            wanted = None if dtype in ("auto", "stored") else parse_dtype(dtype)
            made_of = place, keywords, wanted, config, model_class, auto_class
            checkpoint = _opened(place, lambda each: _shell_of(each, *made_of), key_map)
            if prefix is not None:
                from shardload.loading.prefix_on_load import PrefixOnLoad

                in_front = PrefixOnLoad(place.elsewhere(prefix))
                checkpoint, config = in_front.on(checkpoint, config)
                made_of = place, keywords, wanted, config, model_class, auto_class
            clock.stage("open")
        # What a class draws while it is made, a buffer of random numbers say, is equal on all ranks.
        with ranks.same_random() if ranks else nullcontext(), ranks.judging() if ranks else nullcontext():
            as_stored = checkpoint.may_be_packed and not wanted and not layout
            stored_so = Quantisation.stored(checkpoint.config) if as_stored else None
            made = _Made(*_made_of(checkpoint, *made_of), wanted)
            if made.resolved.of_library and dtype != "stored":
                made.take_one_dtype(checkpoint, noted=dtype == "auto" and stored_so is None)
            target = made.target(quantised or stored_so, on, spill)
            shell = made.build(checkpoint, key_map, leniency)
            if in_front:
                in_front.judge(shell, target)
                leniency["allow_missing"] = in_front.allowed(allow_missing)
            on_it = None if adapter is None else place.elsewhere(adapter)
            on_top = _on_top(shell, checkpoint, on_it, target, merge=merge, early=layout is not None)
            if layout is not None:
                layout.shard(shell)
            clock.stage("shell")
        report = made.fill(
            *(shell, checkpoint, key_map, leniency),
            target=on_top.target if on_top else target,
            max_memory=max_memory,
            progress=progress,
            copy=copy,
            verify=verify,
            read=read,
            timeout=timeout,
        )
        if in_front:
            in_front.finish(shell, OnDevice(device, made.dtype), report)
        switch_to_eval(model := shell.model)
        if report.packing and not quantised:
            from shardload.loading.packed import forget_quantiser

            forget_quantiser(model)
        if hasattr(type(model), "from_pretrained"):
            made.notes.append(remote_code.finish_by_its_class(model, checkpoint.source, report.left_out))
        made.tell(report, model)
        report.seconds = {**clock.seconds, **report.seconds}
        REPORTS.remember(model, report)
        if on_top:
            report.adapters.append(on_top.finish(model))
    return model


class _Made:
    """The config and the class that a model is made of, and what there is to say of them in the report."""

    def __init__(
        self, loaded: remote_code.LoadedConfig, resolved: remote_code.ResolvedClass, dtype: torch.dtype | None
    ) -> None:
        self.loaded, self.resolved, self.dtype = loaded, resolved, dtype
        self.one_dtype = False
        self.notes: list[str | None] = []

    def take_one_dtype(self, checkpoint: Checkpoint, *, noted: bool) -> None:
        """Let all weights have one dtype, as transformers does it for its own classes."""
        from shardload.transformers_classes.one_dtype import cast_note, in_one_dtype

        if noted and checkpoint.may_be_packed:
            from shardload.loading.packed import refuse_undecided

            refuse_undecided(checkpoint)
        made_in, self.dtype = in_one_dtype(self.loaded.config, self.dtype, checkpoint)
        self.loaded = replace(self.loaded, config=made_in)
        self.one_dtype = True
        if noted:
            self.notes.append(cast_note(checkpoint, self.dtype))

    def target(self, quantised: Quantisation | None, device: str | torch.device, spill: Any) -> OnDevice:
        """Return where the weights go."""
        if quantised is None:
            return OnDevice(device, self.dtype, spill)
        from shardload.placement.quantised import Quantised

        return Quantised(quantised, device, self.dtype, spill)

    def build(self, checkpoint: Checkpoint, key_map: Any, leniency: Mapping[str, Any]) -> Shell:
        """Return the shell; of two classes that a repo names, the one that the keys fit."""
        shell = (build := self.builder(checkpoint, leniency))(self.resolved)
        if self.resolved.named is not None:
            made = self.resolved, shell, checkpoint, build, key_map
            self.resolved, shell, line = fitting_class(*made, **leniency)
            self.notes.append(line)
        shell.one_dtype = self.one_dtype
        self.notes.append(_take_generation_settings(shell.model, checkpoint))
        return shell

    def builder(self, checkpoint: Checkpoint, leniency: Mapping[str, Any]) -> Callable[[Any], Shell]:
        """Return what makes the shell of a class."""
        # Neither a config nor a class may ask for more than the checkpoint can fill, unless the caller says so.
        limit = None if leniency["allow_missing"] else _limit(checkpoint)
        computed_in = self.dtype or DTYPES.get(checkpoint.float_code)
        return lambda of: build_shell(lambda: of.make(self.loaded.config), at_most=limit, dtype=computed_in)

    def fill(self, shell: Shell, checkpoint: Checkpoint, key_map: Any, leniency: Any, **of: Any) -> Report:
        """Fill the shell; where that is refused, and another class of the repo fits, the error names that one."""
        try:
            return fill(shell, checkpoint, key_map=key_map, **of, **leniency)
        except MismatchError as error:
            made = self.resolved, checkpoint, self.builder(checkpoint, leniency)
            raise with_unnamed(error, *made, key_map, **leniency) from None

    def tell(self, report: Report, model: nn.Module) -> None:
        """Say in the report where the config and the class are from, and what was noted."""
        report.notes += [note for note in self.notes if note]
        report.config_from, report.class_from = self.loaded.origin, self.resolved.origin
        report.remote_base = self.resolved.remote_base
        report.parts = remote_code.files_run(model) if report.remote_base == "parts" else {}


@entry_point
def load_config(
    where: WhereLike, *, dtype: str | torch.dtype = "auto", **keywords: Unpack[RepoKeywords]
) -> Any:
    """Return the config of a repo: an object of its own configuration class where `auto_map` names one.

        >>> from pathlib import Path
        >>> import shardload
        >>> size = Path("config.json").write_text('{"hidden_size": 64}')
        >>> shardload.load_config(".").hidden_size
        64

    No weight file is read. Keywords are as in `from_pretrained`. Raises NotFoundError, UntrustedCodeError,
    RemoteCodeError, UsageError.
    """
    place = place_of(where, keywords)
    source, _ = find_source(place)
    trust = trust_of(place, keywords)
    return remote_code.load_config(source, read_config(source), trust, dtype=parse_dtype(dtype)).config


@entry_point
def resolve_class(
    where: WhereLike, *, auto_class: str | None = None, **keywords: Unpack[RepoKeywords]
) -> Callable[[Any], nn.Module]:
    """Return the class or function that makes a repo's model from a config, for `build_shell(lambda: make(config))`.

        >>> from pathlib import Path
        >>> import shardload
        >>> code = '''
        ... from torch import nn
        ... class Net(nn.Linear):
        ...     def __init__(self, config):
        ...         super().__init__(config.width, 2)
        ... '''
        >>> size = Path("net.py").write_text(code)
        >>> size = Path("config.json").write_text('{"width": 4, "auto_map": {"AutoModel": "net.Net"}}')
        >>> make = shardload.resolve_class(".", trust_remote_code=True)
        >>> make(shardload.load_config(".", trust_remote_code=True))
        Net(in_features=4, out_features=2, bias=True)

    The first `auto_map` entry wins over `architectures`; `auto_class` picks another one. Keywords are as in
    `from_pretrained`. Raises NotFoundError, UntrustedCodeError, RemoteCodeError, UsageError.
    """
    place = place_of(where, keywords)
    source, _ = find_source(place)
    trust = trust_of(place, keywords)
    return remote_code.resolve_class(source, read_config(source), trust, auto_class=auto_class).make


def _made_of(
    checkpoint: Checkpoint,
    place: Where,
    keywords: Mapping[str, Any],
    dtype: torch.dtype | None,
    config: Any,
    model_class: Callable[[Any], nn.Module] | None,
    auto_class: str | None,
) -> tuple[remote_code.LoadedConfig, remote_code.ResolvedClass]:
    """Return the config and the class: the caller's own, or as the repo and its code say."""
    config_json = checkpoint.config
    given = None if config is None else remote_code.LoadedConfig(with_dtype(config, dtype), GIVEN)
    if callable(model_class) and is_plain(model_class, config, config_json, keywords):
        loaded = given or plain_config(checkpoint.source, config_json, dtype)
        return loaded, remote_code.ResolvedClass(called_with_config(model_class), *given_class(model_class))
    if config_json is None and model_class is None:
        config_json = read_config(checkpoint.source)  # a broken one is an error where it is needed
    repo = checkpoint.source, config_json, trust_of(place, keywords)
    loaded = given or remote_code.load_config(*repo, dtype=dtype, model_class=model_class)
    return loaded, remote_code.resolve_class(*repo, auto_class=auto_class, model_class=model_class)


def _shell_of(checkpoint: Checkpoint, *made_of: Any) -> Shell:
    """Return the shell of the model, for a trial."""
    loaded, resolved = _made_of(checkpoint, *made_of)
    return build_shell(lambda: resolved.make(loaded.config), at_most=_limit(checkpoint))


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


def _on_top(
    shell: Shell, checkpoint: Checkpoint, adapter: Where | None, target: OnDevice, *, merge: bool, early: bool
) -> AdapterOnLoad | None:
    if adapter is None and not merge:
        return None
    from shardload.adapters.on_load import adapter_on_load  # for those who have some

    return adapter_on_load(shell, checkpoint, adapter, target, merge=merge, early=early)


def _opened(
    place: Where,
    shell_of: Callable[[Checkpoint], Shell],
    key_map: KeyMap | Names | str | os.PathLike[str] | None,
) -> Checkpoint:
    """Open a checkpoint; of a training checkpoint with several state dicts, the one that fits."""
    try:
        return open_checkpoint(place)
    except UnsupportedError as error:
        if error.code != "E-STATES":
            raise
        from shardload.loading.fitting_state import state_that_fits

        return open_checkpoint(state_that_fits(error, place, shell_of, key_map))


def _layout(mesh: DeviceMesh | None, plan: Any, config: Any, **on_top: object) -> Layout | None:
    if mesh is None and plan is None and config is None:
        return None
    from shardload.placement.layout import Layout, refuse_on_top

    refuse_on_top(on_top)
    return Layout.of(mesh, plan, config)


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stage(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now
