"""What generate says of inputs that are no batch of token ids."""

from __future__ import annotations

import pytest

from tests.transformers_shim.generation.small_repos import model, prompt


@pytest.mark.parametrize(
    ("inputs", "kind", "says"),
    [
        ("hello", TypeError, r"input_ids as a tensor, not as a str: tokenizer\(text"),
        ([[1, 2]], TypeError, "not as a list"),
        ({"input_ids": prompt()}, TypeError, r"generate\(\*\*input_ids, …\)"),
        (prompt()[0], ValueError, r"\(batch, length\), not of \(5,\)"),
    ],
)
def test_what_is_no_batch_of_ids_is_named(tmp_path, inputs, kind, says):
    with pytest.raises(kind, match=says):
        model(tmp_path).generate(inputs, max_new_tokens=2)
