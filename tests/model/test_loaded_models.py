"""A loaded model is an ordinary one: it is pickled, copied, compiled and exported as one that torch itself built."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from shardload import from_pretrained
from tests.tiny import write_checkpoint


class Net(nn.Module):
    """Keeps one of torch's initialisers, asks for the default dtype in forward, and computes a table."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight
        self.initialise = nn.init.xavier_uniform_
        self.register_buffer("table", torch.arange(4) / 4, persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        scale = torch.ones((), dtype=torch.get_default_dtype())
        return self.head(self.norm(self.embed(ids)) + self.table) * scale


IDS = torch.tensor([[1, 2, 3]])


@pytest.fixture
def models(tmp_path):
    plain = Net().eval()
    folder = write_checkpoint(
        tmp_path, {**plain.state_dict(), "head.weight": plain.embed.weight.detach().clone()}
    )
    return from_pretrained(folder, model_class=lambda _config: Net(), config={}), plain


def saved_whole(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "as it is": lambda model: model,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "copied": copy.deepcopy,
    "saved whole": saved_whole,
    "compiled": lambda model: torch.compile(model, fullgraph=True, backend="aot_eager"),
    "exported": lambda model: torch.export.export(model, (IDS,)).module(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_it_computes_what_a_plain_model_computes(models, way):
    ours, plain = models
    with torch.no_grad():
        assert torch.equal(WAYS[way](ours)(IDS), WAYS[way](plain)(IDS))


def test_a_copy_keeps_ties_and_the_function_is_torchs_own(models):
    ours = pickle.loads(pickle.dumps(models[0]))
    assert ours.head.weight is ours.embed.weight
    assert ours.initialise is nn.init.xavier_uniform_
