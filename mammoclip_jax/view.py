"""Look through exams in the browser: the four views as radiologists hang them, maps, scores, phrases, reports.

    python -m mammoclip_jax.view runs/demo --dataset=runs/demo/data/phantom
    python -m mammoclip_jax.view runs/demo runs/other --dataset=data/vindr --cache=features     # two models side by side
    python -m mammoclip_jax.view runs/classifier/evaluation --dataset=data/vindr                # predictions, without a model
    python -m mammoclip_jax.view runs/demo --dataset=data/vindr --export=EXAM_ID --out=exam.html

The words are runs, checkpoints, model folders, published files or hub names, or what `evaluate` wrote (a folder with
predictions*.csv, or one such file). Of a run with predictions of the data set their scores are listed; else they are
computed while one looks. The page is for this machine alone; --host=0.0.0.0 serves others, who need the token that is
printed. docs/view.md says what is on the page.
"""

import logging
import re
import secrets
import socket
from pathlib import Path

from absl import flags

from mammoclip_jax import command
from mammoclip_jax.errors import UserError

MOST = 2  # models beside each other


def define_flags() -> None:
    """The flags of the command."""
    flags.DEFINE_string("dataset", None, "Data set folder, prepared as the models want it.", required=True)
    flags.DEFINE_string("host", "127.0.0.1", "Where the server listens; all but loopback needs the token.")
    flags.DEFINE_integer("port", 8090, "Port; 0: any that is free.", lower_bound=0, upper_bound=65535)
    flags.DEFINE_string(
        "token", "", "What a browser must bring; without, one is made up where others can reach the server."
    )
    flags.DEFINE_string(
        "prompts", "", "Prompt file of a dual encoder, by name or path, instead of config.predict.prompts."
    )
    flags.DEFINE_string(
        "slices", "", "Folder that `slices --out` wrote; by default that of slices --config beside the run."
    )
    flags.DEFINE_string("cache", "", "Folder that keeps image vectors for the next time.")
    flags.DEFINE_string(
        "export", "", "Instead of serving: the exam of this id (it stands in the page's address) as a page."
    )
    flags.DEFINE_string("out", "", "File for --export.")


def main(argv) -> int:
    """The command; see --help."""
    values, words = flags.FLAGS, argv[1:]
    check_flags(values, words)
    from mammoclip_jax.viewer.app import Viewer  # not for --help, nor a mistake in the command: they import jax
    from mammoclip_jax.viewer.export import export

    catalogue, sides = open_sides(values, words)
    if values.export:
        print(f"page: {export(catalogue, sides[0], values.export, Path(values.out))}")
        return 0
    return serve(values, Viewer(catalogue, sides, open_slices(values, words, catalogue)))


def check_flags(values, words: list[str]) -> None:
    """Raises UserError where a word or a flag lacks, is of no use, or does not go with another."""
    if not 1 <= len(words) <= MOST:
        raise UserError("name one run, model or folder of predictions, or two to be shown side by side; see --help.")
    if values.token and not re.fullmatch(r"[\w.~-]{16,}", values.token, re.ASCII):
        raise UserError("--token must be 16 or more letters, digits, dots, dashes: it stands in an address.")
    if bool(values.export) != bool(values.out):
        raise UserError("--export=EXAM_ID and --out=FILE go together: give both or neither.")
    if values.export and (len(words) > 1 or values.token or values.slices):
        raise UserError(
            "--export writes a page of one model: a second one, --token and --slices are of no use with it."
        )


