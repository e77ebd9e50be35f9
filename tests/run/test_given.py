"""What is given on the command line of a tool: an empty value is no value."""

import importlib
import shlex

import pytest

COMMANDS = {
    "dst.launcher.status": ["''", "outputs --state ''", "outputs --watch 0", "outputs --watch nan"],
    "dst.launcher.cancel": ["''"],
    "dst.launcher.requeue": ["''"],
    "dst.launcher.sync": ["''", "' '", "outputs --project ''", "outputs --timeout-s soon"],
    "analysis.tables": ["''", "outputs ''", "outputs --where ''", "outputs --rows ''", "outputs --csv ''"],
    "analysis.compare": ["'' outputs", "outputs ''", "outputs outputs --value ''", "outputs outputs --latex ''"],
    "analysis.report.__main__": ["''", "outputs --out ''"],
    "analysis.gallery": ["'' --out there", "outputs --out ''"],
    "analysis.figures.__main__": ["'' --out there", "outputs --out ''"],
    "analysis.from_wandb": ["'' --out there", "project --out ''", "project --out there --entity ''"],
}


@pytest.mark.parametrize(("command", "line"), [(name, line) for name, lines in COMMANDS.items() for line in lines])
def test_an_empty_value_is_an_error_that_names_what_lacks_it(command, line, tmp_path, monkeypatch, capsys):
    """``status "$OUT"`` without OUT must not act on the current folder, which may hold the runs of others."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(command).main(words)
    assert ended.value.code == 2
    assert "error: argument " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
