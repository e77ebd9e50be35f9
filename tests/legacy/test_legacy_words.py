"""Lines of shell as they stand in READMEs, and command lines as argparse reads them."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst.legacy.arguments import parse
from dst.legacy.recognise import recognise
from dst.legacy.tables import LegacyError, programs
from dst.legacy.words import read

ITOP = programs()["itop_cifar"]
TEXT = st.text(st.characters(exclude_characters="\0$\r\n", exclude_categories=("Cs",)), min_size=1, max_size=30)


@pytest.mark.parametrize(
    "text",
    [
        "python main.py --seed 3 --sparse",
        "python3 main.py --seed 3 --sparse",
        "python3.7 -u main.py --seed=3 --sparse",
        "/usr/bin/python ./main.py --seed 3 --sparse",
        "$1main.py --seed 3 $2 --sparse",
        "python $1main.py \\\n  --seed 3 \\\n  --sparse",
        "python main.py --seed 3 --sparse > log.txt 2>&1 &",
        "python main.py --seed 3 --sparse | tee out.log",
        "nothing=1 python main.py '--seed' \"3\" --sparse",
    ],
)
def test_the_same_program_in_all_ways_to_start_it(text):
    line = read(text)
    assert line.script == "main.py"
    assert parse(ITOP, line.words).values["seed"] == 3
    assert parse(ITOP, line.words).given == {"seed", "sparse"}
    assert line.processes is None


def test_folder_variables_and_processes_are_kept():
    line = read(
        "cd a/ImageNet && CUDA_VISIBLE_DEVICES=0,1 python $1multiproc.py "
        "--nproc_per_node 2 --master_port=3 $1main.py -j5"
    )
    assert (line.folder, line.variables, line.processes) == ("a/ImageNet", ("CUDA_VISIBLE_DEVICES=0,1",), 2)
    assert (line.script, line.words, line.launcher) == ("main.py", ("-j5",), ("--master-port=3",))


def test_torchs_own_launchers_are_the_same():
    for launcher in ("python -m torch.distributed.launch", "torchrun", "python multiproc.py"):
        assert read(f"{launcher} --nproc_per_node=4 main.py --fp16").processes == 4


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "starts no program"),
        ("cd STR", "starts no program"),
        ("python main.py; python main.py", "starts 2 programs"),
        ("ls -l", "starts no Python program"),
        ("python main.py 'unclosed", "cannot be read: no closing quotation"),
        ("python multiproc.py --nproc_per_node two main.py", "this is no number of processes"),
        ("python multiproc.py --nodes 2 main.py", "--nodes is no option of the launcher: allowed: nnodes"),
        ("make", "name one target"),
    ],
)
def test_what_starts_no_program_is_refused(text, told):
    with pytest.raises(LegacyError, match=told):
        read(text)


@given(TEXT)
def test_a_quoted_value_is_read_as_it_is(value):
    line = read(f"python main.py --save {shlex.quote(value)}")
    assert line.words == ("--save", value)


@given(st.sampled_from([option for option in ITOP.options if option.kind != "flag"]), st.data())
def test_prefixes_and_equals_signs_are_argparses(option, data):
    """A prefix that only one option has is that option, with its value behind a space or an equals sign."""
    others = [one.option for one in ITOP.options if one != option]
    prefixes = [option.option[:end] for end in range(3, len(option.option) + 1)]
    unique = [prefix for prefix in prefixes if not any(other.startswith(prefix) for other in others)]
    prefix = data.draw(st.sampled_from(unique or [option.option]))
    words = data.draw(st.sampled_from([[prefix, "7"], [f"{prefix}=7"]]))
    found = parse(ITOP, words)
    assert found.given == {option.name}
    assert found.values[option.name] in (7, "7")


def test_a_prefix_of_several_options_is_ambiguous():
    with pytest.raises(LegacyError, match="ambiguous option: --de could match"):
        parse(ITOP, ["--de", "1"])


def test_all_unknown_options_are_told_with_what_may_be_meant():
    with pytest.raises(LegacyError) as error:
        parse(ITOP, ["--sprase", "--densty=0.1", "--seed", "3"])
    assert [problem.partition("; ")[2] for problem in error.value.problems] == [
        "did you mean --sparse?",
        "did you mean --density?",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seed", "many"], "argument --seed: invalid int value: 'many'"),
        (["--density"], "argument --density: expected one argument"),
        (["data/"], "takes no such argument"),
    ],
)
def test_what_argparse_refuses_is_refused(words, told):
    with pytest.raises(LegacyError, match=told):
        parse(ITOP, words)


def test_options_that_are_not_given_have_the_published_default():
    values = parse(programs()["sup_tickets_imagenet"], ["somewhere"]).values
    assert (values["data"], values["warmup"], values["third_m"], values["init_prune_epoch"]) == ("somewhere", 0, 80, 30)
    assert (values["sparse"], values["lr_2"], values["sparse_init"], values["indicate_method"]) == (
        *(False, 0.0001, "ER"),
        "",
    )


# -- which program it is -----------------------------------------------------------------------------------------------


def test_flags_tell_programs_apart_and_from_decides_between_itop_and_agent():
    line = read("python main.py --sparse --sparse_init ERK --death magnitude --model vgg-c --data cifar10")
    with pytest.raises(LegacyError, match=r"--from itop\|agent$"):
        recognise(line)
    assert recognise(line, "agent").paper == "agent"
    assert recognise(line, "itop_cifar").paper == "itop"


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("python main_suptickets.py --sparse", "sup_tickets_cifar"),
        ("python main.py --is-prune True", "er_dst"),
        ("python main.py --T_end 75000", "shuffled_cifar"),
        ("python train_imagenet.py --T 800", "shuffled_imagenet"),
        ("python cifar_main.py --levels 5", "er_slt"),
        ("cd STR && python run_imp.py", "str"),
        ("python run_a_brs_net.py -s -pc 0.1 -wd 1e-3", "a_bsr_net"),
        ("python main.py data/ --explo-start-epoch 3", "itop_imagenet"),
        ("cd ER_DST && python main.py --sparse", "er_dst"),
        ("python main.py data/ --cyclic_epochs 3", "sup_tickets_imagenet"),
        ("python main.py --threshold-list 0.5 0.2 --config x.yaml", "str"),
    ],
)
def test_a_program_is_recognised(text, program):
    assert recognise(read(text)).program.name == program


def test_candidates_of_one_paper_are_told_apart_by_program():
    with pytest.raises(LegacyError, match="shuffled_blocks") as error:
        recognise(read("python main.py --epochs 3"))
    assert "itop_cifar" not in str(error.value).rpartition("--from ")[2]
    with pytest.raises(LegacyError, match=r"--from str\|er_dst$"):
        recognise(read("python main.py --epochs 3"), "random_pruning")


def test_a_script_that_nobody_published_is_refused():
    with pytest.raises(LegacyError, match=r"no published program is called so; there are cifar_main\.py"):
        recognise(read("python mine.py --seed 3"))
    with pytest.raises(LegacyError, match="no published program of granet is called so"):
        recognise(read("python main_suptickets.py --seed 3"), "granet")
