# ruff: noqa: RUF001 - odd characters are what is tested
"""Compares tokenizers of published repos with the same tokenizers in the transformers that they were written for.

    python scripts/real_tokenizers.py FOLDER --oracle PYTHON [--oracle PYTHON …] [--train WORK]

FOLDER holds a repo in each subfolder (config, code, vocabulary). PYTHON is an interpreter with a transformers release;
the first one that can load the tokenizer of a repo is the oracle of that repo. With `--train`, repos go to WORK.
If a vocabulary was not downloaded (a Git LFS pointer), a small sentencepiece model is trained in its place on the texts
of this script: the code that makes ids is then the published code, but the ids are not. Prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHINESE = (
    "你好，世界。今天天气很好，我们去公园散步吧！模型把文字切成小块，再把小块变成数字"
    "。人工智能 机器学习 北京大学 上海 一二三四"
)
ENGLISH = (
    "The quick brown fox jumps over the lazy dog. A tokenizer splits text into pieces, doesn't it? It's what "
    "we've got: numbers like 3.14159 or 1,000,000, and words such as internationalization"
)
CODE = 'def add(a: int, b: int) -> int:\n    """Sum."""\n    return a + b\n\nfor i in range(10):\n\tprint(f"{i}\\n")\n'
ODD = [
    "😀",
    "👨‍👩‍👧",
    "é",
    "e\u0301",
    "ﬁ",
    "Ａ",
    "\u3000",
    "\u00a0",
    "\u200b",
    "𝒳",
    "ß",
    "ñ",
    "🇨🇳",
    "—",
    "…",
    "“”",
]
SPACES = [" ", "  ", "   ", "\t", "\n", "\n\n", " \n ", "        ", "\r\n", " " * 85]
SPECIAL = [
    *[
        "<s>",
        "</s>",
        "<unk>",
        "<pad>",
        "[MASK]",
        "[gMASK]",
        "<sop>",
        "<eop>",
        "sop",
        "<|user|>",
        "<|assistant|>",
    ],
    *[
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|system|>",
        "<n>",
        "<|tab|>",
        "<|blank_2|>",
        "<think>",
    ],
]
MESSAGES = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": '你好 <b>&</b> "x"'},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "again"},
]


def texts(count: int = 200) -> list[str]:
    """Return strings that mix languages, code, spaces, odd characters and special tokens; the same in every run."""
    chance = random.Random(3)
    fixed = ["", " ", CHINESE, ENGLISH, CODE, *ODD, *SPACES, *SPECIAL]
    found = fixed + [f"a{token}b" for token in SPECIAL] + [f" {token} c" for token in SPECIAL]
    while len(found) < count:
        parts = []
        for _ in range(chance.randint(1, 6)):
            source = chance.choice([CHINESE, ENGLISH, CODE, CODE])
            start = chance.randrange(len(source))
            parts.append(source[start : start + chance.randint(1, 30)])
            parts.append(chance.choice([*ODD, *SPACES, *SPECIAL, "", "", "", ""]))
        found.append("".join(parts))
    return found[:count]


def measure(tokenizer: Any) -> dict[str, Any]:
    """Return everything that is compared as JSON data; of an error only its class is compared."""
    strings = texts()
    found: dict[str, Any] = {
        "ids": [_try(lambda t=text: list(tokenizer(t)["input_ids"])) for text in strings],
        "bare": [
            _try(lambda t=text: list(tokenizer.encode(t, add_special_tokens=False))) for text in strings
        ],
    }
    found["text"] = [_try(lambda i=ids: tokenizer.decode(i)) for ids in found["bare"]]
    found["without special"] = [
        _try(lambda i=i: tokenizer.decode(i, skip_special_tokens=True)) for i in found["ids"]
    ]
    # In some tokenizers the empty text has no ids, and a row without ids can't be padded.
    batch = [text for text in strings if text.strip()][:8]
    found["batch"] = _try(lambda: {k: _lists(v) for k, v in tokenizer(batch, padding=True).items()})
    found["cut"] = _try(lambda: list(tokenizer(ENGLISH, truncation=True, max_length=16)["input_ids"]))
    found["pair"] = _try(lambda: list(tokenizer("one two", "三 四")["input_ids"]))
    found["chat"] = _try(
        lambda: tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    )
    return found


def _try(action: Any) -> Any:
    try:
        return action()
    except Exception as error:  # noqa: BLE001 - code of repos raises anything
        return {"error": type(error).__name__}


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else _plain(value)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def train(repo: Path, oracles: list[str]) -> str | None:
    """Replace the Git LFS pointer of a repo by a small sentencepiece model; return a note on what was made."""
    pointers = [p for p in repo.glob("*.model") if p.stat().st_size < 1024]
    settings = json.loads((repo / "tokenizer_config.json").read_text()) if pointers else {}
    if not pointers and (repo / "tokenizer_config.json").exists() and not list(repo.glob("*.model")):
        named = json.loads((repo / "tokenizer_config.json").read_text())
        if "auto_map" not in named and not (repo / "tokenizer.json").exists():
            pointers, settings = [repo / "tokenizer.model"], named
            _train_sentencepiece(pointers[0], settings)
            # Published repos of such classes have a tokenizer.json, which transformers made from the model.
            subprocess.run([oracles[0], "-W", "ignore", __file__, "--convert", str(repo)], check=True)
            return "tokenizer.json made here"
    for path in pointers:
        _train_sentencepiece(path, settings)
    return f"{pointers[0].name} trained here" if pointers else None


def _train_sentencepiece(path: Path, settings: dict[str, Any]) -> None:
    import sentencepiece

    chance = random.Random(7)
    sources = (CHINESE, ENGLISH, CODE.replace("\n", " "))
    lines = []
    for _ in range(3000):
        source = chance.choice(sources)
        start = chance.randrange(len(source) - 10)
        lines.append(source[start : start + chance.randint(5, 60)])
    pad = settings.get("pad_token")
    control = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
    control += ["<pad>"] if pad == "<pad>" else []
    blanks = [f"<|blank_{length}|>" for length in range(2, 81)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(path.with_suffix("")),
        vocab_size=1200,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.9995,
        control_symbols=control,
        user_defined_symbols=["<n>", "<|tab|>", *blanks, "<|im_start|>", "<|im_end|>"],
        normalization_rule_name="identity" if path.name == "tokenizer.model" else "nmt_nfkc",
        remove_extra_whitespaces=False,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    path.with_suffix(".vocab").unlink()


def compare(repo: Path, oracles: list[str], note: str | None) -> list[str]:
    """Return the repo's row of the table."""
    import shardload

    try:
        tokenizer = shardload.load_tokenizer(repo, trust_remote_code=True)
    except shardload.ShardloadError as error:
        return [repo.name, f"skipped: {error.what}", *[""] * (len(HEADER) - 2)]
    ours = measure(tokenizer)
    theirs, version = None, "none could load it"
    for python in oracles:
        theirs, version = _ask(python, repo)
        if theirs is not None:
            break
    trip = sum(text == again for text, again in zip(texts(), ours["text"], strict=True))
    cells = [repo.name, type(tokenizer).__name__, note or "published", version]
    if theirs is None:
        return [*cells, *["-"] * 6, f"{trip}/200"]
    equal = [
        f"{sum(a == b for a, b in zip(ours[n], theirs[n], strict=True))}/200"
        for n in ("ids", "bare", "text", "without special")
    ]
    rest = ["equal" if ours[n] == theirs[n] else "DIFFERENT" for n in ("batch", "cut", "pair")]
    chat = (
        "none"
        if isinstance(ours["chat"], dict)
        else ("equal" if ours["chat"] == theirs["chat"] else "DIFFERENT")
    )
    if os.environ.get("SHOW"):
        _show(ours, theirs)
    same_trip = sum(text == again for text, again in zip(texts(), theirs["text"], strict=True))
    return [
        *cells,
        *equal,
        "equal" if rest == ["equal"] * 3 else " ".join(rest),
        chat,
        f"{trip} ({same_trip})",
    ]


