"""SmolLM2: what is measured of a language model and how it is shown."""

import copy
import time

import torch
import torch.nn.functional as F

from .. import measure as shared
from .. import picture
from ..variants import COMPILED, QK, Variant, compile_some, compiler, nbytes
from . import data
from .gguf_file import File
from .model import LanguageModel, Step, linear_layers
from .recipes import RECIPES, build  # noqa: F401

# Tokens of the prompt, decoded after it, read at once for the perplexity, and of these only read; and such chunks.
PROMPT, DECODED, CHUNK, CONTEXT, CHUNKS = 256, 32, 512, 128, 8
QUICK = 64, 8, 128, 32, 2
SLOW = 3  # times as slow as float32: bfloat16 that torch emulates
ITEM, LAYERS = "a token", "linear layers"
CASES = {
    "decode": shared.Case("decode", "Decoding, batch 1", "decode", "tok/s"),
    "prompt": shared.Case("prompt", "Prompt", "prompt", "tok/s"),
}
FLOATS = ("float32", "bfloat16")
PLAIN = "nn.Linear"
HOW = {
    PLAIN: "torch as it comes",
    COMPILED: "a step of one token through torch.compile, over the whole cache; prompts as they come",
    QK: "qkernels.compress; q4_1: the blocks of the gguf file, imported",
}


def check_installed():
    data.model_file()
    data.documents()


class Session:
    """A model with a cache that a prompt was read into: what is timed.

    The cache has room for the prompt and the tokens decoded after it, which each call writes anew.
    """

    def __init__(self, model, prompt, tokens):
        self.model, self.read = model, len(prompt)
        self.store = model.cache(len(prompt) + tokens)
        self.step = Step.of(model, self.store) or self._eager
        self.first = self.prompt(prompt)

    @torch.inference_mode()
    def prompt(self, ids):
        """Read a prompt; the most likely next token, int64 (1,)."""
        return self.model(ids, self.store, 0, 1).argmax(-1)

    @torch.inference_mode()
    def decode(self, count):
        """``count`` tokens after the prompt and its next token, each the most likely: int64 (count,)."""
        token, out = self.first, []
        for position in range(self.read, self.read + count):
            token = self.step(token, position).argmax(-1)
            out.append(token)
        return torch.cat(out)

    def _eager(self, token, position):
        return self.model(token, self.store, position, 1)

    def outside(self, count):
        """Share of ``decode``'s time that is not spent in linear layers; of a recorded step."""
        inside, token, start = 0.0, self.first, time.perf_counter()
        for position in range(self.read, self.read + count):
            logits, calls = self.step.clock(token, position)
            inside += sum(seconds for name, seconds in calls if name == "linear")
            token = logits.argmax(-1)
        return 1 - inside / (time.perf_counter() - start)


class CompiledSession(Session):
    """The same with a step that torch.compile made: one graph for all positions, attention over the whole cache."""

    def __init__(self, session, prompt, tokens):
        super().__init__(session.model, prompt, tokens)
        self.positions = torch.arange(self.store.shape[2])
        self.step = torch.compile(self.model.step, fullgraph=True, dynamic=False)

    @torch.no_grad()
    def decode(self, count):
        token, out = self.first.clone(), []
        for position in self.positions[self.read : self.read + count].split(1):
            token = self.step(token, self.store, position).argmax(-1)
            out.append(token)
        return torch.cat(out)


def _variant(family, model, cases):
    (count,), (prompt,) = cases["decode"][0], cases["prompt"][0]
    session = Session(model, prompt, count)
    run = {"decode": session.decode, "prompt": session.prompt}
    outside = {"decode": session.outside} if isinstance(session.step, Step) else {}
    how = PLAIN if family in FLOATS else QK
    return Variant(family, how, model, linear_layers(model), run=run, outside=outside)


def _seconds(call, *args):
    start = time.perf_counter()
    call(*args)
    return time.perf_counter() - start


def compiled(variant, cases, dynamic):
    """A Variant whose step is compiled, and the seconds that it took."""
    start = time.perf_counter()
    (count,), (prompt,) = cases["decode"][0], cases["prompt"][0]
    session, prompting = CompiledSession(variant.run["prompt"].__self__, prompt, count), variant.run["prompt"]
    with compiler(freezing=False):
        session.decode(1)
    run = {"decode": session.decode, "prompt": prompting}
    eager = {"prompt": prompting}
    new = Variant(variant.family, COMPILED, variant.model, variant.layers, run=run, eager=eager)
    return new, time.perf_counter() - start


