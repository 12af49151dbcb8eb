"""Who and where an exam is, as its DICOM headers say: to be taken out of its texts, in memory only, written nowhere."""

from collections.abc import Iterator
from typing import NamedTuple

import pydicom

# Beside every element of the kind "person's name" (PN), at any depth: patient, other and birth names, mother's maiden
# name, referring, requesting, performing and reading physicians, operators, of private elements too.
PLACES = (
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "PatientAddress",
    "ReferringPhysicianAddress",
    "PatientInstitutionResidence",
    "RequestingService",
    "CustodialOrganizationName",
)
NUMBERS = (
    "PatientID",
    "OtherPatientIDs",
    "AccessionNumber",
    "StudyID",
    "IssuerOfPatientID",
    "PatientTelephoneNumbers",
    "ReferringPhysicianTelephoneNumbers",
    "AdmissionID",
    "FillerOrderNumberImagingServiceRequest",
    "PlacerOrderNumberImagingServiceRequest",
    "RequestedProcedureID",
    "ScheduledProcedureStepID",
    "MedicalRecordLocator",
    "DeviceSerialNumber",
)


class Identities(NamedTuple):
    """Literal strings as the header writes them, "DOE^JANE^M"."""

    names: frozenset[str] = frozenset()
    places: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()

    def __or__(self, other: "Identities") -> "Identities":
        return Identities(*(mine | its for mine, its in zip(self, other)))


def identities(header: pydicom.Dataset) -> Identities:
    """All of a header's identities; damaged elements count as absent."""
    by_kind: dict[str, set[str]] = {"names": set(), "places": set(), "numbers": set()}
    for kind, value in _all(header):
        if value.strip():
            by_kind[kind].add(value.strip())
    return Identities(**{kind: frozenset(values) for kind, values in by_kind.items()})


def _all(header: pydicom.Dataset) -> Iterator[tuple[str, str]]:
    for tag in header.keys():
        try:
            element = header[tag]
            items = element.value
        except Exception:  # of any kind, for a damaged element
            continue
        if element.VR == "SQ":
            for item in items or ():
                yield from _all(item)
            continue
        kind = (
            "names"
            if element.VR == "PN"
            else "places"
            if element.keyword in PLACES
            else "numbers"
            if element.keyword in NUMBERS
            else ""
        )
        if kind and items:
            yield from ((kind, str(item)) for item in ([items] if isinstance(items, str) or element.VM < 2 else items))
