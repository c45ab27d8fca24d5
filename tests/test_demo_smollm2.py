"""The demo of SmolLM2: its file, tokenizer and network are the originals', its cache and perplexity are right."""

import copy
import json
import math
import struct

import gguf
import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

from qkernels import compress
from qkernels.demo import run
from qkernels.demo.smollm2 import data, demo, recipes
from qkernels.demo.smollm2.gguf_file import Blocks, File
from qkernels.demo.smollm2.model import Config, LanguageModel, Rows, linear_layers
from qkernels.errors import ArgumentError, FormatError, UnsupportedError

TEXT = (
    "Hundreds of people had to leave their homes; 1234 naïve cafés in 東京 didn't.\n\n  def f(x): return 2*x"
)


@pytest.fixture(scope="module")
def file():
    return File(data.model_file())


@pytest.fixture(scope="module")
def model(file):
    return LanguageModel.load(file)


@pytest.fixture(scope="module")
def tokenize(file):
    return data.Tokenizer(file.metadata)


@pytest.fixture(scope="module")
def small():
    """A network of random weights with other sizes than SmolLM2's, two layers deep."""
    torch.manual_seed(3)
    model = LanguageModel(Config(101, 48, 56, 2, 6, 2, 10000.0, 1e-5), 64).eval().requires_grad_(False)
    for p in model.parameters():
        p.copy_(torch.randn(p.shape) * 0.3)
    return model


def original(model, file):
    """transformers' Llama with the weights of the file, laid out as transformers has them."""
    c = model.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocabulary,
        hidden_size=c.hidden,
        intermediate_size=c.inner,
        num_hidden_layers=c.depth,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        rms_norm_eps=c.eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
        tie_word_embeddings=True,
    )
    their = {
        **{"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"},
        **{"attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"},
        **{
            "ffn_down": "mlp.down_proj",
            "attn_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
        },
    }
    state = {}
    for tensor in file.tensors:
        w = torch.from_numpy(file.tensors[tensor].dense().copy())
        if tensor.startswith("blk."):
            _, i, part, _ = tensor.split(".")
            if part in ("attn_q", "attn_k"):  # pairs (j, j + head / 2) instead of neighbours
                w = w.view(-1, c.head // 2, 2, c.hidden).transpose(1, 2).reshape(w.shape)
            state[f"model.layers.{i}.{their[part]}.weight"] = w[0] if part.endswith("norm") else w
    state["model.embed_tokens.weight"] = torch.from_numpy(file.tensors["token_embd.weight"].dense())
    state["model.norm.weight"] = torch.from_numpy(file.tensors["output_norm.weight"].dense()[0].copy())
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(config)
    theirs.load_state_dict(state, assign=True)
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config)  # its tables are no weights
    return theirs.eval()


@torch.no_grad()
def test_logits_equal_transformers(model, file, tokenize):
    ids = torch.tensor(tokenize(TEXT + "\n" + data.documents()[0])[:120])
    theirs = original(model, file)(ids[None]).logits[0]
    torch.testing.assert_close(model(ids), theirs, rtol=1e-4, atol=2e-3)  # logits reach 40


