"""Learning from images and their texts: a dual encoder and the terms in `config.losses`."""

from pathlib import Path

import numpy as np

from mammoclip_jax import losses, models
from mammoclip_jax.data.batches import image_text, region_phrases, regions, targets, texts, units, unpaired
from mammoclip_jax.data.text import concepts, tokenizer
from mammoclip_jax.errors import UserError
from mammoclip_jax.tasks import cached_text
from mammoclip_jax.tasks.trainer import Trainer, abstract_batch, assemble, check_rows
from mammoclip_jax.training import augment, gradient_caching
from mammoclip_jax.training import mesh as meshes
from mammoclip_jax.training.step import init_variables, make_gradient_fn, total_loss

MODEL = "dual_encoder"
COMMAND = "pretrain"
READS = (
    *("data", "losses", "train.micro_batches", "train.logit_scale_max"),
    *("model.text", "model.dim", "model.projection", "model.projected", "model.pooling", "model.pooling_token"),
    *("model.frozen", "model.cached_text", "model.lora", "model.heads", "model.image_head"),
    *("model.logit_scale", "model.logit_bias"),
)


def check(config) -> None:
    """Raises UserError where there is nothing to learn from, or to tell apart."""
    if not config.losses:
        raise UserError("config.losses is empty: name at least one loss term, such as mammo_clip.")
    if config.train.batch_size == 1:
        raise UserError(
            f"config.train.batch_size={config.train.batch_size}: a contrast needs other breasts to tell "
            "apart, 2 at the least. To save memory raise config.train.micro_batches instead."
        )
    image_text.check(_options(config))
    _check_targets(config)
    _check_unpaired(config)
    _check_regions(config)
    _check_phrases(config)
    if config.model.cached_text:
        cached_text.check(config)


def _check_targets(config) -> None:
    asked = config.data.targets.source
    reading = [term.name for term in _terms(config) if "target" in term.reads]
    if reading and not asked:
        raise UserError(
            f"config.losses.{reading[0]} compares labels, and config.data.targets asks for none: set its source "
            '("labels" or "text") and its fields, such as ("mass", "calcification").'
        )
    if asked and not reading:
        raise UserError(
            f"no term of config.losses reads config.data.targets.source={asked!r}: take it out, or add soft_targets."
        )


def _check_unpaired(config) -> None:
    asked, terms = unpaired.unpaired(config.data.unpaired), _terms(config)
    if asked.asked and all(term.pairs_alone for term in terms):
        raise UserError(
            f"no term of config.losses sees the rows that config.data.unpaired asks for: {', '.join(t.name for t in terms)} "
            "leave out what is no pair. Add soft_targets, or take config.data.unpaired out."
        )
    if asked.texts and not any("target" in term.reads for term in terms):
        raise UserError(
            f"no term of config.losses compares texts with other images than their own, which config.data.unpaired.texts="
            f"{asked.texts!r} have none of: add soft_targets, or take it out."
        )


def _check_regions(config) -> None:
    places, reading = (
        config.data.regions.places,
        [term.name for term in _terms(config) if {"region_allowed", "phrase_region"} & {*term.reads}],
    )
    if reading and not places:
        raise UserError(
            f"config.losses.{reading[0]} compares regions with concepts, and config.data.regions.places is 0: set it, the "
            "sources and the concepts."
        )
    if places and not reading:
        raise UserError(
            f"no term of config.losses reads config.data.regions (places={places}): take it out, or add region_concept."
        )
    if places and min(config.augment.crop) < 1:
        raise UserError("config.augment.crop keeps all boxes, and regions lie all over: leave it at (1.0, 1.0).")


def _check_phrases(config) -> None:
    count = config.data.phrases.count
    reading = [term.name for term in _terms(config) if "phrase_region" in term.reads]
    if reading and not count:
        raise UserError(
            f"config.losses.{reading[0]} compares regions with phrases, and config.data.phrases.count is 0: set it."
        )
    if count and not reading:
        raise UserError(
            f"no term of config.losses reads config.data.phrases (count={count}): take it out, or add region_phrase."
        )


def _terms(config) -> list[losses.Term]:
    return losses.build(config.losses, ranges=targets.ranges(config.data.targets.fields))


def network(config):
    """The model of a config, for a tokenizer of any size.

    Raises:
        UserError: a part, an option or a head is unknown, or one that no term needs.
    """
    model = models.build(config.model, config.model.text.get("vocab_size", 1))
    head_starts(model, _terms(config))
    return model


def split(config, datasets):
    """The data sets as they are."""
    return datasets


def load_tokenizer(config, workdir, datasets) -> tokenizer.Tokenize:
    """The tokenizer the config names, with the tokens that it adds; by default a WordPiece trained on the training texts,
    where there are none on the captions of training images, and kept in `workdir`."""
    data = config.data
    return _named_tokenizer(config, workdir, datasets).extended(data.special_tokens, data.frame, data.separator)


