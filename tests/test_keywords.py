"""Every known keyword is taken or declined by name, in every entry point; a misspelt one is told what may be meant."""

from __future__ import annotations

import copy
import inspect
import json
import pickle

import pytest
import torch

import shardload
from shardload import (
    ShardloadError,
    UnsupportedError,
    UsageError,
    build_shell,
    from_pretrained,
    open_checkpoint,
)
from shardload.keywords import place_of, trust_of
from shardload.where import CodeTrust, Where
from tests.keywords.entry_points import ENTRY_POINTS, OWN
from tests.remote_code.repos import tiny
from tests.tiny import Net, random_state, write_checkpoint

WITH_WHERE = [name for name, own in OWN.items() if "revision" in own]


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "repo", random_state(Net()))


def test_the_entry_points_are_those_that_take_where_and_those_that_are_called_with_its_keywords():
    assert sorted(WITH_WHERE) == sorted(
        "from_pretrained load_config resolve_class load_tokenizer load_processor examine open_checkpoint plan_load "
        "convert diff verify load_adapter swap_adapter inspect_adapter merge_to_disk".split()
    )
    assert ENTRY_POINTS.keys() - WITH_WHERE == {
        "attach_lora", "build_shell", "check", "fill", "save", "save_adapter",
    }  # fmt: skip
    for name in shardload.__all__:
        function = getattr(shardload, name)
        if inspect.isfunction(function) and "where" in inspect.signature(function).parameters:
            assert name in ENTRY_POINTS, f"{name} does not name its keywords"


def calls(tmp_path):
    """Return what each entry point is called with on files that are all right."""
    state = random_state(Net())
    plain = write_checkpoint(tmp_path / "plain", state)
    tiny(tmp_path / "code")
    torch.save(
        {"linear.weight": torch.ones(4, 4), "linear.bias": torch.zeros(4)},
        tmp_path / "code" / "pytorch_model.bin",
    )
    (tmp_path / "new").mkdir()
    base = torch.nn.Sequential(torch.nn.Linear(4, 4))
    bare = copy.deepcopy(base)
    shardload.attach_lora(base)
    lora = tmp_path / "lora"
    shardload.save_adapter(base, lora)
    shardload.save(bare, tmp_path / "base")
    code = {"trust_remote_code": True}
    make = {"model_class": lambda _: Net()}
    out = tmp_path / "new"
    return {
        "from_pretrained": ((plain,), make),
        "load_config": ((tmp_path / "code",), code),
        "resolve_class": ((tmp_path / "code",), code),
        "load_tokenizer": ((tmp_path / "code",), {}),
        "load_processor": ((tmp_path / "code",), {}),
        "examine": ((plain,), make),
        "open_checkpoint": ((plain,), {}),
        "plan_load": ((plain,), {}),
        "convert": ((plain, out), {}),
        "diff": ((plain, plain), {}),
        "verify": ((plain,), {}),
        "load_adapter": ((bare, lora), {}),
        "swap_adapter": ((base, "default", lora), {}),
        "inspect_adapter": ((lora,), {}),
        "merge_to_disk": ((tmp_path / "base", lora, out), {}),
        "attach_lora": ((bare,), {}),
        "build_shell": ((Net,), {}),
        "check": ((Net(), open_checkpoint(plain)), {}),
        "fill": ((Net(), open_checkpoint(plain)), {}),
        "save": ((Net(), out), {}),
        "save_adapter": ((base, out), {}),
    }


@pytest.mark.parametrize("function", ENTRY_POINTS)
def test_what_is_taken_is_accepted(tmp_path, function):
    """Every keyword at once, each with the default that its signature shows."""
    arguments, keywords = calls(tmp_path)[function]
    signature = inspect.signature(ENTRY_POINTS[function])
    given = {
        name: each.default
        for name, each in list(signature.parameters.items())[len(arguments) :]
        if each.default is not each.empty
    }
    assert given or function == "build_shell"
    if function in ("load_tokenizer", "load_processor"):
        with pytest.raises(shardload.NotFoundError, match=f"no {function.removeprefix('load_')}"):
            ENTRY_POINTS[function](*arguments, **{**given, **keywords})
        return
    if function == "load_config":
        given["dtype"] = "float32"
    ENTRY_POINTS[function](*arguments, **{**given, **keywords})


@pytest.mark.parametrize("function", WITH_WHERE)
def test_help_names_every_keyword_with_its_default(function):
    parameters = inspect.signature(ENTRY_POINTS[function]).parameters
    assert not any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    defaults = vars(Where("x")) | {"trust_remote_code": False, "code_revision": None, "remote_base": "auto"}
    for name in "revision token cache_dir local_files_only subfolder allow_links".split():
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    for name in parameters.keys() & defaults.keys() - {"name"}:
        assert parameters[name].default is defaults[name] or parameters[name].default == defaults[name]


