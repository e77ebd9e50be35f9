"""The command line: it turns overrides and flags into runs, and returns the exit code of the worst one."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from dst.config.schema import ConfigError
from dst.records.states import State
from dst.records.store import RecordError
from dst.run.environment import keep_memory, wait_without_spinning
from dst.run.terminal import shown
from dst.tracking.pulse import starting
from dst.training.rank import own_rank

_DESCRIPTION = """\
Train a network that is sparse from start to end, record it, and continue it where it stopped.

A run is model x data x sparsity x correction x procedure x schedule x hardware. Choose an option of a group, set any
key, sweep with -m:

  python run.py                                                    the default run: real data, seconds
  python run.py sparsity=set_itop sparsity.density=0.05 seed=1     another method
  python run.py -m sparsity=static,set_itop,rigl_itop seed=0,1,2   nine runs
  python run.py data=mnist model=lenet_300_100 schedule=mnist      another problem
  python run.py sparsity=rigl_itop correction=agent procedure=sup_tickets   a method with both on top of it
  python run.py -m +experiment=itop/set seed=0,1,2                 a published experiment, three times
  python run.py sparsity=rigl --cfg job                            show the config, run nothing
  python run.py --keys sparsity.drop                               keys that begin so: what is allowed, what they do
  python run.py -m sparsity=set_itop seed=0,1,2 --forecast         what a sweep will cost
  python run.py -m hardware=slurm seed=0,1,2                       the sweep as SLURM jobs; hydra/launcher=local: here
  python -m dst.launcher.status outputs                            the state of all runs; also cancel, requeue, sync
  python -m analysis.tables outputs                                the table of all runs

