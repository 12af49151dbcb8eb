"""Under which terms weights and data sets were published, what they forbid, and how that is handed down.

A model's `provenance["licences"]` lists its own terms and those of all weights that it comes from; `provenance["data"]`
names the terms of the data that it was trained on. Terms outlive training: see `inherit`. None of this is legal advice;
entries say what has not been checked against the original text.
"""

import datetime
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import lookup

# Action -> (attribute of Licence, what it is called, where to say that it is allowed all the same).
ACTIONS = {
    "export": ("allows_export", "exporting", "--override_licence"),
    "initialise": ("allows_initialising", "starting another model from", "config.warm_start.NAME.override"),
    "label": ("allows_initialising", "finding what another model learns from with", "--override_licence"),
}


class Licence(NamedTuple):
    """Terms of weights or of a data set.

    Attributes:
        hub: identifier in a model card on the Hugging Face hub; "other" where it has none for these terms.
        source: where the terms are stated.
        terms: one or two sentences for people, with what is not verified.
        allows_export: a copy, or a model made from it, may be passed on.
        allows_initialising: another model may start from it.
        also: other ways of writing it, compared without case and punctuation.
        contained: the same, wherever in a text.
    """

    key: str
    title: str
    source: str
    terms: str
    hub: str = "other"
    allows_export: bool = True
    allows_initialising: bool = True
    share_alike: bool = False
    non_commercial: bool = False
    also: tuple[str, ...] = ()
    contained: tuple[str, ...] = ()


_ATTRIBUTION = "Use and pass on with attribution."
_NOTICE = "Use, change and pass on with the licence's notices."

