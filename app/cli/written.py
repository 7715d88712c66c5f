"""The end of a command that changes a policies file: show the change, make it, say so."""

from rich.console import Console
from rich.syntax import Syntax

from app.cli.usage import EXIT_OK, WrongUsage
from app.errors import PoliciesInvalid
from app.ranking.policies import ModelTraits
from app.tuning.policy_editor import PolicyEditor


def finish(console: Console, file: PolicyEditor, model: ModelTraits, *, dry_run: bool) -> int:
    """Show a file's changes and write them, unless it is a dry run; return the exit code.

    Raises:
        WrongUsage: the file cannot be written, or a server would refuse it.
    """
    console.print(Syntax(file.changes(), "diff", background_color="default", word_wrap=True))
    if dry_run:
        console.print("A dry run: nothing was written.")
        return EXIT_OK
    try:
        file.write(model)
    except PoliciesInvalid as error:
        raise WrongUsage(f"{file.path}: would not be valid: {error}") from None
    console.print(f"wrote {file.path}", highlight=False, soft_wrap=True, markup=False)
    return EXIT_OK