def measure(recipes, quick, progress):
    """The result of the demo: settings, rows, notes."""
    say = progress.console.print
    file = File(data.model_file())
    length, decoded, chunk, context, count = QUICK if quick else (PROMPT, DECODED, CHUNK, CONTEXT, CHUNKS)
    ids = torch.tensor(data.Tokenizer(file.metadata)("\n".join(data.documents())))
    scored, rest = ids[: count * chunk].split(chunk), ids[CHUNKS * CHUNK :]
    prompt, seen = rest[:length], rest[PROMPT : PROMPT + 4 * length]
    calibration = [(part,) for part in seen.split(length)]
    cases = {"decode": [(decoded,)], "prompt": [(prompt,)]}
    model = LanguageModel.load(file)
    layers = linear_layers(model)
    say(f"loaded {data.FILE}: {len(layers)} linear layers")

    step = progress.add_task("preparing", total=None)
    variants = [
        _variant("float32", model, cases),
        _variant("bfloat16", copy.deepcopy(model).bfloat16(), cases),
    ]
    slower = _seconds(variants[1].run["prompt"], prompt) / _seconds(variants[0].run["prompt"], prompt)
    if slower > SLOW:
        variants.pop()
    for name in recipes:
        variants.append(_variant(name, build(name, model, file, calibration), cases))
        say(f"compressed by {name}")
    floats = [v for v in variants if v.family in FLOATS]
    more, notes = compile_some(floats, cases, False, 0 if quick else 65, say, compiled)
    if slower > SLOW:
        notes.append(
            f"bfloat16: left out, this processor has no bfloat16 products: torch reads prompts {slower:.0f} times as "
            "slowly as in float32."
        )
    families = [*FLOATS, *recipes]
    variants = sorted(variants + more, key=lambda v: families.index(v.family))
    progress.update(step, total=1, completed=1)

    step = progress.add_task(f"timing {len(variants)} variants in turns", total=1.0)
    limits = (0, 2, 2) if quick else (60, 3, 20)
    times = shared.in_turns(variants, cases, CASES, *limits, lambda f: progress.update(step, completed=f))
    progress.update(step, completed=1.0)

    step = progress.add_task("reading the text with them", total=len(variants))
    rows, texts = [], {}
    for v in variants:
        if v.model not in texts:  # a compiled variant reads with the same model
            texts[v.model] = perplexity(v.model, scored, context)
        score, tokens = texts[v.model]
        quality = {
            "perplexity": score,
            "same_token": float((tokens == texts[model][1]).float().mean()),
            "embedding_bytes": embedding_bytes(v.model),
        }
        rows.append(shared.row(v, times, cases, recipes, 1) | quality)
        progress.advance(step)
    items = {"decode": decoded, "prompt": length}
    shared.summarize(rows, PLAIN, items, FLOATS)
    notes.append(
        "the float weights are dequantized 4-bit (Q4_1; the embedding and the head Q8_0), so perplexities compare with "
        "that model, not with the original."
    )
    settings = {
        "threads": torch.get_num_threads(),
        "linear_layers": len(layers),
        "weights": sum(m.weight.numel() for m in layers.values()),
        "file_bytes": data.model_file().stat().st_size,
        "items": items,
        "scored_tokens": count * (chunk - context),
        "chunk": chunk,
        "context": context,
        "calibration_tokens": len(seen),
        "rounds": len(rows[0]["times"]["decode"]),
        "quick": quick,
    }
    return {"settings": settings, "rows": rows, "notes": notes}


@torch.inference_mode()
def perplexity(model, chunks, context):
    """exp of the mean of -log p(token | those before it in its chunk), and the tokens found most likely.

    Args:
        model: called as ``model(ids, tail=n)``: logits (n, vocabulary) after each of the last n tokens.
        chunks: int64 (length,) each; the first ``context`` tokens of each are only read.
    """
    total, best = 0.0, []
    for ids in chunks:
        logits = model(ids, tail=len(ids) - context + 1)[:-1].float()
        total += float(F.cross_entropy(logits, ids[context:], reduction="sum"))
        best.append(logits.argmax(-1))
    best = torch.cat(best)
    return float(torch.tensor(total / len(best)).exp()), best


def embedding_bytes(model):
    """Bytes of the embedding where it is not the head's matrix."""
    weight = getattr(model.embed, "weight", None)
    return (
        0 if weight is not None and weight is model.head.weight else sum(map(nbytes, model.embed.buffers()))
    )


