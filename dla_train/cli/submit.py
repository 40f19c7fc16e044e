"""`dla-train submit`: train a recipe as a job of a Slurm cluster."""

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dla_train.cli.missing_recipe import missing_recipe
from dla_train.cli.out_folder import a_folder
from dla_train.errors import UsageError
from dla_train.runs.program import this_program

if TYPE_CHECKING:
    from dla_train.config.catalog import RecipeFile
    from dla_train.config.load import LoadedRecipe
    from dla_train.runs.folder import RunFolder
    from dla_train.slurm.request import JobRequest

_EXAMPLES = """\
The job trains in the run folder with `dla-train fit --resume auto` (with --resume PATH: `auto:PATH`). Warned before its
time limit, preempted or failed, it goes back into the queue and on from its newest checkpoint; finished, canceled or
refused (exit code 2), it does not.

examples:
  dla-train submit --recipe tiny --gpus-per-node 1 --time 4:00:00 --partition gpu training.accelerator=gpu
  dla-train submit --recipe tiny --nodes 1 --gpus-per-node 0 --dry-run --run-dir runs/try training.steps=50
  dla-train submit --recipe a.yaml --recipe b.yaml --gpus-per-node 1 --time 4:00:00    an array, in runs/a and runs/b
  dla-train submit --recipe a.yaml --resume runs/a --run-dir runs/longer --time 4:00:00 training.steps=60000
"""


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "submit",
        help="train a recipe as a Slurm job",
        description=__doc__,
        usage="dla-train submit --recipe NAME_OR_PATH --nodes N --gpus-per-node G [options] [key=value ...]",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    option = parser.add_argument
    option(
        "--recipe",
        metavar="NAME_OR_PATH",
        action="append",
        help="a shipped recipe's name, or the path of a .yaml file; given again, all are tasks of one array job",
    )
    option("--nodes", type=int, metavar="N", default=1, help="machines (default: 1)")
    option("--gpus-per-node", type=int, metavar="G", default=1, help="GPUs and processes on each; 0: CPU (default: 1)")
    option("--partition", metavar="NAME", help="as sbatch takes it, like the next four")
    option("--account", metavar="NAME")
    option("--qos", metavar="NAME")
    option("--constraint", metavar="FEATURES")
    option("--mem", metavar="SIZE")
    option("--time", metavar="LIMIT", help="of one start: MINUTES, H:MM:SS, D-HH:MM:SS; the job then goes on by itself")
    option("--cpus-per-task", type=int, metavar="N", help="CPU cores of each process")
    option(
        "--warn-seconds",
        type=int,
        metavar="S",
        default=120,
        help="save and requeue this long before the time limit; a step and a save must fit in (default: 120)",
    )
    option("--requeue-limit", type=int, metavar="N", default=3, help="times to try again after a failure (default: 3)")
    option(
        "--run-dir",
        metavar="DIR",
        type=a_folder,
        help="the run folder, on a disk all nodes see (default: runs/NAME); of several, the one above",
    )
    option(
        "--resume",
        metavar="PATH",
        type=a_folder,
        help="branch off at this checkpoint, or run folder, of another run; a requeued job goes on with its own",
    )
    option("--template", metavar="FILE", type=Path, help="a batch script of your own; see --print-template")
    option("--print-template", action="store_true", help="print the batch script's template and end")
    option("--dry-run", action="store_true", help="write the script, print it, submit nothing")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: list[str]) -> int:
    """Check the options, write the scripts, submit them, and say how to follow the job."""
    from dla_train import atomic_files
    from dla_train.runs.folder import require_own
    from dla_train.slurm.sbatch import require_sbatch, submit
    from dla_train.slurm.script import array_template, fill, quoted, template_text

    template = template_text(options.template)
    if options.print_template:
        print(template, end="")
        return 0
    if not options.recipe:
        raise missing_recipe("submit", settings)
    request = _request(options)
    runs = [_checked(recipe, options, settings, request) for recipe in options.recipe]
    _require_different(runs)
    _warn(runs)
    if not options.dry_run:
        require_sbatch()

    scripts = {run.script: run.text(template, str(options.template or "of the package"), request) for run in runs}
    script, command = runs[0].script, runs[0].sbatch
    if len(runs) > 1:
        script = runs[0].folder.slurm / "array.sh"
        command = runs[0].sbatch_of(script, "array-%A.log")
        values = {
            "NAMES": ", ".join(run.folder.path.name for run in runs),
            "SUBMIT": quoted(command),
            "DIRECTIVES": "\n".join(request.directives("array")),
            "LAST": str(len(runs) - 1),
            "SCRIPTS": quoted([str(run.script) for run in runs]),
        }
        scripts[script] = fill(array_template(), values, "of the package", required=())
    for run in runs:
        require_own(run.folder)
    try:
        for path, text in scripts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_files.write_text(path, text)
    except OSError as error:
        raise UsageError(f"cannot write {error.filename}: {error.strerror}. Choose another --run-dir.") from error
    if options.dry_run:
        print("\n".join(scripts.values()), end="")
        print(f"\nwritten to {script}; not submitted. Submit it with: {quoted(command)}", file=sys.stderr)
        return 0
    _say_submitted(submit(command, scripts[script]), script, runs)
    return 0