def test_the_real_transformers_is_chosen_in_every_function_that_runs_code():
    for name in ("from_pretrained", "load_config", "resolve_class", "load_tokenizer", "examine"):
        assert {"trust_remote_code", "code_revision", "remote_base"} <= OWN[name]


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("offload_folder", "x", "mapped"),
        ("gguf_file", "x.gguf", "pass the file itself"),
    ],
)
def test_what_is_not_built_is_declined_by_name(folder, name, value, cure):
    with pytest.raises(UnsupportedError, match=name) as caught:
        from_pretrained(folder, model_class=lambda _: Net(), **{name: value})
    assert cure in caught.value.cure


def read_by(folder, **keywords):
    return from_pretrained(folder, model_class=lambda _: Net(), **keywords)


@pytest.mark.parametrize("dtype", ["float16", torch.float16])
def test_a_synonym_is_taken(folder, dtype):
    assert read_by(folder, torch_dtype=dtype).head.weight.dtype == torch.float16
    key_map = {"{...}": "{...}"}
    assert read_by(folder, key_mapping=key_map, use_auth_token=False).head.weight.dtype == torch.float32


def test_a_synonym_that_says_nothing_leaves_the_default(folder):
    assert read_by(folder, torch_dtype=None).head.weight.dtype == torch.float32


def test_a_keyword_and_its_synonym_are_refused_together(folder):
    with pytest.raises(UsageError, match="dtype=… and its synonym torch_dtype=") as caught:
        read_by(folder, dtype="float16", torch_dtype="float16")
    assert caught.value.cure == "leave torch_dtype= out"


@pytest.mark.parametrize(
    "name", ["low_cpu_mem_usage", "use_safetensors", "resume_download", "empty_init", "_fast_init"]
)
def test_what_changes_nothing_is_accepted_with_one_note(folder, name):
    notes = shardload.report_of(read_by(folder, **{name: True})).notes
    assert [note for note in notes if "has no effect" in note] == [note for note in notes if name in note]
    assert sum(name in note for note in notes) == 1


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("use_safetensors", "pass the file itself as where"),
        ("weights_only", "leave it out: nothing that a pickle names is ever run"),
    ],
)
def test_a_value_that_would_change_something_is_declined(folder, name, cure):
    with pytest.raises(UsageError, match=f"has no {name}=") as caught:
        read_by(folder, **{name: False})
    assert cure in caught.value.cure


def test_a_setting_of_the_config_is_set_on_it(folder):
    (folder / "config.json").write_text('{"width": 3, "part": {"depth": 1}}')
    seen = []

    def make(config):
        seen.append((config.width, config.num_labels, config._attn_implementation))
        return Net()

    model = from_pretrained(folder, model_class=make, width=5, num_labels=7, attn_implementation="eager")
    assert seen == [(5, 7, "eager")]
    said = shardload.report_of(model).config_from
    assert said.endswith("with width=5, num_labels=7, attn_implementation='eager' of the call")
    assert shardload.load_config(folder, width=9).width == 9
    assert shardload.load_config(folder).width == 3


@pytest.mark.parametrize("name", ["widht", "to_dict", "_width"])
def test_what_the_config_does_not_have_is_a_misspelt_keyword(folder, name):
    (folder / "config.json").write_text('{"width": 3}')
    for call in (lambda: read_by(folder, **{name: 5}), lambda: shardload.load_config(folder, **{name: 5})):
        with pytest.raises(
            TypeError, match=f"unexpected keyword argument '{name}'; the repo's config has no"
        ):
            call()


def test_a_misspelt_setting_is_told_which_is_meant(folder):
    (folder / "config.json").write_text('{"width": 3}')
    with pytest.raises(UsageError) as caught:
        shardload.load_config(folder, widht=5)
    assert caught.value.cure == "did you mean width=…?"


def test_a_config_of_the_caller_is_not_changed_by_a_setting(folder):
    config = shardload.load_config(folder)
    config.width = 3
    seen = []
    from_pretrained(folder, config=config, model_class=lambda c: seen.append(c.width) or Net(), width=5)
    assert (seen, config.width) == ([5], 3)


@pytest.mark.parametrize("keyword", ["spill", "merge", "verify"])
def test_plan_load_answers_for_itself(folder, keyword):
    with pytest.raises(UsageError, match=f"plan_load has no {keyword}=") as caught:
        shardload.plan_load(folder, **{keyword: True})
    assert "open_checkpoint" not in str(caught.value)


def test_a_limit_by_device_is_refused_and_told_what_max_memory_is_here(folder):
    with pytest.raises(UsageError, match="max_memory") as caught:
        from_pretrained(folder, model_class=lambda _: Net(), max_memory={0: "1GB"})
    assert "anonymous memory" in caught.value.cure
    assert caught.value.cure.keywords == {"device_map": "auto"}


