"""Evaluators: functions `(model, dataset, **options) -> Result`. To add one, write a file and add its line here."""

EVALUATORS = {
    "classification": "mammoclip_jax.evaluation.evaluators.classification:classification",
    "detection": "mammoclip_jax.evaluation.evaluators.detection:detection",
    "linear_probe": "mammoclip_jax.evaluation.evaluators.probe:linear_probe",
    "zero_shot": "mammoclip_jax.evaluation.evaluators.zero_shot:zero_shot",
    "retrieval": "mammoclip_jax.evaluation.evaluators.retrieval:retrieval",
    "saliency": "mammoclip_jax.evaluation.evaluators.saliency:saliency",
}

# The kinds of model (`inference.loading.KINDS`) that an evaluator takes, where it does not take all.
MODELS = {
    "classification": ("classifier",),
    "detection": ("detector",),
    "retrieval": ("dual_encoder",),
    "saliency": ("dual_encoder", "classifier", "detector"),
    "zero_shot": ("dual_encoder",),
}
