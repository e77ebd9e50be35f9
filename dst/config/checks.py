"""What is wrong with a config, all at once: names, ignored options, ranges, combinations.

Only what can be seen without data and without torch; ``dst.run.feasible.check`` sees the rest.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

from dst import registry
from dst.config.launcher import LauncherSettings
from dst.config.method import check_compute, check_density, check_learning, check_parts, check_update
from dst.config.schema import SLOTS, Config, ConfigError, Tracking, marks, nodes, seen_key
from dst.config.wrappers import check_correction, check_procedure, method_epochs
from dst.options import REQUIRED, Option, Values, declared, not_one, problems, shown
from dst.registry import UnknownNameError
from dst.tracking.limits import LONGEST_NAME, LONGEST_TAG, wrong_length, wrong_name
from dst.training.options import unvalidated_problems


def _check_options(config: Config) -> Iterator[str]:
    """Yield problems of every option by its declaration."""
    for key, node, around in nodes(config):
        options, values = declared(type(node)), vars(node)
        if key in SLOTS:
            of_members = registry.slot_options(SLOTS[key])
            own = {name: option for name, option in options.items() if name not in of_members and name != "name"}
            try:
                taken = registry.options(SLOTS[key], node.name, values)
                yield from _check_member(key, node.name, values, taken)
            except UnknownNameError as error:
                taken = {}
                yield f"{key}.name={node.name}: {error}"
            options = {**own, **taken}
            values = {
                name: option.default if values[name] is None else values[name] for name, option in options.items()
            }
        given = {name: value for name, value in values.items() if value is not REQUIRED}
        yield from problems(options, given, around, partial(seen_key, config, key))


def _check_member(key: str, member: str, values: Values, taken: Mapping[str, Option]) -> Iterator[str]:
    """Yield options of a slot that its member does not take, and those that it lacks."""
    for name in sorted(registry.slot_options(SLOTS[key])):
        if values[name] is None:
            if name in taken and taken[name].default is REQUIRED:
                yield f"{key}.{name} is missing: {SLOTS[key]} '{member}' needs it, e.g. {key}.{name}=..."
        elif name not in taken:
            yield (
                f"{key}.{name}={shown(values[name])} would be ignored: {SLOTS[key]} '{member}' takes "
                f"{', '.join(taken) or 'no options'}. Remove it, or set {key}.{name}=null"
            )
    for problem in not_one(registry.find(SLOTS[key], member).exactly_one, values):
        yield f"{key}.name={member}: {problem}"


def _check_schedule(config: Config) -> Iterator[str]:
    lr = config.schedule.lr
    own, what = method_epochs(config)
    if lr.warmup_epochs >= own > 0:
        yield f"schedule.lr.warmup_epochs={lr.warmup_epochs} must be less than the {own} epochs of {what}"
    if config.data.val_fraction == 0:
        found = unvalidated_problems(config.schedule.select, config.schedule.eval_every_epochs)
        yield from (f"schedule.{problem}, or give data.val_fraction a share, e.g. 0.1" for problem in found)


def _check_processes(config: Config) -> Iterator[str]:
    hardware = config.hardware
    if not hardware.sync_batch_norm:
        return
    if hardware.processes == 1:
        yield (
            "hardware.sync_batch_norm=true would be ignored: there is one process only. Remove it, or train in more, "
            "e.g. hardware=ddp"
        )
    if hardware.device == "cpu":
        yield "hardware.sync_batch_norm=true: PyTorch has it on GPUs only; use hardware.device=cuda, or remove it"


def _check_capture(config: Config) -> Iterator[str]:
    """Yield what keeps a step from being one CUDA graph, where the config says so."""
    data, compute = config.data, config.sparsity.compute
    if config.hardware.capture != "always":
        return
    end = "so that no graph can hold its step; use hardware.capture=auto or never"
    if compute != "masked":
        yield f"hardware.capture=always: with sparsity.compute={compute} packed layers get new tensors, {end}"
    if data.storage == "stream":
        yield f"hardware.capture=always: with data.storage=stream batches come from the host, {end}"
    elif data.augment.resized_crop_scale is not None:
        told = f"data.augment.resized_crop_scale={shown(data.augment.resized_crop_scale)}"
        yield f"hardware.capture=always: with {told} images are streamed, and batches come from the host, {end}"


def _check_compile_mode(config: Config) -> Iterator[str]:
    """Yield what reads gradients after a later pass, which a compiler's graphs overwrite them in."""
    mode, accumulate = config.hardware.compile_mode, config.schedule.accumulate
    if mode != "reduce-overhead":
        return
    own = f"hardware.compile_mode={mode}: "
    why = "but the graphs of the compiler give each pass the memory of the last one's"
    end = f"{why}; use hardware.compile_mode=default"
    if accumulate > 1:
        yield f"{own}schedule.accumulate={accumulate} adds up gradients of several passes, {end}"
    if "snapshot" in marks(config, "correction"):
        yield f"{own}correction.name={config.correction.name} needs gradients of two passes at once, {end}"


def _check_data(config: Config) -> Iterator[str]:
    data = config.data
    if data.augment.resized_crop_scale is not None and data.storage == "resident":
        yield (
            "data.storage=resident keeps images at data.size, but data.augment.resized_crop_scale needs them as they "
            "are in their files: set data.storage=auto, or data.augment.resized_crop_scale=null"
        )