def test_a_name_that_nobody_knows_is_a_type_error(folder):
    with pytest.raises(TypeError, match="unexpected keyword argument 'devise'"):
        from_pretrained(folder, model_class=lambda _: Net(), devise="cpu")


@pytest.mark.parametrize(
    ("function", "keyword", "meant"),
    [
        ("from_pretrained", "devise", "device"),
        ("open_checkpoint", "revison", "revision"),
        ("plan_load", "dtypes", "dtype"),
        ("convert", "max_shard_sizes", "max_shard_size"),
        ("diff", "keymap", "key_map"),
        ("load_adapter", "trainble", "trainable"),
        ("fill", "allow_mising", "allow_missing"),
        ("load_tokenizer", "trust_remotecode", "trust_remote_code"),
    ],
)
def test_a_misspelt_keyword_is_told_what_may_be_meant(function, keyword, meant):
    with pytest.raises(UsageError, match=rf"{function}\(\) got an unexpected keyword") as caught:
        ENTRY_POINTS[function]("x", **{keyword: None})
    assert isinstance(caught.value, TypeError)
    assert caught.value.cure == f"did you mean {meant}=…?"
    assert caught.value.to_dict()["keywords"] == {meant: None}
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_where_holds_what_the_keywords_say(folder, tmp_path):
    (folder / "inner").mkdir()
    write_checkpoint(folder / "inner", {"only": torch.zeros(1)})
    assert list(open_checkpoint(Where(folder, subfolder="inner")).tensors) == ["only"]
    assert list(open_checkpoint(Where(folder), subfolder="inner").tensors) == ["only"]
    place = place_of("org/name@v1", {"token": "hf_secret", "allow_links": True, "trust_remote_code": True})
    assert place == Where("org/name@v1", token="hf_secret", allow_links=True)
    assert "hf_secret" not in repr(place)
    assert place.named_revision == "v1"
    assert Where("org/name", "v2").named_revision == "v2"
    assert Where(tmp_path / "a@b").named_revision is None
    assert place.elsewhere("org/code", "v3") == Where("org/code", "v3", token="hf_secret", allow_links=True)


def test_trust_is_what_the_caller_said_and_nothing_else():
    place = Where("org/name@v1", local_files_only=True)
    trust = trust_of(place, {"trust_remote_code": "locked", "dtype": "float32"})
    assert (trust.revision, trust.code_revision, trust.remote_base, trust.hub) == ("v1", None, "auto", place)
    assert trust.allows_code
    assert trust.asks_for_lock
    for allowed in (False, None, 0, 1, "True", [True]):
        assert not CodeTrust(allowed).allows_code
    assert CodeTrust(True).allows_code
    assert not CodeTrust(True).asks_for_lock


def test_an_adapter_behind_a_link_is_followed_as_its_base_is(tmp_path):
    base = torch.nn.Sequential(torch.nn.Linear(4, 4))
    shardload.save(base, tmp_path / "base")
    shardload.attach_lora(base)
    shardload.save_adapter(base, tmp_path / "elsewhere")
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in (tmp_path / "elsewhere").iterdir():
        (linked / file.name).symlink_to(file)
    keywords = {"model_class": lambda _: torch.nn.Sequential(torch.nn.Linear(4, 4)), "adapter": linked}
    with pytest.raises(ShardloadError, match="allow_links=True"):
        from_pretrained(tmp_path / "base", **keywords)
    assert from_pretrained(tmp_path / "base", allow_links=True, **keywords)


def test_a_shell_is_built_through_the_same_door():
    with pytest.raises(UsageError, match="build_shell has no device="):
        build_shell(Net, device="cuda")
    assert json.dumps(sorted(OWN["build_shell"])) == '["at_most", "dtype", "make"]'


@pytest.mark.parametrize("keyword", ["revision", "subfolder", "variant"])
def test_a_checkpoint_that_is_open_takes_no_choice_of_files(folder, tmp_path, keyword):
    checkpoint = open_checkpoint(folder)
    for call in (
        lambda **more: shardload.plan_load(checkpoint, **more),
        lambda **more: shardload.convert(checkpoint, tmp_path / "new", **more),
        lambda **more: shardload.diff(checkpoint, checkpoint, **more),
    ):
        with pytest.raises(UsageError, match="open already") as caught:
            call(**{keyword: "x"})
        assert caught.value.where == f"{keyword}="
    write_checkpoint(folder / "inner", random_state(Net()))
    assert shardload.diff(checkpoint, folder, subfolder="inner", local_files_only=True).ok
    assert shardload.plan_load(checkpoint, token=False, revision=None).tensors == len(checkpoint.tensors)