def _named_tokenizer(config, workdir, datasets) -> tokenizer.Tokenize:
    if config.data.tokenizer:
        return tokenizer.load(config.data.tokenizer)
    path = Path(workdir, "tokenizer.json")
    if not path.exists():
        words = [
            text
            for dataset in datasets.values()
            for told in dataset.index["texts"][dataset.index["split"] == "train"]
            for text in told
        ] or texts.sample_captions([dataset.index for dataset in datasets.values()], config.data.captions)
        if not words:
            raise UserError(
                "no training image has a text, or labels that the template of config.data.captions speaks of: "
                "config.data.captions=findings writes captions from density, findings and BI-RADS (docs/own_data.md)."
            )
        tokenizer.Tokenize(tokenizer.train_wordpiece(words, config.data.vocab_size)).save(path)
    return tokenizer.load(path)


def prepare(config, datasets, preprocessing: dict, mesh, *, tokenize, workdir):
    """(Trainer, this process's checkpointable iterator of its devices' parts of the training batches).

    Raises:
        UserError: the config or the data are wrong; see `make_trainer`.
    """
    trainer = make_trainer(config, tokenize.vocab_size, preprocessing, mesh, tokenize)
    return trainer, train_iterator(config, datasets, tokenize, mesh, workdir)


def train_iterator(config, datasets, tokenize, mesh, workdir):
    """This process's checkpointable iterator of its devices' parts of the training batches."""
    data = config.data
    rows = tuple(meshes.process_rows(config.train.batch_size, mesh, config.model.image.get("rows")))
    if data.weights and set(data.weights) != set(datasets):
        raise UserError(
            f"config.data.weights is of {', '.join(data.weights)}: give the part of each of "
            f"{', '.join(datasets)} that config.data.folders names, or leave it out."
        )
    return image_text.train_iterator(
        list(datasets.values()),
        tokenize,
        _options(config),
        batch_size=config.train.batch_size,
        seed=config.seed,
        rows=rows,
        weights=[data.weights[name] for name in datasets] if data.weights else None,
        read_threads=data.read_threads,
        features=cached_text.table(workdir) if config.model.cached_text else None,
    )


def _options(config) -> image_text.Options:
    data = config.data
    return image_text.Options(
        data.text_length,
        data.views,
        data.texts,
        data.other_views,
        texts.Augment(data.flip_horizontal, data.flip_vertical, data.shuffle_sentences, data.flip_each_view),
        texts.text_options(data),
        tuple(data.slots),
        units.partner(data.partner),
        data.sentences,
        data.boxes,
        targets.targets(data.targets),
        regions.regions(data.regions),
        unpaired.unpaired(data.unpaired),
        region_phrases.wanted(data.phrases),
    )


def start(config, trainer, state, datasets, *, tokenize, workdir) -> None:
    """Computes the features of all texts, where the text tower runs once."""
    if config.model.cached_text:
        cached_text.prepare(config, trainer, state, datasets, tokenize, workdir)