def test_file_equals_gguf(file):
    """Every number of the metadata, and rows of every kind of tensor, as gguf's own reader has them."""
    theirs = gguf.GGUFReader(data.model_file())
    assert set(file.tensors) == {t.name for t in theirs.tensors}
    for key in ("general.architecture", "llama.rope.freq_base", "llama.attention.head_count_kv"):
        assert file.metadata[key] == theirs.fields[key].contents()
    kinds = set()
    for t in theirs.tensors:
        ours = file.tensors[t.name]
        assert ours.kind == t.tensor_type.name
        if (t.tensor_type, len(t.shape)) not in kinds:
            kinds.add((t.tensor_type, len(t.shape)))
            expected = gguf.quants.dequantize(t.data[:64] if len(t.shape) > 1 else t.data, t.tensor_type)
            got = Blocks(ours.kind, ours.rows[:64]).dense()
            np.testing.assert_array_equal(got.reshape(expected.shape), expected)
    assert len(kinds) == 3


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_dense_of_random_blocks(kind, rng):
    """Any bytes with finite scales, negative ones and subnormals among them."""
    size = 20 if kind == "Q4_1" else 34
    blocks = rng.integers(0, 256, (5, 3, size), dtype=np.uint8)
    reals = np.array([-65504, -1.5, 6e-8, 0.1, 65504], np.float16)
    at = 2 if kind == "Q8_0" else 4
    blocks[..., :at] = rng.choice(reals, (5, 3, at // 2)).view(np.uint8)
    rows = blocks.reshape(5, -1)
    expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(Blocks(kind, rows).dense(), expected)


def test_bad_files(tmp_path, file):
    path = tmp_path / "bad.gguf"
    for content, says in ((b"GGML" + bytes(40), "b'GGML'"), (b"GGUF\x03\0\0\0", "cut short")):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=says):
            File(path)
    name = struct.pack("<Q1sIQ", 1, b"w", 1, 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + name
    path.write_bytes(head + struct.pack("<IQ", 2, 0) + bytes(99))
    with pytest.raises(UnsupportedError, match="w is of type 2; accepted: F32, Q4_1, Q8_0"):
        File(path)
    path.write_bytes(head + struct.pack("<IQ", 8, 0) + bytes(20))
    with pytest.raises(FormatError, match=r"w is \[32\] in Q8_0"):
        File(path)
    with pytest.raises(FormatError, match="one kind"):
        Blocks.stack(file.tensors["blk.0.attn_q.weight"], file.tensors["blk.0.ffn_down.weight"])


def test_tokenizer_equals_transformers(tokenize):
    theirs = transformers.AutoTokenizer.from_pretrained(data.model_file().parent, gguf_file=data.FILE)
    for text in (TEXT, data.documents()[7], "<|im_start|>user\nHi 007<|im_end|>", "\t x\u00a0y 3.14159 'll"):
        assert tokenize(text) == theirs(text, add_special_tokens=False).input_ids
        assert tokenize.decode(tokenize(text)) == text


def test_text():
    documents = data.documents()
    assert len(documents) == 300 and documents[0].startswith("Hundreds of people have been forced to vacate")


def test_sizes_of_the_network(model, file):
    layers = linear_layers(model)
    assert len(layers) == 121
    assert set(layers.values()) == {m for m in model.modules() if isinstance(m, torch.nn.Linear)}
    assert {name: m.weight.shape for name, m in layers.items()} == {
        name: b.dense().shape for name, b in data.matrices(file).items()
    }
    assert model.head.weight is model.embed.weight and demo.embedding_bytes(model) == 0


@torch.no_grad()
@pytest.mark.parametrize("read", [1, 2, 17])
def test_decoding_equals_reading_at_once(small, read):
    """One token at a time, several at once after others, and by the compiled step's path: the same logits."""
    ids = torch.randint(101, (29,))
    expected = small(ids)
    cache = small.cache(40)
    parts = [small(ids[:read], cache)]
    parts += [small(ids[p : p + 1], cache, p) for p in range(read, 20)]
    parts.append(small(ids[20:26], cache, 20, tail=4))
    parts += [small.step(ids[p : p + 1], cache, torch.tensor([p])) for p in range(26, 29)]
    got = torch.cat(parts)
    torch.testing.assert_close(got, torch.cat([expected[:20], expected[22:]]), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_bfloat16_stays_close(small):
    ids = torch.randint(101, (12,))
    half = copy.deepcopy(small).bfloat16()
    assert half.cache(3).dtype == torch.bfloat16 and half.head.weight is half.embed.weight
    error = half(ids).float() - small(ids)
    assert 0 < error.square().mean() < 1e-3 * small(ids).square().mean()


def test_greedy_decoding(small):
    prompt = torch.randint(101, (5,))
    session = demo.Session(small, prompt, 6)
    ids = prompt
    for _ in range(7):
        ids = torch.cat([ids, small(ids)[-1:].argmax(-1)])
    assert torch.equal(session.first, ids[5:6])
    assert torch.equal(session.decode(6), ids[6:]) and torch.equal(session.decode(6), ids[6:])


def test_embedding_rows_are_exact(file, model):
    ids = torch.tensor([0, 1, 255, 49151])
    torch.testing.assert_close(Rows(file.tensors["token_embd.weight"])(ids), model.embed(ids), rtol=0, atol=0)


def test_perplexity_of_known_models():
    ids = torch.randint(50, (20,))

    def uniform(ids, tail):
        return torch.zeros(tail, 50)

    def copies(ids, tail):  # half of the probability on the token that came last
        logits = torch.full((tail, 50), math.log(0.5 / 49))
        return logits.scatter_(1, ids[-tail:, None], math.log(0.5))

    assert demo.perplexity(uniform, [ids, ids[:9]], 4)[0] == pytest.approx(50)
    same = torch.full((20,), 7)
    score, best = demo.perplexity(copies, [same], 5)
    assert score == pytest.approx(2) and torch.equal(best, same[5:])
    other = torch.arange(20)  # never the token before it
    assert demo.perplexity(copies, [same, other], 10)[0] == pytest.approx(math.sqrt(2 * 98), rel=1e-5)


@torch.no_grad()
def test_imported_blocks_are_the_file(model, file):
    """Recipe q4_1: the weights are the dequantized ones, bit for bit; nothing of the float model changes."""
    matrices = data.matrices(file)
    names = ["layers.0.qkv", "layers.29.down", "head"]
    new = recipes.imported(model, {name: matrices[name] for name in names})
    for name in names:
        layer, exact = new.get_submodule(name), model.get_submodule(name).weight
        some = slice(0, 999)
        torch.testing.assert_close(layer.weight.dense()[some], exact[some], rtol=0, atol=0)
        assert isinstance(model.get_submodule(name), torch.nn.Linear)


def test_recipes_exist():
    assert set(recipes.RECIPES) - {recipes.IMPORTED} <= set(compress.RECIPES)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch, open(out / "console.txt", "w") as f:
        patch.setattr(demo, "SLOW", math.inf)  # bfloat16 is there, also where torch emulates it
        console = Console(file=f, width=80)
        return run.run("smollm2", ["int8-token"], out=out, quick=True, console=console), out


def test_rows(result):
    rows = {r["family"]: r for r in result[0]["rows"]}
    assert set(rows) == {"float32", "bfloat16", "int8-token"}
    for row in rows.values():
        for case in demo.CASES:
            assert row[case]["per_second"] > 0 and 0 < row["outside_share"][case] < 1
            assert len(row["times"][case]) == result[0]["settings"]["rounds"]
        assert row["perplexity"] == pytest.approx(rows["float32"]["perplexity"], rel=0.1)
    for case in demo.CASES:
        assert max(rows[f][case]["speedup"] for f in demo.FLOATS) == 1
    assert 10 < rows["float32"]["perplexity"] < 60
    assert rows["float32"]["same_token"] == 1 and rows["int8-token"]["same_token"] > 0.85


def test_memory(result):
    rows = {r["family"]: r for r in result[0]["rows"]}
    weights = 49152 * 576 + 30 * (576 * (2 * 576 + 2 * 192) + 3 * 576 * 1536)
    assert rows["float32"]["weight_bytes"] == 4 * weights and rows["bfloat16"]["weight_bytes"] == 2 * weights
    assert weights < rows["int8-token"]["weight_bytes"] < 1.05 * weights
    assert 8 < rows["int8-token"]["bits_per_weight"] < 8.2
    assert rows["int8-token"]["embedding_bytes"] == 49152 * 18 * 34
    assert rows["float32"]["embedding_bytes"] == rows["bfloat16"]["embedding_bytes"] == 0


def test_files(result):
    result, out = result
    assert json.loads((out / "demo.json").read_text()) == json.loads(json.dumps(result))
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "demo.html").read_text()
    assert "data:image/png;base64," in page and "{{" not in page and "dequantized 4-bit" in page
    text = (out / "console.txt").read_text()
    assert "…" not in text and "demo.json" in text and "dequantized 4-bit" in " ".join(text.split())


def test_unknown_recipes(tmp_path):
    with pytest.raises(ArgumentError, match=r"int9; accepted: q4_1, w8a16"):
        run.run("smollm2", ["int9"], out=tmp_path)
    assert not list(tmp_path.iterdir())
