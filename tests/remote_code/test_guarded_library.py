"""What a repo's code asks an installed transformers for leads to no code that the caller did not allow."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

import pytest

from shardload import UntrustedCodeError, from_pretrained
from shardload.checkpoint.sources import find_source
from shardload.errors import ShardloadError
from shardload.remote_code.guarded_library import guarded
from shardload.remote_code.review import review_code
from shardload.remote_code.trust_lock import lock_path
from tests.remote_code.repos import write
from tests.tiny import save_safetensors

needs_library = pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
BASES = ["shim", *(["parts", "transformers"] if find_spec("transformers") else [])]

MODEL = """
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
class C(PretrainedConfig):
    model_type = "asking"
class M(PreTrainedModel):
    config_class = C
    def __init__(self, config):
        super().__init__(config)
        self.linear = nn.Linear(2, 2)
        self.asked = ask(config)
        self.post_init()
    def forward(self, x):
        return self.linear(x)
def ask(config):
"""
WORDS = """
from transformers import PreTrainedTokenizer
{effect}
class Letters(PreTrainedTokenizer):
    def __init__(self, shift=0, **kwargs):
        self.shift = shift
        super().__init__(**kwargs)
    @property
    def vocab_size(self): return 128
    def get_vocab(self): return {{chr(number): number for number in range(128)}}
    def _tokenize(self, text): return list(text)
    def _convert_token_to_id(self, token): return ord(token) + self.shift
    def _convert_id_to_token(self, index): return chr(index)
"""
OTHER_CODE = """
import pathlib
pathlib.Path(__file__).with_name("it_ran").touch()
pathlib.Path({mark!r}).touch()
from transformers import PretrainedConfig, PreTrainedModel
class Config(PretrainedConfig):
    model_type = "other"
class Net(PreTrainedModel):
    config_class = Config
