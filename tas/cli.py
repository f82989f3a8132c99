"""The command `tas`: tables for people, one JSON object on stdout with --json; everything else goes to stderr.

Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 130 it was interrupted.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tas.errors import BadRecipe, TasError
from tas.printing import show

if TYPE_CHECKING:
    from tas.recipe import Recipe

_CORRELATED = "24"  # architectures, where --correlate has no number


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # what keeps anything says so itself, in `tas.commands`
            print("interrupted before anything new was kept: run the same command again", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="tas",
    cls=_Commands,
    help="Cut a trained network to a budget: search widths and depths by gradient, distill, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, a YAML file; `tas init` writes one.")]
Target = Annotated[str, typer.Argument(metavar="NETWORK", help="An import path package.module:attribute, or a recipe.")]
Out = Annotated[Path | None, typer.Option("--out", help="The run folder; by default runs/NAME-OF-THE-RECIPE.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key of the recipe.")]
Shape = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="[NAME=]SIZES[:TYPE[:LOW-HIGH]]",
        help="An input, batch first: 1,3,224,224. Repeat it for several, with names or in their order: "
        "input_ids=1,16:int64:0-999. Integers without a range are 1, booleans true.",
    ),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"tas {metadata.version('tas')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; errors that the user can mend take one or two lines and exit 2."""
    try:
        app(_counted(sys.argv[1:]))
    except TasError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)


def _counted(arguments: list[str]) -> list[str]:
    """`tas score --correlate` without a number means 24."""
    found = list(arguments)
    for place, argument in reversed(list(enumerate(arguments))):
        rest = arguments[place + 1 :]
        if arguments[0] == "score" and argument == "--correlate" and not (rest and rest[0].lstrip("-").isdigit()):
            found.insert(place + 1, _CORRELATED)
    return found


@app.command()
def init(
    network: Annotated[str, typer.Argument(help="Import path of the network, package.module:attribute.")],
    shape: Shape = None,
    out: Annotated[Path, typer.Option("--out", help="The recipe to write.")] = Path("recipe.yaml"),
    as_json: Json = False,
) -> None:
    """Write a commented recipe for a network, after trying the network on an input."""
    from tas.files import write_text
    from tas.originals import build, check_runs
    from tas.recipe import examples, template

    if out.exists():
        raise BadRecipe(f"{out} is there already; choose another --out")
    if not shape:
        raise BadRecipe("the shape of an input is needed: give --shape, such as 1,3,224,224")
    text = template(network, shape)
    check_runs(build(network), examples(shape))
    write_text(out, text)
    show(as_json, {"recipe": str(out)}, f"Wrote {out}. Name your data in it, then: tas run {out} --plan")


@app.command()
def space(
    network: Target,
    shape: Shape = None,
    overrides: Set = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON into this file.")] = None,
    as_json: Json = False,
) -> None:
    """What can be searched in a network, what is kept and why, and how small it can become; trains nothing."""
    from tas import describing, parts
    from tas.files import write_json
    from tas.reporting import tables

    recipe = _recipe(network, overrides, shapes=shape)
    original = parts.original_of(recipe.network, recipe.seed)
    inputs = parts.example_inputs(recipe.network, original, parts.data_of_inputs(recipe))
    start = time.perf_counter()
    found = parts.source_of(recipe, original, inputs).space
    seconds = time.perf_counter() - start
    describing.require_choices(found, recipe.space)
    asked = [limits for limits in recipe.budgets if limits.macs or limits.params]
    limits = describing.budgets_of(found, asked)
    described = describing.survey(found, original, inputs, seconds, limits)
    if out:
        write_json(out, described)
    show(as_json, described, *tables.space_tables(described))


