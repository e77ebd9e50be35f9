"""Published commands, translated: they are the runs of their presets, and what the code really does is said."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst.config.identity import identity, run_id
from dst.config.overrides import parse_one
from dst.config.schema import ConfigError, complete, get
from dst.legacy.__main__ import main
from dst.legacy.tables import LegacyError
from dst.legacy.translate import text, translate
from dst.legacy.write import _text, composed, same_as

REPOSITORY = Path(__file__).parents[2]
CONF, COMMANDS = REPOSITORY / "conf", REPOSITORY / "experiments" / "commands.csv"
with COMMANDS.open(newline="", encoding="utf-8") as file:
    ROWS = list(csv.DictReader(file))
BY_NAME = {f"{row['paper']}/{row['name']}": row for row in ROWS}

ITOP = "python main.py --sparse --model vgg-c --data cifar10"
GRANET = "python main.py --sparse --sparse-init ERK --model ResNet50 --data cifar10"
TICKETS = (
    "python main_suptickets.py --pre_train --cyclic_train --sparse --sparse-init ERK --model ResNet50 --data cifar10"
)
IMAGENET = "cd ImageNet && python main.py data/ --growth gradient"
ER_DST = "python main.py --sparse --is-prune True --model vgg16 --data cifar10"
ER = "python main.py --config resnet18-cifar-str-1.yaml --resnet-type large --er-sparse-method uniform"
BLOCKS = "python main.py --data_set cifar10 --block_size 16"


def translated(command, source=None, *, as_run=False):
    return translate(command, CONF, source=source, as_run=as_run)


def config(translation):
    return complete(composed(CONF, *translation.overrides))


def told(translation, kind):
    return [note for its, note in translation.notes if its == kind]


# -- the commands of the READMEs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_NAME)
def test_a_published_command_is_the_run_of_its_preset(name):
    """It composes, is valid, and has the preset's run id."""
    row = BY_NAME[name]
    found = translated(row["command"], row["paper"])
    preset = " ".join([f"+experiment={row['preset']}", *row["overrides"].split()])
    assert same_as(CONF, found.overrides, row["paper"], COMMANDS) == preset


EMPTY = "granet/imagenet_from_dense"
"""As run, its network is empty."""


@pytest.mark.parametrize("name", BY_NAME)
def test_what_a_published_command_really_does_is_translated_too(name):
    row = BY_NAME[name]
    if name == EMPTY:
        with pytest.raises(LegacyError, match="as run, the network is empty"):
            translated(row["command"], row["paper"], as_run=True)
    else:
        found = translated(row["command"], row["paper"], as_run=True)
        assert told(found, "not reproduced") or name == "random_pruning/tabular"


def as_run_id(name):
    row = BY_NAME[name]
    return run_id(config(translated(row["command"], row["paper"], as_run=True)))


def test_set_of_sup_tickets_is_rigl_as_it_was_run():
    assert as_run_id("sup_tickets/cifar_set") == as_run_id("sup_tickets/cifar_rigl")
    meant = [translated(BY_NAME[f"sup_tickets/cifar_{name}"]["command"]) for name in ("set", "rigl")]
    assert len({run_id(config(one)) for one in meant}) == 2
    row = BY_NAME["sup_tickets/cifar_set"]
    ignored = told(translated(row["command"], as_run=True), "ignored by the published code")
    assert any(note.startswith("--growth random: ") for note in ignored)


def test_sup_tickets_commands_on_imagenet_are_swapped_as_they_were_run():
    runs = [
        config(translated(BY_NAME[f"sup_tickets/imagenet_{name}"]["command"], "sup_tickets", as_run=True))
        for name in ("granet", "rigl")
    ]
    assert [(one.sparsity.density_schedule.name, one.sparsity.density) for one in runs] == [
        ("none", 0.5),
        ("none", 0.1),
    ]


@pytest.mark.parametrize("name", ["snip", "ER_imp", "ER_synflow", "ER_same_params", "pyramid"])
def test_five_first_masks_of_er_dst_are_dense_as_they_were_run(name):
    found = translated(f"{ER_DST} --sparse-init {name}", as_run=True)
    assert config(found).sparsity.distribution.name == "dense"
    assert f"--sparse-init {name}: the published code does not know it" in told(found, "read")[0]


