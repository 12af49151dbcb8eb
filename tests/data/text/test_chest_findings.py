"""What reports of chest radiographs say of CheXpert's observations: affirmed, denied, uncertain or not named."""

import numpy as np
import pytest

from mammoclip_jax.data.batches import targets
from mammoclip_jax.data.sources import chest_labels
from mammoclip_jax.data.text import chest_findings, findings, reports, templating
from mammoclip_jax.inference.prompt_files import load

# Text -> what it says; a finding that is not named here is not asked.
SAID = [
    ("There is no focal consolidation, pleural effusion or pneumothorax.", dict(consolidation=0, pleural_effusion=0)),
    ("There is no focal consolidation, pleural effusion or pneumothorax.", dict(pneumothorax=0, edema=None)),
    ("No acute cardiopulmonary process.", dict(no_finding=1, edema=None)),
    ("Chest, single view. Mild pulmonary edema.", dict(edema=1, no_finding=0, support_devices=None)),
    ("Heart size is normal. Lungs are clear. No effusion.", dict(cardiomegaly=0, lung_opacity=0, no_finding=1)),
    ("Bibasilar atelectasis without effusion; the heart is mildly enlarged.", dict(atelectasis=1, cardiomegaly=1)),
    ("Bibasilar atelectasis without effusion; the heart is mildly enlarged.", dict(pleural_effusion=0, no_finding=0)),
    ("Opacity at the left base may represent atelectasis or pneumonia.", dict(atelectasis=None, pneumonia=None)),
    ("Left pleural effusion has resolved.", dict(pleural_effusion=0)),
    ("No significant interval change in moderate right pleural effusion.", dict(pleural_effusion=1)),
    ("Patchy opacity, likely atelectasis.", dict(lung_opacity=1, atelectasis=1)),
    ("Pneumonia cannot be excluded.", dict(pneumonia=None)),
    ("Evaluate for pneumonia.", dict(pneumonia=None)),
    ("An endotracheal tube ends above the carina.", dict(support_devices=1, no_finding=None)),
    ("The cardiac silhouette is enlarged.", dict(cardiomegaly=1)),
    ("The cardiac silhouette is not enlarged.", dict(cardiomegaly=0)),
    ("Cardiomediastinal silhouette is within normal limits.", dict(cardiomegaly=0, enlarged_cardiomediastinum=0)),
    ("Widened mediastinum.", dict(enlarged_cardiomediastinum=1)),
    ("The lungs are clear of focal consolidation.", dict(consolidation=0)),
    ("No evidence of pneumonia, but small effusions are present.", dict(pneumonia=0, pleural_effusion=1)),
    ("Old healed rib fractures. Pleural thickening. A nodule.", dict(fracture=1, pleural_other=1, lung_lesion=1)),
    ("No acute rib fracture.", dict(fracture=0)),
    ("No pneumothorax; possible small left effusion.", dict(pneumothorax=0, pleural_effusion=None, no_finding=None)),
    ("Mild edema, possibly pneumonia. Edema is improved.", dict(edema=1)),
    ("Pneumothorax: none.", dict(pneumothorax=0)),
]


@pytest.mark.parametrize("text, said", SAID)
def test_what_a_report_says(text, said):
    sentences = reports.sentences(text)
    assert {name: findings.said(sentences, name) for name in said} == said


def test_an_affirmation_counts_more_than_a_denial_elsewhere():
    sentences = ["No right pleural effusion.", "A small left pleural effusion."]
    assert findings.said(sentences, "pleural_effusion") == findings.said(sentences[::-1], "pleural_effusion") == 1


def test_the_findings_are_those_of_the_tables_and_may_be_asked_for():
    assert set(chest_findings.FINDINGS) == set(chest_labels.FINDINGS.values()) and len(chest_findings.FINDINGS) == 14
    for source in ("labels", "text"):
        assert targets.targets(dict(source=source, fields=chest_findings.FINDINGS)).source == source
    assert set(chest_findings.FINDINGS).isdisjoint(findings.FINDINGS)


def test_every_prompt_of_a_class_affirms_that_class_alone():
    """And there are as many as of MedCLIP: severity x subtype x location."""
    prompts = load("chexpert")
    classes = prompts.classes[chest_labels.FIVE_X]
    assert tuple(classes) == chest_labels.FIVE and [len(texts) for texts in classes.values()] == [210, 15, 192, 18, 54]
    for name, texts in classes.items():
        for text in texts:
            assert [other for other in classes if findings.said([text], other) == 1] == [name], text
        assert set(prompts.pairs[name].positive) == set(texts)
        assert {findings.said([text], name) for text in prompts.pairs[name].negative} == {0}


def test_captions_of_the_labels_say_what_they_are():
    """There, not there, uncertain or unknown; a device that is not there is not spoken of."""
    rng = np.random.default_rng(0)
    for _ in range(25):
        cells = {name: str(rng.choice(["", "", "1.0", "0.0", "-1.0"])) for name in chest_labels.FINDINGS}
        labels = chest_labels.labels(cells | {"No Finding": ""})
        sentences = reports.sentences(templating.render("chest", labels | {"view": "PA"}, rng))
        said = {name: findings.said(sentences, name) for name in chest_findings.WORDS}
        wanted = {name: labels.get(name) for name in chest_findings.WORDS}
        assert said == wanted | ({} if wanted["support_devices"] else {"support_devices": None})
    assert "cardiopulmonary" in templating.render("chest", dict(no_finding=1, support_devices=1))
