"""The tour's commands: they run, and print what the page shows; its links lead to the functions that they name."""

import ast
import re
import shlex
import subprocess

import program
import pytest
from console import copy_repository, run
from program import ROOT

from benchmarks import tour

PAGE = (ROOT / "docs" / "tour.md").read_text()
PARTS = tour.split(PAGE)
STATIONS = {text.partition("\n")[0]: f"## {text}" for text in PAGE.split("\n## ")[1:]}
# Commands whose output is the same on every machine and takes a second: the costs of networks and layers.
COUNTED = [
    (command.command, output.lines)
    for command, output in zip(PARTS, PARTS[1:], strict=False)
    if re.match(r"python summarize\.py (?!.*(workdir|picture|report))", command.command)
]


@pytest.mark.parametrize(("command", "shown"), COUNTED, ids=[command for command, _ in COUNTED])
def test_the_page_shows_what_a_command_prints(command, shown):
    lines = program.run(*shlex.split(command.partition(" | ")[0])[1:]).rstrip().splitlines()
    if count := re.search(r" \| (head|tail) -n (\d+)$", command):
        lines = lines[: int(count[2])] if count[1] == "head" else lines[-int(count[2]) :]
    assert "\n".join(lines).rstrip() == "\n".join(shown)  # `make tour` writes new outputs


@pytest.mark.parametrize("station", STATIONS)
def test_a_station_has_all_its_parts(station):
    text = STATIONS[station]
    parts = tour.split(text)
    commands = [number for number, part in enumerate(parts) if part.kind == "command"]
    assert commands and any(parts[number + 1].lines for number in commands)
    assert text.count("**Code:**") == text.count("**Question:**") == text.count("**Answer:**") == 1
    for picture in re.findall(r"!\[.+?\]\((.+?)\)", text):
        assert (ROOT / "docs" / picture).exists()


@pytest.mark.parametrize(("name", "path"), sorted(set(re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/.]+)\)", PAGE))))
def test_a_link_to_code_leads_to_what_it_names(name, path):
    file = ROOT / path
    if name in (path, file.name):
        assert file.exists()
        return
    scope: list[ast.stmt] = ast.parse(file.read_text()).body
    for part in name.split("."):
        (found,) = (node for node in scope if getattr(node, "name", None) == part)
        scope = found.body


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the repository with the run of LeNet-5 that several stations use."""
    folder = copy_repository(tmp_path_factory.mktemp("tour"))
    commands = [part.command for part in PARTS if part.kind == "command"]
    (train,) = (command for command in commands if re.match("python train.py .*lenet5_digits ", command))
    assert run(train, folder).returncode == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("station", STATIONS)
def test_a_station_in_reduced_size(folder, station):
    for part in tour.split(STATIONS[station]):
        if part.kind == "command":
            result = run(part.command, folder)
            assert result.returncode == 0, f"{part.command}\n{result.stdout}\n{result.stderr}"


def test_every_block_of_the_page_ends():
    for part in tour.split(PAGE):
        assert part.kind == "text" or not any(line.startswith("## ") for line in part.lines)


def test_outputs_are_replaced_and_nothing_else_is():
    page = "# A\n```console\n$ echo a \\\n  b\nold\nold\n$ cat <<'END'\n$ text\nEND\n```\n```\n$ echo other\n```\n"
    commands = [part.command for part in tour.split(page) if part.kind == "command"]
    assert commands == ["echo a \\\n  b", "cat <<'END'\n$ text\nEND"]
    assert tour.with_outputs(page, {}) == page
    assert tour.with_outputs(page, {command: tour.run(command) for command in commands}) == (
        "# A\n```console\n$ echo a \\\n  b\na b\n$ cat <<'END'\n$ text\nEND\n$ text\n```\n```\n$ echo other\n```\n"
    )


def test_a_failing_program_of_a_pipe_fails():
    with pytest.raises(subprocess.CalledProcessError):
        tour.run("false | cat")


def test_a_stopped_tour_goes_on_with_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tour, "ROOT", tmp_path)
    monkeypatch.setattr(tour, "OUTPUTS", tmp_path / "runs" / "outputs.json")
    page = tmp_path / "page.md"
    page.write_text("```console\n$ echo a >> log; echo 1\n$ test -e ready && echo 2\n```\n")
    assert tour.update(page) == 1
    assert "exit code 1 of: test -e ready" in capsys.readouterr().err
    assert page.read_text().splitlines()[1:3] == ["$ echo a >> log; echo 1", "1"]
    (tmp_path / "ready").touch()
    assert tour.update(page) == 0
    assert page.read_text().splitlines()[3:5] == ["$ test -e ready && echo 2", "2"]
    assert (tmp_path / "log").read_text() == "a\n"  # the first command was not run again
    assert tour.update(page, only="log") == 0
    assert (tmp_path / "log").read_text() == "a\na\n"
