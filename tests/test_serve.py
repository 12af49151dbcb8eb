"""The command serve: what its flags become, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from mammoclip_jax import serve
from mammoclip_jax.errors import UserError
from mammoclip_jax.service import sender, server

ROOT = Path(__file__).parents[1]


@pytest.fixture
def told(monkeypatch, tmp_path):
    """main() with flags, and what it would serve with."""
    values, given = flags.FlagValues(), []

    class Service:
        def __init__(self, options, make, arguments):
            given.append((options, arguments))

        def run(self, started):
            started("http://127.0.0.1:1")

    monkeypatch.setattr(server, "Service", Service)
    monkeypatch.setattr(flags, "FLAGS", values)
    for kind in ("string", "integer", "float", "bool", "list"):
        name = f"DEFINE_{kind}"
        plain = getattr(flags, name)
        monkeypatch.setattr(
            flags, name, lambda *a, plain=plain, required=False, **k: plain(*a, **k, flag_values=values)
        )
    serve.define_flags()

    def main(*words):
        for name in values:
            values[name].unparse()
        values(["serve", "--weights=w", f"--spool={tmp_path}", *words])
        assert serve.main([]) == 0
        return given[-1]

    return main


def test_flags_become_options(told, tmp_path, capsys):
    options, (weights, delivered) = told(
        "--max_mib=2", "--keep_days=2", "--dicom_port=11112", "--send_to=ARCHIVE@10.0.0.5:104", "--peers=A,B@10.0.0.6",
        "--delete_sent", "--prompts=mine.json", "--every_view",
    )  # fmt: skip
    assert options.spool == tmp_path and options.limit == 2 * 2**20 and options.keep == 2 * 86400
    assert options.send_to == sender.Destination("ARCHIVE", "10.0.0.5", 104) and options.delete_sent
    assert options.peers == ["A", "B@10.0.0.6"] and options.token == ""
    defaults = {"prompts": "mine.json", "method": "", "stage": "", "overlay_size": 1024, "every_view": True}
    assert weights == "w" and delivered == defaults
    assert "serving at http://127.0.0.1:1" in capsys.readouterr().out
    assert told()[0] == server.Options(spool=tmp_path, hosts=[], peers=[])  # the defaults are written once more there


@pytest.mark.parametrize(
    "words, message",
    [
        (["--send_to=A@host:104"], "--send_to does nothing without --dicom_port"),
        (["--quiet_seconds=9"], "--quiet_seconds does nothing without --dicom_port"),
        (["--dicom_port=11112", "--retries=3"], "--retries does nothing without --send_to"),
        (["--dicom_port=11112", "--send_to=host:104"], "TITLE@HOST:PORT"),
        (["--dicom_port=11112", "--ae_title=AN_AE_TITLE_TOO_LONG"], "1 to 16"),
        (["--token_file=there/is/none"], "cannot be read"),
    ],
)
def test_what_does_not_go_together_is_refused(told, words, message):
    with pytest.raises(UserError, match=message):
        told(*words)


def test_a_token_comes_from_a_file_or_a_variable(tmp_path, monkeypatch):
    assert serve.token("") == ""
    monkeypatch.setenv(serve.TOKEN, "0123456789abcdef\n")
    assert serve.token("") == "0123456789abcdef"
    (tmp_path / "token").write_text("fedcba9876543210fedc\n")
    assert serve.token(str(tmp_path / "token")) == "fedcba9876543210fedc"
    (tmp_path / "token").write_text("short")
    with pytest.raises(UserError, match="openssl rand"):
        serve.token(str(tmp_path / "token"))


def test_help_and_the_servers_process_import_no_jax():
    code = "import sys, mammoclip_jax.serve, mammoclip_jax.service.server; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr
    code = "import sys, mammoclip_jax.serve; print({'jax', 'starlette', 'pydicom'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "set()\n"
