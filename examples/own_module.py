"""Load weights into a module of your own whose names differ: no config.json, no remote code."""

from __future__ import annotations

import torch
from torch import nn

import shardload
from shardload.cli.demo_repo import write_demo_repo


class BagOfTokens(nn.Module):
    """Scores the next token from the mean of the embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8192, 512)
        self.head = nn.Linear(512, 8192, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return [batch, vocabulary]."""
        return self.head(self.embed(ids).mean(dim=1))


def main() -> None:
    """Build the shell, which takes no memory for weights, and fill it from two tensors of the demo's repo."""
    checkpoint = shardload.open_checkpoint(write_demo_repo())
    names = {
        "transformer.embedding.word_embeddings.weight": "embed.weight",
        "transformer.output_layer.weight": "head.weight",
        "transformer.*": None,  # the rest has no place in this model; without this line it would be an error
    }
    shell = shardload.build_shell(BagOfTokens)
    print(shardload.fill(shell, checkpoint, key_map=names))
    print("next token", int(shell.model(torch.tensor([[64, 65, 66]])).argmax()))


if __name__ == "__main__":
    main()
