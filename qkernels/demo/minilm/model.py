"""A compact BERT sentence encoder whose linear layers never see padding.

The tokens of a batch are laid end to end, ``(T, hidden)`` for T tokens in all, so a linear layer multiplies
exactly the tokens there are. Only attention, which needs one row per sentence, works on a padded ``(B, L)``
view; a batch whose sentences have one length has no padding and skips the gather. Every variant that the demo
measures runs this module; they differ in their linear layers, and where torch.compile fuses the rest.
"""

import json
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# our name of a part of a layer -> its name in a BERT checkpoint
CHECKPOINT_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm2": "output.LayerNorm",
}


class Batch(NamedTuple):
    """Sentences as the encoder takes them: ``encoder(*batch)``.

    ids, positions  int64 (T,): the tokens of all sentences, one sentence after the other.
    rows            int64 (B, L): row of token l of sentence b; past the end of a sentence, any valid row.
    valid           bool (B, L): which of ``rows`` are tokens, or None where all are.
    tokens          int64 (T,): where token t is in the flattened ``rows``, or None where ``valid`` is.
    """

    ids: Tensor
    positions: Tensor
    rows: Tensor
    valid: Tensor | None
    tokens: Tensor | None

    @classmethod
    def of(cls, token_lists, padded=None):
        """Lay sentences, lists of token ids, end to end; ``padded=True`` keeps ``valid`` even if all are."""
        lengths = torch.tensor([len(t) for t in token_lists])
        longest = int(lengths.max())
        ids = torch.tensor([i for t in token_lists for i in t])
        positions = torch.cat([torch.arange(n) for n in lengths.tolist()])
        starts = lengths.cumsum(0) - lengths
        rows = starts[:, None] + torch.minimum(torch.arange(longest), lengths[:, None] - 1)
        if not padded and int(lengths.min()) == longest:
            return cls(ids, positions, rows, None, None)
        valid = torch.arange(longest) < lengths[:, None]
        return cls(ids, positions, rows, valid, valid.flatten().nonzero()[:, 0])


class Layer(nn.Module):
    """One transformer layer, post-norm: six linear layers, attention, GELU, two layer norms."""

    def __init__(self, hidden, inner, heads, eps):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden) for _ in range(4))
        self.norm1 = nn.LayerNorm(hidden, eps)
        self.up = nn.Linear(hidden, inner)
        self.down = nn.Linear(inner, hidden)
        self.norm2 = nn.LayerNorm(hidden, eps)

    def forward(self, x, rows, tokens, mask):
        """(T, hidden) -> (T, hidden); ``mask`` (B, 1, 1, L) is added to the attention scores."""
        qkv = (self._split(y, rows, tokens) for y in (self.query(x), self.key(x), self.value(x)))
        y = F.scaled_dot_product_attention(*qkv, attn_mask=mask).transpose(1, 2).reshape(rows.numel(), -1)
        x = self.norm1(x + self.out(y if tokens is None else y.index_select(0, tokens)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))

    def _split(self, y, rows, tokens):
        """(T, hidden) -> (B, heads, L, hidden / heads)."""
        y = y if tokens is None else y.index_select(0, rows.flatten())
        return y.view(*rows.shape, self.heads, -1).transpose(1, 2)


class SentenceEncoder(nn.Module):
    """BERT with mean pooling: a Batch -> (unit vectors (B, hidden), the pooler's output (B, hidden)).

    The pooler is the checkpoint's 37th linear layer (6 x 6 + 1). The sentence vector does not use it, but the
    original model computes it in each forward, and so do we, in every variant.
    """

    def __init__(self, config):
        super().__init__()
        hidden, eps = config["hidden_size"], config["layer_norm_eps"]
        self.words = nn.Embedding(config["vocab_size"], hidden)
        self.positions = nn.Embedding(config["max_position_embeddings"], hidden)
        self.norm = nn.LayerNorm(hidden, eps)
        self.layers = nn.ModuleList(
            Layer(hidden, config["intermediate_size"], config["num_attention_heads"], eps)
            for _ in range(config["num_hidden_layers"])
        )
        self.pooler = nn.Linear(hidden, hidden)

    @classmethod
    def load(cls, folder):
        """Read config.json and model.safetensors of a Hugging Face BERT folder; float32, eval mode."""
        from safetensors.torch import load_file

        model = cls(json.loads((folder / "config.json").read_text()))
        saved = load_file(folder / "model.safetensors")
        renamed = {
            "words.weight": saved["embeddings.word_embeddings.weight"],
            # one segment only: its embedding is a constant, added to the positions once
            "positions.weight": saved["embeddings.position_embeddings.weight"]
            + saved["embeddings.token_type_embeddings.weight"][0],
        }
        for kind in ("weight", "bias"):
            renamed[f"norm.{kind}"] = saved[f"embeddings.LayerNorm.{kind}"]
            renamed[f"pooler.{kind}"] = saved[f"pooler.dense.{kind}"]
            for i in range(len(model.layers)):
                for ours, theirs in CHECKPOINT_NAMES.items():
                    renamed[f"layers.{i}.{ours}.{kind}"] = saved[f"encoder.layer.{i}.{theirs}.{kind}"]
        model.load_state_dict(renamed)
        return model.eval().requires_grad_(False)

    def forward(self, ids, positions, rows, valid=None, tokens=None):
        x = self.norm(self.words(ids) + self.positions(positions))
        mask = None
        if valid is not None:
            mask = torch.zeros(valid.shape, dtype=x.dtype).masked_fill_(~valid, float("-inf"))[:, None, None]
        for layer in self.layers:
            x = layer(x, rows, tokens, mask)
        if valid is None:
            mean = x.view(*rows.shape, -1).mean(1)
        else:
            weight = valid.to(x.dtype)[..., None]
            mean = (x[rows] * weight).sum(1) / weight.sum(1)
        return F.normalize(mean, dim=-1), torch.tanh(self.pooler(x.index_select(0, rows[:, 0])))


LINEAR_NAMES = {"query", "key", "value", "out", "up", "down", "pooler"}


def linear_layers(model):
    """The linear layers of an encoder by name, whatever class they have become: 37 for MiniLM."""
    return {name: m for name, m in model.named_modules() if name.rpartition(".")[2] in LINEAR_NAMES}
