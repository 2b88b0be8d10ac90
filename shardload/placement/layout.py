"""Layout: how a model is sharded over the ranks of a mesh, by torch's own engine. Imported where one is asked for.

Tensor parallelism is by names (a plan) or by the plan of a class of transformers; FSDP by the model's structure, so
code of any age needs no list of classes.
"""

from __future__ import annotations

import difflib
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from shardload.errors import UnsupportedError, UsageError, Wording, keyword
from shardload.model.blocks import blocks_of
from shardload.model.shell import modules_of
from shardload.placement.cut import Split, cut_by
from shardload.placement.mesh_ranks import with_this_rank
from shardload.placement.tp_plan import CUT, JOINED, refuse_what_stays_cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from shardload.keymap import Derived
    from shardload.model.shell import Shell

_STYLES: dict[str, Callable[[], ParallelStyle]] = {
    CUT: ColwiseParallel,
    JOINED: RowwiseParallel,
    **dict.fromkeys(
        ("colwise_rep", "colwise_gather_output"), lambda: ColwiseParallel(output_layouts=Replicate())
    ),
    **dict.fromkeys(
        ("rowwise_rep", "rowwise_split_input"), lambda: RowwiseParallel(input_layouts=Replicate())
    ),
}
"""The names that transformers gives to torch's styles."""
_OF_TP, _OF_REPLICAS = frozenset({"tp"}), frozenset({"dp_replicate", "replicate"})
_OF_TRANSFORMERS = '"embedding_rowwise" for the embedding, "colwise_gather_output" for the output layer'
_NOT_DONE = ("pp_size", "ep_size")


