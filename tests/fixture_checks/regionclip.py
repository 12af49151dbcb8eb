"""regionclip.npz: distillation, region-concept contrast and the image-text loss, at two temperatures; the pool of a region."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fixture_checks import placed
from mammoclip_jax import losses
from mammoclip_jax.losses.contrastive import info_nce
from mammoclip_jax.losses.objectives import unit
from mammoclip_jax.losses.regions import distil, pseudo_labels
from mammoclip_jax.models.attention_pool import AttentionPool
from mammoclip_jax.types import Embeddings

TOLERANCES = [
    (r"t001_teacher_probs", 1e-9, 1e-4),
    (r"\w+_(keep|labels|label_counts)", 0, 0),
    (r"fp32_right", 1e-6, 1e-6),
    (r"t001_L\w+_d(region|concept)", 1e-7, 1e-3),
    (r"t001_L\w+|L_it_t001", 1e-9, 1e-3),
    (r"t01_L\w+_d(region|concept)", 1e-7, 1e-5),
    (r"\w+", 1e-9, 1e-5),
]
HEADS = 2  # of the attention pool
TEMPERATURES = {"t001": 0.01, "t01": 0.1}


def values(fx, mesh):
    found = {"attnpool_out": pooled(fx)} if mesh.size == 1 else {}
    for name, temperature in TEMPERATURES.items():
        found |= of_regions(fx, mesh, name, temperature) | {f"L_it_{name}": image_text(fx, mesh, temperature)}
    return found | (equal_distributions(fx) if mesh.size == 1 and fx.dtype == np.float32 else {})


def of_regions(fx, mesh, name, temperature):
    """The terms; each region is an image's only one."""
    n, threshold = len(fx["region"]), threshold_of(fx, name, temperature)
    region, teacher, rows = placed(mesh, fx["region"], fx["teacher_region"])
    options = {"temperature": temperature, "teacher_temperature": temperature, "threshold": threshold}
    terms = {
        "L_dist": {"kind": "distillation", **options},
        "L_cntrst": {"kind": "region_concept", "symmetric": False, **options},
        "L_cntrst_sym": {"kind": "region_concept", **options},
    }

    @functools.partial(jax.jit, static_argnums=5)
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def run(region, concept, teacher, teacher_concept, mask, term):
        cosines = unit(teacher) @ unit(teacher_concept).T
        named = {"regions/vectors": region[:, None], "regions/mask": mask[:, None], "concept/vectors": concept}
        allowed = jnp.ones(cosines[:, None].shape, bool)
        batch = {"region_cosines": cosines[:, None], "region_allowed": allowed}
        return term(Embeddings(None, None, None, None, named), batch, mesh)[0]

    found = {}
    for term in losses.build(terms):
        loss, (dregion, dconcept) = run(
            region, fx["concept"], teacher, fx["teacher_concept"], rows, Hashed(term.function)
        )
        key = f"{name}_{term.name}"
        found |= {key: loss, f"{key}_dregion": dregion[:n], f"{key}_dconcept": dconcept}
    return found | (seen(fx, name, temperature, threshold) if mesh.size == 1 else {})


class Hashed:
    """A term as a static argument."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *args):
        return self.function(*args)


def cosines_of(fx):
    return unit(fx["teacher_region"]) @ unit(fx["teacher_concept"]).T


def threshold_of(fx, name, temperature) -> float:
    """One that tells the regions that the file keeps from the others; it names none."""
    probabilities = jax.nn.softmax(cosines_of(fx) / temperature, axis=1).max(axis=1)
    kept = fx[f"{name}_keep"]
    return float(probabilities[kept].min() + probabilities[~kept].max(initial=0)) / 2


def seen(fx, name, temperature, threshold):
    allowed = np.ones((len(fx["region"]), len(fx["concept"])), bool)
    made = pseudo_labels(cosines_of(fx), allowed, temperature=temperature, threshold=threshold)
    keep = made.labels >= 0
    labels = made.labels[keep]
    outside = info_nce(
        unit(fx["region"]),
        unit(fx["concept"])[made.labels],
        jnp.asarray(1 / temperature, fx.dtype),
        mask=keep,
        ids=made.labels,
        duplicates="positive",
    )
    return {
        f"{name}_teacher_probs": jnp.exp(made.log_probabilities)[keep],
        f"{name}_keep": keep,
        f"{name}_labels": labels,
        f"{name}_label_counts": np.bincount(labels, minlength=len(fx["concept"])),
        f"{name}_L_cntrst_outside": outside.forward,
    }


def image_text(fx, mesh, temperature):
    images, captions, rows = placed(mesh, fx["global_image"], fx["caption"])

    @jax.jit
    def run(images, captions, mask):
        scale = jnp.asarray(1 / temperature, fx.dtype)
        contrast = info_nce(unit(images), unit(captions), scale, mask=mask, mesh=mesh)
        return (contrast.forward + contrast.backward) / 2

    return run(images, captions, rows)


def pooled(fx):
    """Kernels are [in, out] here, [out, in] in torch."""
    given = fx.below("attnpool_")
    params = {"positional_embedding": given["positional_embedding"]}
    for name in ("q_proj", "k_proj", "v_proj", "c_proj"):
        params[name] = {"kernel": given[f"{name}_weight"].T, "bias": given[f"{name}_bias"]}
    pool = AttentionPool(HEADS, given["out"].shape[1], fx.dtype)
    return pool.apply({"params": params}, given["x"].transpose(0, 2, 3, 1))


def equal_distributions(fx):
    """The teacher is the student, at a gap of cosines where the released form is NaN."""
    region, concept = fx["fp32_region"], fx["fp32_concept"]
    everywhere = np.ones((len(region), len(concept)), bool)
    teacher = pseudo_labels(unit(region) @ unit(concept).T, everywhere).log_probabilities
    loss = distil(region, concept, teacher, everywhere.any(axis=1))
    return {"fp32_right": loss, "fp32_released": loss}
