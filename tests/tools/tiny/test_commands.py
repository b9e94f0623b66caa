import sys
from importlib import import_module

import pytest


@pytest.mark.parametrize("name", ["train", "tasks", "heads"])
def test_help_explains_the_command(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        import_module(f"tools.tiny.{name}").main()
    assert stop.value.code == 0
    assert f"tools.tiny.{name}" in capsys.readouterr().out
