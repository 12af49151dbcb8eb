"""An exam's scores as a DICOM structured report of the patient's own study: Comprehensive SR, TID 1500.

Each score is a measurement group (TID 1501) with the finding, the breast, the images that it is of and the model; each
box, and the highest place of each map, a region of its image (TID 1410). PS3.16 defines both.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import UID, sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from mammoclip_jax.delivery import codes as own
from mammoclip_jax.delivery.sources import PRODUCER, equipment, header, parameters
from mammoclip_jax.errors import UserError

SERIES = 9701  # number of its series: behind those of devices
DESCRIPTION = "Scores of a model; research"
REGIONS = 10  # boxes of a label in a view, at most: those with the highest scores. JSON has all


def structured_report(
    exam: Mapping[str, Any], prediction: Mapping[str, Any], sources: Sequence[Dataset | Path | str]
) -> sr.ComprehensiveSR:
    """The report of one exam: preliminary, unverified, for research.

    Args:
        exam: one of the "exams" of `inference.exam.predict`, or as `delivery.folder.deliver` writes it.
        prediction: what is the same for all exams, with "model" (`delivery.folder.deliver`).
        sources: the image of each of the exam's "views", in their order. Patient and study are copied from the first.

    Raises:
        UserError: a source is no DICOM image of a study, or nothing was scored.
    """
    headers = [header(source) for source in sources]
    groups = list(_Writer(exam, prediction, headers).groups())
    if not groups:
        raise UserError("nothing was scored: there is nothing to report.")
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=UID(_uid_of(prediction["model"]["fingerprint"])),
        name=PRODUCER,
        manufacturer_name=PRODUCER,
        model_name=prediction["model"]["name"] or prediction["model"]["kind"],
        serial_number=prediction["model"]["fingerprint"],
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(
                observer_type=codes.DCM.Device, observer_identifying_attributes=device
            )
        ),
        procedure_reported=own.MAMMOGRAPHY if _is_mammography(headers[0]) else own.IMAGING,
        imaging_measurements=groups,
    )
    items = content[0].ContentSequence
    items.insert(len(items) - 1, _library(exam["views"], headers))
    return sr.ComprehensiveSR(
        evidence=headers,
        content=content[0],
        series_instance_uid=UID(),
        series_number=SERIES,
        sop_instance_uid=UID(),
        instance_number=1,
        is_complete=True,
        series_description=DESCRIPTION,
        content_qualification="RESEARCH",
        coding_schemes=[own.scheme()],
        **equipment(prediction),
    )


class _Writer:
    """The measurement groups of an exam."""

    def __init__(self, exam: Mapping[str, Any], prediction: Mapping[str, Any], headers: Sequence[Dataset]):
        self.exam, self.headers = exam, headers
        model = prediction["model"]
        self.scale = own.scale(prediction)
        self.labels = model["labels"]
        self.algorithm = sr.AlgorithmIdentification(
            model["name"] or model["kind"], model["program"], parameters(prediction)
        )
        self.place = {view["file"]: place for place, view in enumerate(exam["views"])}

    def groups(self) -> Iterator[sr.MeasurementsAndQualitativeEvaluations]:
        """Of the exam, its breasts, its views, and their regions."""
        every = list(self.place.values())
        yield from self._aggregated("exam", None, self.exam["scores"], every)
        for breast in self.exam["breasts"]:
            places = [self.place[file] for file in breast["files"]]
            alone = f"image {self.exam['views'][places[0]]['name']}"  # of unknown laterality
            side = f"breast {breast['laterality']}" if breast["laterality"] else alone
            yield from self._aggregated(side, breast, breast["scores"], places)
        for place, view in enumerate(self.exam["views"]):
            for label, value in view["scores"].items():
                yield self._group(f"view {view['name']}", view, label, [self._measurement(value)], [place])
        for place, view in enumerate(self.exam["views"]):
            yield from self._regions(view, self.headers[place])

    def _aggregated(self, name, side, scores, places):
        for label, value in scores.items():
            values = [self._measurement(value["mean"], own.MEAN), self._measurement(value["max"], own.MAXIMUM)]
            yield self._group(name, side, label, values, places)

    def _group(self, name, side, label, measurements, places):
        return sr.MeasurementsAndQualitativeEvaluations(
            measurements=measurements,
            source_images=[
                sr.SourceImageForMeasurementGroup(
                    self.headers[place].SOPClassUID, self.headers[place].SOPInstanceUID, _frames(self.headers[place])
                )
                for place in places
            ],
            **self._said(name, side, label),
        )

    def _regions(
        self, view: Mapping[str, Any], image: Dataset
    ) -> Iterator[sr.PlanarROIMeasurementsAndQualitativeEvaluations]:
        boxed = [item for item in [*view.get("boxes", ()), *view.get("attributes", ())] if item["box"] is not None]
        shown: dict[str, int] = {}
        for item in boxed:
            label = item["label"]
            shown[label] = shown.get(label, 0) + 1
            if shown[label] <= REGIONS:
                left, top, right, bottom = item["box"]
                corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
                yield self._region(view, image, f"box {shown[label]}", label, "POLYLINE", corners, item["score"])
        for label, peak in view.get("peaks", {}).items():
            if peak is not None and label not in shown:
                yield self._region(view, image, "highest place of the map", label, "POINT", [peak], None)

    def _region(self, view, image, name, label, kind, points, score):
        limit = np.array([image.Columns, image.Rows], np.float64)
        return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            referenced_region=sr.ImageRegion(
                kind,
                np.clip(np.array(points, np.float64), 0, limit),
                sr.SourceImageForRegion(image.SOPClassUID, image.SOPInstanceUID, _frames(image)),
            ),
            measurements=None if score is None else [self._measurement(score)],
            **self._said(f"view {view['name']}, {name}", view, label),
        )

    def _said(self, name: str, side: Mapping[str, Any] | None, label: str) -> dict[str, Any]:
        laterality = own.SIDES.get((side or {}).get("laterality") or "")
        sites = [sr.FindingSite(own.BREAST, laterality)] if laterality or _is_mammography(self.headers[0]) else None
        return {
            "tracking_identifier": sr.TrackingIdentifier(UID(), f"{name}, {label}"),
            "finding_type": own.finding(label, self.labels),
            "finding_sites": sites,
            "algorithm_id": self.algorithm,
        }

    def _measurement(self, value: float, derivation: Code | None = None) -> sr.Measurement:
        concept, unit, factor = self.scale
        return sr.Measurement(concept, value * factor, unit, derivation=derivation)


def _library(views: Sequence[Mapping[str, Any]], headers: Sequence[Dataset]) -> sr.ContainerContentItem:
    """The images with their side and view (TID 1600). Not highdicom's: it refuses films without orientation and spacing."""
    contains, context = sr.RelationshipTypeValues.CONTAINS, sr.RelationshipTypeValues.HAS_ACQ_CONTEXT
    group = sr.ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type=contains)
    group.ContentSequence = sr.ContentSequence()
    for view, image in zip(views, headers, strict=True):
        item = sr.ImageContentItem(
            Code("260753009", "SCT", "Source"), image.SOPClassUID, image.SOPInstanceUID, relationship_type=contains
        )
        said = {
            codes.DCM.ImageLaterality: own.SIDES.get(view["laterality"] or ""),
            codes.DCM.ImageView: own.VIEWS.get(view["view"] or ""),
        }
        known = [sr.CodeContentItem(name, code, context) for name, code in said.items() if code is not None]
        if known:
            item.ContentSequence = sr.ContentSequence(known)
        group.ContentSequence.append(item)
    library = sr.ContainerContentItem(codes.DCM.ImageLibrary, relationship_type=contains)
    library.ContentSequence = sr.ContentSequence([group])
    return library


def _frames(image: Dataset) -> list[int] | None:
    """The frame that was scored, counted from 1, where there are several: the middle one, as `data.pixels.dicom` takes."""
    count = int(image.get("NumberOfFrames") or 1)
    return [count // 2 + 1] if count > 1 else None


def _is_mammography(image: Dataset) -> bool:
    return image.get("Modality") == "MG"


def _uid_of(fingerprint: str) -> str:
    """A UID that stands for these weights (PS3.5 B.2)."""
    return f"2.25.{int.from_bytes(hashlib.sha256(fingerprint.encode()).digest()[:16], 'big')}"