# -- options and what they become --------------------------------------------------------------------------------------

BECOME = {
    f"{ITOP} --growth random_unfired": {"sparsity.grow.name": "random_unexplored"},
    f"{ITOP} --death SET --death-rate 0.3": {"sparsity.drop.name": "set", "sparsity.drop_fraction.initial": 0.3},
    f"{ITOP} --death threshold": {"sparsity.drop.name": "threshold", "sparsity.drop_fraction.name": "none"},
    f"{ITOP} --redistribution nonzeros": {"sparsity.redistribute.name": "nonzeros"},
    f"{ITOP} --sparse_init lottery_ticket": {
        "sparsity.init.name": "magnitude",
        "sparsity.distribution.name": "magnitude",
    },
    f"{ITOP} --fix": {"sparsity.update.every": None, "sparsity.grow.name": "none"},
    f"{ITOP} --fp16": {"hardware.precision": "fp16", "hardware.device": "cuda"},
    f"{ITOP} --optimizer adam --lr 0.001": {"schedule.optimizer.name": "adamw", "schedule.lr.peak": 0.001},
    f"{ITOP} --data cifar100 --model ResNet-34": {"model.name": "resnet34", "data.val_fraction": 0},
    f"{ITOP} --epochs 1 --multiplier 3": {"schedule.epochs": 1, "schedule.multiplier": 3},
    f"{IMAGENET} --dense --bn-weight-decay": {"sparsity.density": None, "schedule.optimizer.decay": "all"},
    f"{IMAGENET} -a resnet18 -b64": {"model.name": "resnet18_imagenet", "schedule.batch_size": 64},
    f"{GRANET} --method GMP --init-density 1": {"sparsity.density_schedule.initial": 1, "sparsity.grow.name": "none"},
    f"{GRANET} --method GraNet_uniform": {"sparsity.density_schedule.pool": "layer"},
    f"{GRANET} --method DST --sparse-init prune_uniform": {"sparsity.init.rate": 0.5, "sparsity.density": None},
    f"{GRANET} --death-rate 0.2": {"sparsity.drop_fraction.initial": 0.2},
    f"{GRANET} --rm-first --nolr_scheduler": {"sparsity.scope.dense_first": True, "schedule.lr.name": "constant"},
    f"{TICKETS} --superposing_method CIMA": {"procedure.superpose": "cima", "procedure.lr": "constant"},
    f"{TICKETS} --method GMP --init-density 1": {"procedure.freeze_updates": True},
    f"{TICKETS} --model wrn-16-8": {"model.name": "wrn_16_8", "model.dropout": 0},
    f"{ER_DST} --data tiny_imagenet": {"data.name": "tiny_imagenet", "sparsity.repair.flow": "none"},
    f"{ER_DST} --sparse-init pyramid --init-method looks-linear": {"sparsity.distribution.name": "pyramidal"},
    f"{ER_DST} --is-prune False --sparse-init ERK": {"sparsity.update.every": None, "sparsity.density": 0.5},
    f"{BLOCKS} --static_update yes": {"sparsity.update.every": None, "sparsity.pattern.block_size": 16},
    f"{BLOCKS} --sparsity 0.6": {"sparsity.density": 0.4},
    f"{ER} --pruner mag --threshold-list 0.3 0.15 --reset-weights": {"procedure.keep": 0.5, "procedure.rewind": "init"},
    f"{ER} --warmup-epochs 5": {"schedule.epochs": 165, "schedule.lr.warmup_epochs": 5, "seed": 1},
    "python run_a_brs_net.py --objective natural -e 20 --gamma 0.2": {"correction.gamma": 0.2, "schedule.epochs": 20},
    "make cifar10.2x.Random.SET SEED=3 DENSITY=0.1": {"schedule.multiplier": 2, "seed": 3, "sparsity.density": 0.1},
}
PAPERS = {ITOP: "itop", GRANET: "granet", IMAGENET: "itop"}