The same command again continues an unfinished run and reports a finished one; output.resume=never starts anew."""

_HYDRA_FLAGS = ("--info", "-i", "--hydra-help", "--shell-completion", "-sc")
"""Hydra itself handles these."""


def main(arguments: Sequence[str], conf: Path) -> int:
    """Carry out a command line (without the program's name) with the configs in ``conf``; return the exit code."""
    if any(argument.partition("=")[0] in _HYDRA_FLAGS for argument in arguments):
        return _hydra(conf)
    parser = _parser(conf)
    options = parser.parse_intermixed_args(list(arguments))
    if (options.resolve or options.package) and not options.cfg:
        parser.error("--resolve and --package go with --cfg job")
    if options.cfg and (options.multirun or options.forecast):
        parser.error("--cfg job shows one config and runs nothing: leave out -m and --forecast")
    if options.markdown and options.keys is None:
        parser.error("--markdown goes with --keys")
    if options.keys is not None and (options.overrides or options.cfg or options.multirun or options.forecast):
        parser.error("--keys shows keys and runs nothing: give it a prefix and nothing else")
    wait_without_spinning()
    keep_memory()
    speaks = _speaks()
    try:
        if not speaks and (options.cfg or options.forecast or options.keys is not None):
            return 0
        if options.keys is not None:
            from dst.config.keys import keys, markdown, text

            print((markdown if options.markdown else text)(keys(options.keys)), end="" if options.markdown else "\n")
            return shown()
        overrides = _overrides(options)
        if options.cfg:
            from dst.config.compose import compose, show

            print(show(compose(conf, overrides, resolve=options.resolve), options.package))
            return shown()
        from dst.launcher.sweep import run_cells

        code = run_cells(conf, overrides, multirun=options.multirun, forecast=options.forecast)
        return code or (shown() if options.forecast else 0)
    except ConfigError as error:
        if speaks:
            print(error.text(), file=sys.stderr)
        return State.REFUSED.exit_code
    except RecordError as error:
        print(f"error: {error}", file=sys.stderr)
        return State.FAILED.exit_code
    finally:
        starting(None)  # in an interactive session the process goes on


def _overrides(options: argparse.Namespace) -> list[str]:
    """Return the overrides of a command, with those that flags are short for; ConfigError if one is no text."""
    _check_text([*options.overrides, *options.config_dir])
    if not options.config_dir:
        return list(options.overrides)
    from dst.config.search import config_dirs

    return [*options.overrides, config_dirs(options.config_dir)]


def _check_text(overrides: Sequence[str]) -> None:
    """Raise ConfigError if an override holds bytes that are not text in this locale's encoding."""
    encoding = sys.getfilesystemencoding()
    bad = [text for text in overrides if any("\ud800" <= character <= "\udfff" for character in text)]
    if bad:
        raise ConfigError(
            [f"{text!a}: this is not text in this locale's encoding, {encoding}; try LC_ALL=C.UTF-8" for text in bad]
        )


def _speaks() -> bool:
    """Say whether this process prints what is the same in all processes of a run; only the main one does."""
    try:
        return own_rank().rank == 0
    except ValueError:  # a wrong rank is reported later
        return True


def _parser(conf: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python run.py",
        usage="python run.py [group=option ...] [key=value ...] [-m]",
        description=_DESCRIPTION,
        epilog=_groups_help(conf),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", help="what differs from the default run")
    parser.add_argument("-m", "--multirun", action="store_true", help="sweep: run the product of all a,b,c values")
    parser.add_argument("-c", "--cfg", choices=["job"], help="print the composed config and stop")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: fill in ${...}")
    parser.add_argument("-p", "--package", help="with --cfg: only this part, e.g. sparsity.update")
    parser.add_argument(
        "--keys", nargs="?", const="", metavar="PREFIX", help="print every key, or those that begin so, and stop"
    )
    parser.add_argument("--markdown", action="store_true", help="with --keys: as docs/keys.md")
    parser.add_argument("--forecast", action="store_true", help="show the cost (FLOPs, memory, time) and stop")
    parser.add_argument(
        "--config-dir", "-cd", action="append", default=[], metavar="DIR", help="a folder with further config files"
    )
    for flags, why in _NOT_HERE.items():
        parser.add_argument(*flags, action=_NotHere, help=argparse.SUPPRESS, metavar=why)
    parser.add_argument("--info", metavar="WHAT", help="Hydra's own information, e.g. --info defaults-tree")
    return parser


_NOT_HERE: Final = {
    (
        "--config-name",
        "-cn",
    ): "every run begins with conf/config.yaml; a file of your own that says what differs is "
    "an experiment (+experiment=NAME), in experiment/ below conf or below a folder given by --config-dir",
    (
        "--config-path",
        "-cp",
    ): "every run begins with the files in conf/; --config-dir adds a folder of your own",
}
"""Flags of Hydra's that are refused -> why."""


class _NotHere(argparse.Action):
    """Refuses a flag, and says why: its ``metavar``."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs="?", **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """End with exit code 2."""
        parser.error(f"{'/'.join(self.option_strings)}: {self.metavar}")


def _groups_help(conf: Path) -> str:
    """Return the help on all groups: their options, each with the first line of its file."""
    lines = ["groups and their options:"]
    launchers = conf / "hydra" / "launcher"
    for folder in [*sorted(path for path in conf.iterdir() if path.is_dir() and path.name != "hydra"), launchers]:
        lines.append(f"\n  {folder.relative_to(conf)}{_GROUP_NOTES.get(folder.name, '')}")
        options = {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.yaml"))}
        width = max([16, *map(len, options)])
        if folder == launchers:
            lines.append(f"    {'basic':<16} One cell of a sweep after another, in this process (default)")
        lines += [f"    {option:<{width}} {_about(path)}" for option, path in options.items()]
    lines.append("\nkeys: --keys says what each may be and does; --cfg job shows them with their values.")
    lines.append("exit codes: 0 done, 1 failed, 2 invalid configuration, 3 diverged, 75 stopped after saving,")
    lines.append("130 interrupted (Ctrl-C) before that; in both cases the same command goes on.")
    return "\n".join(lines)


_GROUP_NOTES: Final = {"experiment": " (added by +experiment=...; what stands beside it on the command line wins)"}


def _about(path: Path) -> str:
    """Return the first line that a file says about itself; Hydra wants its own ("# @package ...") before that."""
    with path.open(errors="replace") as file:
        lines = (line.strip() for line in file)
        return next((line.lstrip("# ") for line in lines if not line.startswith("# @")), "")


def _hydra(conf: Path) -> int:
    """Let Hydra handle its own flags: its help, --info, shell completion."""
    import hydra

    import dst.config.compose  # noqa: F401 - registers the schema

    hydra.main(config_path=str(conf), config_name="config", version_base="1.3")(lambda config: None)()
    return 0
