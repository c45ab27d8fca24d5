"""demo.png: how long each variant takes and where; beside it, what the model's demo draws of its quality."""

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


def draw(demo, result, path):
    """Write the picture of a result of the demo; ``demo.PANELS`` are (draw(axis, rows, colors), width) pairs."""
    rows = result["rows"][::-1]  # matplotlib counts from the bottom
    colors = [OURS if r["qkernels"] else BFLOAT if r["family"] == "bfloat16" else FLOAT for r in rows]
    s, m = result["settings"], result["machine"]
    with plt.rc_context(STYLE):
        ratios = [*(1 for _ in demo.CASES), *(width for _, width in demo.PANELS)]
        size = 16, 2.1 + 0.5 * len(rows)
        figure, axes = plt.subplots(1, len(ratios), figsize=size, sharey=True, width_ratios=ratios)
        under = f"ms {demo.ITEM}; pale: outside the {demo.LAYERS}"
        for axis, (case, kind) in zip(axes, demo.CASES.items()):
            _times(axis, rows, colors, case, kind, s["items"][case])
            frame(axis, kind.panel, under)
        for axis, (panel, _) in zip(axes[len(demo.CASES) :], demo.PANELS):
            panel(axis, rows, colors)
        axes[0].set_yticks(range(len(rows)), [f"{r['family']}  {r['how']}" for r in rows])
        for label, color in zip(axes[0].get_yticklabels(), colors):
            label.set(color=OURS if color == OURS else INK, weight="bold" if color == OURS else "normal")
        figure.suptitle(demo.title(result), x=0.01, ha="left", fontsize=15, weight="bold")
        facts = (
            f"{m['cpu']}, {s['threads']} threads. torch {m['torch']}, qkernels {m['qkernels']}. Medians of "
            f"{s['rounds']} rounds, thin lines: quartiles. ×: speed-up over the fastest "
            f"{' or '.join(demo.FLOATS)} (dashed)."
        )
        figure.text(0.01, 0.015, facts, color=FAINT, fontsize=9)
        figure.tight_layout(rect=(0, 0.04, 1, 0.98), w_pad=2)
        figure.savefig(path, dpi=130, facecolor="white")
        plt.close(figure)


def frame(axis, title, subtitle):
    """Title and grid of a panel."""
    axis.set_title(title, loc="left", fontsize=12, weight="bold", pad=20)  # in points, for any number of rows
    place = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axis.annotate(subtitle, (0, 1), (0, 7), color=FAINT, fontsize=9, **place)
    axis.grid(axis="x", color=GRID, linewidth=0.8)


def _times(axis, rows, colors, case, kind, items):
    times = [r[case]["milliseconds"] / items for r in rows]
    for y, (row, t, color) in enumerate(zip(rows, times, colors)):
        inside, quartiles = t * (1 - (row["outside_share"][case] or 0)), t * row[case]["spread"]
        axis.barh(y, inside, color=color, height=0.62)
        axis.barh(y, t - inside, left=inside, color=color, alpha=0.4, height=0.62)
        axis.plot([t - quartiles, t + quartiles], [y, y], color=INK, linewidth=1)
        at, place = (t + quartiles, y), {"textcoords": "offset points", "va": "center", "bbox": PAPER}
        axis.annotate(f"{row[case]['speedup']:.2f}×", at, (6, 0), weight="bold", **place)
        rate = f"{row[case]['per_second']:.0f}/s" if kind.rate else f"{t:.2f} ms"
        axis.annotate(rate, at, (48, 0), color=FAINT, fontsize=9, **place)
        if row[case]["is_best"]:
            axis.axvline(t, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    axis.set_xlim(0, 1.5 * max(times))