class Words: pass
"""
AUTO = [
    "AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor",
    "AutoFeatureExtractor",
]  # fmt: skip


def repo(folder, asks, effect="", **config):
    from torch import zeros

    auto_map = {"AutoConfig": "modeling_a.C", "AutoModel": "modeling_a.M"}
    words = {"auto_map": {"AutoTokenizer": ["words_a.Letters", None]}, "tokenizer_class": "Letters"}
    asks = asks.replace("TRUST", "trust_remote_code=True")
    lines = "".join(f"    {line}\n" for line in asks.splitlines())
    write(
        folder,
        {
            "modeling_a.py": MODEL + lines,
            "words_a.py": WORDS.format(effect=effect),
            "tokenizer_config.json": json.dumps(words),
        },
        {"auto_map": auto_map, "model_type": "asking", **config},
    )
    save_safetensors({"linear.weight": zeros(2, 2), "linear.bias": zeros(2)}, folder / "model.safetensors")
    return folder


def other(folder):
    """Write another repo, whose code leaves a mark when it runs; return it and the mark."""
    mark = folder.parent / "mark"
    auto_map = {name: "code_o.Config" if name == "AutoConfig" else "code_o.Net" for name in AUTO}
    settings = {"auto_map": {**auto_map, "AutoTokenizer": ["code_o.Words", None]}, "model_type": "other"}
    files = dict.fromkeys(
        ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json"), json.dumps(settings)
    )
    write(folder, {"code_o.py": OTHER_CODE.format(mark=str(mark)), **files}, settings)
    return folder, mark


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("auto", ["AutoTokenizer", "AutoProcessor"])
def test_a_repo_gets_its_own_tokenizer_in_its_constructor_by_shardload(tmp_path, base, auto):
    if base == "shim" and auto == "AutoProcessor":
        pytest.skip("the stand-in has no such class: the next base serves")
    asks = f"from transformers import {auto}\nreturn {auto}.from_pretrained(config._name_or_path, TRUST, shift=1)"
    model = from_pretrained(repo(tmp_path / "a", asks), trust_remote_code=True, remote_base=base)
    assert model.asked("ab")["input_ids"] == [98, 99]
    assert type(model.asked).__module__.startswith("shardload.remote_code.repos.")
    assert not [name for name in sys.modules if name.startswith("transformers_modules.a")]


@pytest.mark.parametrize("base", BASES)
def test_a_lock_that_approves_the_model_approves_no_tokenizer_that_changed_since(tmp_path, base, work):
    asks = "from transformers import AutoTokenizer\nreturn AutoTokenizer.from_pretrained(config._name_or_path, TRUST)"
    folder = repo(tmp_path / "a", asks)
    source, _ = find_source(folder)
    for review in review_code(source, json.loads((folder / "config.json").read_text())):  # fmt: skip
        review.approve(lock_path(None))
    from_pretrained(folder, trust_remote_code="locked", remote_base=base)
    (folder / "words_a.py").write_text(WORDS.format(effect="raise SystemExit('it ran')"))
    with pytest.raises(UntrustedCodeError):
        from_pretrained(folder, trust_remote_code="locked", remote_base=base)


WAYS = {
    **{auto: f"from transformers import {auto}\n{auto}.from_pretrained(OTHER, TRUST)" for auto in AUTO},
    "by the module": "import transformers\ntransformers.models.auto.AutoModel.from_pretrained(OTHER, TRUST)",
    "by importlib": "from importlib import import_module as i\ni('transformers').AutoTokenizer.from_pretrained(OTHER)",
    "by its home": "from transformers.models.auto.modeling_auto import AutoModel as A\nA.from_pretrained(OTHER, TRUST)",
    "unsaid": "from transformers import AutoTokenizer\nAutoTokenizer.from_pretrained(OTHER)",
    "a subclass": "from transformers import AutoModel\nclass Mine(AutoModel): pass\nMine.__name__ = 'AutoModel'\n"
    "Mine.from_pretrained(OTHER, TRUST)",
    "a config": "from transformers import AutoModel\nconfig.auto_map = {'AutoModel': 'org/other--code_o.Net'}\n"
    "AutoModel.from_config(config, TRUST)",
    "a pipeline": "from transformers import pipeline\npipeline('text-generation', OTHER, TRUST)",
    "a dynamic class": "from transformers.dynamic_module_utils import get_class_from_dynamic_module\n"
    "get_class_from_dynamic_module('code_o.Net', OTHER)",
    "a module's class": "from transformers.dynamic_module_utils import get_class_in_module\n"
    "get_class_in_module('Net', OTHER + '/code_o.py')",
    "a processor's class": "from transformers import ProcessorMixin\nclass Mine(ProcessorMixin):\n"
    "    attributes = ['tokenizer']\n    tokenizer_class = 'AutoTokenizer'\n    def __init__(self, tokenizer): pass\n"
    "Mine.from_pretrained(OTHER, TRUST)",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("base", BASES)
def test_no_way_through_transformers_runs_code_of_another_repo(tmp_path, base, way):
    place, mark = other(tmp_path / "o")
    folder = repo(tmp_path / "a", WAYS[way].replace("OTHER", repr(str(place))))
    with pytest.raises(ShardloadError) as raised:
        from_pretrained(folder, trust_remote_code=True, remote_base=base)
    assert not mark.exists()
    lacks_pillow = (
        way == "AutoImageProcessor" and find_spec("PIL") is None
    )  # a dummy of that name, which raises
    if base == "transformers" and not lacks_pillow:
        assert isinstance(raised.value, UntrustedCodeError), raised.value
        assert "transformers for" in str(raised.value)
        assert "modeling_a.py:" in str(raised.value.where)


@needs_library
def test_the_library_s_own_classes_are_reached_as_before(tmp_path):
    import transformers

    asks = """import transformers
from transformers import AutoConfig as Auto, AutoModel as Models
small = transformers.BertConfig(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
)
return transformers.BertConfig, Models.from_config(small), Auto.for_model('bert'), transformers.models.bert"""
    model = from_pretrained(repo(tmp_path / "a", asks), trust_remote_code=True, remote_base="transformers")
    config_class, made, config, module = model.asked
    assert config_class is transformers.BertConfig
    assert type(made) is transformers.BertModel
    assert type(config) is transformers.BertConfig
    assert module.BertModel is transformers.BertModel
    assert issubclass(transformers.AutoModel, guarded(transformers.AutoModel))


@needs_library
def test_a_config_of_the_repo_makes_the_repo_s_own_class(tmp_path):
    asks = (
        "from transformers import AutoModel\nif getattr(config, 'inner', False): return None\n"
        "inner = C(inner=True, auto_map=config.auto_map)\n"
        "from transformers.dynamic_module_utils import get_class_from_dynamic_module as get\n"
        "return AutoModel.from_config(inner, TRUST), get('modeling_a.M', config._name_or_path), M"
    )
    model = from_pretrained(repo(tmp_path / "a", asks), trust_remote_code=True, remote_base="transformers")
    made, got, own = model.asked
    assert type(made) is type(model) is own is got