def quality_columns(result):
    return [("perplexity", ""), ("same token", "%"), ("embedding", "MB")]


def quality_cells(row):
    embedding = row["embedding_bytes"]
    return [
        f"{row['perplexity']:.2f}",
        f"{100 * row['same_token']:.1f}",
        f"{embedding / 1e6:.1f}" if embedding else "the head",
    ]


def title(result):
    s = result["settings"]
    return f"{s['model']}: a language model of {s['weights'] / 1e6:.0f} M weights in {s['linear_layers']} linear layers"


def timed(result):
    """What the two cases are."""
    items = result["settings"]["items"]
    return (
        f"Prompt: {items['prompt']} tokens read at once into an empty cache. Decode: the {items['decode']} tokens "
        "after them, one by one, each the most likely one."
    )


def explanation(result):
    s = result["settings"]
    return [
        f"Perplexity: over {s['scored_tokens']} tokens of Australian news (the Lee background corpus), read in chunks "
        f"of {s['chunk']} of which the first {s['context']} are only context. Same token: where the most likely "
        f"token is that of float32. Recipes that calibrate saw {s['calibration_tokens']} other tokens of the corpus.",
        f"Weights: of the {s['linear_layers']} linear layers, four in each of 30 layers and the head over the "
        "vocabulary, scales and zero points included. The embedding is the head's matrix; where the head is compressed "
        f"it is kept as the file stores it, 8.5 bits a weight. The file has {s['file_bytes'] / 1e6:.1f} MB.",
    ]


def headline(result):
    """The result in one sentence: the fastest recipe at decoding whose perplexity is within 5 % of float32's, or the
    one closest to it."""
    rows = result["rows"]
    exact = rows[0]["perplexity"]
    ours = [r for r in rows if r["qkernels"]]
    close = [r for r in ours if r["perplexity"] <= 1.05 * exact]
    close = close or [min(ours, key=lambda r: r["perplexity"])]
    best = max(close, key=lambda r: r["decode"]["speedup"])
    decode, prompt = (best[case]["speedup"] for case in ("decode", "prompt"))
    return (
        f"{best['family']} writes {best['decode']['per_second']:.0f} tokens a second, {decode:.1f} times as many as "
        f"the fastest float torch, and reads prompts {prompt:.1f} times as fast, in {best['bits_per_weight']:.1f} bits "
        f"per weight, at a perplexity of {best['perplexity']:.2f} (float32: {exact:.2f})."
    )


def draw_perplexity(axis, rows, colors):
    exact = rows[-1]["perplexity"]
    for y, (row, color) in enumerate(zip(rows, colors)):
        change = row["perplexity"] / exact
        axis.plot([1, change], [y, y], color=color, linewidth=2.5)
        axis.plot(change, y, "o", color=color, markersize=7)
        place = {"textcoords": "offset points", "va": "center", "color": picture.FAINT, "fontsize": 9}
        axis.annotate(f"{row['perplexity']:.2f}", (change, y), (8, 0), **place)
    worst = max(r["perplexity"] / exact for r in rows)
    axis.set_xscale("log")
    axis.axvline(1, color=picture.INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    axis.set_xlim(0.9, max(1.5, worst**1.3))
    close = (1.1, 1.25, 1.5) if worst < 3 else ()
    ticks = [t for t in (1, *close, 2, 3, 5, 10, 100, 1000) if t <= max(1.5, worst)]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks], fontsize=8)
    axis.minorticks_off()
    picture.frame(axis, "Perplexity", "times that of float32; less is better")


def draw_sizes(axis, rows, colors):
    for y, (row, color) in enumerate(zip(rows, colors)):
        size, embedding = row["weight_bytes"] / 1e6, row["embedding_bytes"] / 1e6
        axis.barh(y, size, color=color, height=0.62)
        axis.barh(y, embedding, left=size, color=color, alpha=0.4, height=0.62)
        place = {"textcoords": "offset points", "va": "center", "color": picture.FAINT, "fontsize": 9}
        axis.annotate(f"{row['bits_per_weight']:.2f} bits", (size + embedding, y), (6, 0), **place)
    axis.set_xlim(0, 1.4 * max(r["weight_bytes"] for r in rows) / 1e6)
    picture.frame(axis, "Weights", "MB; pale: the embedding, where it is kept apart")


PANELS = [(draw_perplexity, 0.8), (draw_sizes, 0.7)]