def open_sides(values, words: list[str]):
    """(the catalogue, a `Side` for each word).

    Raises:
        UserError: a word names neither a model nor predictions, or the images were prepared otherwise than a model wants.
    """
    from mammoclip_jax.data.store.shards import Dataset
    from mammoclip_jax.evaluation.suite import check_preprocessing
    from mammoclip_jax.inference import loading
    from mammoclip_jax.tasks import split_as_trained
    from mammoclip_jax.viewer import scored
    from mammoclip_jax.viewer.catalogue import Catalogue
    from mammoclip_jax.viewer.reader import Reader
    from mammoclip_jax.viewer.side import Side

    dataset, models = Dataset.open(values.dataset), []
    for word in words:
        if (Path(word) / "prediction.json").is_file():
            raise UserError(
                f"{word} is what predict wrote, a page for each exam (exam.html): open these. view takes a model, or what "
                "evaluate wrote of a data set."
            )
        model = None if only_predictions(word) else loading.load(word)
        if model is not None:
            check_preprocessing(model, values.dataset, dataset)
            dataset = split_as_trained(model, {"": dataset})[""] if not models else dataset
        models.append(model)
    if values.prompts and not any(model is not None and model.kind == "dual_encoder" for model in models):
        raise UserError("--prompts is of no use without a dual encoder: leave it out.")
    if values.cache and not any(models):
        raise UserError("--cache keeps vectors of a model, and there are predictions alone: leave it out.")
    catalogue, sides = Catalogue(dataset), []
    for word, model in zip(words, models, strict=True):
        name = name_of(word, words)
        stored = []
        if model is None or scored.has_predictions(run_of(word)):
            try:
                stored = scored.stored(run_of(word), dataset.index, dataset.info["name"])
            except UserError as error:
                if model is None:
                    raise
                logging.info("%s Scores are computed instead.", error)
        reader = Reader(model, name, values.prompts) if model is not None else None
        sides.append(Side(name, catalogue, reader, stored, values.cache))
    return catalogue, sides


def only_predictions(word: str) -> bool:
    """Whether a word names what `evaluate` wrote, and no model."""
    from mammoclip_jax.viewer.scored import has_predictions

    path = Path(word)
    if path.is_dir() and ((path / "checkpoints").is_dir() or any(path.glob("*.safetensors"))):
        return False
    return path.exists() and has_predictions(path)


def run_of(word: str) -> Path:
    """The run's folder of a word that names one of its checkpoints, else the word itself."""
    path = Path(word)
    return path.parent.parent if path.parent.name == "checkpoints" else path


def name_of(word: str, words: list[str]) -> str:
    """What a side is called on the page: the last part of its path that the other side does not have."""
    parts = [Path(other).parts for other in words]
    own = Path(word).parts
    for count in range(1, len(own) + 1):
        if sum(other[-count:] == own[-count:] for other in parts) == 1:
            return "/".join(own[-count:])
    return own[-1] if own else word


def open_slices(values, words: list[str], catalogue) -> list:
    """Error slices of --slices, or of the folder `slices` beside the first run, if it holds any.

    Raises:
        UserError: --slices holds none of this data set.
    """
    from mammoclip_jax.viewer import error_slices

    index, name = catalogue.dataset.index, catalogue.dataset.info["name"]
    if values.slices:
        return error_slices.of_folder(values.slices, index, name)
    beside = run_of(words[0]).parent / "slices"
    try:
        return error_slices.of_folder(beside, index, name) if beside.is_dir() else []
    except UserError as error:
        logging.info("%s", error)
        return []


def serve(values, viewer) -> int:
    """Listens until it is stopped; prints the address first."""
    import uvicorn

    from mammoclip_jax.viewer import guard

    token = values.token
    if not token and not guard.is_loopback(values.host):
        token = secrets.token_urlsafe(24)
    app = viewer.app(guard.names_of(values.host), token)
    try:
        listening = socket.create_server((values.host, values.port), family=_family(values.host))
    except OSError as error:
        raise UserError(
            f"the server cannot listen at {values.host}, port {values.port} ({error.strerror}): name another with --port, "
            "or --port=0 for any that is free."
        ) from error
    port = listening.getsockname()[1]
    shown = socket.gethostname() if values.host in ("", "0.0.0.0", "::") else values.host
    shown = f"[{shown}]" if ":" in shown else shown
    print(f"page: http://{shown}:{port}/{f'?token={token}' if token else ''}", flush=True)
    print("Ctrl-C ends it.", flush=True)
    settings = uvicorn.Config(
        app, log_config=None, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2
    )
    try:
        uvicorn.Server(settings).run(sockets=[listening])
    except KeyboardInterrupt:  # the usual end
        pass
    for side in viewer.sides:
        if side.survey:
            side.survey.stop()
    return 0


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


if __name__ == "__main__":
    define_flags()
    command.run(main, words=True)
