"""Options that several commands share, and a command's options made from its settings class."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from asdm import __version__
from asdm.utils import console, disk, inputs, io, registry
from asdm.utils.runs import find_input
from asdm.utils.settings import flag, options


def one_of(package: str) -> Callable[[str], list[str]]:
    """A shell's completions of the names in a seam."""
    return lambda incomplete: [name for name in registry.names(package) if name.startswith(incomplete)]


FAMILY = "Family, diffusers folder or checkpoint."
SCHEDULE = "A schedule file, or a preset such as deepcache:interval=3"
TEACHER = f"{FAMILY[:-1]}; default: what --weights are of, otherwise sd15."
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="File or folder; default: a new folder under reports/.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output if it exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else.")]


# ---------------------------------------------------------------------------------------------- from a settings class


@dataclass(frozen=True)
class Without:
    """`Annotated[Setup, Without("batch")]`: a command without some of the options of a settings class."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


def from_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Turn every parameter of `command` that is a settings class into one option for each of the class's fields.

    The command is called with instances of these classes, the device filled in if none was named.
    """
    parameters: list[inspect.Parameter] = []
    classes: dict[str, tuple[Any, list[str]]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        base, *notes = _base_and_notes(parameter.annotation)
        if is_dataclass(base):
            left_out = {name for note in notes if isinstance(note, Without) for name in note.names}
            own = list(_parameters_of(base, left_out))
            classes[parameter.name] = base, [one.name for one in own]
            parameters += own
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def run(**values: Any) -> None:
        from asdm.measure.device import use_device
        from asdm.models import execution

        for name, (settings, names) in classes.items():
            given = {field: values.pop(field) for field in names}
            values[name] = execution.resolve(settings, given)
            if hasattr(values[name], "device"):
                use_device(values[name].device)
                if sentence := execution.chosen_on_a_gpu(values[name], given):
                    console.say(sentence)
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _base_and_notes(annotation: Any) -> Sequence[Any]:
    return get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)


def _parameters_of(settings: Any, left_out: set[str]) -> Iterator[inspect.Parameter]:
    """A keyword parameter with typer's annotation for each field that a user sets."""
    hints = get_type_hints(settings)
    defaults = {field.name: field.default for field in fields(settings)}
    for name, option in options(settings).items():
        if name not in left_out:
            completion = one_of(option.seam) if option.seam else None
            info = typer.Option(flag(name, option), help=option.help, autocompletion=completion)
            hint, default = (hints[name] | None, None) if option.automatic else (hints[name], defaults[name])
            hint = str | None if option.parse else hint
            default = inspect.Parameter.empty if default is MISSING else default
            kind = inspect.Parameter.KEYWORD_ONLY
            yield inspect.Parameter(name, kind, default=default, annotation=Annotated[hint, info])


# ---------------------------------------------------------------------------------------------- the whole program


def print_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        print(f"asdm {__version__}")
        raise typer.Exit


def root_options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of the program itself; without a command, what to do next."""
    if context.invoked_subcommand is None:
        from asdm.cli import guide

        print("\n".join(guide.lines()))


# ---------------------------------------------------------------------------------------------- inputs and outputs


MODELS = ("family", "teacher", "student", "source", "checkpoint", "weights", "stage1", "pipeline")


def output_checked(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, refused before it does anything where its output is `-` or one of its inputs."""
    output = inspect.signature(command).parameters.get("output")
    if output is None:
        return command
    # Where a folder of reports/ is the default, a command puts a file into the folder, which may hold its inputs.
    own_folder = output.default is inspect.Parameter.empty or command.__name__ == "search"

    @wraps(command)
    def run(**values: Any) -> None:
        path = values["output"]
        if path is None:
            command(**values)
            return
        with inputs.of_command(read_by(values)):
            if own_folder or not path.is_dir():
                inputs.check_output(path)
            command(**values)

    return run


def read_by(parameters: Mapping[str, Any]) -> Iterator[str]:
    """Files and folders that a command's words may name: `path`, `folder:PATH`, `PATH:SCALE`.

    A word alone, such as the name of a preset, is a folder where it stands for a model.
    """
    for name, value in parameters.items():
        if name in ("output", "prompts"):
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, Path):
                yield str(find_input(one))
            elif isinstance(one, str):
                yield one.partition(":")[2]
                for word in (one, one.rpartition(":")[0]):
                    if name in MODELS or Path(word).name != word or not os.path.isdir(word):
                        yield word


# ---------------------------------------------------------------------------------------------- steps of a command


def this_command(program: str) -> str:
    """The command line as it was typed, with the passwords of addresses hidden."""
    return shlex.join([*program.split(), *map(console.without_password, sys.argv[1:])])


def source_of(plan: str) -> str:
    """The plan file or preset that was named; for a bare file name, the newest such file, which a message names."""
    source = str(find_input(Path(plan)))
    if source != plan:
        console.say(f"Using {source}, the newest {plan}.")
    return source


def target(output: Path | None, default: Path, name: str, force: bool = False) -> Path:
    """The file that a run writes: `output` itself, `name` in the folder `output`, or `name` in a folder of its own.

    Raises ValueError if it exists and `force` is not set.
    """
    folder = output or default
    path = folder if output and output.suffix == Path(name).suffix else folder / name
    io.check_writable(path, force)
    return path


def warn_if_slow(device: str, dtype: str, backend: str = "eager") -> None:
    """Warn before a run that would take hours."""
    from asdm.models import execution

    if backend.partition(":")[0] in ("eager", "compiled") and (warning := execution.slow_dtype(device, dtype)):
        console.say(f"Warning: {warning}")


def save_and_print(record: Any, path: Path, force: bool, as_json: bool, show: Callable[[], object]) -> None:
    """Write a result, print it as JSON or as `show` prints it, and say where it was written.

    Where another process has written there meanwhile, or it is an input, the result goes beside it and is not lost.
    """
    if inputs.is_input(path) or (path.exists() and not force):
        why = "is an input of this command" if inputs.is_input(path) else "was written by another process meanwhile"
        console.say(f"Warning: {path} {why}; this result goes beside it.")
        path = disk.beside(path)
    record.save(path, force)
    if as_json:
        print(record.to_json(), end="")
    else:
        show()
    console.say(f"Wrote {path}")