def _show(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name, own in ours.items():
        pairs = [(own, theirs[name])] if not isinstance(own, list) else zip(own, theirs[name], strict=False)
        shown = [(place, a, b) for place, (a, b) in enumerate(pairs) if a != b][:4]
        for place, a, b in shown:
            print(f"  {name}[{place}]\n    ours   {a!r:.400}\n    theirs {b!r:.400}")


HEADER = (
    *("repo", "class", "vocabulary", "oracle", "ids", "ids, no special", "decode"),
    *("decode, skipping", "batch, cut, pair", "chat template", "round trip (oracle's)"),
)


def _ask(python: str, repo: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the measurements by the transformers of another interpreter, and its version."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [python, "-W", "ignore", __file__, "--answer", str(repo)],
            env={**os.environ, "HF_HOME": cache, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1][:100] if done.stderr.strip() else "failed"
        return None, f"none could load it ({reason})"
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["measured"], f"transformers {answer['version']}"


def answer(repo: str) -> None:
    """Print the measurements by the installed transformers for a repo as JSON."""
    import transformers

    transformers.logging.set_verbosity_error()
    # `use_fast` decides in transformers 4 and older only.
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        repo, trust_remote_code=True, use_fast=_is_fast(repo)
    )
    print(json.dumps({"version": transformers.__version__, "measured": measure(tokenizer)}))


def convert(repo: str) -> None:
    """Write the tokenizer.json of a repo with the installed transformers."""
    import transformers

    transformers.AutoTokenizer.from_pretrained(repo).backend_tokenizer.save(
        str(Path(repo) / "tokenizer.json")
    )


def _is_fast(repo: str) -> bool:
    settings = json.loads((Path(repo) / "tokenizer_config.json").read_text())
    return "auto_map" not in settings


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--oracle", action="append", default=[])
    parser.add_argument("--train", metavar="WORK")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--convert", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.convert:
        convert(options.folder)
        return
    if options.answer:
        answer(options.folder)
        return
    print("| " + " | ".join(HEADER) + " |\n|" + " --- |" * len(HEADER))
    for repo in sorted(path for path in Path(options.folder).iterdir() if path.is_dir()):
        place, note = repo, None
        if options.train:
            place = Path(options.train) / repo.name
            shutil.copytree(repo, place, dirs_exist_ok=True)
            note = train(place, options.oracle)
        print("| " + " | ".join(compare(place, options.oracle, note)) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