@dataclass
class Layout:
    """A mesh, and what lies along its dimensions: "tp", "dp_replicate" (copies), and any other name for FSDP.

    A dimension without a name is FSDP's, or the last one "tp" where there is a plan. `plan` maps names of modules, with
    "*" for one segment, to styles; "auto" is the plan of the model's class. `given` is the caller's own config object.
    """

    mesh: DeviceMesh
    plan: Mapping[str, str | ParallelStyle] | str | None = None
    given: Any = None
    offloads: bool = False

    @classmethod
    def of(cls, mesh: DeviceMesh | None, plan: Any, given: Any) -> Layout:
        """Return the layout of the keywords `device_mesh`, `tp_plan` and `distributed_config`.

        Raises UsageError where there is no process group, or the sizes do not give its number of ranks.
        """
        if not distributed.is_initialized():
            raise UsageError(
                "a model is sharded over the ranks of a process group, and this process has none",
                cure='start it by torchrun and call torch.distributed.init_process_group("gloo") first, or "nccl"',
            )
        if mesh is not None and given is not None:
            raise UsageError(
                Wording(
                    "{device_mesh} and {distributed_config} both say which ranks",
                    device_mesh=...,
                    distributed_config=...,
                ),
                cure="pass one of them",
            )
        if mesh is not None:
            return cls(_named(mesh, plan), plan)
        sizes = given if isinstance(given, dict) else vars(given) if given is not None else {}
        for name in _NOT_DONE:
            if (sizes.get(name) or 1) > 1 and not isinstance(plan, str) and not hasattr(given, "dp_size"):
                raise UnsupportedError(
                    f"{name} is not done here", cure="shard the model by torch, then call fill"
                )
        plan = sizes.get("tp_plan", plan) if plan is None else plan
        return cls(_mesh_of(sizes, plan), plan, given, bool(sizes.get("fsdp_cpu_offload")))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the mesh, in order."""
        return with_this_rank(sorted(self.mesh.mesh.flatten().tolist()))

    def device(self, asked: str | torch.device) -> str | torch.device:
        """Return the device for this rank's parts: the mesh's, but where FSDP keeps them in host memory."""
        kind = self.mesh.device_type
        if kind == "cpu" or self.offloads or torch.device(asked).type != "cpu":
            return asked
        return torch.device(kind, torch.get_device_module(kind).current_device())

    def own_rows(self) -> Callable[[Derived], Derived] | None:
        """Return what gives this rank's part of a stored tensor where FSDP alone cuts the model, by rows; else None.

        There may be no model yet.
        """
        fsdp = [at for at, name in enumerate(self.mesh.mesh_dim_names or ()) if name not in _OF_TP]
        place = self.mesh.get_coordinate()
        if self.plan is not None or self._sizes()["tp_size"] > 1 or not fsdp or place is None:
            return None
        rows = (Split(0, self.mesh.shape[fsdp[-1]], place[fsdp[-1]]),)
        return lambda tensor: cut_by(tensor.shape, rows).of(tensor) if tensor.shape else tensor

    def shard(self, shell: Shell) -> None:
        """Shard a shell: tensor parallelism first, then FSDP."""
        own = getattr(type(shell.model), "maybe_distribute_model", None)
        if own is not None and (self.plan is not None or self.given is not None):
            self._shard_by_its_class(shell, own)
        else:
            if self.plan:
                self._cut(shell)
            self._fully_shard(shell.model)
        shell.surveyed()

    def _shard_by_its_class(self, shell: Shell, own: Any) -> None:
        from transformers.distributed import DistributedConfig

        config = self.given
        if config is None or isinstance(config, dict):
            plan = {} if self.plan in (None, "auto") else {"tp_plan": dict(self.plan)}  # type: ignore[arg-type]
            config = DistributedConfig(**(config or {**self._sizes(), **plan}))
        kind: Any = type(shell.model)
        try:
            config, _, meshes = kind.prepare_distribute_model(config)
            with _untied(shell.model, shell.ties if _is_cut_alone(config) else (), _OF_TRANSFORMERS):
                own(shell.model, config, meshes)
        except (ValueError, KeyError) as error:
            raise UsageError(
                f"transformers can't shard {kind.__name__} so: {error}",
                cure="choose sizes, and a plan, that it has for the class",
            ) from error

    def _sizes(self) -> dict[str, int]:
        sizes = {"tp_size": 1, "fsdp_size": 1, "dp_replicate_size": 1}
        for name, size in zip(self.mesh.mesh_dim_names or (), self.mesh.shape, strict=True):
            kind = (
                "tp_size" if name in _OF_TP else "dp_replicate_size" if name in _OF_REPLICAS else "fsdp_size"
            )
            sizes[kind] *= size
        return sizes

    def _cut(self, shell: Shell) -> None:
        if not isinstance(self.plan, dict):
            raise UnsupportedError(
                f"{type(shell.model).__name__} brings no plan for tensor parallelism",
                where=Wording("{tp_plan}", tp_plan=self.plan),
                cure=Wording('name its modules, each with "colwise" or "rowwise": {tp_plan}', tp_plan=...),
            )
        styles = _expanded(shell.model, self.plan)
        modules = dict(shell.model.named_modules())
        refuse_what_stays_cut(styles, lambda name: _features(modules[name]))
        with (
            _untied(
                shell.model, shell.ties, '"rowwise_rep" for the embedding, "colwise_rep" for the output layer'
            ),
            _without_adapters(shell.model, styles),
        ):
            parallelize_module(
                shell.model, self._along(_OF_TP), {name: _style_of(style) for name, style in styles.items()}
            )

    def _fully_shard(self, model: nn.Module) -> None:
        names = [name for name in self.mesh.mesh_dim_names or () if name not in _OF_TP]
        if not names:
            return
        mesh = self.mesh[tuple(names)] if len(names) < self.mesh.ndim else self.mesh
        options: dict[str, Any] = {"mesh": mesh}
        if self.offloads:
            options["offload_policy"] = CPUOffloadPolicy()
        for block in blocks_of(model):
            fully_shard(block, **options)
        fully_shard(model, **options)

    def _along(self, names: frozenset[str]) -> DeviceMesh:
        found = next((name for name in self.mesh.mesh_dim_names or () if name in names), None)
        if found is None:
            raise UsageError(
                "the mesh has no dimension for tensor parallelism",
                where=f"its dimensions are {self.mesh.mesh_dim_names}",
                cure='name one: init_device_mesh(…, mesh_dim_names=("dp", "tp"))',
            )
        return self.mesh if self.mesh.ndim == 1 else self.mesh[found]


def _named(mesh: DeviceMesh, plan: Any) -> DeviceMesh:
    """Return the mesh with names for its dimensions, where it has none."""
    if mesh.mesh_dim_names is not None:
        return mesh
    names = (
        ["dp_replicate", "dp"][-mesh.ndim :] if plan is None else ["dp_replicate", "dp", "tp"][-mesh.ndim :]
    )
    if len(names) != mesh.ndim:
        raise UsageError(
            f"a mesh of {mesh.ndim} dimensions needs names for them",
            cure='pass init_device_mesh(…, mesh_dim_names=("dp_replicate", "dp", "tp"))',
        )
    with_this_rank(mesh.mesh.flatten().tolist())
    # A new mesh would make new process groups, and ranks outside of it would number their next ones differently.
    groups = [mesh.get_group(dim) for dim in range(mesh.ndim)]
    return DeviceMesh.from_group(groups, mesh.device_type, mesh.mesh, mesh_dim_names=tuple(names))


def _mesh_of(sizes: Mapping[str, Any], plan: Any) -> DeviceMesh:
    world = distributed.get_world_size()
    replicas, fsdp, tp = (sizes.get(name) for name in ("dp_replicate_size", "fsdp_size", "tp_size"))
    if tp is None and plan is not None:
        tp = world // ((fsdp or 1) * (replicas or 1))
    shape = {"dp_replicate": replicas or 1, "dp": fsdp or 1, "tp": tp or 1}
    kept = {name: size for name, size in shape.items() if size > 1} or {"dp": 1}
    count = 1
    for size in kept.values():
        count *= size
    if count != world:
        raise UsageError(
            f"the sizes give {count} ranks, and the process group has {world}",
            where=", ".join(f"{name} {size}" for name, size in kept.items()),
            cure="choose sizes whose product is the number of ranks",
        )
    kind = "cuda" if torch.cuda.is_available() and "nccl" in distributed.get_backend() else "cpu"
    return init_device_mesh(kind, tuple(kept.values()), mesh_dim_names=tuple(kept))


def _features(module: nn.Module) -> tuple[int, int]:
    """Return how many features a layer takes and makes; 0 where its class says nothing of it."""
    return getattr(module, "in_features", 0), getattr(module, "out_features", 0)


def _style_of(style: str | ParallelStyle) -> ParallelStyle:
    return _STYLES[style]() if isinstance(style, str) else style


def _expanded(model: nn.Module, plan: Mapping[str, str | ParallelStyle]) -> dict[str, str | ParallelStyle]:
    """Return the plan by whole names. Raises UsageError for a pattern that takes no module, or an unknown style."""
    names = [path[:-1] for path, _ in modules_of(model)]
    styles: dict[str, str | ParallelStyle] = {}
    for pattern, style in plan.items():
        if isinstance(style, str) and style not in _STYLES:
            raise UsageError(f"{style!r} is no style", where=pattern, cure=f"use one of {', '.join(_STYLES)}")
        regex = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
        taken = [name for name in names if regex.fullmatch(name)]
        if not taken:
            near = difflib.get_close_matches(
                pattern, [re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names], 3, 0.4
            )
            raise UsageError(
                f"no module of the model is {pattern!r}",
                where=f"the plan of {type(model).__name__}",
                cure=f"the nearest: {', '.join(dict.fromkeys(near))}"
                if near
                else "name modules of the model",
            )
        styles |= dict.fromkeys(taken, style)
    return styles


@contextmanager
def _without_adapters(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Take the adapters out of layers while torch cuts these, which it takes for leaves: factors stay whole."""
    taken = []
    for name in names:
        children = model.get_submodule(name)._modules
        taken.append((children, dict(children)))
        for leaf, child in list(children.items()):
            if getattr(child, "of_an_adapter", False):
                del children[leaf]
    try:
        yield
    finally:
        for children, before in taken:
            children.clear()
            children.update(before)


