"""The flags of `gatehouse tune`."""

import argparse
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from app.cli.tuning_arguments import add_scene, by_name, factor, positive, whole
from app.cli.usage import Parser
from app.ranking.policies import PolicyName


def _policy_name(text: str) -> str:
    try:
        return TypeAdapter(PolicyName).validate_python(text)
    except ValidationError:
        raise argparse.ArgumentTypeError("must be lower-case letters, digits, _ . -") from None


def _picture(text: str) -> Path:
    """Return where a picture can be written, so that no search is made for nothing."""
    path = Path(text)
    if path.suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError("must end in .png or .svg")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError("its folder does not exist")
    return path


def tune_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = Parser(
        prog="gatehouse tune",
        description="Search for the weights of a policy (exponents, in a product or an expression) "
        "that best reach a goal on logged requests; write them where the gain on held-out requests "
        "is sure (95 % bootstrap interval above 0).",
        epilog="A log tells of candidates that were shown only, in the order they were shown in: "
        "what a policy would bring up from elsewhere is not seen. Of many goals that are tried on "
        "one log, one in forty has a sure gain by luck.",
        allow_abbrev=False,
    )
    add_scene(parser)
    _add_goal(parser)
    _add_search(parser)
    return parser


def _add_goal(parser: argparse.ArgumentParser) -> None:
    """Add what is to be reached, and by which policy."""
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "--ndcg",
        type=by_name,
        metavar="OUTCOME=GAIN,…",
        help="highest NDCG, a candidate's gain being the sum of gain x outcome, such as "
        "click=1,like=4,dwell=0.05 (per click, per like, per second)",
    )
    goal.add_argument(
        "--mix",
        type=by_name,
        metavar="OUTCOME=TARGET,…",
        help="a mix of outcomes among the best, each as a multiple of what they are now, such as "
        "click=1,like=1.1; the outcome that is furthest behind its target is raised",
    )
    parser.add_argument(
        "--at", type=whole, default=10, metavar="K", help="of the best (default: %(default)s)"
    )
    parser.add_argument(
        "--policy", metavar="NAME", help="which is to be tuned (default: the model's default)"
    )
    parser.add_argument(
        "--as",
        dest="name",
        type=_policy_name,
        metavar="NAME",
        help="write it under another name, beside the old one",
    )


def _add_search(parser: argparse.ArgumentParser) -> None:
    """Add how weights are looked for, and what is shown of it."""
    parser.add_argument(
        "--within",
        type=factor,
        default=10.0,
        metavar="FACTOR",
        help="a weight is at most so many times larger or smaller than now, and within the "
        "policy's bounds; the largest stays, since only ratios matter (default: %(default)g)",
    )
    parser.add_argument(
        "--position-bias",
        type=positive,
        default=0.0,
        metavar="ETA",
        help="weight outcomes by position^ETA, at most 10: position p is looked at with "
        "probability p^-ETA (default: 0, no correction)",
    )
    parser.add_argument(
        "--tries",
        type=whole,
        default=300,
        metavar="N",
        help="about how many weights are looked at (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=whole, default=1, metavar="N", help="of the search (default: %(default)s)"
    )
    parser.add_argument(
        "--plot",
        type=_picture,
        metavar="FILE",
        help="plot what each outcome costs in the others, as .png or .svg; needs matplotlib",
    )
