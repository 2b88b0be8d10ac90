"""The list of a distributed checkpoint: what contradicts the files or itself is an error with a name."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.distributed import checkpoint as dcp

from shardload import CorruptError, UnsafeError, UnsupportedError, open_checkpoint
from shardload.checkpoint.formats.dcp_index import DcpIndex
from shardload.checkpoint.sources import FolderSource

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def test_an_item_that_is_not_what_the_list_says_is_corrupt(tmp_path):
    dcp.save({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, checkpoint_id=tmp_path)
    listed = (tmp_path / ".metadata").read_bytes()
    data = pickle.loads(listed)
    first, *_ = data.state_dict_metadata["a"].chunks
    first.sizes = torch.Size([2, 1])
    (tmp_path / ".metadata").write_bytes(pickle.dumps(data))
    with pytest.raises(CorruptError, match="is not what .metadata says"):
        open_checkpoint(tmp_path)
    first.sizes = torch.Size([2, 2])
    data.state_dict_metadata["a"].size = torch.Size([3, 2])
    (tmp_path / ".metadata").write_bytes(pickle.dumps(data, protocol=5))
    with pytest.raises(CorruptError, match="do not make a tensor of shape"):
        open_checkpoint(tmp_path)


def test_what_an_extension_wrote_is_refused_by_name(tmp_path):
    dcp.save({"a": torch.ones(2, 2)}, checkpoint_id=tmp_path)
    data = pickle.loads((tmp_path / ".metadata").read_bytes())
    (place,) = data.storage_data.values()
    place.transform_descriptors = ["zstd"]
    (tmp_path / ".metadata").write_bytes(pickle.dumps(data))
    with pytest.raises(UnsupportedError, match="stored through an extension"):
        open_checkpoint(tmp_path)


def test_a_list_without_paths_gives_names_as_they_are(tmp_path):
    dcp.save({"model": {"a": torch.ones(2, 2)}}, checkpoint_id=tmp_path)
    data = pickle.loads((tmp_path / ".metadata").read_bytes())
    data.planner_data = None
    (tmp_path / ".metadata").write_bytes(pickle.dumps(data))
    assert list(open_checkpoint(tmp_path).tensors) == ["model.a"]
    index = DcpIndex(FolderSource(tmp_path).open(".metadata"), "here")
    assert index.tensors["model.a"].size == (2, 2)


def test_a_place_outside_the_folder_is_not_opened(tmp_path):
    dcp.save({"a": torch.ones(2, 2)}, checkpoint_id=tmp_path / "saved")
    data = pickle.loads((tmp_path / "saved" / ".metadata").read_bytes())
    (place,) = data.storage_data.values()
    place.relative_path = "../other.distcp"
    (tmp_path / "saved" / ".metadata").write_bytes(pickle.dumps(data))
    with pytest.raises(UnsafeError, match="climbs out"):
        open_checkpoint(tmp_path / "saved")
