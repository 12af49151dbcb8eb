"""Evaluators: functions `(model, dataset, **options) -> Result`. To add one: a file in evaluators/ and its line here."""

EVALUATORS = {
    "class_retrieval": "class_retrieval.class_retrieval",
    "classification": "classification.classification",
    "correspondence": "correspondence.correspondence",
    "detection": "detection.detection",
    "grounding": "grounding.grounding",
    "linear_probe": "probe.linear_probe",
    "zero_shot": "zero_shot.zero_shot",
    "retrieval": "retrieval.retrieval",
    "saliency": "saliency.saliency",
}

# The kinds of model (`inference.loading.KINDS`) that an evaluator takes, where it does not take all.
MODELS = {
    "class_retrieval": ("dual_encoder",),
    "classification": ("classifier",),
    "correspondence": ("dual_encoder",),
    "detection": ("detector",),
    "grounding": ("dual_encoder",),
    "retrieval": ("dual_encoder",),
    "saliency": ("dual_encoder", "classifier", "detector"),
    "zero_shot": ("dual_encoder",),
}
