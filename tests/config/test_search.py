"""Further folders of config files: ``hydra.searchpath`` and ``--config-dir``."""

import os
import shutil
from pathlib import Path

import pytest

from dst.cli import main
from dst.config.compose import compose_command
from dst.config.schema import ConfigError
from tests.composed import compose_cells

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def mine(tmp_path):
    """A folder with a method and an experiment of one's own."""
    folder = tmp_path / "my é confs"
    files = {
        "sparsity/mine.yaml": "# Mine\ndefaults: [rigl, _self_]\nlabel: mine\n",
        "sparsity/rigl.yaml": "# This one is in conf already, which comes first\nlabel: never\n",
        "experiment/own/first.yaml": "# @package _global_\ndefaults: [override /sparsity: mine, _self_]\nseed: 7\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_options_of_a_further_folder_are_chosen_swept_and_checked(mine, scheme):
    path = f"hydra.searchpath=[{scheme}{mine}]"
    cells = compose_cells(CONF, [path, "sparsity=mine,rigl", "seed=0,1"], multirun=True)
    assert [(config.sparsity.label, config.seed) for _, config in cells] == [
        *(("mine", 0), ("mine", 1), ("rigl", 0), ("rigl", 1))
    ]
    assert cells[0][0] == ["sparsity=mine", "seed=0"]
    cells = compose_cells(CONF, ["sparsity=glob(m*)", path], multirun=True)
    assert [config.sparsity.label for _, config in cells] == ["mine"]
    ((_, config),) = compose_cells(CONF, [path, "+experiment=own/first", "hydra/launcher=basic"], multirun=False)
    assert (config.sparsity.label, config.seed) == ("mine", 7)
    with pytest.raises(ConfigError, match=r"unknown sparsity: did you mean 'mine'\? allowed: dense, .*, mine, "):
        compose_command(CONF, [path, "sparsity=miine"], multirun=True)
    with pytest.raises(ConfigError, match=r"unknown sparsity: .*allowed: dense"):
        compose_command(CONF, ["sparsity=mine"], multirun=False)


def test_the_main_file_may_name_further_folders(mine, tmp_path):
    conf = shutil.copytree(CONF, tmp_path / "conf")
    with (conf / "config.yaml").open("a") as file:
        file.write(f"hydra: {{searchpath: ['{mine}']}}\n")
    ((_, config),) = compose_cells(conf, ["+experiment=own/first"], multirun=False)
    assert (config.sparsity.label, config.seed) == ("mine", 7)
    with (mine / "experiment" / "own" / "first.yaml").open("a") as file:
        file.write("hydra: {mode: MULTIRUN}\n")
    with pytest.raises(ConfigError, match=r"hydra.mode=MULTIRUN, which would be ignored"):
        compose_cells(conf, ["+experiment=own/first"], multirun=False)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("[/no/such]", r"\(--config-dir\): there is no folder /no/such"),
        ("[pkg://no.such]", "there is no folder pkg://no.such"),
        ("mine", "hydra.searchpath=mine: must be a list of folders"),
        ("[a],[b]", "must be a list of folders"),
        ("[{a: b}]", "must be a list of folders"),
    ],
)
def test_what_is_no_folder_is_told(path, told):
    with pytest.raises(ConfigError, match=told):
        compose_command(CONF, [f"hydra.searchpath={path}"], multirun=True)


@pytest.mark.parametrize("prefix", ["+", "++"])
def test_a_prefix_makes_no_other_key_of_it(mine, prefix):
    path = f"{prefix}hydra.searchpath=[{mine}]"
    with pytest.raises(ConfigError, match="is given 2 times; give one list of folders"):
        compose_command(CONF, [path, f"hydra.searchpath=[{mine}]"], multirun=False)
    ((_, config),) = compose_cells(CONF, [path, "seed=4"], multirun=False)
    assert config.seed == 4


def test_a_package_may_have_config_files():
    ((_, config),) = compose_cells(CONF, ["hydra.searchpath=[pkg://tests.config]", "seed=4"], multirun=False)
    assert config.seed == 4


def test_the_flag_is_short_for_the_key(mine, capsys, monkeypatch):
    monkeypatch.chdir(mine.parent)
    monkeypatch.setattr(os, "nice", lambda _: 0)
    for flag in (["--config-dir", mine.name], [f"--config-dir={mine}"], ["-cd", mine.name]):
        assert main([*flag, "+experiment=own/first", "--cfg", "job", "-p", "sparsity.label"], CONF) == 0
        assert capsys.readouterr().out == "mine\n"
    assert main(["--config-dir", "nowhere", "seed=1"], CONF) == 2
    assert "there is no folder nowhere" in capsys.readouterr().err
    assert main(["-cd", mine.name, "hydra.searchpath=[.]"], CONF) == 2
    assert "hydra.searchpath is given 2 times" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [["-cn", "other"], ["--config-name=other"], ["-cp", "x"], ["--config-path"]])
def test_flags_for_another_default_run_say_why_not(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*flag, "seed=1"], CONF)
    assert ended.value.code == 2
    told = " ".join(capsys.readouterr().err.split())
    named = "--config-name/-cn" if flag[0].startswith(("-cn", "--config-name")) else "--config-path/-cp"
    assert f"error: {named}: every run" in told
    assert "--config-dir" in told
