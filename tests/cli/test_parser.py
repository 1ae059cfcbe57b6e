"""argparse whose errors are one sentence, for every command."""

from __future__ import annotations

import pytest

from espalier.cli.main import COMMANDS, main
from espalier.cli.parser import Parser


def test_an_error_is_a_sentence_that_names_the_command() -> None:
    parser = Parser(prog="espalier prune")
    parser.add_argument("--share", type=float)
    with pytest.raises(ValueError, match="^espalier prune: argument --share: invalid float value: 'half'$"):
        parser.parse_args(["--share", "half"])
    with pytest.raises(ValueError, match="^espalier prune: unrecognized arguments: --shares-of"):
        parser.parse_args(["--shares-of", "1"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_strange_word_in_one_line_on_stderr(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--no-such-option"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("espalier: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "fit"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: espalier {command}" in capsys.readouterr().out
