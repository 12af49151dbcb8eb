"""Whether a DICOM object has what its definition (PS3.3) demands, by the tables that highdicom brings."""

from collections.abc import Iterator

from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from pydicom.dataset import Dataset

# The table lists the elements of all kinds of content items as if they stood in one, so highdicom's own reading of the
# content tree judges that instead.
_READ_BY_HIGHDICOM = {"sr-document-content": ("ValueType", "ConceptNameCodeSequence", "ContentSequence")}


def faults(dataset: Dataset) -> list[str]:
    """What an object lacks of its definition: "module: path/keyword".

    Of each mandatory module the elements of type 1, which must have a value, and of type 2, which must be there; of all
    modules the same within the sequences that are there. Conditional ones, and the values themselves, are not looked at.
    """
    modules = get_iod_module_map()[get_sop_class_iod_map()[dataset.SOPClassUID]]
    found = []
    for module, usage in ((item["key"], item["usage"]) for item in modules):
        own = _READ_BY_HIGHDICOM.get(module, ())
        found += [f"{module}: {keyword}" for keyword in own if not dataset.get(keyword)]
        for element in () if own else get_module_attribute_map()[module]:
            if element["type"] not in ("1", "2") or not (element["path"] or usage == "M"):
                continue
            if any(_lacks(holder, element) for holder in _holders(dataset, element["path"])):
                found.append(f"{module}: {'/'.join([*element['path'], element['keyword']])}")
    return found


def own_faults(dataset: Dataset, source: Dataset) -> list[str]:
    """`faults` without those that lie in sequences of its patient and study and that `source`, whose they are, has too."""
    copied = {fault for fault in faults(source) if "/" in fault}
    return [fault for fault in faults(dataset) if fault not in copied]


def _lacks(holder: Dataset, element: dict) -> bool:
    keyword = element["keyword"]
    if keyword not in holder:
        return True
    return element["type"] == "1" and holder[keyword].is_empty


def _holders(dataset: Dataset, path: list[str]) -> Iterator[Dataset]:
    if not path:
        yield dataset
    elif path[0] in dataset:
        for item in dataset[path[0]].value or ():
            yield from _holders(item, path[1:])
