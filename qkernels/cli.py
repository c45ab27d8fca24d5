"""The command ``qkernels``: info, demo, bench, latency."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .errors import ArgumentError, UnsupportedError

commands = typer.Typer(no_args_is_help=True, add_completion=False, help="Kernels for compressed networks.")
console = Console()

Threads = Annotated[int | None, typer.Option(min=1, help="Threads to use; all that torch uses by default.")]


@commands.command()
def info(
    roofline: Annotated[bool, typer.Option("--roofline", help="Also measure this machine's limits.")] = False,
):
    """What this installation can do on this machine."""
    from .registry import OPS, capabilities

    caps = capabilities()
    kernels = caps.pop("kernels")
    table = Table(show_header=False, box=None)
    cuda = caps.pop("cuda")
    caps["cuda"] = ", ".join(d["name"] for d in cuda["devices"]) if cuda["available"] else cuda["reason"]
    for name, value in caps.items():
        if isinstance(value, dict):
            value = ", ".join(k if ok else f"[dim]{k} (not here)[/dim]" for k, ok in value.items())
        table.add_row(name, str(value))
    for op in OPS:
        rows = [k.removeprefix(f"{op}/") for k in kernels if k.startswith(f"{op}/")]
        table.add_row(op, "\n".join(rows))
    console.print(table)
    if roofline:
        from .latency import roofline as limits

        with console.status("measuring this machine ..."):
            measured = limits.measure()
        console.print(limits.table(measured))


@commands.command()
def demo(
    model: Annotated[str, typer.Option(help="minilm, efficientnet-lite0 or smollm2.")] = "minilm",
    recipes: Annotated[str, typer.Option(help="Recipes, separated by commas; all by default.")] = "",
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo-out"),
    quick: Annotated[bool, typer.Option("--quick", help="Few rounds, no torch.compile.")] = False,
):
    """Compress a model by each recipe and compare it with float32 and bfloat16 torch."""
    try:
        from .demo.run import run
    except ModuleNotFoundError as e:
        raise UnsupportedError(
            f"demo: the package {e.name} is not installed. Install: pip install 'qkernels[demo]'."
        ) from None
    names = [name.strip() for name in recipes.split(",") if name.strip()]
    run(model, names or None, threads, out, quick, console)


@commands.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context):
    """Run bench/ of a checkout with pytest; options go to pytest."""
    folder = Path(__file__).resolve().parent.parent / "bench"
    if not folder.is_dir():
        raise UnsupportedError(
            f"bench: there is no folder {folder}; run this in a checkout of the repository."
        )
    raise typer.Exit(subprocess.call([sys.executable, "-m", "pytest", str(folder), *context.args]))


@commands.command()
def latency(
    shapes: Annotated[list[str] | None, typer.Argument(help="MxKxN, such as 16x384x1536.")] = None,
    threads: Threads = None,
):
    """Time linear layers: int8 with dynamic activations, and float32 where torch is there."""
    from .latency.layers import DEFAULT_SHAPES, measure, parse

    table = Table(
        "M x K x N", "int8 us", "GMAC/s", "% of peak", "float32 us", "speed-up", title="qkernels.linear"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    rows = []
    with console.status("measuring ...") as status:
        for shape in [parse(s) for s in shapes or DEFAULT_SHAPES]:
            status.update(f"measuring {shape} ...")
            rows.append(measure(shape, threads))
    for row in rows:
        ours, theirs = row["int8"], row["float32"]
        table.add_row(
            "x".join(map(str, row["shape"])),
            f"{ours.us:.1f} ±{ours.spread:.0%}",
            f"{row['gmac_per_second']:.0f}",
            f"{row['share_of_peak']:.0%}" if row["share_of_peak"] else "-",
            f"{theirs.us:.1f} ±{theirs.spread:.0%}" if theirs else "-",
            f"{theirs.us / ours.us:.2f}" if theirs else "-",
        )
    console.print(table)


def app():
    """The entry point: errors that qkernels raises become one line and exit code 2."""
    try:
        commands()
    except (ArgumentError, UnsupportedError) as e:
        Console(stderr=True).print(
            f"qkernels {e}", style="red", highlight=False, markup=False, soft_wrap=True
        )
        sys.exit(2)


if __name__ == "__main__":
    app()