def source_of(command):
    return next((paper for begin, paper in PAPERS.items() if command.startswith(begin)), None)


@pytest.mark.parametrize("command", BECOME)
def test_options_become_keys(command):
    found = config(translated(command, source_of(command)))
    assert {key: get(found, key) for key in BECOME[command]} == BECOME[command]


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        (f"{ITOP} --sparse_init ERK", {"sparsity.init.name": "bernoulli", "schedule.select": "best_val"}),
        (f"{ITOP} --redistribution momentum", {"sparsity.redistribute.name": "none"}),
        (f"{ITOP} --growth momentum", {"sparsity.grow.name": "none", "sparsity.update.every": None}),
        (f"{GRANET} --growth random", {"sparsity.grow.name": "gradient", "sparsity.density_schedule.ends_early": True}),
        (f"{IMAGENET} --fix", {"sparsity.distribution.clip": True}),
        (f"{TICKETS} --decay-schedule linear", {"sparsity.drop_fraction.name": "constant"}),
        (f"{BLOCKS} --static_update no", {"sparsity.update.every": 1, "sparsity.pattern.published": True}),
    ],
)
def test_what_options_really_do_becomes_keys(command, keys):
    found = config(translated(command, source_of(command), as_run=True))
    assert {key: get(found, key) for key in keys} == keys


