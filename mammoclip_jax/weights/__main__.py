"""Published and own weights in and out.

    python -m mammoclip_jax.weights inspect FILE
    python -m mammoclip_jax.weights import FILE --out=models/b5 --tokenizer=DIR --origin="shawn24/Mammo-CLIP"
    python -m mammoclip_jax.weights export --workdir=runs/mine --out=models/mine
    python -m mammoclip_jax.weights export --workdir=runs/mine --out=mine.tar --format=torch
    python -m mammoclip_jax.weights export --workdir=runs/mine --out=mine_hlo --format=stablehlo

FILE is a PyTorch checkpoint, a safetensors file or a hub folder; nothing in it is run. The folder that `import` and
`export` write holds safetensors, config.json, the tokenizer and a model card; `mammoclip_jax.load(FOLDER)` reads it.
"""

from absl import flags

from mammoclip_jax import command
from mammoclip_jax.errors import UserError
from mammoclip_jax.weights import ACTIONS, FORMATS


def define_flags() -> None:
    """The flags of the command."""
    flags.DEFINE_string("out", "", "Folder to write (a file for --format=torch).")
    flags.DEFINE_string("workdir", "", "export: folder of a run, one checkpoint of it, or a model folder.")
    flags.DEFINE_enum(
        "format",
        "folder",
        list(FORMATS),
        "export: an open model folder, a PyTorch state dict "
        "for the original code of Mammo-CLIP, MaMA or CLIP, or StableHLO programs of the image tower.",
    )
    flags.DEFINE_string(
        "layout",
        "",
        "import: layout of the file, where it is not to be found from the "
        "keys; export --format=torch: of the file, where the model is of several (region_clip).",
    )
    flags.DEFINE_string("licence", "", "import: licence of the weights, a known one or any text.")
    flags.DEFINE_string("origin", "", "import: where the weights come from.")
    flags.DEFINE_string("tokenizer", "", "import: folder, tokenizer.json or hub name of the text encoder's tokenizer.")
    flags.DEFINE_list("labels", [], "import: names of the outputs of a classifier, detector or segmentation.")
    flags.DEFINE_list("platforms", ["cpu", "cuda", "tpu"], "export --format=stablehlo: platforms of the programs.")
    flags.DEFINE_string(
        "override_licence",
        "",
        "export: why it is allowed although the licence of the weights "
        "forbids it, such as a written permission; recorded in the model and its card.",
    )
    flags.DEFINE_string("json", "", "File for the figures.")


def main(argv) -> int:
    """The command; see --help."""
    action, words = (argv[1], argv[2:]) if len(argv) > 1 else ("", [])
    if action not in ACTIONS or len(words) != (action != "export"):
        raise UserError("say one of: import FILE --out=DIR, export --workdir=DIR --out=DIR, inspect FILE; see --help.")
    values = flags.FLAGS
    if action != "inspect" and not values.out:
        raise UserError(f"{action} needs --out.")
    from mammoclip_jax.weights import actions  # not for --help: it imports jax

    figures = getattr(actions, ACTIONS[action])(*words, values)
    command.write_json(values.json, figures)
    return 0


if __name__ == "__main__":
    define_flags()
    command.run(main, words=True)