LICENCES = {
    licence.key: licence
    for licence in (
        # Published weights.
        Licence(
            "mammo_clip",
            "CC BY-NC-SA 4.0 (Mammo-CLIP)",
            "https://github.com/batmanlab/Mammo-CLIP",
            "Attribution, no commercial use; what is made from it goes on under the same terms. Its card on the hub "
            "once said CC BY 4.0; which of both holds for the weights is unresolved, so the stricter one is taken.",
            hub="cc-by-nc-sa-4.0",
            share_alike=True,
            non_commercial=True,
        ),
        Licence(
            "mammo_fm",
            "Mammo-FM academic weights licence",
            "LICENSE_WEIGHTS.txt in https://github.com/batmanlab/Mammo-FM",
            "Academic use only: no redistribution, no hosting or serving, no distillation, no initialising or "
            "improving of another model, no clinical or industry use.",
            allows_export=False,
            allows_initialising=False,
            non_commercial=True,
            contained=("mammofm",),
        ),
        Licence(
            "medclip",
            "MedCLIP: no licence stated",
            "https://github.com/RyanWangZf/MedCLIP",
            "The repository has no licence file; its setup.py says BSD, and whether that covers the weights is not "
            "said. Ask the authors before passing them on.",
        ),
        Licence(
            "mama",
            "MaMA: Apache-2.0 code, weights withdrawn",
            "https://github.com/XYPB/MaMA",
            "The code is Apache-2.0; the authors withdrew the weights, which were trained on EMBED, whose agreement "
            "forbids the public release of models trained on it without written permission.",
            allows_export=False,
            non_commercial=True,
        ),
        Licence(
            "bio_clinicalbert",
            "MIT (Bio_ClinicalBERT)",
            "https://huggingface.co/emilyalsentzer/Bio_ClinicalBERT",
            _NOTICE + " Trained on MIMIC-III notes. Not checked against the licence text.",
            hub="mit",
            also=("emilyalsentzer/Bio_ClinicalBERT",),
        ),
        Licence(
            "biomedlm",
            "BigScience BLOOM RAIL 1.0 (BioMedLM)",
            "https://huggingface.co/stanford-crfm/BioMedLM",
            "May be used and passed on, with its restrictions of use handed down. Named so on its model card, which "
            "calls it unfit for production; not checked against the licence text.",
            hub="bigscience-bloom-rail-1.0",
            also=("bigscience-bloom-rail-1.0", "stanford-crfm/BioMedLM"),
        ),
        Licence(
            "dinov2", "Apache-2.0 (DINOv2)", "https://github.com/facebookresearch/dinov2", _NOTICE, hub="apache-2.0"
        ),
        Licence(
            "clip",
            "MIT (OpenAI CLIP)",
            "https://github.com/openai/CLIP",
            _NOTICE
            + " Its model card calls any deployed use out of scope, and says that it was trained on public images "
            "and texts of the internet, which are not named.",
            hub="mit",
        ),
        Licence(
            "region_clip",
            "Apache-2.0 (RegionCLIP)",
            "https://github.com/microsoft/RegionCLIP",
            _NOTICE
            + " Of the code; the weights start from OpenAI's CLIP (MIT) and were trained on Conceptual Captions, "
            "whose images keep their owners' terms.",
            hub="apache-2.0",
        ),
        Licence(
            "modernbert",
            "Apache-2.0 (ModernBERT)",
            "https://huggingface.co/answerdotai/ModernBERT-base",
            _NOTICE,
            hub="apache-2.0",
            also=("answerdotai/ModernBERT-base",),
        ),
        Licence(
            "minilm",
            "Apache-2.0 (all-MiniLM-L6-v2)",
            "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            _NOTICE,
            hub="apache-2.0",
            also=("sentence-transformers/all-MiniLM-L6-v2",),
        ),
        Licence(
            "efficientnet_pytorch",
            "Apache-2.0 (efficientnet_pytorch)",
            "https://github.com/lukemelas/EfficientNet-PyTorch",
            _NOTICE + " Of the code; the weights were trained on ImageNet, whose images are for non-commercial "
            "research, and what that means for the weights is not settled.",
            hub="apache-2.0",
        ),
        Licence(
            "torchvision",
            "BSD-3-Clause (torchvision)",
            "https://github.com/pytorch/vision",
            _NOTICE + " Of the code; the weights may carry terms of their training data, such as ImageNet's.",
            hub="bsd-3-clause",
        ),
        Licence(
            "timm",
            "Apache-2.0 (timm)",
            "https://github.com/huggingface/pytorch-image-models",
            _NOTICE + " Of the code; weights carry the terms on their own cards, and those of their training data.",
            hub="apache-2.0",
        ),
        # Data sets with a say on models.
        Licence(
            "embed",
            "EMBED Research Use Agreement",
            "EMBED_license.md in https://github.com/Emory-HITI/EMBED_Open_Data, clauses 1 and 5",
            "Non-commercial research; models, weights or embedding spaces trained or fine-tuned on any part of it "
            "may not be released to the public without written permission of Emory University.",
            allows_export=False,
            non_commercial=True,
            contained=("embedresearchuseagreement", "emorybreastimagingdataset"),
        ),
        # General ones, for what users say.
        Licence(
            "apache-2.0",
            "Apache-2.0",
            "https://www.apache.org/licenses/LICENSE-2.0",
            _NOTICE,
            hub="apache-2.0",
            also=("apache", "apache 2", "apache license 2.0", "apache license, version 2.0"),
        ),
        Licence("mit", "MIT", "https://opensource.org/license/mit", _NOTICE, hub="mit", also=("mit license",)),
        Licence(
            "bsd-3-clause",
            "BSD-3-Clause",
            "https://opensource.org/license/bsd-3-clause",
            _NOTICE,
            hub="bsd-3-clause",
            also=("bsd 3", "bsd"),
        ),
        Licence(
            "cc0-1.0",
            "CC0 1.0",
            "https://creativecommons.org/publicdomain/zero/1.0/",
            "No conditions.",
            hub="cc0-1.0",
            also=("cc0",),
        ),
        Licence(
            "cc-by-3.0", "CC BY 3.0", "https://creativecommons.org/licenses/by/3.0/", _ATTRIBUTION, hub="cc-by-3.0"
        ),
        Licence(
            "cc-by-4.0", "CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/", _ATTRIBUTION, hub="cc-by-4.0"
        ),
        Licence(
            "cc-by-nc-4.0",
            "CC BY-NC 4.0",
            "https://creativecommons.org/licenses/by-nc/4.0/",
            _ATTRIBUTION + " No commercial use.",
            hub="cc-by-nc-4.0",
            non_commercial=True,
        ),
        Licence(
            "cc-by-sa-4.0",
            "CC BY-SA 4.0",
            "https://creativecommons.org/licenses/by-sa/4.0/",
            _ATTRIBUTION + " What is made from it goes on under the same terms.",
            hub="cc-by-sa-4.0",
            share_alike=True,
        ),
        Licence(
            "cc-by-nc-sa-4.0",
            "CC BY-NC-SA 4.0",
            "https://creativecommons.org/licenses/by-nc-sa/4.0/",
            _ATTRIBUTION + " No commercial use; what is made from it goes on under the same terms.",
            hub="cc-by-nc-sa-4.0",
            share_alike=True,
            non_commercial=True,
        ),
        Licence(
            "unknown",
            "unknown",
            "nobody said",
            "Nothing is known of the terms: find out before passing it on.",
            hub="unknown",
        ),
    )
}