REFUSED = {
    f"{ITOP} --sparse_init erk": "silently trains an empty network",
    f"{ITOP} --model vgg": "vgg: no network of that name; did you mean",
    f"{GRANET} --method RigL": "allowed: GraNet, GraNet_uniform, DST, GMP, GMP_uniform",
    f"{GRANET} --final-prune-epoch 0": "the ramp ends before it begins",
    f"{ER_DST} --is-prune yes": "--is-prune yes: allowed: True, False",
    f"{ER_DST} --sparse-init ER_imp": "from_run takes those of a run",
    "python main_suptickets.py --sparse --model vgg19 --data cifar10": "ends without training",
    "python run_a_brs_net.py -s": "adversarial training is not built here",
    f"{ER} --resnet-type small-dense": "narrower networks are not here",
    "python main.py --threshold-list --resnet-type large": "--config is missing",
    f"{ER} --config nowhere.yaml": "no such file, and no published config: resnet18-cifar-str-1",
    "make cifar10.Pruning": "allowed: cifar10.ERK.RigL",
    "make cifar10.ERK.RigL DENSITY=x": "DENSITY=x: this is no number",
    "python mine.ipynb": "the published notebook is tabular.ipynb",
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_has_no_translation_is_refused_with_the_reason(command):
    with pytest.raises(LegacyError) as error:
        translated(command, source_of(command))
    assert REFUSED[command] in str(error.value)


def test_a_config_of_ones_own_is_read(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("set: cifar100\nepochs: 3\nconv_type: ConvMask\nthreshold_list: []\nwarmup_epochs: 0\nseed: 7\n")
    command = f"python main.py --config {own} --resnet-type large --epochs 4"
    found = config(translated(command))
    assert (found.data.name, found.schedule.epochs, found.seed) == ("cifar100", 4, 7)
    own.write_text("epohcs: 3\n")
    with pytest.raises(LegacyError, match="no options of this program: epohcs"):
        translated(command)
    own.write_text("set: cifar10\nepochs: many\n")
    with pytest.raises(LegacyError, match="epochs: many is no value of kind int"):
        translated(command)
    own.write_text("set: cifar10\nweight_decay: 1e-3\n")  # which YAML reads as text
    assert config(translated(command)).schedule.optimizer.weight_decay == 0.001
    own.write_text("[")
    with pytest.raises(LegacyError, match="this is no YAML"):
        translated(command)


def test_an_impossible_run_is_refused_by_the_checks_of_ours():
    with pytest.raises(ConfigError, match="of 30 epochs"):
        translated(f"{TICKETS} --epochs 30 --cycle 8")


# -- what is printed ---------------------------------------------------------------------------------------------------


def test_options_that_are_not_given_have_the_published_default_written_out():
    found = translated(f"{ITOP} --growth gradient", "itop")
    assert "schedule.batch_size=100" in found.overrides
    assert "--batch-size 100, so schedule.batch_size=100" in told(found, "default of the published parser")


def test_what_is_ignored_and_what_has_no_equivalent_is_told():
    found = translated(f"{ITOP} --decay_frequency 3 --save x.pt", "itop")
    assert [note.partition(":")[0] for note in told(found, "ignored by the published code")] == ["--decay_frequency 3"]
    assert [note.partition(":")[0] for note in told(found, "no equivalent")] == ["--save x.pt"]


def test_what_only_a_readme_names_is_told():
    found = translated(f"{BLOCKS} --batch-size 64")
    assert config(found).schedule.batch_size == 64
    assert told(found, "refused by the published parser")[0].startswith("--batch-size: ")


def test_what_is_printed_can_be_pasted_into_a_shell():
    row = BY_NAME["itop/resnet50_imagenet"]
    found = translated(row["command"].replace("../../../data/", "'/my data/it'\\''s'"), "itop")
    shown = text(found, "+experiment=x")
    told = 'torchrun() { printf \'%s\\n\' "$CUDA_VISIBLE_DEVICES" "$@"; }\n'
    pasted = subprocess.run(["sh", "-c", told + shown], capture_output=True, text=True, check=True)
    assert (pasted.stdout.splitlines(), pasted.stderr) == (
        ["0,1", "--nproc-per-node", "2", "run.py", *found.overrides],
        "",
    )
    assert config(found).data.root == "/my data/it's"
    assert config(found).hardware.processes == 2


@given(st.text(st.characters(min_codepoint=32, exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=20))
def test_any_folder_becomes_an_override_that_is_read_as_it_is(folder):
    if "${" not in folder:  # which refers to another key
        assert parse_one(_text("data.root", folder)).value() == folder


@pytest.mark.parametrize(("number", "shown"), [(0.1, "0.1"), (1e-6, "1e-06"), (3, "3"), (True, "true"), (None, "null")])
def test_numbers_are_as_people_write_them(number, shown):
    assert _text("a.b", number) == f"a.b={shown}"
    assert parse_one(f"a.b={shown}").value() == number


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_translation_and_its_preset(capsys):
    assert main(["--from", "agent", BY_NAME["agent/rigl"]["command"]]) == 0
    out = capsys.readouterr().out
    assert out.startswith("python run.py model=vgg_c data=cifar10 sparsity=rigl_itop correction=agent ")
    assert "# the same run as +experiment=agent/rigl\n" in out


def test_the_command_may_come_unquoted_or_from_standard_input(capsys, monkeypatch):
    command = "make cifar10.ERK.RigL DENSITY=0.2 SEED=0"
    assert main(command.split()) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", __import__("io").StringIO(command))
    assert main(["-"]) == 0
    assert capsys.readouterr().out == first
    assert "# the same run as +experiment=agent/wrn_rigl\n" in first


@pytest.mark.parametrize(
    "arguments",
    [
        ["--from", "itop", "python main.py --sprase"],
        [ITOP],
        ["python main_suptickets.py --pre_train --cyclic_train --sparse --model vgg19 --data cifar10 --epochs 5"],
    ],
)
def test_what_cannot_be_translated_has_exit_code_2_and_says_why(capsys, arguments):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(line.startswith("error: ") for line in shown.err.splitlines())


def test_it_starts_without_torch():
    program = (
        "import sys; from dst.legacy.__main__ import main; code = main(['make cifar10.ERK.RigL']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_identities_tell_readings_apart():
    row = BY_NAME["itop/rigl"]
    meant, run = (identity(config(translated(row["command"], "itop", as_run=as_run))) for as_run in (False, True))
    assert {key: run.get(key) for key in {*meant, *run} if meant.get(key) != run.get(key)} == {
        **{"sparsity.init.name": "bernoulli", "sparsity.update.on_last_step": True, "schedule.select": "best_val"},
        "schedule.lr.milestones": [0.5, 0.748],
    }
