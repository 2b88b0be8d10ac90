"""DeviceMap: which part of a model lies on which device, as a caller writes it or as sizes tell. Imports no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from shardload._system.byte_size import parse_size
from shardload._system.process_memory import size_of
from shardload.errors import Cures, MemoryLimitError, UsageError, Wording, keyword
from shardload.keys import collapse
from shardload.placement.packing import Packing, pack, room_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Place = int | str
"""An accelerator's number, the name of another device, "cpu", or "disk"."""

STRATEGIES = ("auto", "balanced", "sequential")
BESIDE = ("cpu", "disk")
_DEVICE = re.compile(r"(cuda|xpu|npu|mps|hpu|mlu|musa|cpu)(?::(\d+))?")
_MOST = 127  # torch keeps the number of a device in one signed byte: 256 would be device 0
_SHARE = 10  # a tenth of an accelerator's free memory is left to what the model computes


@dataclass(frozen=True)
class DeviceRow:
    """What lies on one device. All sizes are bytes.

    `blocks` are the parts of the model that are kept whole, `largest` the size of the largest of them. `room` is what
    the device needs beside them for blocks that are brought to it, `limit` what it may hold; None is no limit.
    """

    device: str
    nbytes: int
    blocks: int
    largest: int
    room: int = 0
    limit: int | None = None

    def __str__(self) -> str:
        room = f", and room for {size_of(self.room)} that is brought to it" if self.room else ""
        limit = "" if self.limit is None else f", of {size_of(self.limit)}"
        blocks = f"{self.blocks} block{'s' * (self.blocks != 1)}"
        return f"{self.device}: {size_of(self.nbytes)} in {blocks}, the largest {size_of(self.largest)}{room}{limit}"

    @property
    def fits(self) -> bool:
        """Whether the device may hold so much."""
        return self.limit is None or self.nbytes + self.room <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON data."""
        return {**asdict(self), "fits": self.fits}


@dataclass(frozen=True)
class Part:
    """What is kept whole: its names in a map, and the names of its tensors, a tuple for each tensor, with its bytes.

    `computed` are names of tables that no checkpoint holds: a map does not have to name them.
    """

    names: tuple[str, ...]
    tensors: tuple[tuple[tuple[str, ...], int], ...]
    computed: frozenset[str] = frozenset()

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(nbytes for _, nbytes in self.tensors)


@dataclass(frozen=True)
class Settled:
    """Where everything lies: `places` by names of modules and tensors, of which the longest that fits counts.

    `tensors` are the places of all tensors: one that is tied lies in one of the places of its names. `main` is the
    device that runs what lies in memory or on the disk, `ahead` whether it has room for the next block meanwhile.
    """

    places: Mapping[str, Place]
    tensors: Mapping[str, Place]
    rows: Sequence[DeviceRow]
    main: Place
    ahead: bool = True

    def refuse_read_files(self, views: Iterable[str]) -> None:
        """Refuse a load that reads its files into memory, where the map leaves what would be `views` of them there."""
        read = sorted(name for name in views if self.tensors.get(name) == "disk")
        if read:
            raise UsageError(
                f"the map leaves {collapse(read)[0]} on the disk, as a view of its file, and this load maps no file: "
                "it reads them into memory",
                where=keyword("device_map"),
                cure=Cures(
                    'map it to "cpu", or allow "cpu" more', "load files of this disk, and do not copy them"
                ),
            )

    def place(self, name: str) -> Place:
        """Return where a tensor lies: what the longest prefix of its name says, else the main device."""
        while name not in self.places:
            if not name:
                return self.main
            name = name.rpartition(".")[0]
        return self.places[name]


class DeviceMap:
    """What a caller asks for: "auto", "balanced", "sequential", one device, or a device by names of modules.

    `limits` are the bytes that each device may hold. Raises UsageError for what is none of these.
    """

    def __init__(self, wanted: Any, max_memory: Any = None) -> None:
        self.strategy: str | None = None
        self.by_hand: dict[str, Any] | None = None
        if isinstance(wanted, str) and wanted in STRATEGIES:
            self.strategy = wanted
        elif isinstance(wanted, Mapping):
            self.by_hand = dict(wanted)
        elif (place := place_of(wanted)) is not None:
            self.by_hand = {"": place}
        else:
            near = difflib.get_close_matches(str(wanted), STRATEGIES, 1, 0.5)
            raise UsageError(
                Wording("{device_map} is no map of devices", device_map=wanted),
                cure=Wording("pass {device_map}", device_map=near[0])
                if near
                else 'pass "auto", "balanced", "sequential", a device, or a device by names of modules',
            )
        self.limits = None if max_memory is None else limits_of(max_memory)

    @property
    def places(self) -> set[Place | None]:
        """The places that a map by hand names."""
        return set(map(place_of, (self.by_hand or {}).values()))

    @property
    def accelerators(self) -> list[Place]:
        """The accelerators that a map by hand, or the limits, name."""
        named = self.by_hand.values() if self.by_hand is not None else self.limits or ()
        places = dict.fromkeys(map(place_of, named))
        return sorted((p for p in places if p is not None and p not in BESIDE), key=_order)

    def settle(
        self, parts: Sequence[Part], found: Callable[[], Mapping[Place, int]], *, refuses: bool = True
    ) -> Settled:
        """Return where each part lies. `found` gives the free bytes of the devices here, where no limits are given.

        Raises UsageError for a map by hand that names what the model lacks or leaves something out, with all faults;
        MemoryLimitError where a device would hold more than it may, unless it `refuses` nothing: then a row tells it.
        """
        limits = self.limits
        if self.by_hand is not None:
            places, by_tensor = self._by_hand(parts)
            places = places or {"": "cpu"}  # of a model whose tensors the class computes
            used = [place for place in by_tensor.values() if place not in BESIDE]
            main: Place = used[0] if used else "cpu"
        else:
            limits = _usable(found()) if limits is None else limits
            places, by_tensor, main = self._packed(parts, limits, refuses=refuses)
        rows, ahead = _rows(parts, by_tensor, limits or {}, main)
        if refuses:
            _refuse_overfull(rows)
        if len(set(places.values())) == 1:
            places = {"": next(iter(places.values()))}
        return Settled(places, by_tensor, rows, main, ahead)

    def _packed(
        self, parts: Sequence[Part], limits: Mapping[Place, int], *, refuses: bool
    ) -> tuple[dict[str, Place], dict[str, Place], Place]:
        accelerators = sorted(
            (place for place in limits if place not in BESIDE and limits[place]), key=_order
        )
        held = [limits[place] for place in accelerators]
        sizes = [part.nbytes for part in parts]
        packing = pack(sizes, held, limits.get("cpu", 0), balanced=self.strategy != "sequential")
        if packing is None and not refuses:
            packing = Packing((len(accelerators),) * len(sizes))
        if packing is None:
            largest = max(parts, key=lambda part: part.nbytes)
            raise MemoryLimitError(
                f"device {accelerators[0]} has no room to run {largest.names[0] or 'the model'}, which takes "
                f"{size_of(largest.nbytes)}: it may hold {size_of(held[0])}; nothing was loaded",
                cure=_more(),
            )
        order = [*accelerators, *BESIDE]
        places: dict[str, Place] = {}
        by_tensor: dict[str, Place] = {}
        for part, at in zip(parts, packing.at, strict=True):
            places |= dict.fromkeys(part.names, order[at])
            by_tensor |= {name: order[at] for names, _ in part.tensors for name in names}
        return places, by_tensor, (accelerators or ["cpu"])[0]

    def _by_hand(self, parts: Sequence[Part]) -> tuple[dict[str, Place], dict[str, Place]]:
        wanted = self.by_hand or {}
        tensors = [names for part in parts for names, _ in part.tensors]
        known = {"", *(prefix for names in tensors for name in names for prefix in prefixes(name))}
        places, faults = {}, []
        for name, value in wanted.items():
            place = place_of(value)
            if place is None:
                faults.append(f"{name!r}: {value!r} is no device")
            elif name not in known:
                near = difflib.get_close_matches(str(name), sorted(known), 1, 0.5)
                faults.append(
                    f"{name!r} is no part of the model" + (f"; the nearest is {near[0]!r}" if near else "")
                )
            else:
                places[name] = place
        if not faults:
            computed = frozenset[str]().union(*(part.computed for part in parts))
            bare = [
                names[0]
                for names in tensors
                if computed.isdisjoint(names)
                and not any(p in wanted for name in names for p in prefixes(name))
            ]
            faults += [f"nothing says where {name} lies" for name in collapse(bare)[:8]]
        if faults:
            raise UsageError(
                f"the device map does not fit the model: {'; '.join(faults)}",
                where=keyword("device_map"),
                cure='name each part of the model once, or "" for all that has no name of its own',
            )
        by_tensor: dict[str, Place] = {}
        first = min(places.values(), key=_order, default="cpu")
        for names in tensors:  # a tied tensor lies in one place, and best on an accelerator
            asked = [next((places[p] for p in prefixes(name) if p in places), None) for name in names]
            told = [place for place in asked if place is not None]
            by_tensor |= dict.fromkeys(names, min(told, key=_order) if told else first)
        return places, by_tensor


def prefixes(name: str) -> list[str]:
    """Return a name and everything that it lies in, the longest first, and "" last."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), -1, -1)]


