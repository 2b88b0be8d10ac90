"""Writes docs/shim.md: every name of the stand-in for transformers, its behaviour, and its state in today's release.

    python scripts/shim_table.py        # in an environment with today's transformers

The behaviour of a name is the first sentence of its docstring; the installed transformers shows its state.
"""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

from shardload.transformers_shim._index import PLACEHOLDER_MODULES, names_by_module

FOLDER = Path(__file__).parent.parent / "shardload" / "transformers_shim"
PAGE = Path(__file__).parent.parent / "docs" / "shim.md"

DIFFERS = {
    "PretrainedConfig": "5.0: no settings of generation, no `is_decoder` and the like; `tie_word_embeddings` is left "
    "to the class; `rope_scaling` is rewritten to `rope_parameters`",
    "PreTrainedModel": "4.50: no longer a GenerationMixin. 5.0: `_tied_weights_keys` must be a dictionary, "
    "`get_head_mask` is gone, weights are initialised by the loader",
    "ModuleUtilsMixin": "5.0: `get_head_mask` is gone",
    "GenerationMixin": "4.42: `_extract_past_from_model_output` gives the name too (the stand-in does what the call "
    "asks for). 4.46: caches are objects. 5.0: `_get_logits_warper` is gone",
    "DynamicCache": "4.54: made of layers. 5.x: neither indexed nor a tuple, no `get_usable_length`",
    "Cache": "5.x: `get_usable_length` is gone",
    "MoECausalLMOutputWithPast": "5.0: other order of fields",
    "PreTrainedTokenizer": "4.34: the base constructor asks for the vocabulary. 4.45: `_pad` takes `padding_side`. "
    "5.0: rewritten on the tokenizers library",
    "PreTrainedTokenizerBase": "5.0: slow and fast are one",
    "add_start_docstrings": "4.52: `auto_docstring` takes its place",
    "ROPE_INIT_FUNCTIONS": '5.0: they read `rope_parameters`; no "default"',
    "create_causal_mask": "5.0: other arguments",
    "LogitsWarper": "4.46: a LogitsProcessor like any other",
    "can_return_tuple": "5.0: nested models agree on it",
    "check_model_inputs": "5.0: `merge_with_config_defaults` and `capture_outputs` take its place",
}
PAGE_HEAD = """# The stand-in's names

`transformers` as the code of repos sees it; `docs/remote_code.md` says why. A name can be imported from any module,
because releases moved names between modules. `python scripts/shim_table.py` writes this page.

Names that are not listed here:

| name | what code gets |
| --- | --- |
| `is_*_available`, `is_*_greater_or_equal*`, `is_*_less_than*` | False; the truth for versions of torch |
| a class (in the modules here and below, and in `transformers.models.*`) | a placeholder: using it is an error |
| a function of a module `transformers.models.*.*` | a function: calling it is an error |
| a table of the auto classes (`*_MAPPING`, `*_MAPPING_NAMES`) | a table: using it is an error |
| texts for documentation (`*_DOCSTRING`, `*_FOR_DOC`) | empty |
| any other function, constant or module | `ImportError`; `AttributeError` for a lookup |
| any of these but a probe inside `try`, `with suppress(ImportError)`, `hasattr` or `getattr` | not there |

A placeholder can be imported, subclassed and used in isinstance tables; constructing it or a subclass, or asking it
for an attribute, raises. Where such an error escapes from importing or constructing, the installed transformers serves
the repo as a whole; without one, `RemoteCodeError` says the name, the file and line, and the choices.

Modules of placeholders only: {modules}.

"Now" is the name in transformers {version}: "same" (the module still has it), "gone", or the release since which it
behaves differently.
"""


def sentence(text: str | None) -> str:
    """Return the first sentence of a docstring on one line, escaped for a table."""
    line = " ".join((text or "").split("\n\n")[0].split())
    return line.split(". ")[0].rstrip(".").replace("|", "\\|")


def explained(tree: ast.Module) -> dict[str, str]:
    """Return the description of each name that a module defines."""
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = sentence(ast.get_docstring(node))
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    found[target.id] = said(node.value)
    return found


def said(value: ast.expr | None) -> str:
    """Return the description of a name that is assigned, not defined by `def` or `class`."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        texts = [
            arg.value for arg in value.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
        ]
        if value.func.id == "_output":
            return sentence(texts[1]) + ": " + fields(value)
        if value.func.id == "_probe":
            return f"Return whether the package {texts[0]} is installed"
        if value.func.id.startswith(("later", "_auto")):
            return "A name to import, inherit and test with isinstance; using it says that it is not there"
        return f"`{ast.unparse(value)}`" if len(ast.unparse(value)) < 60 else "A value"
    if isinstance(value, ast.Name):
        known = {"_always": "Return True", "_never": "Return False", "_leave": "Change nothing"}
        return known.get(value.id, f"The same as `{value.id}`")
    text = ast.unparse(value) if value else ""
    return f"`{text}`".replace("|", "\\|") if 0 < len(text) < 60 else "A table of names"


def fields(call: ast.Call) -> str:
    """Return the names of all fields of an output class."""
    kind = getattr(
        importlib.import_module("shardload.transformers_shim.modeling_outputs"), call.args[0].value
    )
    return ", ".join(f"`{name}`" for name in kind.__dataclass_fields__)


def now(module: str, name: str) -> str:
    """Return the state of a name in the installed transformers: "same", "gone" or how it differs."""
    if name in DIFFERS:
        return DIFFERS[name]
    try:
        real = importlib.import_module(f"transformers.{module}" if module else "transformers")
        return "same" if hasattr(real, name) else "gone"
    except ImportError:
        return "gone"


def main() -> int:
    """Write the page."""
    version = importlib.import_module("transformers").__version__
    listed = ", ".join(f"`{module}`" for module in sorted(PLACEHOLDER_MODULES))
    lines = [PAGE_HEAD.format(modules=listed, version=version)]
    for module, names in names_by_module().items():
        file = FOLDER.joinpath(*module.split(".")).with_suffix(".py") if module else FOLDER / "__init__.py"
        tree = ast.parse((file if file.exists() else file.with_suffix("") / "__init__.py").read_bytes())
        own = explained(tree)
        rows = sorted(name for name in names if not name.startswith("_") or name.startswith("_prepare_4d"))
        defined = [name for name in rows if name in own]
        passed_on = [f"`{name}`" for name in rows if name not in own]
        if not rows:
            continue
        lines += [f"## transformers.{module}", "", sentence(ast.get_docstring(tree)) + ".", ""]
        if defined:
            lines += ["| name | what it does | now |", "| --- | --- | --- |"]
            lines += [f"| `{name}` | {own[name]} | {now(module, name)} |" for name in defined]
            lines.append("")
        if passed_on:
            lines += [f"Also offered here: {', '.join(passed_on)}.", ""]
    PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
