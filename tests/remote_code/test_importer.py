"""What happens when a repo's code runs: namespaces, imports, flags."""

from __future__ import annotations

import importlib.util
import inspect
import linecache
import sys
import threading
import traceback

import pytest
import torch

from shardload import build_shell
from shardload.errors import RemoteCodeError, UnsupportedError, UsageError
from shardload.remote_code import load_config, resolve_class
from shardload.remote_code.importer import RepoCode, own_code, require_base
from shardload.remote_code.process_flags import restored_flags
from shardload.where import CodeTrust

from .repos import MODEL, build, local, module_of, run, tiny, write


def test_nothing_is_added_to_sys_path_and_no_top_level_module_appears(tmp_path):
    before_path, before = list(sys.path), set(sys.modules)
    module = run(
        tmp_path,
        "import helper_of_this_repo\nfrom transformers import PretrainedConfig",
        helper_of_this_repo_py="",
    )
    assert sys.path == before_path
    new = {name for name in set(sys.modules) - before if not name.startswith("shardload.")}
    assert "helper_of_this_repo" not in new
    assert "main" not in new
    assert "transformers" not in new
    assert module.helper_of_this_repo.__name__.startswith("shardload.remote_code.repos.h")


def test_guarded_imports_of_absent_files_and_packages_fall_through(tmp_path):
    module = run(
        tmp_path,
        "try:\n    from .absent import x\nexcept ImportError:\n    x = 1\n"
        "try:\n    import no_such_package_at_all\nexcept ImportError:\n    y = 2\n"
        "def never():\n    from .absent_too import z",
    )
    assert (module.x, module.y) == (1, 2)


def test_an_unguarded_absent_file_is_named(tmp_path):
    with pytest.raises(RemoteCodeError, match=r"its own file absent\.py") as caught:
        run(tmp_path, "import os\nfrom .absent import x")
    assert caught.value.where == f"{tmp_path / 'main.py'}:2"


def test_an_unguarded_absent_package_is_named_with_line_and_pip_name(tmp_path):
    with pytest.raises(RemoteCodeError, match="needs the package flash_attn") as caught:
        run(
            tmp_path, "\nfrom .helper import x", helper_py="\n\nfrom flash_attn.bert_padding import pad_input"
        )
    assert caught.value.where == f"{tmp_path / 'helper.py'}:3"
    assert caught.value.cure == "pip install flash-attn"


def test_code_that_fails_is_an_error_with_its_line(tmp_path):
    with pytest.raises(RemoteCodeError, match="ZeroDivisionError") as caught:
        run(tmp_path, "x = 1\ny = x / 0")
    assert caught.value.where == f"{tmp_path / 'main.py'}:2"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_code_that_exits_does_not_take_the_process_along(tmp_path):
    with pytest.raises(RemoteCodeError, match="SystemExit"):
        run(tmp_path, "import sys\nsys.exit(3)")


def test_a_class_that_the_file_lacks_is_named(tmp_path):
    source, config = write(tmp_path, {"main.py": ""}, {"auto_map": {"AutoModel": "main.Absent"}})
    with pytest.raises(RemoteCodeError, match=r"main\.Absent"):
        build(source, config)


def test_a_constructor_that_fails_is_an_error_with_its_line(tmp_path):
    source, config = tiny(tmp_path, model=MODEL.replace("self.linear = ", "self.linear = config.absent or "))
    with pytest.raises(RemoteCodeError, match="absent") as caught:
        build(source, config)
    assert caught.value.where.startswith(f"{tmp_path / 'modeling_tiny.py'}:")


def test_two_revisions_live_side_by_side(tmp_path):
    first, config = tiny(tmp_path / "a", model=MODEL + "\nREVISION = 1\n")
    second, _ = tiny(tmp_path / "b", model=MODEL + "\nREVISION = 2\n")
    old, new = build(first, config), build(second, config)
    assert (module_of(old).REVISION, module_of(new).REVISION) == (1, 2)
    assert type(old) is not type(new)
    assert type(build(first, config)) is type(old)


def test_the_same_code_in_two_places_is_one_namespace(tmp_path):
    first, config = tiny(tmp_path / "a")
    second, _ = tiny(tmp_path / "b")
    assert type(build(first, config)) is type(build(second, config))


def test_changed_code_is_run_anew(tmp_path):
    source, config = tiny(tmp_path, model=MODEL + "\nREVISION = 1\n")
    old = build(source, config)
    (tmp_path / "modeling_tiny.py").write_text(MODEL + "\nREVISION = 2\n")
    new = build(local(tmp_path), config)
    assert (module_of(old).REVISION, module_of(new).REVISION) == (1, 2)


def test_config_and_model_share_their_classes(tmp_path):
    model = build(*tiny(tmp_path))
    assert type(model).config_class is type(model.config)


def test_a_module_knows_its_real_file_and_lines(tmp_path):
    model = build(*tiny(tmp_path, model=MODEL + "\nWHICH = 'the one of this test'\n"))
    assert module_of(model).__file__ == str(tmp_path / "modeling_tiny.py")
    assert inspect.getsource(type(model)).startswith("class TinyModel(PreTrainedModel):")
    with pytest.raises(TypeError) as caught:
        model(x="text")
    assert "CausalLMOutputWithPast(logits=self.linear(x))" in "".join(
        traceback.format_exception(caught.value)
    )


def test_the_lines_are_those_that_were_trusted_whatever_the_file_holds_later(tmp_path):
    model = build(*tiny(tmp_path, model=MODEL + "\nWHICH = 'the one that is overwritten'\n"))
    (tmp_path / "modeling_tiny.py").write_text("class TinyModel: 'something else'\n")
    linecache.checkcache()
    assert "PreTrainedModel" in inspect.getsource(type(model))


