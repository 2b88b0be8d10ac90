"""Whatever is printed as a cure can be typed as it is printed, and loads the right weights."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from shardload import ShardloadError, from_pretrained, report_of
from shardload.cli import run
from tests.cures import models
from tests.cures.kinds import choices, kind_of
from tests.cures.provocations import provocations
from tests.cures.typed import REPORT_MAP, copied, typed
from tests.tiny import random_state, save_safetensors, write_checkpoint

if TYPE_CHECKING:
    from tests.cures.provocations import Provocation, State
    from tests.cures.typed import Typed

LORA_SHAPES = {"A": (2, 32), "B": (32, 2)}
ALL = {each.name: each for each in provocations()}
WORKED = json.loads((Path(__file__).parent / "worked.json").read_text())


def refusal(case: Provocation, folder: Path) -> ShardloadError:
    with pytest.raises(ShardloadError) as caught:
        from_pretrained(folder, model_class=case.model, progress=False, **case.keywords)
    return caught.value


def assert_right(model: torch.nn.Module, truths: list[State], steps: Typed) -> None:
    """Assert that the model has the weights of one of the truths; what may be missing has some value of its class."""
    loaded = model.state_dict()
    free = [re.compile(re.escape(p).replace(r"\*", ".*")) for p in steps.keywords.get("allow_missing", ())]

    def equal(truth: State) -> bool:
        return all(
            (key in loaded and loaded[key].shape == value.shape and torch.equal(loaded[key], value))
            or any(pattern.fullmatch(key) for pattern in free)
            for key, value in truth.items()
        )

    assert any(map(equal, truths)), f"loads other weights: {steps.text}"
    assert not any(value.is_meta for value in loaded.values())


@pytest.mark.parametrize("name", ALL)
def test_every_cure_of_an_error_cures(tmp_path, name):
    case = ALL[name]
    truths = case.write(tmp_path / "given")
    error = refusal(case, tmp_path / "given")
    assert error.code == case.code, str(error)
    applied = 0
    for number, text in enumerate(choices(error.cure)):
        steps = typed(str(text))
        if not steps.says_something:
            continue
        folder = copied(tmp_path / "given", tmp_path / f"cure {number}")
        steps.edit(folder)
        keywords = {**case.keywords, **steps.keywords}
        if keywords.get("key_map") == REPORT_MAP:
            keywords["key_map"] = error.report.key_map
        where = steps.path or folder
        model = from_pretrained(where, model_class=case.model, progress=False, **keywords)
        assert_right(model, truths, steps)
        applied += 1
    assert applied or case.needs_choice or "no cure is known" in error.cure, error.cure


@pytest.mark.parametrize("name", ALL)
def test_every_cure_of_a_command_cures(tmp_path, name, monkeypatch, capsys):
    case = ALL[name]
    monkeypatch.chdir(tmp_path)
    case.write(tmp_path / "given")
    of_model = ["--model-class", f"tests.cures.models:{case.model.__name__}"]

    def load(where: str, *options: str) -> tuple[int, str]:
        return run(["load", where, *of_model, *options]), capsys.readouterr().err

    code, said = load("given")
    assert code not in {0, 70}, said
    (line,) = [line for line in said.splitlines() if line.startswith("  cure:  ")]
    applied = 0
    for number, text in enumerate(line.removeprefix("  cure:  ").split("; or ")):
        steps = typed(text, as_command=True)
        if not steps.says_something:
            continue
        folder = copied(tmp_path / "given", tmp_path / f"cure {number}")
        steps.edit(folder)
        for command in steps.commands:
            name_of_tool, *given = shlex.split(command)
            assert (name_of_tool, run(given) in {0, 1, 3}) == ("shardload", True)
        code, said = load(steps.path or folder.name, *steps.options)
        assert code == 0, f"{text}\n{said}"
        applied += 1
    assert applied or case.needs_choice or "no cure is known" in line, line


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "model.safetensors"])
@pytest.mark.parametrize("named", [True, False])
def test_an_adapter_in_the_place_of_a_model_is_named_with_its_base(tmp_path, file, named):
    base = write_checkpoint(tmp_path / "my base", random_state(models.Decoder(models.DECODER)), shards=1)
    (base / "config.json").write_text(json.dumps(models.DECODER))
    path = "base_model.model.layers.{}.q_proj.lora_{}.weight"
    lora = {path.format(n, part): torch.ones(shape) for n in (0, 1) for part, shape in LORA_SHAPES.items()}
    (tmp_path / "lora").mkdir()
    save_safetensors(lora, tmp_path / "lora" / file)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    settings |= {"base_model_name_or_path": str(base)} if named else {}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    for where in (tmp_path / "lora", tmp_path / "lora" / file):
        with pytest.raises(ShardloadError) as caught:
            from_pretrained(where, model_class=models.Decoder, config=models.DECODER, progress=False)
        assert caught.value.code == "E-ADAPTER"
        steps = typed(str(caught.value.cure))
        assert steps.path == (str(base) if named else "")
        model = from_pretrained(base, model_class=models.Decoder, progress=False, **steps.keywords)
        (report,) = report_of(model).adapters
        assert report.modules == 2


def kinds_by_code(folder: Path) -> dict[str, int]:
    """Return how many kinds of cures can be typed, by the code of what provokes them here."""
    kinds: dict[str, set[object]] = {}
    for case in ALL.values():
        case.write(folder / case.name)
        error = refusal(case, folder / case.name)
        whole = [choice for choice in choices(error.cure) if typed(str(choice)).is_whole]
        kinds.setdefault(error.code, set()).update(kind_of(error.code, choice) for choice in whole)
    return {code: len(found) for code, found in sorted(kinds.items())}


def test_the_causes_with_a_cure_do_not_become_fewer(tmp_path):
    """`python -m tests.cures` counts them in the whole suite, and writes the numbers when they grow."""
    found = kinds_by_code(tmp_path)
    assert all(found.get(code, 0) >= count for code, count in WORKED["law"].items()), found