def _check_slurm(config: Config) -> Iterator[str]:
    wanted = config.hardware.slurm
    if wanted.signal_delay_s >= 60 * wanted.timeout_min:
        yield (
            f"hardware.slurm.signal_delay_s={wanted.signal_delay_s} must be less than the time limit "
            f"(hardware.slurm.timeout_min={wanted.timeout_min}): a run would be stopped before it begins"
        )
    for option in wanted.options:
        yield from _check_option(
            "options", option, "sbatch, e.g. mail-type=FAIL", _SLURM_OWN, "be ignored, or break requeueing"
        )
        if _named(option) in _MEMORY and wanted.memory_gb is not None:
            yield f"hardware.slurm.options: {option!r} speaks against hardware.slurm.memory_gb; leave one of them out"
    for option in wanted.srun_options:
        yield from _check_option("srun_options", option, "srun, e.g. cpu-bind=cores", _SRUN_OWN, "hide output or ends")
    if wanted.python is not None and not wanted.python.strip():
        yield "hardware.slurm.python is empty: give the words that start Python, or null for that of the command"


def _check_option(key: str, option: str, program: str, launchers: Collection[str], effect: str) -> Iterator[str]:
    """Yield what is wrong with an option of one of SLURM's programs; ``launchers``: those that the launcher sets."""
    name, given = _named(option), f"hardware.slurm.{key}: {option!r}"
    if not name:
        yield f"{given} is no option of {program}"
    elif name in _SLURM_KEYS:
        yield f"{given} is what hardware.{_SLURM_KEYS[name]} says; set that"
    elif name in launchers:
        yield f"{given} would {effect}: the launcher sets {name}"


def _named(option: str) -> str:
    """Return the name of an option of a command, as the command spells it."""
    return option.lstrip("-").partition("=")[0].replace("_", "-")


def _check_tracking(config: Config) -> Iterator[str]:
    tracking, defaults = config.tracking, Tracking()
    if tracking.mode == "none":
        for name in ("project", "entity", "tags", "notes", "timeout_s"):
            value = getattr(tracking, name)
            if value != getattr(defaults, name):
                yield (
                    f"tracking.{name}={shown(value)} would be ignored: nothing is tracked. Remove it, or choose "
                    "tracking=wandb_offline or tracking=wandb_online"
                )
        return
    if tracking.mode == "offline" and tracking.timeout_s != defaults.timeout_s and tracking.timeout_s > 0:
        yield (
            f"tracking.timeout_s={tracking.timeout_s:g} would be ignored: nothing is sent while the run trains. Remove "
            "it, or choose tracking=wandb_online"
        )
    if not tracking.project:
        yield f"tracking.project is missing: wandb ({tracking.mode}) needs it, e.g. tracking.project=dst"
    for name, value in {"project": tracking.project or None, "entity": tracking.entity}.items():
        if value is not None and (problem := wrong_name(value)):
            yield f"tracking.{name}={shown(value)} {problem}"
    for tag in tracking.tags:
        if problem := wrong_length(tag, LONGEST_TAG):
            yield f"tracking.tags: {tag!r} {problem}"
    if problem := wrong_length(config.output.group, LONGEST_NAME):
        yield f"output.group={shown(config.output.group)} {problem} as a group: choose a shorter one, or tracking=none"


_SLURM_KEYS = {
    **{name: f"slurm.{name}" for name in ("partition", "account", "qos", "constraint", "nodes")},
    **{"time": "slurm.timeout_min", "signal": "slurm.signal_delay_s", "mem": "slurm.memory_gb"},
    **{"cpus-per-task": "slurm.cpus", "gpus-per-node": "slurm.gpus"},
    **{"ntasks-per-node": "processes", "ntasks": "processes"},
}
_SLURM_OWN = ("array", "error", "job-name", "no-requeue", "open-mode", "output", "requeue", "wait", "wrap")
"""Options of sbatch that only the launcher may set."""
_SRUN_OWN = ("error", "input", "kill-on-bad-exit", "multi-prog", "no-kill", "output", "unbuffered")
"""Options of srun that only the launcher may set."""
_MEMORY = ("mem-per-cpu", "mem-per-gpu")

_CHECKS: tuple[Callable[[Config], Iterator[str]], ...] = (
    _check_options,
    check_density,
    check_parts,
    check_update,
    check_learning,
    check_compute,
    check_correction,
    check_procedure,
    _check_schedule,
    _check_processes,
    _check_capture,
    _check_compile_mode,
    _check_data,
    _check_slurm,
    _check_tracking,
)


def check_launcher(overrides: Sequence[str], settings: LauncherSettings | None, *, multirun: bool) -> None:
    """Raise ConfigError if a command sets options of a launcher that will not carry it out."""
    problems = []
    if settings is not None and not multirun:
        problems.append(
            f"hydra/launcher={settings.cluster} submits sweeps: add -m (a sweep may be a single run), or "
            "hydra/launcher=basic to run in this process"
        )
    if settings is None or settings.cluster != "slurm":
        ignored = [text for text in overrides if text.lstrip("+").startswith(("hardware.slurm.", "hardware.slurm="))]
        problems += [f"{text} would be ignored: add hydra/launcher=slurm or hardware=slurm, and -m" for text in ignored]
    if problems:
        raise ConfigError(problems)


def check(config: Config) -> list[str]:
    """Return every problem that can be seen without data or torch, as messages for the user."""
    return [problem for checker in _CHECKS for problem in checker(config)]