@dataclass(frozen=True)
class _Run:
    """One of the submitted runs; `command` trains the recipe `name` in `folder`, `warnings` are about it."""

    name: str
    folder: "RunFolder"
    command: list[str]
    warnings: list[str]

    @property
    def script(self) -> Path:
        return self.folder.slurm / "job.sh"

    @property
    def sbatch(self) -> list[str]:
        return self.sbatch_of(self.script, "job-%j.log")

    def sbatch_of(self, script: Path, log: str) -> list[str]:
        # Not an #SBATCH line: on the command line, the log's path needs no quoting rules that only Slurm knows.
        output = str(self.folder.slurm).replace("%", "%%") + f"/{log}"
        return ["sbatch", "--parsable", f"--output={output}", str(script)]

    def text(self, template: str, shown_as: str, request: "JobRequest") -> str:
        from dla_train.slurm.script import fill, quoted

        values = {
            "NAME": self.folder.path.name,
            "SUBMIT": quoted(self.sbatch),
            "DIRECTIVES": "\n".join(request.directives(self.folder.path.name)),
            "WORKING_DIRECTORY": quoted([str(Path.cwd())]),
            "COMMAND": quoted(self.command),
            "STATE_FOLDER": quoted([str(self.folder.slurm)]),
            "REQUEUE_LIMIT": str(request.requeue_limit),
        }
        return fill(template, values, shown_as)


def _checked(recipe: str, options: argparse.Namespace, settings: list[str], request: "JobRequest") -> _Run:
    from dla_train.checkpoints.begun import is_begun
    from dla_train.checkpoints.resume import AUTO_FROM
    from dla_train.config.catalog import find
    from dla_train.config.extras import require_extras
    from dla_train.data.presence import require_text
    from dla_train.distributed.drawbacks import drawbacks
    from dla_train.runs.folder import RunFolder
    from dla_train.slurm.script import require_printable

    file = find(recipe)
    path = options.run_dir or Path("runs") / file.name
    if options.run_dir is not None and len(options.recipe) > 1:
        path = options.run_dir / file.name
    loaded, settings = _checked_recipe(file, settings, request, is_begun(path))
    require_extras(loaded)  # the job runs this same Python
    folder = RunFolder(path.absolute())
    require_printable(str(folder), "the run folder")
    if "\\" in str(folder):  # in the name of a log, Slurm takes a backslash to mean "do not expand %"
        raise UsageError(
            f"the run folder {folder} has a backslash; Slurm cannot write a log there. Choose another one."
        )
    require_printable(str(Path.cwd()), "the current folder")
    resume = "auto" if options.resume is None else f"{AUTO_FROM}{options.resume}"
    for text in (recipe, resume, *settings):
        require_printable(text, "a setting")
    if options.resume is not None or loaded.recipe.initial_weights is not None:
        from dla_train.checkpoints.store import CheckpointStore
        from dla_train.training.start import check_beginning

        check_beginning(loaded, CheckpointStore(folder.checkpoints), options.resume)
    fit = [*this_program(), "fit", f"--recipe={recipe}"]
    command = [*fit, f"--run-dir={folder}", "--resume", resume, *settings]
    warnings = [*drawbacks(loaded.recipe.strategy, loaded.recipe.model, request.nodes, request.tasks_per_node)]
    try:
        require_text(loaded)
    except UsageError as error:  # no refusal: it may be made while the job waits
        warnings.append(f"{error} As it is, the job will be refused when it starts.")
    return _Run(loaded.name, folder, command, warnings)