@app.command()
def latency(
    network: Target,
    shape: Shape = None,
    architecture: Annotated[
        Path | None, typer.Option(help="JSON file with an architecture: where did its MACs fall, but not its latency?")
    ] = None,
    check: Annotated[
        int | None, typer.Option("--check", min=3, metavar="N", help="Measure N networks that the table has not seen.")
    ] = None,
    staircase: Annotated[
        int | None,
        typer.Option(
            min=5, metavar="N", help="Which multiple of channels saves time? N sizes of the slowest layers: 33, say."
        ),
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Measure what each layer takes on a target (section `latency` of a recipe), or read the table that is there.

    The target is PyTorch on the CPU with one thread and batch 1, unless a recipe or --set latency.batch=32, .threads,
    .device=cuda, .runtime=compile or onnxruntime says otherwise.
    """
    from tas import commands

    commands.latency(_recipe(network, overrides, shapes=shape), architecture, check, staircase, as_json)


@app.command()
def run(
    recipe: RecipePath,
    out: Out = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what is feasible and what it will cost.")] = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Run a recipe from the original to the report, or go on where it was interrupted."""
    from tas import commands

    if plan:
        return commands.plan(_recipe_in(recipe, overrides), as_json)
    return _finish(recipe, out, overrides, as_json)


@app.command()
def search(recipe: RecipePath, out: Out = None, overrides: Set = None, as_json: Json = False) -> None:
    """Run a recipe as far as the chosen architecture."""
    _finish(recipe, out, overrides, as_json, until="search")


@app.command()
def synthesize(recipe: RecipePath, out: Out = None, overrides: Set = None, as_json: Json = False) -> None:
    """Make images from the original's batch norms, as the section `synthesize` says, to look at and to train with.

    A run in the same folder goes on with them. Without the section: --set synthesize.images=2000.
    """
    from tas import commands

    commands.synthesize(_recipe_in(recipe, overrides), _folder(recipe, out), as_json)


@app.command()
def distill(
    recipe: RecipePath,
    architecture: Annotated[
        Path | None, typer.Option(help="JSON file with an architecture; by default the run's own search finds one.")
    ] = None,
    out: Out = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Train the student of an architecture, and its baselines, by distillation."""
    from tas.methods.result import architecture_in

    given = None if architecture is None else architecture_in(architecture)
    _finish(recipe, out, overrides, as_json, architecture=given)


@app.command()
def score(
    recipe: RecipePath,
    architectures: Annotated[
        Path | None, typer.Option(help="JSON: one architecture, a list of them, or one a line.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Draw N architectures within the budget, by uniform rates.")
    ] = None,
    learned: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="Draw them from the distribution that a run learned.")
    ] = None,
    correlate: Annotated[
        int | None,
        typer.Option(
            min=3, metavar="K", help="Draw K (24 without a number), train each, correlate scores and results."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of each training for --correlate.")] = 1,
    raw: Annotated[
        bool, typer.Option("--raw", help="Also score with the batch-norm statistics as they were; a pass more each.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="A run folder: its original is used.")] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Score architectures quickly: hold-out metric with recalibrated batch norm, no training.

    Scores are made with the original's weights, the removed channels merged in as in the recipe's search.
    """
    from tas import commands

    if correlate is None:
        return commands.score(_recipe_in(recipe, overrides), architectures, sample, learned, out, raw, as_json)
    if architectures is not None or sample is not None:
        raise BadRecipe("--correlate draws its architectures: leave out --architectures and --sample")
    chosen = _recipe_in(recipe, overrides)
    return commands.correlate(chosen, _folder(recipe, out), correlate, epochs, learned, as_json)


@app.command()
def compare(
    recipe: RecipePath,
    forgetting: Annotated[
        bool,
        typer.Option("--forgetting", help="Also ask what pruning forgot; gives every seed an original of its own."),
    ] = False,
    out: Out = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Compare searches and baselines at equal budgets, all trained the same way, over seeds; see section `compare`."""
    from tas import commands

    changes = [*(overrides or ()), *(["compare.forgetting=true"] if forgetting else [])]
    commands.compare(_recipe_in(recipe, changes), _folder(recipe, out), as_json)


@app.command()
def join(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run whose search is a study.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Of this process: machine.device=cuda:1, say.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Take part in the study of a run, beside the process that runs it (search.method optuna or tuned)."""
    from tas import commands

    commands.join(folder, overrides or [], as_json)


@app.command()
def evaluate(
    network: Annotated[str, typer.Argument(help="An import path, a recipe, or a folder such as RUN/student.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    weights: Annotated[Path | None, typer.Option(help="Weights of the network: safetensors or a state dict.")] = None,
    data: Annotated[str | None, typer.Option(help="Name of the data set.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    overrides: Set = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON into this file.")] = None,
    as_json: Json = False,
) -> None:
    """Metric and loss of a network, of a recipe's original, or of a student folder on a named split."""
    from tas.files import write_json
    from tas.judging import evaluate_target
    from tas.reporting.numbers import decimal

    if weights is not None and Path(network).is_dir():
        raise BadRecipe(f"--weights is for networks without their own, {network} is a folder that holds some")
    given = {"network.weights": weights, "data.name": data, "data.root": root}
    extra = [f"{key}={json.dumps(str(value))}" for key, value in given.items() if value is not None]
    found = evaluate_target(network, split, lambda name: _recipe(name, [*(overrides or ()), *extra]))
    if out:
        write_json(out, found)
    show(as_json, found, (list(found), [[decimal(v) if isinstance(v, float) else str(v) for v in found.values()]]))


@app.command()
def export(
    network: Annotated[str, typer.Argument(help="A folder such as RUN/student, an import path, or a recipe.")],
    format: Annotated[str, typer.Option(help="onnx, or torch for a torch.export program.")] = "onnx",
    fold: Annotated[bool, typer.Option("--fold", help="Fold batch norms into the layers before them.")] = False,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Memory layout, for torch.")] = False,
    fixed_batch: Annotated[bool, typer.Option("--fixed-batch", help="Where the network cannot take any.")] = False,
    opset: Annotated[int, typer.Option(help="Version of the ONNX operators.")] = 20,
    images: Annotated[int, typer.Option(min=2, help="How many examples the file is checked on.")] = 16,
    overrides: Set = None,
    out: Annotated[Path | None, typer.Option("--out", help="The file; by default student.onnx in the folder.")] = None,
    as_json: Json = False,
) -> None:
    """Write a network as one file for another runtime, checked there on real inputs; exits 1 where it disagrees."""
    from tas import commands

    options = {"fold": fold, "dtype": dtype, "channels_last": channels_last, "opset": opset}
    recipe_of = partial(_recipe, overrides=overrides)
    commands.export(network, out, recipe_of, format, images, as_json, dynamic_batch=not fixed_batch, **options)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A run folder, or several.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PAGE", help="The page about several runs; by default runs.html.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the pages of a run folder again, or one page that sets several runs beside each other."""
    from tas import commands

    commands.report(folders, out, as_json)


def _finish(path: Path, out: Path | None, overrides: list[str] | None, as_json: bool, **options: Any) -> None:
    from tas import commands

    commands.finish(_recipe_in(path, overrides), _folder(path, out), as_json, **options)


def _folder(recipe: Path, out: Path | None) -> Path:
    return out or Path("runs") / recipe.stem


def _recipe_in(path: Path, overrides: list[str] | None) -> Recipe:
    if not _is_file(str(path)):
        raise BadRecipe(
            f"a recipe is a file that ends in .yaml or .yml, got {path}; `tas init` writes one for a network"
        )
    return _recipe(str(path), overrides)


def _recipe(name: str, overrides: list[str] | None, shapes: list[str] | None = None) -> Recipe:
    """The recipe of that path; a bare import path becomes one without data and budget."""
    from tas.parts import NO_DATA
    from tas.recipe import parse, read

    described = ["network.shape=null", f"network.inputs={json.dumps(shapes)}"] if shapes else []
    changes = [*(overrides or ()), *described]
    if _is_file(name):
        return read(name, changes)
    return parse({"network": {"name": name}, "data": {"name": NO_DATA}, "budget": {}}, changes)


def _is_file(name: str) -> bool:
    return Path(name).suffix in (".yaml", ".yml")
