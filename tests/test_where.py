"""Where: the place of a checkpoint, and the texts that name it again."""

from __future__ import annotations

import re
import shlex

import pytest
import torch
from torch import nn

from shardload import UnsupportedError, build_shell, fill, open_checkpoint
from shardload.cli import run
from shardload.where import Where
from tests.hub_server import HubServer, forget_connections
from tests.tiny import write_checkpoint

PACKED = {
    "head.weight": (torch.arange(16).reshape(4, 4) - 8).to(torch.int8),
    "head.SCB": torch.full((4,), 127.0),
}


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4, bias=False)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub") as server:
        server.use(monkeypatch, cache=tmp_path / "usual")
        yield server
        forget_connections()


def convert_printed(place: Where) -> dict[str, torch.Tensor]:
    """Type the command that the refusal of packed weights prints, and return what it writes."""
    with pytest.raises(UnsupportedError) as caught:
        fill(build_shell(Head), open_checkpoint(place))
    (command,) = re.findall(r"shardload convert [^;]*", caught.value.cure)
    assert run(shlex.split(command)[1:]) == 0
    return dict(open_checkpoint("plain").items())


def test_a_printed_command_names_what_the_caller_named_of_a_repo(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "files" / "of it", PACKED, shards=1)
    write_checkpoint(tmp_path / "files", {"head.weight": torch.ones(4, 4)}, shards=1)
    hub.commit("org/name", tmp_path / "files", branch="v1")
    hub.commit("org/name", {"README.md": b"nothing is here"})
    place = Where("org/name", revision="v1", subfolder="of it", cache_dir=tmp_path / "other")
    plain = convert_printed(place)
    assert torch.equal(plain["head.weight"].float(), PACKED["head.weight"].float())


def test_a_printed_command_names_the_files_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_checkpoint(tmp_path / "a b" / "inner", PACKED, shards=1)
    (folder / "model.safetensors").rename(folder / "model.int8.safetensors")
    plain = convert_printed(Where("a b", subfolder="inner", variant="int8"))
    assert torch.equal(plain["head.weight"].float(), PACKED["head.weight"].float())


def test_a_place_in_python_opens_again():
    place = Where("org/name", revision="v1", token="secret", local_files_only=True)
    assert eval(f"Where({place.in_python})") == Where("org/name", revision="v1", local_files_only=True)
    assert place.as_arguments == "org/name --revision v1 --offline"