def _require_different(runs: "list[_Run]") -> None:
    folders = [run.folder.path for run in runs]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise UsageError(
            f"two of the recipes would train in {twice[0]}. Each run needs a folder of its own: give each recipe once, "
            "under a name of its own."
        )


def _warn(runs: "list[_Run]") -> None:
    """Each one once; of several runs, with the recipes that have it."""
    for warning in dict.fromkeys(warning for run in runs for warning in run.warnings):
        names = ", ".join(run.name for run in runs if warning in run.warnings)
        print(f"warning: {f'{names}: ' if len(runs) > 1 else ''}{warning}", file=sys.stderr)


def _say_submitted(job: str, script: Path, runs: "list[_Run]") -> None:
    tasks = [job] if len(runs) == 1 else [f"{job}_{number}" for number in range(len(runs))]
    print(f"submitted job {job}" + (f", an array of {len(runs)} runs" if len(runs) > 1 else ""))
    print(f"  script  {script}")
    for task, run in zip(tasks, runs, strict=True):
        log = f"{run.folder.slurm}/job-{task}.log"
        print(f"  log     {log}\n  follow  tail -F {shlex.quote(log)}")
    one = f" (or {tasks[0]}: one run)" if len(runs) > 1 else ""
    print(
        f"  state   squeue --job {job}\n"
        f"  save, requeue and go on        scancel --signal=USR1 {job}{one}\n"
        f"  stop for good                  scancel {job}{one}"
    )


def _request(options: argparse.Namespace) -> "JobRequest":
    from dataclasses import fields

    from dla_train.slurm.request import JobRequest

    try:
        return JobRequest(**{field.name: getattr(options, field.name) for field in fields(JobRequest)})
    except ValueError as error:
        raise UsageError(f"{error}.") from error


def _checked_recipe(
    file: "RecipeFile", settings: list[str], request: "JobRequest", begun: bool
) -> tuple["LoadedRecipe", list[str]]:
    """The recipe as the job will read it, and the settings that lead to it."""
    from dla_train.config.load import load

    loaded = load(file, settings, begun)
    training = loaded.recipe.training
    wanted = "gpu" if request.gpus_per_node else "cpu"
    if training.accelerator == "auto":
        # A job that finds no GPU must say so instead of training slowly on the CPU.
        settings = [*settings, f"training.accelerator={wanted}"]
        loaded = load(file, settings, begun)
    elif training.accelerator != wanted:
        raise loaded.problem(
            "training.accelerator",
            f"it is {training.accelerator}, but --gpus-per-node is {request.gpus_per_node}. Change one of them.",
        )
    _check_processes(loaded, request)
    return loaded, settings


def _check_processes(loaded: "LoadedRecipe", request: "JobRequest") -> None:
    """Check here what the job would otherwise find out on the cluster: whether its processes can train this recipe
    together."""
    from dla_data.counted import counted
    from dla_train.distributed.shares import check_replicas, check_shares

    strategy = loaded.recipe.strategy
    made = (
        f"--nodes {request.nodes} with --gpus-per-node {request.gpus_per_node} makes "
        f"{counted(request.world_size, 'process')}"
    )
    if strategy.kind == "single" and request.world_size > 1:
        raise UsageError(
            f"{made}, and the recipe's strategy is single. Add strategy=ddp, or use --nodes 1 and "
            "--gpus-per-node 1 (or 0)."
        )
    for key, set_to, asked in (
        ("devices", strategy.devices, request.tasks_per_node),
        ("nodes", strategy.nodes, request.nodes),
    ):
        if set_to is not None and set_to != asked:
            raise loaded.problem(
                f"strategy.{key}", f"it is {set_to}, but the job has {asked}. Leave it out, or change one of them."
            )
    processes = f"the {counted(request.world_size, 'process')} of the job"
    check_shares(loaded, request.world_size, processes)
    check_replicas(loaded, request.world_size, processes)
