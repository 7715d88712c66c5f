"""The `gatehouse` command: help, version, options and settings that are wrong."""

import errno
import subprocess
import sys

import pytest

from app.cli.main import COMMANDS, main
from app.errors import ExitCode
from app.settings import Settings
from tests import REPOSITORY
from tests.support.builders import published
from tests.support.server import patient_environment

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "missing COMMAND; see gatehouse --help"),
        (["sevre"], 'unknown command "sevre"; did you mean "serve"?'),
        (["zzz"], 'unknown command "zzz" (commands: serve, check, versions, activate, rollback'),
        (["--verison"], "unknown option --verison; did you mean --version?"),
        (["-x"], "unknown option -x; see gatehouse --help"),
        (["check", "a", "b"], "too many arguments; see gatehouse check --help"),
        (["check", "--store"], "--store expects a value"),
        (["check", "--store", "a", "b"], "not allowed with"),
        (["check", ""], "must not be empty"),
        (["serve", SECRET], "too many arguments; see gatehouse serve --help"),
        (["serve", "--tokne", SECRET], "unknown option --tokne; see gatehouse serve --help"),
        (["serve", f"--tokne={SECRET}"], "unknown option --tokne; see gatehouse serve --help"),
        (["serve", "--keys", SECRET], "unknown option --keys; set GATEHOUSE_KEYS, or use"),
        (["serve", f"--keys={SECRET}"], "unknown option --keys; set GATEHOUSE_KEYS, or use"),
        (["serve", "--port"], "--port expects a value"),
        (["serve", "--port", ""], "--port: must not be empty"),
        (["serve", "--port", "abc"], "--port abc: must be an integer between 0 and 65535"),
        (["serve", "--port", "a b\x1b[2J"], r"--port 'a b\x1b[2J': must be an integer"),
        (["serve", "--port", "9" * 5000], f"--port '{'9' * 60}…': must be an integer"),
        (["serve", "--por", "8000"], "unknown option --por; did you mean --port?"),
        (["serve", "--log-level", "INFO"], 'debug, info, warning, error; did you mean "info"?'),
        (["serve", "--device", "gpu"], "--device gpu: must be one of auto, cpu, cuda"),
        (["serve", "--port", "1", "--lanes", "0"], "--lanes 0: must be an integer between 1 and"),
        (["serve", "--port", "-2", "--lanes", "0"], "--port -2: must be an integer between 0 and"),
        (["serve", "--port", "-2", "--lanes", "0"], "; --lanes 0: must be an integer between 1"),
        (["serve", "--store-poll-s", "0"], "must be a number above 0 and at most 3600"),
        (["serve", "--lane-hang-s", "x"], "--lane-hang-s x: must be a number above 0"),
        (["serve", "--max-candidates", "99999"], "max_candidates must not be above max_queue_rows"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_wrong_usage_is_one_line_on_standard_error(capsys, arguments, line):
    assert main(arguments) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gatehouse: ")
    assert line in err
    assert err.count("\n") == 1
    assert SECRET not in err
    assert "gatehouse: :" not in err


def test_exit_codes_are_those_that_scripts_expect():
    codes = {code.name: code.value for code in ExitCode}
    assert codes == {"OK": 0, "FAILED": 1, "USAGE": 2, "INTERRUPTED": 130, "PIPE_CLOSED": 141}


def test_a_wrong_environment_variable_is_one_line_too(capsys, monkeypatch):
    monkeypatch.setenv("GATEHOUSE_PORT", "abc")
    assert main(["serve"]) == ExitCode.USAGE
    line = "gatehouse: GATEHOUSE_PORT=abc: must be an integer between 0 and 65535\n"
    assert capsys.readouterr().err == line


def test_an_option_wins_over_the_environment(capsys, monkeypatch):
    """Shown by which of two wrong values is reported."""
    monkeypatch.setenv("GATEHOUSE_LANES", "0")
    assert main(["serve", "--lanes", "300"]) == ExitCode.USAGE
    err = capsys.readouterr().err
    assert err == "gatehouse: --lanes 300: must be an integer between 1 and 256\n"


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_every_command_and_names_the_training_program(capsys, option):
    assert main([option]) == ExitCode.OK
    out = capsys.readouterr().out
    assert all(f"    {name}" in out and text in out for name, text in COMMANDS.items())
    assert "python -m models --help" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example_and_defaults(capsys, command):
    assert main([command, "--help"]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert err == ""
    assert f"usage: gatehouse {command}" in out
    assert "example" in out.partition("options:")[2]
    assert f"\n  gatehouse {command} " in out
    assert "default" in out
    assert ("GATEHOUSE_KEY" if command == "bench" else "GATEHOUSE_STORE") in out


def test_version_is_that_of_the_project(capsys):
    project = (REPOSITORY / "pyproject.toml").read_text()
    assert main(["--version"]) == ExitCode.OK
    name, version = capsys.readouterr().out.split()
    assert name == "gatehouse"
    assert f'\nversion = "{version}"\n' in project


def test_the_help_of_serve_lists_every_setting_with_its_default(capsys):
    assert main(["serve", "--help"]) == ExitCode.OK
    text = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        if name == "keys":
            continue
        assert f"--{name.replace('_', '-')}" in text
        assert field.description
        assert field.description in text
    assert "--keys " not in text  # a secret, and everyone on the machine sees a process's options
    assert "default: 8000; GATEHOUSE_PORT" in text
    assert "--max-wait-ms MS" in text


@pytest.mark.parametrize(
    "arguments", [*([command, "--help"] for command in COMMANDS), ["serve", "--x"]]
)
def test_help_and_wrong_options_do_not_wait_for_torch(arguments):
    code = (
        "import sys; from app.cli.main import main\n"
        f"main({arguments!r}); sys.exit('torch' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert finished.returncode == 0


@pytest.mark.parametrize(
    "arguments", [["versions"], ["canary", "2", "--key", "age"], ["items", "list"]]
)
def test_commands_that_only_look_at_a_store_do_not_wait_for_torch(tmp_path, arguments):
    published(tmp_path / "store")
    published(tmp_path / "store")
    code = (
        "import sys; from app.cli.main import main\n"
        f"main({arguments!r}); sys.exit('torch' in sys.modules)"
    )
    environment = {**patient_environment(), "PYTHONPATH": str(REPOSITORY)}
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (finished.returncode, "Traceback" in finished.stderr) == (0, False), finished.stderr


@pytest.mark.parametrize("variable", ["GATEHOUSE_STROE", "gatehouse_stroe"])
def test_an_unknown_variable_is_a_warning_without_its_value(capsys, monkeypatch, variable):
    monkeypatch.setenv(variable, SECRET)
    assert main(["check", "none"]) == ExitCode.USAGE
    assert capsys.readouterr().err == (
        f"gatehouse: warning: unknown environment variable {variable} is ignored; did you mean "
        'GATEHOUSE_STORE?\ngatehouse: store "none" does not exist\n'
    )


class Full:
    """Standard output on a disk without space."""

    def __init__(self, error: int) -> None:
        self.error = error

    def write(self, _text: str) -> int:
        return 0

    def fileno(self) -> int:
        raise OSError

    def flush(self) -> None:
        raise OSError(self.error, "No space left on device")


def test_output_that_cannot_be_written_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout", Full(errno.ENOSPC))
    assert main(["--version"]) == ExitCode.FAILED
    line = "gatehouse: cannot write the output: No space left on device\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("arguments", [["serve", "--help"], ["--version"]], ids=str)
@pytest.mark.parametrize("sink", ["| true", "> /dev/full"])
def test_help_into_a_closed_pipe_or_a_full_disk_has_no_traceback(arguments, sink):
    line = f"sleep 0.01; {sys.executable} -m app {' '.join(arguments)} {sink}"
    finished = subprocess.run(
        ["sh", "-c", line],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=patient_environment(),
        check=False,
    )
    assert "Traceback" not in finished.stderr
    assert "Exception ignored" not in finished.stderr


@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("--version", ExitCode.OK),
        ("serve --help", ExitCode.OK),
        ("sevre", ExitCode.USAGE),
        ("check none", ExitCode.USAGE),
        ("serve --port -1", ExitCode.USAGE),
    ],
)
def test_standard_streams_that_are_closed_or_full_change_no_exit_code(arguments, code, streams):
    finished = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m app {arguments} {streams}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=patient_environment(),
        check=False,
    )
    assert finished.returncode == code
    assert "Traceback" not in finished.stderr
    assert "Exception ignored" not in finished.stderr


def test_file_gets_no_number_of_a_closed_standard_stream(tmp_path):
    code = (
        "from app.cli.main import main; main(['--version'])\n"
        f"print(open({str(tmp_path / 'file')!r}, 'w').fileno(), file=open(9, 'w'))"
    )
    line = f'exec {sys.executable} -c "$CODE" <&- >&- 2>&- 9>{tmp_path / "number"}'
    environment = patient_environment() | {"CODE": code}
    subprocess.run(["sh", "-c", line], cwd=REPOSITORY, env=environment, check=True)
    assert int((tmp_path / "number").read_text()) > 2
