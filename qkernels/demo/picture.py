"""demo.png: how long each variant takes and where, and how close its embeddings stay to float32."""

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

INK, FAINT, GRID = "#1b2430", "#6b7683", "#e1e5ea"
OURS, FLOAT, BFLOAT = "#0b7a75", "#9aa5b1", "#b9a27c"
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # under texts that a line may cross
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": FAINT,
    "ytick.color": INK,
    "ytick.left": False,
    "axes.axisbelow": True,
}


def draw(result, path):
    """Write the picture of a result of the demo."""
    rows = result["rows"][::-1]  # matplotlib counts from the bottom
    colors = [OURS if r["qkernels"] else BFLOAT if r["family"] == "bfloat16" else FLOAT for r in rows]
    s, m = result["settings"], result["machine"]
    with plt.rc_context(STYLE):
        size, ratios = (16, 2.1 + 0.5 * len(rows)), [1, 1, 0.75, 0.75]
        figure, axes = plt.subplots(1, 4, figsize=size, sharey=True, width_ratios=ratios)
        _times(axes[0], rows, colors, "one", "One sentence", 1)
        _times(axes[1], rows, colors, "batch", f"Batch of {s['batch']}", s["sentences"])
        _cosines(axes[2], rows, colors)
        _scores(axes[3], rows, colors)
        axes[0].set_yticks(range(len(rows)), [f"{r['family']}  {r['how']}" for r in rows])
        for label, color in zip(axes[0].get_yticklabels(), colors):
            label.set(color=OURS if color == OURS else INK, weight="bold" if color == OURS else "normal")
        title = f"{s['model']}: a sentence model with {s['linear_layers']} compressed linear layers"
        figure.suptitle(title, x=0.01, ha="left", fontsize=15, weight="bold")
        facts = (
            f"{m['cpu']}, {s['threads']} threads. torch {m['torch']}, qkernels {m['qkernels']}. Medians of "
            f"{s['rounds']} rounds, thin lines: quartiles. ×: speed-up over the fastest float32 (dashed)."
        )
        figure.text(0.01, 0.015, facts, color=FAINT, fontsize=9)
        figure.tight_layout(rect=(0, 0.04, 1, 0.98), w_pad=2)
        figure.savefig(path, dpi=130, facecolor="white")
        plt.close(figure)


def _frame(axis, title, subtitle):
    axis.set_title(f"{title}\n", loc="left", fontsize=12, weight="bold")
    axis.text(0, 1.015, subtitle, transform=axis.transAxes, color=FAINT, fontsize=9)
    axis.grid(axis="x", color=GRID, linewidth=0.8)


def _times(axis, rows, colors, case, title, sentences):
    times = [r[case]["milliseconds"] / sentences for r in rows]
    for y, (row, t, color) in enumerate(zip(rows, times, colors)):
        inside, quartiles = t * (1 - row["outside_share"][case]), t * row[case]["spread"]
        axis.barh(y, inside, color=color, height=0.62)
        axis.barh(y, t - inside, left=inside, color=color, alpha=0.4, height=0.62)
        axis.plot([t - quartiles, t + quartiles], [y, y], color=INK, linewidth=1)
        at, place = (t + quartiles, y), {"textcoords": "offset points", "va": "center", "bbox": PAPER}
        axis.annotate(f"{row[case]['speedup_over_best_float32']:.2f}×", at, (6, 0), weight="bold", **place)
        rate = f"{row[case]['sentences_per_second']:.0f}/s" if case == "batch" else f"{t:.2f} ms"
        axis.annotate(rate, at, (48, 0), color=FAINT, fontsize=9, **place)
        if row[case]["is_best_float32"]:
            axis.axvline(t, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    axis.set_xlim(0, 1.5 * max(times))
    _frame(axis, title, "ms a sentence; pale: outside the linear layers")


def _cosines(axis, rows, colors):
    floor = 1e-6  # draws everything closer as this close
    for y, (row, color) in enumerate(zip(rows, colors)):
        mean, worst = (max(1 - row["cosine"][k], floor) for k in ("mean", "min"))
        axis.plot([mean, worst], [y, y], color=color, linewidth=2.5)
        axis.plot(mean, y, "o", color=color, markersize=7)
        axis.plot(worst, y, "|", color=color, markersize=10, markeredgewidth=2)
    axis.set_xscale("log")
    ticks = {1e-1: "0.9", 1e-2: "0.99", 1e-3: "0.999", 1e-4: "0.9999", 1e-5: "0.99999", floor: "1"}
    axis.set_xticks(list(ticks), list(ticks.values()), fontsize=8)
    axis.minorticks_off()
    axis.set_xlim(max(0.02, 1.5 * max(1 - r["cosine"]["min"] for r in rows)), floor / 2)
    _frame(axis, "Embeddings", "cosine to float32: dot mean, tick worst")


def _scores(axis, rows, colors):
    axis.axvline(0, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    reference = rows[-1]["scores"]
    for marker, name in zip("osD^", reference):
        for y, (row, color) in enumerate(zip(rows, colors)):
            axis.plot(row["scores"][name] - reference[name], y, marker, color=color, markersize=7, alpha=0.85)
        axis.plot([], [], marker, color=FAINT, markersize=6, label=f"{name}, float32 {reference[name]:.3f}")
    axis.margins(x=0.15)
    _frame(axis, "Agreement with people", "Spearman, change from float32")
    if reference:
        axis.figure.legend(loc="lower right", ncols=2, frameon=False, fontsize=9, labelcolor=FAINT)
    else:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=FAINT)