def find(text: str) -> Licence:
    """The licence of that key or name, or one with that title of which nothing is known and which forbids nothing.

    Texts that name terms with a prohibition are recognised wherever they name them, so that a longer wording does not
    get round it.
    """
    if text in LICENCES:
        return LICENCES[text]
    wanted = _letters(text)
    if not wanted:
        return LICENCES["unknown"]
    for licence in LICENCES.values():
        if wanted in {_letters(name) for name in (licence.key, licence.title, *licence.also)}:
            return licence
    for licence in LICENCES.values():
        if any(part in wanted for part in licence.contained):
            return licence
    return Licence(
        text, text, "as stated by the user or the data set", "Only this name is recorded, not what it asks for."
    )


def terms(provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Entries of a model's `provenance`: of its own and its parents' weights, then of its data sets.

    Each holds weights (what they are the terms of), licence, title and stated (by somebody, or presumed); those of data
    sets also data (the name), real and counts.
    """
    entries = [dict(entry) for entry in provenance.get("licences") or ()]
    for name, data in (provenance.get("data") or {}).items():
        term = find(data.get("licence") or "")
        entries.append(
            {
                "weights": f"data set {name}",
                "licence": term.key,
                "title": term.title,
                "stated": True,
                "data": name,
                "real": data.get("real"),
                "counts": data.get("counts"),
            }
        )
    return entries


def check(action: str, provenance: Mapping[str, Any], override: str = "") -> dict[str, Any] | None:
    """Whether the terms of a model, its parents and its data allow an action: "export", "initialise" or "label".

    Args:
        override: why it is allowed all the same, such as "written permission of A. Author, 3 May 2026".

    Returns:
        None where nothing forbids it; else, with an override, what to append to provenance["overrides"]:
        {"action", "override", "of": what the terms are of, "date": ISO}.

    Raises:
        UserError: it is forbidden and nothing was overridden, or there is no such action.
    """
    attribute, doing, flag = lookup(ACTIONS, action, "action that licences are checked for")
    pairs = [(entry, find(entry["licence"])) for entry in terms(provenance)]
    against = [(entry, licence) for entry, licence in pairs if not getattr(licence, attribute)]
    if not against:
        return None
    if override.strip():
        of = list(dict.fromkeys(entry["weights"] for entry, _ in against))
        return {"action": action, "override": override.strip(), "of": of, "date": datetime.date.today().isoformat()}
    reasons = " ".join(
        f"{entry['weights']}: {licence.title}. {licence.terms} See {licence.source}." for entry, licence in against
    )
    raise UserError(
        f"{doing} this model is against the terms of what it comes from. {reasons} If you have a "
        f'permission, say so with {flag}="...": the text is recorded in the model.'
    )


def inherit(parents: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """provenance["licences"] of a model that starts from others, given their provenances.

    All terms of each parent, those of its data sets too, once each: they hold for everything that is made from it.
    """
    return _once(entry for parent in parents for entry in terms(parent))


def inherit_overrides(parents: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """provenance["overrides"] of a model that starts from others: what was overridden on the way to them."""
    return _once(dict(record) for parent in parents for record in parent.get("overrides") or ())


def joined(provenance: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`provenance` with what is in `more`; parents, terms and overrides are those of both, once each."""
    lists = {
        key: _once([*provenance.get(key, ()), *more.get(key, ())])
        for key in ("parents", "licences", "overrides")
        if key in provenance or key in more
    }
    return {**provenance, **more, **lists}


def _once(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = []
    for entry in entries:
        if entry not in kept:
            kept.append(entry)
    return kept


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
