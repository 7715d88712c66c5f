"""`gatehouse import`: make an artifact from a TorchScript file."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli.output import Output
from app.cli.parser import Parser, WrongUsage, complain
from app.cli.settings_options import add_store, store_of
from app.cli.signals import importing
from app.errors import ArtifactInvalid, ExitCode
from app.importing.description import ForeignInvalid, ForeignModel, from_flags, read

if TYPE_CHECKING:
    from app.artifacts.store import Artifact

_DESCRIPTION = "Make an artifact from a TorchScript file, and publish it in the store."
_GUIDE = """\
example:
  gatehouse import ctr.pt --name ctr --columns age,gender@3,price,item@5000 --user age,gender
                   --tasks click:logit,dwell:log-seconds

  gatehouse import --draft ctr.pt > ctr.toml     # check the file, and then:
  gatehouse import ctr.pt --config ctr.toml

--draft prints a description: it reads the module's signature, finds out by calls which arguments
are ids, lists, numbers, lengths and masks, and tries the result. Sides and tasks are guesses.

The options of the first example describe a module that takes one matrix, one row per candidate. A
column is NAME for a number, NAME:16 for 16 numbers, NAME@5000 for an id from 0 to 4999, checked to
be whole and in range. Tasks are in the order of the outputs: columns of a matrix or elements of a
tuple. If the module returns a dict, a task's name is its key, unless `output` says otherwise. What
the module gives for a task is one of

  probability, logit, log-probability       the score is a probability
  seconds, log-seconds, log1p-seconds       the score is a number of seconds
  number                                    the score is what the module gives

Any other module is described by a TOML file, --config:

  name = "ctr"                              # the model's name in the store
  style = "positional"                      # or "dict": one dict of tensors, by argument name
  architecture = "DeepFM"                   # shown to people
  ranges = { age = [18, 90] }               # dense values to try it with; else standard normal
  unused = ["zip_code"]                     # inputs that the module is known to ignore
  ranking = { formula = "power_product", weights = { click = 1.0 } }

  [[inputs]]                                # the features, in the order in which they are offered
  name = "item"
  side = "candidate"                        # or "user": sent once a request, repeated for each row
  kind = "id"                               # dense (dim) | id | id_list (max_length, padding,
  vocabulary_size = 5000                    #   padding_side = "right" or "left"); with a derived
                                            #   length or mask, its padding is no id
  unknown = "reject"                        # or the row for an id outside the vocabulary
  default = 0                               # used if a request leaves the feature out
  missing = "unknown"                       # null: an unknown id; or "default", of dense features
  encoding = { kind = "hash", buckets = 4999 }  # of strings; or "vocabulary", file beside this one

  [[arguments]]                             # the module's tensors; left out: all as one matrix
  name = "item_id"
  pack = ["item"]                           # features side by side
  dtype = "int64"                           # int64, int32, bool, float32 or float64
  rank = 1                                  # 1 is [B], 2 is [B, width]

  [[arguments]]                             # derived from an id list: requests do not contain it
  name = "history_length"
  pack = [{ take = "length", of = "history", at_least = 1 }]  # length | mask | padding, or
  dtype = "int32"                           #   { take = "ids", of = "history", empty = 1 }: a row
  rank = 1                                  #   in place of an empty list

  [[tasks]]
  name = "click"
  gives = "logit"
  clamp = [0.0, 0.9]                        # optional: limits of the score
  output = { path = 0, column = 1 }         # optional: index, key or field, then column

The module runs with 1, 2 and 257 rows. It is refused, with the reason, if it fails, if a row's
output depends on other rows or is not finite, if it changes its own state or draws random numbers,
or if no output depends on one of its inputs. Nothing is unpickled. Worked examples, and what to do
about each refusal: app/importing/README.md.

exit codes: 0 published; 1 the module was refused; 2 wrong usage, description or files
"""


def add_arguments(parser: Parser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _GUIDE
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a TorchScript file, written by torch.jit.save"
    )
    parser.add_argument(
        "--config", type=Path, metavar="TOML", help="file that describes the module"
    )
    parser.add_argument(
        "--draft", action="store_true", help="print a description of the module, to be edited"
    )
    add_store(parser)
    parser.add_argument("--name", help="the model's name in the store")
    for option, explanation in (
        ("--columns", "columns of the matrix, from left to right"),
        ("--user", "columns that belong to the user; the others are the candidate's"),
        ("--tasks", "tasks, each with what the module gives"),
    ):
        parser.add_argument(option, type=_names, default=[], metavar="A,B", help=explanation)


def run(options: argparse.Namespace) -> int:
    """Try a TorchScript file, and publish it if it can be served.

    Raises:
        WrongUsage: an option, the description or a file cannot be used.
    """
    try:
        content = options.file.read_bytes()
        if options.draft:
            return _draft(options, content)
        model = _described(options)
    except ForeignInvalid as error:
        raise WrongUsage(str(error)) from None
    except OSError as error:
        raise WrongUsage(f"{error.filename}: {error.strerror}") from None
    try:
        artifact = _published(options, content, model)
    except ArtifactInvalid as error:
        return _refused(options.file, str(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _refused(options.file, f"{place}{error.strerror}")
    Output().print_line(f"published {artifact}: {artifact.folder}")
    return ExitCode.OK


def _draft(options: argparse.Namespace, content: bytes) -> int:
    if options.config is not None or options.columns or options.user or options.tasks:
        raise WrongUsage("--draft takes no description; only --name")
    with importing():
        from app.importing.draft import draft

    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", options.name or options.file.stem).strip("_.-")
    try:
        drafted = draft(content, name or "model")
    except ArtifactInvalid as error:
        complain(f"{options.file}: {error}")
        return ExitCode.FAILED
    Output().print_line(drafted.removesuffix("\n"))
    return ExitCode.OK


def _refused(file: Path, reason: str) -> int:
    complain(f"{file} cannot be imported: {reason}")
    return ExitCode.FAILED


def _published(options: argparse.Namespace, content: bytes, model: ForeignModel) -> "Artifact":
    """Run the module on samples and write the artifact.

    Raises:
        ArtifactInvalid: the module cannot be served.
        OSError: a vocabulary cannot be read, or the store cannot be written.
    """
    with importing():
        from app.artifacts.publish import publish
        from app.artifacts.store import Store
        from app.importing.trial import examine

    trial = examine(content, model)
    vocabularies = {
        name: (options.config.parent / name).read_bytes()
        for name in sorted(trial.description.vocabulary_files)
    }
    store = Store(store_of(options))
    return publish(store, trial.description, content, trial.requests, vocabularies)


def _described(options: argparse.Namespace) -> ForeignModel:
    by_options = (options.name, options.columns, options.user, options.tasks)
    if options.config is not None:
        if any(by_options):
            raise WrongUsage("--config replaces --name, --columns, --user and --tasks; give one")
        return read(options.config)
    if not (options.name and options.columns and options.tasks):
        raise WrongUsage("gatehouse import needs --config, or --name, --columns and --tasks")
    return from_flags(*by_options)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
