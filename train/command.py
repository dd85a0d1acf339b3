"""Train a character model.

  rill train --corpus shakespeare --out runs/shakespeare --max-minutes 2
  rill train --corpus book.txt notes/ --out runs/mine --cell lstm --epochs 10
  rill train --out runs/mine --resume
  rill train --recipe timemachine-gru --corpus timemachine.txt
  rill train --from runs/mine --corpus letters/ --out runs/letters \\
      --extend-vocabulary --epochs 3
  cat *.txt | rill train --corpus - --out runs/stdin --steps 2000
  torchrun --nproc-per-node 2 -m rill.train --corpus book.txt --out runs/two
  rill train report runs/*

The run folder holds config.json, model.safetensors (the best weights by
validation), trainer.pt (for --resume), metrics.jsonl, samples.txt and, at the
end, summary.json and curves.png. Losses are nats per character.
"""

import argparse
import io
import os
import sys
import time
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import Field, fields
from typing import Any

from rill.train.config import ModelConfig, TrainingConfig
from rill.train.errors import TrainError, did_you_mean
from rill.train.loop.cores import let_threads_sleep
from rill.train.loop.process_age import process_age
from rill.train.loop.team import Team
from rill.train.options import GENERAL, GROUPS, LENGTH, Option, flag_of, option_of
from rill.train.plan import Plan, make_plan, run_folder
from rill.train.record.hold import Hold, hold, refuse_if_held
from rill.train.record.recipe import recipe_names
from rill.train.text.corpus import require_corpora
from rill.train.text.tokenizers import check_symbols


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status: 0 done, 2 an error the user can fix, 128 + N stopped by signal N."""
    arguments = sys.argv[1:] if arguments is None else arguments
    began = time.monotonic()
    if arguments and sys.argv[-len(arguments) :] == arguments:  # not called from another program
        began -= process_age()
    if arguments[:1] == ["report"]:
        from rill.train.report import main as report  # noqa: PLC0415  training does not need it

        return report(arguments[1:])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # do not stop for a sample that the terminal cannot show
    let_threads_sleep()
    team = _make_team()
    try:
        team.join()
        return _carry_out(_parse(arguments, team), team, began)
    except (TrainError, OSError) as error:
        team.report(f"error: {error}")
        return 2
    except MemoryError:
        team.report("error: out of memory; use a smaller text, --batch, --window or --hidden")
        return 2
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            team.report("error: out of memory; use a smaller --batch, --window or --hidden")
        elif team.is_loss_of_process(error):
            team.report("error: another process of this run has ended; continue with --resume")
        else:
            raise
        return 2
    except KeyboardInterrupt:  # before training began, or a second time
        team.report("interrupted")
        return 130
    finally:
        team.leave()


def _carry_out(options: dict[str, Any], team: Team, began: float) -> int:
    """Plan the run that `options` ask for, hold its folder, and train it; the exit status.

    The command began at `began`, by time.monotonic.
    """
    try:
        plan = make_plan(options)
    except TrainError:
        if "out" in options or "recipe" in options:
            refuse_if_held(run_folder(options))
        raise
    if plan.complete:
        return _complete(plan, team)
    training = plan.training
    require_corpora(training.corpus + training.validation_corpus, tagged=plan.model.task == "tag")
    if plan.stored is None:
        check_symbols(training)
    with hold(plan.folder) if team.first else nullcontext(Hold(plan.folder)) as held:
        if held.notice:
            print(f"note: {held.notice}")
        team.wait()  # until the first process holds the folder
        plan = make_plan(options)  # again: another process may have trained in between
        if plan.complete:
            return _complete(plan, team)
        from rill.train.loop.train import train  # noqa: PLC0415  PyTorch: not for --help and mistakes

        return train(plan, team, began, held.check)


def _complete(plan: Plan, team: Team) -> int:
    if team.first:
        print(f"{plan.folder} is complete")
    team.wait()  # torchrun ends all processes as soon as one has ended
    return 0


def _make_team() -> Team:
    """The team of this process, by the environment variables that torchrun sets."""
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal() or int(size) <= 1:  # not from torchrun
        return Team()
    from rill.train.loop.processes import Processes  # noqa: PLC0415  PyTorch: not for a single process's --help

    return Processes()


def _parse(arguments: list[str], team: Team) -> dict[str, Any]:
    """Parse the options that were given. Process 0 alone prints --help and usage errors."""
    nowhere = io.StringIO()
    with redirect_stdout(sys.stdout if team.first else nowhere), redirect_stderr(sys.stderr if team.first else nowhere):
        try:
            return parse_options(arguments)
        except SystemExit:
            team.wait()  # torchrun ends all processes as soon as one has ended
            raise


def parse_options(arguments: list[str]) -> dict[str, Any]:
    """The options given in `arguments`, by the names of the configurations' fields, without any default.

    Raises SystemExit for --help and for usage errors.
    """
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = [*parser._option_string_actions, *([] if unknown[0] != arguments[0] else ["report"])]
        suggestion = did_you_mean(unknown[0].partition("=")[0], known)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{suggestion}")
    return vars(options)


def _parser() -> argparse.ArgumentParser:
    usage, _, description = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="rill train",
        usage="%(prog)s --out FOLDER --corpus SPEC... [options]",
        description=usage,
        epilog=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # the result holds only the options that were given
        add_help=False,
    )
    groups: dict[str, argparse._ArgumentGroup] = {title: parser.add_argument_group(title) for title in GROUPS}
    general = groups[GENERAL]
    general.add_argument("-h", "--help", action="help", help="show this help and exit")
    general.add_argument("--out", metavar="FOLDER", help="run folder (default with a recipe: runs/RECIPE)")
    general.add_argument("--resume", action="store_true", help="continue the run; start it if there is none")
    general.add_argument("--extend-vocabulary", action="store_true", help="with --from: add the characters new to it")
    groups[LENGTH] = groups[LENGTH].add_mutually_exclusive_group()
    for section in (TrainingConfig, ModelConfig):
        for declared in fields(section):
            option = option_of(declared)
            if option is not None:
                _add_option(groups[option.group], declared, option)
    return parser


def _add_option(group: argparse._ArgumentGroup, declared: Field[Any], option: Option) -> None:
    name, default, flag = declared.name, declared.default, flag_of(declared)
    shown = f"{default:g}" if isinstance(default, float) else default
    ending = "" if default in (None, "", (), ("",)) or option.kind is bool else f" (default {shown})"
    text = (option.help + ending).replace("%", "%%")
    if name == "recipe":
        text += f": {', '.join(recipe_names())}, or a .toml file"
    if option.kind is bool:
        group.add_argument(flag, dest=name, action="store_false" if default is True else "store_true", help=text)
    elif option.several:
        group.add_argument(flag, dest=name, nargs="+", action=_Tuple, const=option, metavar=option.metavar, help=text)
    else:
        group.add_argument(flag, dest=name, type=option.kind, metavar=option.metavar, help=text)


class _Tuple(argparse.Action):
    """Stores several values as a tuple, as the frozen configurations hold them."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest, ()) if self.const.adds else ()
        setattr(namespace, self.dest, (*before, *(value for word in values for value in self.const.parse(word))))
