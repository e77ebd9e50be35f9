import matplotlib
import pytest

from dst.records.store import Record

matplotlib.use("Agg")

DEFAULTS = {
    "seed": 0,
    "data.name": "digits",
    "model.name": "mlp",
    "model.hidden": [64, 64],
    "sparsity.label": "dense",
    "sparsity.density": None,
    "schedule.multiplier": 1,
    "schedule.optimizer.nesterov": True,
}


@pytest.fixture
def add_run():
    """Return a function that records one run, as a program would, with the figures given.

    Each ``method`` is a composition of its own, whatever it is called.
    """

    def add_run(
        root, group, method, seed, accuracy=None, *,
        density=0.1, state="done", attempt=1, schema=2, label=None, changed=None, command=None, **config,
    ):  # fmt: skip
        chosen = DEFAULTS | {"seed": seed, "sparsity.label": label or method, "sparsity.density": density}
        chosen |= {"sparsity.drop.name": method} | config
        identity = {key: value for key, value in chosen.items() if value is not None and value != DEFAULTS.get(key)}
        if schema > 1:
            identity.pop("sparsity.label", None)
        full = chosen | {"data.root": f"/scratch/{seed}"}
        run_id = "-".join(str(value) for value in [method, density, seed, *config.values(), *"x" * (2 - schema)])
        folder = root / group / (run_id if attempt == 1 else f"{run_id}.{attempt}")
        run = {"id": run_id, "name": run_id, "created": f"2026-01-0{attempt}", "identity": identity, "config": full}
        run |= {"schema": schema, **({} if changed is None else {"changed": changed})}
        run |= {} if command is None else {"command": command}
        with Record.create(folder, config_yaml="", run=run) as record:
            for step, rs in ((0, density or 1.0), (50, 0.4), (100, 0.5)):
                record.log(step=step, epoch=step / 10, attempt=attempt, values={"sparsity/rs": rs})
            if accuracy is not None:
                ratio = 1.0 if density is None else density + 0.02
                record.write_summary(
                    {
                        "test/accuracy": accuracy,
                        "sparsity/density": density or 1.0,
                        "sparsity/rs": 0.5 + seed / 10,
                        "flops/test_ratio": ratio,
                        "flops/train_ratio": 2 * ratio if density else 1.0,
                    }
                )
            record.write_status(state, attempt=attempt, step=100)
        return folder

    return add_run


@pytest.fixture
def tree(tmp_path, add_run):
    """A sweep of three methods and three seeds with a failed, a running and a missing cell.

    set: 90, 92, 94 %: mean 92, squared deviations 4 + 0 + 4 over n - 1 = 2: standard deviation 2.
    rigl: 95, 97 %: mean 96, squared deviations 1 + 1 over 1: 1.4142.  dense: 98 % once.
    """
    root = tmp_path / "outputs"
    for seed, accuracy in enumerate((0.90, 0.92, 0.94)):
        add_run(root, "sweep", "set", seed, accuracy)
    add_run(root, "sweep", "rigl", 0, 0.95)
    add_run(root, "sweep", "rigl", 1, 0.97)
    add_run(root, "sweep", "rigl", 2, state="failed")
    add_run(root, "sweep", "dense", 0, 0.98, density=None)
    add_run(root, "sweep", "dense", 1, 0.5, density=None, state="running")
    return root
