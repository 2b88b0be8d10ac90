"""transformers loads while other threads build shells: `python -m tests.oracles.beside_transformers --loads 500`.

transformers replaces names of torch while it loads (`torch.nn.init`), and sets the default dtype; none of that may be
undone or changed by a shell that another thread builds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
from collections import Counter

import torch
from torch import nn

import shardload

SEVEN = 7.0


def model_class() -> type[nn.Module]:
    """Return a class of transformers whose checkpoint lacks the biases, so that every load initialises."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    class Config(transformers.PretrainedConfig):
        model_type = "beside"

    class Model(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config) -> None:
            super().__init__(config)
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(40))
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight)
                nn.init.zeros_(module.bias)

    return Model


def names_of_torch() -> dict[str, object]:
    """Return the names of torch that either library may replace, with what each stands for."""
    owners = (torch.Tensor, nn.Module, nn.Parameter, nn.init, torch)
    return {f"{owner.__name__}.{name}": value for owner in owners for name, value in vars(owner).items()}


def sweep(loads: int) -> Counter[str]:
    """Load with transformers `loads` times beside two threads that build shells; count what was wrong."""
    from safetensors.torch import load_file, save_file

    cls = model_class()
    folder = tempfile.mkdtemp()
    model = cls(cls.config_class()).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(SEVEN)
    model.save_pretrained(folder)
    path = f"{folder}/model.safetensors"
    weights = {name: tensor for name, tensor in load_file(path).items() if not name.endswith("bias")}
    save_file(weights, path, {"format": "pt"})
    cls.from_pretrained(folder)
    names = names_of_torch()
    stop = threading.Event()

    def shells() -> None:
        while not stop.is_set():
            shell = shardload.build_shell(lambda: nn.ModuleList(nn.Linear(8, 8) for _ in range(30)))
            seen["shells"] += 1
            seen["real parameters in a shell"] += any(not one.is_meta for one in shell.model.parameters())

    seen: Counter[str] = Counter()
    threads = [threading.Thread(target=shells) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(loads):
        loaded = cls.from_pretrained(folder, dtype=torch.bfloat16)
        seen["loads"] += 1
        seen["wrong weights"] += any(not bool((layer.weight == SEVEN).all()) for layer in loaded.layers)
        seen["wrong dtypes"] += any(one.dtype != torch.bfloat16 for one in loaded.parameters())
    stop.set()
    for thread in threads:
        thread.join()
    now = names_of_torch()
    seen["names changed"] = sum(now.get(name) is not value for name, value in names.items())
    seen["default dtype changed"] = int(torch.get_default_dtype() is not torch.float32)
    return seen


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracles.beside_transformers", description=__doc__)
    parser.add_argument("--loads", type=int, default=500, help="loads with transformers (default: 500)")
    print(dict(sweep(parser.parse_args().loads)))


if __name__ == "__main__":
    main()