@contextmanager
def _untied(model: nn.Module, ties: tuple[tuple[str, ...], ...], styles: str) -> Iterator[None]:
    """Give each name of a shared parameter one of its own in the block, and all of them one DTensor afterwards.

    Raises UnsupportedError where the plan parted them.
    """
    for group in ties:
        for module, leaf in _places(model, group[1:]):
            shared = module._parameters.get(leaf)
            if shared is not None:
                setattr(module, leaf, nn.Parameter(shared.detach(), requires_grad=shared.requires_grad))
    yield
    for group in ties:
        places = _places(model, group)
        first, *others = [getattr(*place) for place in places]
        kinds = {(type(each), getattr(each, "placements", None)) for each in (first, *others)}
        if len(kinds) > 1:
            raise UnsupportedError(
                "the plan cuts names of one parameter in different ways",
                where=", ".join(group),
                cure=f"cut them alike ({styles}), or none",
            )
        for module, leaf in places[1:]:
            setattr(module, leaf, first)


def _places(model: nn.Module, names: Iterable[str]) -> list[tuple[nn.Module, str]]:
    return [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]


def _is_cut_alone(config: Any) -> bool:
    """Whether tensor parallelism is all that a config of transformers asks for: FSDP has its own way with ties."""
    return (config.tp_size or 1) > 1 and (config.fsdp_size or 1) * (config.dp_replicate_size or 1) == 1


def refuse_on_top(wanted: Mapping[str, object]) -> None:
    """Raise UnsupportedError for what a model that is sharded while it is loaded does not get: a merge, a prefix."""
    given = next((name for name, value in wanted.items() if value not in (None, False)), None)
    if given is None:
        return
    raise UnsupportedError(
        Wording("{0} is not for a model that is sharded while it is loaded", keyword(given)),
        cure="write a merged checkpoint first, by merge_to_disk"
        if given == "merge"
        else "load the model with it, then shard that by torch (fully_shard, parallelize_module)",
    )
