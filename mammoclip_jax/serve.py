"""Serve a trained model: exams come by HTTP or DICOM, scores and reports go back.

    python -m mammoclip_jax.serve --weights=runs/demo --spool=spool
    curl -F file=@L_CC.dcm -F file=@R_CC.dcm http://127.0.0.1:8080/exams       # {"id": ...}; then /exams/ID, /exams/ID/report.dcm
    python -m mammoclip_jax.serve --weights=runs/demo --spool=spool --dicom_port=11112 --send_to=ARCHIVE@127.0.0.1:4242

It listens on this machine alone unless --host names another address; then it needs a token (--token_file, or the variable
MAMMOCLIP_TOKEN), and for DICOM --peers. An exam that was acknowledged is on the disk: after a stop or a crash the same
command goes on with it. docs/service.md has the whole.
"""

import os
from pathlib import Path

from absl import flags

from mammoclip_jax import command
from mammoclip_jax.errors import UserError

TOKEN = "MAMMOCLIP_TOKEN"
MIB = 2**20
DAY = 86400.0  # seconds
SHORTEST = 16  # characters of a token
OF = {  # flags that are read with another alone
    "dicom_port": ("ae_title", "peers", "quiet_seconds", "send_to"),
    "send_to": ("retries", "send_overlays", "delete_sent"),
}


def define_flags() -> None:
    """The flags of the command."""
    flags.DEFINE_string(
        "weights", None, "A run, a checkpoint of it, a model folder, a published file or a hub name.", required=True
    )
    flags.DEFINE_string("spool", None, "Folder of the exams, from arrival to deletion; for one service.", required=True)
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0: all of this machine.")
    flags.DEFINE_integer("port", 8080, "Of HTTP; 0: a free one.", lower_bound=0, upper_bound=65535)
    flags.DEFINE_list("hosts", [], "Further names of this machine that a request's header Host may have.")
    flags.DEFINE_string("token_file", "", f"File with the token that requests must bring; else the variable {TOKEN}.")
    flags.DEFINE_integer("queue", 64, "Exams that may wait; more are refused, to be sent again.", lower_bound=1)
    flags.DEFINE_integer("max_mib", 1024, "MiB of an upload's files.", lower_bound=1)
    flags.DEFINE_float("seconds", 300.0, "That scoring an exam may take.", lower_bound=0.1)
    flags.DEFINE_float("stop_seconds", 20.0, "That the exam in work may take at a stop; else it waits.", lower_bound=0)
    flags.DEFINE_float("keep_days", 7.0, "That an exam and its results stay after it was finished.", lower_bound=0.001)
    flags.DEFINE_bool("delete_sent", False, "Remove an exam as soon as its report was sent.")
    flags.DEFINE_integer("dicom_port", 0, "Of the DICOM listener; 0: none.", lower_bound=0, upper_bound=65535)
    flags.DEFINE_string("ae_title", "MAMMOCLIP", "Of this service.")
    flags.DEFINE_list("peers", [], "Who may send by DICOM: TITLE or TITLE@ADDRESS. Default: everybody on this machine.")
    flags.DEFINE_float(
        "quiet_seconds", 30.0, "After so long without a new instance of its study an exam is whole.", lower_bound=0.1
    )
    flags.DEFINE_string("send_to", "", "TITLE@HOST:PORT that gets the reports of exams that came by DICOM.")
    flags.DEFINE_integer("retries", 500, "Of sending, after 2, 4, 8, ... 600, 600 s.", lower_bound=0)
    flags.DEFINE_bool("send_overlays", False, "Send the overlays (secondary captures) with the reports.")
    flags.DEFINE_string("prompts", "", "As of predict.")
    flags.DEFINE_string("method", "", "As of predict.")
    flags.DEFINE_string("stage", "", "As of predict.")
    flags.DEFINE_integer("overlay_size", 1024, "As of predict.", lower_bound=0)
    flags.DEFINE_bool("every_view", False, "As of predict.")


def token(file: str) -> str:
    """What a file or the variable says; "" without either.

    Raises:
        UserError: the file cannot be read, or the token is too short.
    """
    try:
        said = Path(file).read_text(encoding="utf-8").strip() if file else os.environ.get(TOKEN, "").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token_file={file} cannot be read: {error}.") from error
    if (said or file) and len(said) < SHORTEST:
        raise UserError(
            f"{file or TOKEN}: a token has {SHORTEST} characters or more. Make one with: openssl rand -hex 32"
        )
    return said


def main(argv) -> int:
    """The command; see --help."""
    del argv
    values = flags.FLAGS
    from mammoclip_jax.service import scoring, sender, server  # not for --help

    for needed, names in OF.items():
        for name in names:
            if not values[name].using_default_value and not values[needed].value:
                raise UserError(f"--{name} does nothing without --{needed}: give that as well.")
    if not 0 < len(values.ae_title) <= 16:
        raise UserError(f"--ae_title={values.ae_title}: an AE title has 1 to 16 characters.")
    options = server.Options(
        spool=Path(values.spool),
        host=values.host,
        port=values.port,
        hosts=values.hosts,
        token=token(values.token_file),
        queue=values.queue,
        limit=values.max_mib * MIB,
        seconds=values.seconds,
        grace=values.stop_seconds,
        keep=values.keep_days * DAY,
        delete_sent=values.delete_sent,
        dicom_port=values.dicom_port,
        title=values.ae_title,
        peers=values.peers,
        quiet=values.quiet_seconds,
        send_to=sender.destination(values.send_to) if values.send_to else None,
        retries=values.retries,
        overlays=values.send_overlays,
    )
    delivered = {name: values[name].value for name in ("prompts", "method", "stage", "overlay_size", "every_view")}
    server.Service(options, scoring.open_model, (values.weights, delivered)).run(
        lambda address: print(f"serving at {address}; Ctrl-C stops it", flush=True)
    )
    return 0


if __name__ == "__main__":
    define_flags()
    command.run(main)
