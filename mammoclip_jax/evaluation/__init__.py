"""Evaluators: functions `(model, dataset, **options) -> Result`. To add one: a file in evaluators/ and its line here."""

EVALUATORS = {
    "class_retrieval": "class_retrieval.class_retrieval",
    "classification": "classification.classification",
    "correspondence": "correspondence.correspondence",
    "detection": "detection.detection",
    "grounding": "grounding.grounding",
    "region_classification": "region_classification.region_classification",
    "region_grounding": "region_grounding.region_grounding",
    "region_retrieval": "region_retrieval.region_retrieval",
    "linear_probe": "probe.linear_probe",
    "localisation": "localisation.localisation",
    "zero_shot": "zero_shot.zero_shot",
    "retrieval": "retrieval.retrieval",
    "saliency": "saliency.saliency",
    "segmentation": "segmentation.segmentation",
    "zero_shot_detection": "zero_shot_detection.zero_shot_detection",
}

# The kinds of model (`inference.loading.KINDS`) that an evaluator takes, where it does not take all.
MODELS = {
    "class_retrieval": ("dual_encoder",),
    "classification": ("classifier", "attributes"),
    "correspondence": ("dual_encoder",),
    "detection": ("detector",),
    "grounding": ("dual_encoder",),
    "localisation": ("dual_encoder", "classifier", "detector", "attributes"),
    "region_classification": ("dual_encoder",),
    "region_grounding": ("dual_encoder",),
    "region_retrieval": ("dual_encoder",),
    "retrieval": ("dual_encoder",),
    "saliency": ("dual_encoder", "classifier", "detector", "attributes"),
    "segmentation": ("segmenter",),
    "zero_shot": ("dual_encoder",),
    "zero_shot_detection": ("dual_encoder",),
}