def test_jit_script_compiles_functions_of_remote_code(tmp_path):
    module = run(
        tmp_path,
        "import torch\n@torch.jit.script\ndef double(x: torch.Tensor) -> torch.Tensor:\n    return x * 2\n",
    )
    assert torch.equal(module.double(torch.ones(2)), torch.full((2,), 2.0))


FLAGS = """
import torch
torch._C._jit_set_profiling_mode(False)
torch._C._jit_set_profiling_executor(False)
torch._C._jit_override_can_fuse_on_cpu(True)
torch._C._jit_override_can_fuse_on_gpu(True)
torch.set_default_dtype(torch.float64)
"""


def flags():
    c = torch._C
    mode, executor = c._jit_set_profiling_mode(True), c._jit_set_profiling_executor(True)
    c._jit_set_profiling_mode(mode)
    c._jit_set_profiling_executor(executor)
    return mode, executor, c._jit_can_fuse_on_cpu(), c._jit_can_fuse_on_gpu(), torch.get_default_dtype()


def test_process_wide_flags_are_restored_after_an_import(tmp_path):
    before = flags()
    run(tmp_path, FLAGS)
    assert flags() == before


def test_process_wide_flags_are_restored_after_an_import_that_fails(tmp_path):
    before = flags()
    with pytest.raises(RemoteCodeError):
        run(tmp_path, FLAGS + "\n1 / 0")
    assert flags() == before


def test_overlapping_imports_restore_what_was_before_the_first():
    def run(body):
        with restored_flags(FLAGS):
            body()

    assert_overlapping_blocks_restore(run)


def test_an_import_beside_a_constructor_takes_nothing_of_it_for_what_was_before():
    """A constructor in half precision on another thread: float16 must not stay behind."""

    def run(body):
        build_shell(lambda: body() or torch.nn.Linear(1, 1))

    assert_overlapping_blocks_restore(run)


def assert_overlapping_blocks_restore(run):
    """Run `run(body)` on a thread of its own, then `restored_flags` here; they end in the same order."""
    before = flags()
    entered, leave = threading.Event(), threading.Event()

    def body():
        torch.set_default_dtype(torch.float16)
        torch._C._jit_override_can_fuse_on_cpu(before[2])
        entered.set()
        leave.wait(300)

    thread = threading.Thread(target=run, args=(body,))
    thread.start()
    assert entered.wait(300)
    with restored_flags(FLAGS):
        leave.set()
        thread.join(300)
    assert flags() == before


def test_threads_that_load_at_once_end_right(tmp_path):
    before = flags()
    repos = [tiny(tmp_path / str(n), model=f"{FLAGS}{MODEL}\nREVISION = {n % 3}\n") for n in range(12)]
    results, barrier = {}, threading.Barrier(len(repos))

    def load(n):
        barrier.wait()
        results[n] = build(*repos[n])

    threads = [threading.Thread(target=load, args=(n,)) for n in range(len(repos))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(results) == len(repos)
    assert {n: module_of(model).REVISION for n, model in results.items()} == {n: n % 3 for n in results}
    assert len({type(model) for model in results.values()}) == 3
    assert flags() == before


def test_registering_with_the_auto_classes_is_harmless(tmp_path):
    model = build(
        *tiny(
            tmp_path,
            model="from transformers import AutoConfig, AutoModel\n"
            + MODEL
            + "\nAutoConfig.register('tiny', TinyConfig)\nAutoModel.register(TinyConfig, TinyModel)\n"
            "TinyConfig.register_for_auto_class()\nTinyModel.register_for_auto_class('AutoModel')\n",
        )
    )
    assert type(model)._auto_class == "AutoModel"


def test_a_model_is_made_from_the_config_that_it_was_registered_for(tmp_path):
    text = (
        "from transformers import AutoModel\n" + MODEL + "\nAutoModel.register(TinyConfig, TinyModel)\n"
        "def inner():\n    return AutoModel.from_config(TinyConfig(hidden_size=3))\n"
        "def other():\n    return AutoModel.from_config('a config of something else')\n"
    )
    model = build(*tiny(tmp_path, model=text))
    inner = module_of(model).inner()
    assert type(inner) is type(model)
    assert inner.linear.in_features == 3
    with pytest.raises(UnsupportedError, match="AutoModel"):
        module_of(model).other()


def test_the_origin_says_class_and_content(tmp_path):
    source, config = tiny(tmp_path)
    loaded = load_config(source, config, CodeTrust(True))
    resolved = resolve_class(source, config, CodeTrust(True))
    assert loaded.origin.startswith("configuration_tiny.TinyConfig (code of the repo, sha256 ")
    assert resolved.origin.startswith("modeling_tiny.TinyModel (code of the repo, sha256 ")
    assert (resolved.name, resolved.remote_base) == ("TinyModel", "shim")


def test_a_choice_of_the_base_is_one_of_three():
    for choice in ("auto", "shim", "transformers"):
        if choice != "transformers" or importlib.util.find_spec("transformers"):
            require_base(choice)
    with pytest.raises(UsageError, match="remote_base"):
        require_base("peft")


def test_code_is_opened_with_consent_and_owns_what_it_makes(tmp_path):
    source, config = tiny(tmp_path)
    model = build(source, config)
    code = RepoCode(
        source, own_code(source, config), config_json={**config, "transformers_version": "4.41.0"}
    )
    assert code.owns(model)
    assert not code.owns(3)
    assert (code.base, code.written_for) == ("shim", "transformers 4.41.0")
    assert own_code(source, {}) is None