def place_of(value: Any) -> Place | None:
    """Return the place that a number, a name or a torch.device stands for; None for what is none.

    One device has one place, whatever it is called.

    >>> from shardload.placement.device_map import place_of
    >>> place_of(1), place_of("cuda:1"), place_of("cuda"), place_of("cpu:0"), place_of("xpu"), place_of("gpu")
    (1, 1, 0, 'cpu', 'xpu:0', None)
    """
    text = "" if isinstance(value, bool) else str(value)
    match = _DEVICE.fullmatch(f"cuda:{text}" if text.isdecimal() else text)
    if text == "disk" or match is None:
        return text if text == "disk" else None
    number = int(match[2] or 0)
    if number > _MOST or (match[1] == "cpu" and number):
        return None
    if match[1] in ("cuda", "cpu"):
        return number if match[1] == "cuda" else "cpu"
    return f"{match[1]}:{number}"


def limits_of(given: Any) -> dict[Place, int]:
    """Return the bytes that each device may hold. Raises UsageError for what is no device, or no size."""
    if not isinstance(given, Mapping):
        raise UsageError(
            Wording("{max_memory} does not say which device may hold how much", max_memory=given),
            cure=Wording("pass {max_memory}", max_memory={0: "20GiB", "cpu": "60GiB"}),
        )
    limits: dict[Place, int] = {}
    called: dict[Place, Any] = {}
    for name, size in given.items():
        place = place_of(name)
        if place is None:
            raise UsageError(
                Wording("{max_memory} names {0}, which is no device", repr(name), max_memory=...),
                cure='name accelerators by their numbers, and "cpu"',
            )
        if place in called:
            twice = repr(called[place]), repr(name)
            raise UsageError(
                Wording("{max_memory} names one device twice, as {0} and as {1}", *twice, max_memory=...),
                cure="say once what it may hold",
            )
        called[place] = name
        none = not isinstance(size, bool) and (
            size == 0 or re.fullmatch(r"0+(\.0*)?\s*[KMGT]?i?B?", str(size), re.IGNORECASE)
        )
        if place != "disk":
            limits[place] = 0 if none else parse_size(size, "max_memory")
    return limits


