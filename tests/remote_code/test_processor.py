"""load_processor: the repo's own processors under the trust rules of tokenizers, and those of transformers."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch

import shardload
from shardload import (
    CorruptError,
    NotFoundError,
    RemoteCodeError,
    UnsafeError,
    UnsupportedError,
    UntrustedCodeError,
    UsageError,
    load_processor,
)
from shardload.checkpoint.sources import find_source
from shardload.remote_code.processor import KINDS, make_processor
from shardload.remote_code.review import review_code
from shardload.where import CodeTrust, Where

IMAGES = """
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

class Scale(BaseImageProcessor):
    model_input_names = ["pixel_values"]

    def __init__(self, factor=1, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def preprocess(self, images, return_tensors=None):
        return BatchFeature({"pixel_values": [image * self.factor for image in images]}, return_tensors)
"""
SOUND = """
from transformers import FeatureExtractionMixin
class Sound(FeatureExtractionMixin):
    pass
"""
WORDS = """
from transformers import PreTrainedTokenizer
class Letters(PreTrainedTokenizer):
    def get_vocab(self): return {chr(number): number for number in range(128)}
    def _tokenize(self, text): return list(text)
    def _convert_token_to_id(self, token): return ord(token)
    def _convert_id_to_token(self, index): return chr(index)
"""
BOTH = """
from transformers.processing_utils import ProcessorMixin
from .images import Scale

class Both(ProcessorMixin):
    attributes = ["image_processor", "tokenizer"]
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(self, image_processor=None, tokenizer=None, marks=0, **kwargs):
        assert isinstance(image_processor, Scale)
        super().__init__(image_processor, tokenizer)
        self.marks = marks

    def __call__(self, text, images):
        return {**self.tokenizer(text), **self.image_processor(images)}
"""
AUTO = {"AutoImageProcessor": "images.Scale", "AutoProcessor": "both.Both"}


def write(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def whole(tmp_path):
    return write(
        tmp_path / "whole",
        {
            "images.py": IMAGES,
            "both.py": BOTH,
            "words.py": WORDS,
            "config.json": {"model_type": "x", "trust_remote_code": True},
            "preprocessor_config.json": {"factor": 3, "auto_map": AUTO, "size": 8, "trust_remote_code": True},
            "processor_config.json": {"marks": 5, "processor_class": "Both", "trust_remote_code": True},
            "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["words.Letters", None]}},
        },
    )


def test_a_processor_of_parts_that_are_all_code(whole):
    processor = load_processor(whole, trust_remote_code=True)
    assert processor("hi", [1, 2])["pixel_values"] == [3, 6]
    assert processor.tokenizer("hi")["input_ids"] == [104, 105]
    assert (processor.marks, processor.image_processor.size) == (5, 8)
    assert processor.decode([104]) == "h"
    assert processor.model_input_names == ["pixel_values"]
    images = load_processor(whole, trust_remote_code=True, auto_class="AutoImageProcessor")
    assert type(images) is type(processor.image_processor)
    batch = images([torch.ones(2), torch.ones(2)], return_tensors="pt")
    assert batch.pixel_values.shape == (2, 2)
    assert batch.to(torch.float16).pixel_values.dtype is torch.float16


def test_nothing_runs_without_the_callers_word(whole):
    for name in ("images.py", "both.py", "words.py"):
        (whole / name).write_text("raise SystemExit('this ran')")
    for trust in (False, None, 1):
        with pytest.raises(UntrustedCodeError) as caught:
            load_processor(whole, trust_remote_code=trust)
        assert "both.py (sha256" in caught.value.where
        assert "trust_remote_code=True" in caught.value.cure
        assert "model_class" not in caught.value.cure


def test_the_code_of_every_part_is_shown_for_review(whole):
    (review,) = review_code(find_source(Where(whole))[0], {})
    names = {file.name for file, _ in review.contents}
    assert names == {"images.py", "both.py", "words.py"}


@pytest.mark.parametrize(
    ("kind", "code", "name"),
    [("AutoFeatureExtractor", SOUND, "Sound"), ("AutoImageProcessor", IMAGES, "Scale")],
)
def test_a_single_processor(tmp_path, kind, code, name):
    settings = {"rate": 16000, "auto_map": {kind: f"one.{name}"}}
    folder = write(tmp_path / "one", {"one.py": code, "preprocessor_config.json": settings})
    made = load_processor(folder, trust_remote_code=True)
    assert (type(made).__name__, made.rate) == (name, 16000)
    made.save_pretrained(tmp_path / "again")
    again = type(made).from_pretrained(tmp_path / "again")
    assert again.to_dict() == made.to_dict()
    with pytest.raises(UsageError, match="AutoModel makes no processor"):
        load_processor(folder, trust_remote_code=True, auto_class="AutoModel")


def test_the_code_may_lie_in_a_folder(tmp_path):
    settings = {"auto_map": {"AutoImageProcessor": "inner.images.Scale"}}
    folder = write(tmp_path / "repo", {"preprocessor_config.json": settings})
    write(folder / "inner", {"images.py": IMAGES})
    assert load_processor(folder, trust_remote_code=True)([2])["pixel_values"] == [2]


def test_a_part_that_the_repo_does_not_have(whole):
    (whole / "preprocessor_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": "both.Both"}}))
    with pytest.raises(UnsupportedError, match="says nothing of its image_processor"):
        load_processor(whole, trust_remote_code=True, remote_base="shim")


def test_errors_of_the_code_are_typed(whole):
    (whole / "images.py").write_text(IMAGES.replace("self.factor = factor", "1 / 0"))
    with pytest.raises(RemoteCodeError, match="making the processor images.Scale.*ZeroDivision") as caught:
        load_processor(whole, trust_remote_code=True)
    assert "images.py:" in caught.value.where


def test_a_repo_without_one(tmp_path):
    folder = write(tmp_path / "bare", {"config.json": {}, "tokenizer.json": {}})
    with pytest.raises(NotFoundError, match="has no processor") as caught:
        load_processor(folder)
    assert "load_tokenizer" in caught.value.cure
    named = write(
        tmp_path / "named", {"preprocessor_config.json": {"image_processor_type": "NoSuchProcessor"}}
    )
    with pytest.raises(NotFoundError, match="NoSuchProcessor, a class of transformers"):
        load_processor(named)
    broken = write(tmp_path / "broken", {"preprocessor_config.json": "{"})
    with pytest.raises(CorruptError):
        load_processor(broken)
    with pytest.raises(CorruptError, match="not a name"):
        load_processor(
            write(tmp_path / "m", {"preprocessor_config.json": {"auto_map": {"AutoProcessor": 5}}})
        )


WHISPER = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 40, "sampling_rate": 16000}


def test_a_class_of_an_installed_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path / "sound", {"preprocessor_config.json": WHISPER})
    made = load_processor(folder)
    assert type(made) is transformers.WhisperFeatureExtractor
    assert made.feature_size == 40


@pytest.mark.parametrize(
    "name", ["AutoProcessor", "PreTrainedModel", "pipeline", "LlamaForCausalLM", "Trainer"]
)
@pytest.mark.parametrize("setting", ["feature_extractor_type", "image_processor_type", "processor_class"])
def test_a_file_names_only_processors(tmp_path, name, setting):
    pytest.importorskip("transformers")
    folder = write(tmp_path / "odd", {"preprocessor_config.json": {setting: name}})
    with pytest.raises(NotFoundError):
        load_processor(folder)


EVIL = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n" + WORDS


def test_the_code_of_a_part_of_a_library_class_needs_consent_too(tmp_path):
    pytest.importorskip("transformers")
    files = {
        "preprocessor_config.json": {**WHISPER, "processor_class": "WhisperProcessor"},
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["words.Letters", None]}},
        "words.py": EVIL,
    }
    folder = write(tmp_path / "mixed", files)
    with pytest.raises(UntrustedCodeError, match="would run the repo's own code") as caught:
        load_processor(folder)
    assert "words.py" in caught.value.where
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("file", ["processor_config.json", "audio_tokenizer_config.json"])
def test_no_file_names_the_place_of_a_model_that_a_processor_needs(tmp_path, file, capsys):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "DiaProcessor"):
        pytest.skip("this release has no processor with an audio tokenizer")
    place = {
        "audio_tokenizer_class": "AutoModel",
        "audio_tokenizer_name_or_path": str(tmp_path / "dia" / "inside"),
    }
    files = {
        "processor_config.json": {"processor_class": "DiaProcessor"},
        "preprocessor_config.json": {"feature_extractor_type": "DiaFeatureExtractor"},
        "tokenizer_config.json": {"tokenizer_class": "DiaTokenizer"},
    }
    inside = {"auto_map": {"AutoConfig": "words.Letters"}, "model_type": "x"}
    folder = write(tmp_path / "dia", files)
    write(folder / "inside", {"config.json": inside, "words.py": EVIL})
    if file == "processor_config.json":
        write(folder, {file: {**files[file], "audio_tokenizer": place}})
    else:
        write(folder, {file: place})
    with pytest.raises(UntrustedCodeError, match="from a place that they name") as caught:
        load_processor(folder)
    assert caught.value.where.endswith(file)
    assert "Do you wish to run" not in capsys.readouterr().out


def test_what_a_library_refuses_is_a_typed_error(tmp_path):
    pytest.importorskip("transformers")
    folder = write(tmp_path / "bad", {"preprocessor_config.json": {**WHISPER, "feature_size": "many"}})
    with pytest.raises(CorruptError, match="WhisperFeatureExtractor can't be made"):
        load_processor(folder)


REAL = """
from transformers import WhisperFeatureExtractor
class Louder(WhisperFeatureExtractor):
    pass
"""


def test_code_that_needs_the_library_is_served_by_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = {**WHISPER, "auto_map": {"AutoFeatureExtractor": "louder.Louder"}}
    folder = write(tmp_path / "real", {"louder.py": REAL, "preprocessor_config.json": settings})
    made = load_processor(folder, trust_remote_code=True)
    assert isinstance(made, transformers.WhisperFeatureExtractor)
    assert made.feature_size == 40
    with pytest.raises(RemoteCodeError, match="WhisperFeatureExtractor"):
        load_processor(folder, trust_remote_code=True, remote_base="shim")


def test_every_kind_is_found_by_the_settings_of_the_repo_alone(tmp_path):
    folder = write(tmp_path / "bare", {"preprocessor_config.json": {}})
    assert shardload.load_processor is load_processor
    for kind in KINDS:
        with pytest.raises(NotFoundError):
            make_processor(find_source(Where(folder))[0], None, CodeTrust(True), auto_class=kind)


def test_a_library_class_without_its_packages_says_which(tmp_path):
    transformers = pytest.importorskip("transformers")
    if type(transformers.CLIPImageProcessor).__name__ != "DummyObject":
        pytest.skip("its packages are installed")
    folder = write(
        tmp_path / "clip", {"preprocessor_config.json": {"image_processor_type": "CLIPImageProcessor"}}
    )
    with pytest.raises(RemoteCodeError, match="CLIPImageProcessor needs") as caught:
        load_processor(folder)
    assert caught.value.cure.startswith("pip install ")


@pytest.mark.parametrize("place", ["org/other", None])
def test_no_class_fetches_a_file_of_a_repo_that_settings_name(tmp_path, place):
    """OneFormer's image processor asks the Hub for a table of names, whatever local_files_only says."""
    pytest.importorskip("transformers")
    settings = {"image_processor_type": "OneFormerImageProcessor", "class_info_file": "names.json"}
    file = tmp_path / "preprocessor_config.json"
    (tmp_path / "config.json").write_text("{}")
    file.write_text(json.dumps({**settings, **({"repo_path": place} if place else {})}))
    with pytest.raises(UnsafeError, match="fetch names.json from another repo") as caught:
        load_processor(tmp_path)
    assert "set repo_path to its folder in preprocessor_config.json" in caught.value.cure
    (tmp_path / "names.json").write_text('{"0": {"name": "wall", "isthing": 0}}')
    file.write_text(json.dumps({**settings, "num_text": 3, "repo_path": str(tmp_path)}))
    if find_spec("torchvision") is None:
        with pytest.raises(RemoteCodeError, match="which is not installed"):
            load_processor(tmp_path)
    else:
        assert load_processor(tmp_path).metadata["class_names"] == ["wall"]