def make_trainer(config, vocab_size: int, preprocessing: dict, mesh, tokenize=None) -> Trainer:
    """The Trainer of a config.

    Args:
        vocab_size: of the tokenizer.
        tokenize: of the concepts that regions are compared with; None: only shapes count (ahead-of-time compilation).
        preprocessing: of the data set (`dataset.json`); height, width and bits count here.
        mesh: may be of devices that are not there (ahead-of-time compilation); then `init` cannot be called.

    Raises:
        UserError: an unknown part or option, a batch that does not split over the mesh, a rule without parameters.
    """
    model = models.build(config.model, vocab_size)
    terms = _terms(config)
    heads = head_starts(model, terms)
    check_rows(config, model.image_encoder, preprocessing, mesh)
    preprocess = augment.preprocess_options(config)
    image_shape = (preprocessing["height"], preprocessing["width"], preprocess.channels)

    def fresh(key):
        return init_variables(model, key, image_shape, config.data.text_length)

    def gradient(frozen):
        loss = contrast(model, terms, preprocess, mesh, config.train.micro_batches, heads, _concepts(config, tokenize))
        return make_gradient_fn(loss, preprocess, frozen)

    def batch(params):
        data = config.data
        texts, length = data.texts, data.text_length
        more: dict = {"token_ids": ((texts, length), np.int32), "token_mask": ((texts, length), bool)}
        if data.sentences:
            more["sentence"] = (texts, length), np.int32
        if data.slots:
            more["view_mask"] = (data.views,), bool
        if data.flip_each_view:
            more |= {f"flip_{axis}": ((data.views,), bool) for axis in ("horizontal", "vertical")}
        if data.boxes:
            more["boxes"] = (data.views, data.boxes, 4), np.float32
            more["box_classes"] = (data.views, data.boxes), np.int32
        if places := data.regions.places:
            of_concepts = data.views, places, len(concepts.load(data.regions.concepts))
            more |= {"boxes": ((data.views, places, 4), np.float32), "box_classes": ((data.views, places), np.int32)}
            more |= {"region_allowed": (of_concepts, bool), "region_cosines": (of_concepts, np.float32)}
        if count := data.phrases.count:
            tokens = count, data.phrases.length
            more |= {"phrase_ids": (tokens, np.int32), "phrase_mask": (tokens, bool)}
            more |= {"phrase_region": ((count, 2), np.int32), "phrase_negated": ((count,), bool)}
            more |= {"phrase_level": ((count,), np.int32), "phrase_findings": ((count,), np.int32)}
        if data.targets.source:
            labels = data.views, len(data.targets.fields)
            more |= {"target": (labels, np.float32), "known": (labels, bool)}
        if unpaired.unpaired(data.unpaired).asked:
            more |= {"paired": ((), bool), "has_text": ((), bool)}
            if data.targets.source:
                labels = texts, len(data.targets.fields)
                more |= {"text_target": (labels, np.float32), "text_known": (labels, bool)}
        if config.model.cached_text:  # pooled to as many numbers as the projection takes
            projects = "text" not in config.model.projected
            width = params["text_projection"]["dense"]["kernel"].shape[0] if projects else config.model.dim
            more["text_features"] = (texts, width), np.float32
        return abstract_batch(config, preprocessing, mesh, data.views, more)

    return assemble(
        config, mesh, model, fresh, batch, gradient, {f"heads/{name}": start for name, start in heads.items()}
    )


def _concepts(config, tokenize) -> gradient_caching.Concepts | None:
    """The texts of the concepts of `config.data.regions`, as many as a text's micro-batches divide; zeros without a
    tokenizer, where only shapes count."""
    if not config.data.regions.places:
        return None
    lexicon = concepts.load(config.data.regions.concepts)
    owners = [number for number, concept in enumerate(lexicon) for _ in concept.prompts]
    texts = [prompt for concept in lexicon for prompt in concept.prompts]
    more = -len(texts) % config.train.micro_batches.text
    share = np.zeros((len(lexicon), len(texts) + more), np.float32)
    share[owners, range(len(owners))] = 1 / np.bincount(owners)[owners]
    shape = (share.shape[1], config.data.text_length)
    if tokenize is None:
        return gradient_caching.Concepts(np.zeros(shape, np.int32), np.ones(shape, bool), share)
    ids, mask = tokenize.encode(texts + texts[:1] * more, config.data.text_length)
    longest = -(-int(mask.sum(axis=1).max()) // 8) * 8  # padding costs time
    return gradient_caching.Concepts(ids[:, :longest], mask[:, :longest], share)


def head_starts(model, terms) -> dict[str, int]:
    """Each head of the model with the step at which the first of the terms that need it starts.

    Raises:
        UserError: a term needs a head that is not there, or no term needs one that is.
    """
    known = tuple(model.heads.makers) if model.heads else ()
    image_head = getattr(model, "model", model).image_head  # of an adapted model, that of its base
    starts = {image_head: 0} if image_head else {}
    for term in terms:
        for head in dict.fromkeys(need.split("/")[0] for need in term.needs):
            if head in known:
                starts[head] = min(term.start_step, starts.get(head, term.start_step))
            elif head not in (*models.TOWERS, "concept", "phrase"):
                raise UserError(
                    f"config.losses.{term.name} needs the head {head!r}, and config.model.heads has "
                    f"{', '.join(known) or 'none'}: add it there, or set the term's option `head`."
                )
    if idle := [head for head in known if head not in starts]:
        raise UserError(f"no term of config.losses needs config.model.heads.{idle[0]}: take it out, or add its term.")
    return starts


def contrast(model, terms, preprocess, mesh, micro_batches, heads={}, concepts=None):
    """The loss of `make_gradient_fn`: the weighted sum of `terms` (`losses.build`) over the global batch.

    `heads` are those that the terms need (`head_starts`), `concepts` the texts that they compare regions with.
    """
    needs = tuple(dict.fromkeys(name for term in terms for name in term.needs))

    def loss_fn(variables, batch, draws, key, step):
        embeddings, batch_stats = gradient_caching.embed(
            model,
            variables,
            batch,
            lambda image, drawn: augment.train_images(image, drawn, preprocess),
            draws,
            key,
            micro_batches,
            needs,
            heads,
            step,
            concepts,
        )
        loss, metrics = total_loss(terms, embeddings, batch, mesh, step)
        return loss, metrics, batch_stats

    return loss_fn