def _order(place: Place) -> tuple[int, str, int]:
    """Sort accelerators by their numbers, then the processor, then the disk."""
    if place in BESIDE:
        return 1 + BESIDE.index(str(place)), "", 0
    kind, _, number = str(place).rpartition(":")
    return (
        (0, "", place)
        if isinstance(place, int)
        else (0, kind or number, int(number) if number.isdigit() else 0)
    )


def _usable(free: Mapping[Place, int]) -> dict[Place, int]:
    return {place: nbytes if place in BESIDE else nbytes - nbytes // _SHARE for place, nbytes in free.items()}


def _rows(
    parts: Sequence[Part], by_tensor: Mapping[str, Place], limits: Mapping[Place, int], main: Place
) -> tuple[list[DeviceRow], bool]:
    """Return a row per device, and whether the main one has room for the next block that is brought to it."""
    held: dict[Place, list[int]] = {}
    brought: list[int] = []
    for part in parts:
        sizes: dict[Place, int] = {}
        for names, nbytes in part.tensors:
            place = by_tensor[names[0]]
            sizes[place] = sizes.get(place, 0) + nbytes
        for place, nbytes in sizes.items():
            held.setdefault(place, []).append(nbytes)
        beside = sum(nbytes for place, nbytes in sizes.items() if place in BESIDE)
        brought += [beside] if beside and main != "cpu" else []
    if brought:
        held.setdefault(main, [])
    room, ahead, limit = room_for(brought), True, limits.get(main)
    if limit is not None and sum(held.get(main, ())) + room > limit:
        room, ahead = room_for(brought, ahead=False), False
    rows = [
        DeviceRow(
            str(place),
            sum(sizes),
            len(sizes),
            max(sizes, default=0),
            room if place == main else 0,
            limits.get(place),
        )
        for place, sizes in sorted(held.items(), key=lambda each: _order(each[0]))
    ]
    return rows, ahead


def _refuse_overfull(rows: Iterable[DeviceRow]) -> None:
    over = [row for row in rows if not row.fits]
    if not over:
        return
    each = [
        f"device {row.device} would hold {size_of(row.nbytes)}"
        + (f" and {size_of(row.room)} that is brought to it" if row.room else "")
        + f", and may hold {size_of(row.limit or 0)}"
        for row in over
    ]
    raise MemoryLimitError(f"{'; '.join(each)}; nothing was loaded", cure=_more())


def _more() -> Cures:
    return Cures(
        Wording("allow the device more: {max_memory}", max_memory=...),
        "load in a smaller dtype, or quantised",
    )
