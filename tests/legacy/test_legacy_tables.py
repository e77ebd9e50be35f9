"""The tables of the published parsers: complete, unique, and in words that the config knows."""

import pytest

from dst.config.overrides import known_keys
from dst.legacy.plan import GROUPS
from dst.legacy.tables import CLASSES, IGNORED, MAPS, NONE, PARSERS, programs, str_configs
from dst.legacy.translate import _RECIPES

COUNTS = {
    **{"itop_cifar": 34, "itop_imagenet": 44, "a_bsr_net": 19},
    **{"granet_cifar": 44, "sup_tickets_cifar": 58, "sup_tickets_imagenet": 70},
    **{"shuffled_cifar": 18, "shuffled_imagenet": 18, "str": 90, "er_dst": 46, "er_slt": 26},
}
"""Options of the eleven parsers, those that only a README names included."""
BESIDES = {"granet_imagenet": 50}
ALL = [(program, option) for program in programs().values() for option in program.options]
NAMED = [pytest.param(option, id=f"{program.name} {option.option}") for program, option in ALL]


def test_every_table_has_all_options_of_its_parser():
    assert {name: len(program.options) for name, program in programs().items()} == COUNTS | BESIDES
    assert sum(COUNTS.values()) == 467


def test_every_program_has_a_table_and_a_recipe():
    tables = {path.name.removesuffix(".csv") for path in PARSERS.iterdir() if path.name.endswith(".csv")}
    assert tables == set(programs()) == set(_RECIPES)


@pytest.mark.parametrize("program", programs().values(), ids=lambda program: program.name)
def test_an_option_stands_once_in_its_table(program):
    spelled = [spelling for option in program.options for spelling in option.spellings]
    assert len(spelled) == len(set(spelled))
    names = [option.name for option in program.options if option.named == "parser"]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("option", NAMED)
def test_a_row_is_sound(option):
    assert option.becomes in CLASSES
    assert option.named in ("parser", "readme")
    assert option.kind in ("int", "float", "floats", "str", "flag", "positional")
    assert option.meaning
    assert option.meaning.isascii()
    option.value(option.default)
    option.value(option.as_run)


@pytest.mark.parametrize("option", NAMED)
def test_what_maps_has_keys_of_the_config_and_nothing_else_has(option):
    assert bool(option.keys) == (option.becomes == MAPS) == (option.convert in ("same", "recipe"))
    assert set(option.keys) <= {*known_keys(), *GROUPS}


def test_a_plain_value_goes_to_keys_of_its_own():
    """Otherwise the order of a table would decide."""
    for program in programs().values():
        keys = [key for option in program.options if option.convert == "same" for key in option.keys]
        assert len(keys) == len(set(keys)), program.name


def test_some_options_of_each_class_are_what_the_published_codes_make_of_them():
    classes = {(program.name, option.option): option.becomes for program, option in ALL}
    assert classes["itop_cifar", "--decay_frequency"] == IGNORED
    assert classes["itop_cifar", "--save"] == NONE
    assert classes["sup_tickets_cifar", "--growth"] == MAPS
    assert classes["str", "--constant-prune-lr"] == IGNORED
    assert classes["a_bsr_net", "--connectivity"] == NONE


def test_published_configs_of_str_hold_options_of_its_parser():
    known = {option.name for option in programs()["str"].options}
    for name, config in str_configs().items():
        assert set(config) <= known, name
