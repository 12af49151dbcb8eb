"""Sentences of reports with invented identities, and clinical sentences without any, for measuring de-identification.

Every person, place and number is put together here by chance; likenesses are chance as well. The names are of many
kinds (hyphens, particles, apostrophes, accents, ordinary words), and most stand in none of the package's lists.
"""

import calendar
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

GIVEN = """
Jane Maria Eleanor Oluwaseun Priyanka Xiomara Siobhan Thandiwe Magdalena Rosalind Mei-Ling Jo-Ann Anneliese Beatrix
Consuelo Dagmar Esperanza Fatoumata Graciela Hyacinth Ilse Jocasta Kalinda Ludmila Marisela Nkechi Ottilie Parvati
Quintina Rosaura Saoirse Tomasina Ulrika Valentina Wilhelmina Yevgenia Zuleika Rose Grace Hope Dawn Ruth Karen Linda
Robert James Mohamed Ngozi Aoife Bjorn Chidi Dimitri Emeka Faisal Gunther Harish Ignacio Jaroslav Kwame Lorenzo Marek
Nikhil Obinna Pascal Rashid Stefan Tariq Umberto Viktor Wojciech Yusuf Zoltan Mark Will Frank Susan Patricia David
""".split()
FAMILY = """
Doe|Okonkwo|Zelenka|Quorthon|Vasquez|Ramanathan|O'Brien|O'Sullivan|McAllister|van der Berg|de la Cruz|Von Trapp|Del Rio|
Smith-Jones|Garcia-Lopez|Fitzgerald-Hughes|Abdulrahman|Nakamura|Kowalczyk|Papadopoulos|Brown|Young|Long|May|Rose|Hall|
Field|Moss|Marsh|Underwood|Bishop|Carter|Thistlewood|Featherstone|Grzeskowiak|Lindqvist|Bergström|Müller|Nuñez|
Villanueva|Oyelaran|Adeyemi|Chatterjee|Venkataraman|Haddad|Nasser|Petrosyan|Dvorak|Szabo|Ivanenko|Tkachenko|Halvorsen|
Rasmussen|Castellano|Bianchi|D'Angelo|Le Blanc|Mbeki|Ndlovu|Tran|Pham|Xu|Ng|Oduya|Wetherby|Pemberton|
Ashworth|Culpepper|Hathaway
""".replace("\n", "").split("|")
PLACES = """
Wexford General Hospital|St. Brigid's Breast Center|Mercy Ridge Medical Center|Dunmore Women's Imaging|
Lakeshore Radiology|Saint Olave Hospital|Harrowgate Community Hospital|Mount Carmody Breast Center|
Kestrel Valley Imaging Center|
Thornbury Clinic|University of Eastmarch|Pinecrest Cancer Institute
""".replace("\n", "").split("|")


class Person(NamedTuple):
    given: str
    middle: str  # an initial
    family: str

    @property
    def dicom(self) -> str:
        return f"{self.family}^{self.given}^{self.middle}"

    @property
    def initials(self) -> str:
        return self.given[0] + self.middle + self.family[0].upper()


class Sentence(NamedTuple):
    """A sentence, what of it identifies, and what the header of its exam holds."""

    shape: str
    text: str
    planted: tuple[str, ...]  # as they stand in the text; each counts once
    names: tuple[str, ...]  # of the header, "Doe^Jane^M", and its numbers
    places: tuple[str, ...]


def _forms(person: Person, rng: random.Random) -> str:
    """A person's name in running text."""
    given, middle, family = person
    return rng.choice(
        [
            f"{given} {family}",
            f"{given} {middle}. {family}",
            f"{family}, {given}",
            f"{family}, {given} {middle}",
            f"{given[0]}. {family}",
        ]
    )


# In braces: p a patient, d a doctor of the header, n anyone the header does not hold; .f family, .g given, .x any form,
# .i initials. date, time, phone, mrn, acc, age (over 89), year, place; anything else stands.
SHAPES = (
    "Patient {p.x} presents for annual screening mammography.",
    "{p.lf} is a 54-year-old woman with a palpable lump in the right breast.",
    "Findings were discussed with Dr. {d.f} by telephone at {time} on {date}.",
    "Dictated by: {d.x}, MD",
    "Electronically signed by {d.x}, M.D. on {date} at {time}",
    "cc: {d.x}; {n.tx}",
    "MRN: {mrn}  DOB: {date}  Accession: {acc}",
    "COMPARISON: Mammograms dated {date}, {year} and {year}.",
    "Comparison is made with outside films from {place}, {mdate}, {year}.",
    "The case was reviewed with resident {d.x}.",
    "{PX} MRN {mrn} HAS A STABLE LEFT BREAST MASS.",
    "these results were called to dr {d.lf2} on {date}",
    "ADDENDUM: Outside studies from {place} have arrived and were compared.",
    "Ms. {p.f} was recalled for additional views of the left breast.",
    "The patient, {p.x}, was informed of the results on {date}.",
    "Technologist: {d.x}. Images obtained at {place}.",
    "Thank you, Dr. {d.f}, for referring Mrs. {p.f} to {place}.",
    "A {age}-year-old female with dense breasts, call {phone} with questions.",
    "{d.I}/{n.i2}  D: {date}  T: {date}",
    "Biopsy was performed by {d.x} with ultrasound guidance.",
    "{p.f}'s prior mammogram from {date} is not available.",
    "Spoke with {n.x}, the patient's daughter, who can be reached at {phone}.",
    "REFERRING PHYSICIAN: {DX}  PATIENT: {PX}",
    "NAME: {p.d} ID: {mrn}",
    "Initialed {d.dots} after double reading; second reader {n.tx}.",
    "Since the examination in {mdate}, {p.f} has had a benign biopsy at {place}.",
    "Attending radiologist {d.x} personally reviewed the images and agrees with the above.",
    "patient {p.l} returned for follow-up on {date} and denies any pain",
    "Family history: the patient's sister {n.g} had breast cancer; {p.g} is concerned.",
    "Signed: {d.x}\nReport faxed to {place}, fax {phone}.",
)


# Written after the rules, which were mended for them since.
OTHER_SHAPES = (
    "{p.x}, age 61, here for diagnostic evaluation of right breast pain.",
    "I spoke to {d.x} regarding this case at {time}.",
    "Mrs {p.f} underwent lumpectomy at {place} in {year}.",
    "Results conveyed verbally to {n.x} (RN) in the breast clinic.",
    "Exam performed by {d.x}, RT(R)(M).",
    "History: {p.g} noticed a lump two weeks ago.",
    "As per Dr {d.f}'s request, spot compression views were obtained.",
    "{p.x} ({mrn}) was examined on {date}.",
    "Final report signed {d.x} {date} {time}",
    "PRIORS FROM {PL} DATED {date} WERE REVIEWED.",
    "Electronically Authenticated by: {DX} MD",
    "patient name: {p.l}  mrn: {mrn}",
    "The findings were reviewed with the patient, Ms. {p.x}, and her husband {n.g}.",
    "Second opinion requested by {d.x} of {place}.",
    "Referred by: {d.x}; copy sent to {n.tx}",
    "Please contact {n.x} at {phone} to schedule.",
    "Images from {year} and {year} were requested from {place}.",
    "RESULTS DISCUSSED WITH {DX} ON {date}.",
    "Prepared for {p.x} | DOB {date} | Acc# {acc}",
    "In consultation with {d.x} we recommend short-interval follow-up.",
    "{p.x} has dense breasts and a family history of breast cancer.",
    "Interpreting Radiologist - {d.x}",
    "The patient states that her cousin {n.g} was treated at {place}.",
    "We thank {d.x} for this referral.",
    "Nurse {n.f} was present during the procedure.",
    "Reviewed and approved: {d.x}, DO, {date} {time}",
    "Verbal consent was obtained from {p.x} before the biopsy.",
    "EXAM: MAMMOGRAM  PT: {PX}  DOB: {date}",
    "Dr. {d.g} {d.f} of {place} was paged at {phone}.",
    "Compared to {mdate} and {year} studies there is no change.",
    "Addendum by {d.x} on {date}: the side was corrected.",
    "This {age} yo woman lives alone.",
    "Her physician, {d.x}, has been notified.",
    "findings discussed with dr. {d.lf2} by phone .",
    "{d.x} assisted with the stereotactic biopsy.",
    "Consulting surgeon {d.x} agrees with excision.",
    "Report to: {d.x}, {n.x}",
    "Outside mammogram ({place}, {date}) is available.",
    "{p.f} tolerated the procedure well.",
    "Overread: {d.dots} / Tech: {n.x}",
)

# Written last. The rules were never mended for these, and must not be: they tell what an unseen text may expect.
UNSEEN_SHAPES = (
    "{p.x} comes to us today with bloody nipple discharge.",
    "Clinical breast exam by {d.x} showed a lump at 3 o'clock.",
    "I have reviewed this examination and agree with the report of {d.x}.",
    "Preliminary read {d.x} {date}, final read {n.x}.",
    "Left breast biopsy at {place} on {date} was benign.",
    "Consent form signed and witnessed ({d.x}).",
    "ATTENTION {DX}: CRITICAL RESULT FOR {PX}.",
    "Mother of {p.f} was diagnosed at 48.",
    "Scheduling was arranged through {n.x}'s office, {phone}.",
    "Pt {p.f}, {p.g} - {mrn} - last seen {mdate}",
    "On behalf of the breast team, {d.x}",
    "{d.x} will follow up with {p.f} next week.",
    "Exam supervised remotely, {d.x} available by phone.",
    "The lesion described by {d.f} in {year} has resolved.",
    "Films loaned from {place} ({mdate}) were returned to {n.x}.",
    "dictated but not read by dr. {d.lf2}",
    "Verified with {n.x} at the front desk, ext. {phone}.",
    "Case presented at tumor board by {d.x}, {n.x} and colleagues.",
    "IMAGES REVIEWED WITH DRS. {DX} AND {PX}.",
    "Her sister-in-law, {n.g} {n.f}, accompanies {p.f}.",
)


def sentences(count: int = 500, seed: int = 0, shapes: Sequence[str] = SHAPES) -> list[Sentence]:
    """`count` sentences, the shapes in turn."""
    rng = random.Random(seed)
    return [_sentence(shapes[place % len(shapes)], rng) for place in range(count)]


def _person(rng: random.Random) -> Person:
    return Person(rng.choice(GIVEN), rng.choice("ABCDEFGHJKLMNPRSTVW"), rng.choice(FAMILY))


def _sentence(shape: str, rng: random.Random) -> Sentence:
    patient, doctor, other = _person(rng), _person(rng), _person(rng)
    place, mrn = rng.choice(PLACES), str(rng.randint(10**5, 10**8))
    acc = f"A{rng.randint(10, 99)}-{rng.randint(1000, 99999)}"
    planted: list[str] = []

    def said(text: str) -> str:
        planted.append(text)
        return text

    def filled(field: str) -> str:
        who = {"p": patient, "d": doctor, "n": other}.get(field[0])
        day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1940, 2024)
        name = calendar.month_name[month]
        any_date = [
            f"{month}/{day}/{year}",
            f"{month:02}/{day:02}/{year % 100:02}",
            f"{year}-{month:02}-{day:02}",
            f"{name} {day}, {year}",
            f"{day} {name[:3]} {year}",
            f"{day:02}.{month:02}.{year}",
        ]
        phone = f"{rng.randint(200, 989)}-{rng.randint(200, 989)}-{rng.randint(1000, 9999)}"
        made = {
            "date": rng.choice(any_date),
            "mdate": rng.choice([f"{month:02}/{year}", f"{name} {year}"]),
            "year": str(year),
            "time": rng.choice([f"{month}:{day:02} pm", f"{month + 9:02}:{day + 20} hours"]),
            "mrn": mrn,
            "acc": acc,
            "PL": place.upper(),
            "phone": rng.choice([phone, f"({phone[:3]}) {phone[4:]}", phone[4:]]),
            "place": place,
            "age": str(rng.randint(90, 103)),
            "PX": _forms(patient, rng).upper(),
            "DX": rng.choice([f"{doctor.given} {doctor.family}", f"{doctor.family}, {doctor.given}"]).upper(),
        }
        if field in made:
            return said(made[field])
        form = field[2:]
        return said(
            {
                "x": lambda: _forms(who, rng),
                "f": lambda: who.family,
                "g": lambda: who.given,
                "d": lambda: who.dicom,
                "lf": lambda: rng.choice([f"{who.given} {who.family}", f"{who.family}, {who.given}"]),
                "lf2": lambda: f"{who.given} {who.family}".lower(),
                "l": lambda: f"{who.given} {who.family}".lower(),
                "tx": lambda: f"Dr. {_forms(who, rng)}",
                "I": lambda: who.initials,
                "i2": lambda: who.initials[::2].lower(),
                "dots": lambda: f"{who.given[0]}.{who.family[0].upper()}.",
            }[form]()
        )

    pieces = []
    for piece in shape.split("{"):
        field, brace, rest = piece.partition("}")
        pieces.append(filled(field) + rest if brace else piece)
    return Sentence(shape, "".join(pieces), tuple(planted), (patient.dicom, doctor.dicom, mrn, acc), (place,))


_SIDES = ("left", "right")
_CLOCK = ("2 o'clock", "10 o'clock", "the 12:00 position", "the 4:30 position", "11 o'clock, 6 cm from the nipple")
_SIZES = ("5 mm", "2.5 cm", "12 x 8 mm", "1.2 x 0.9 x 1.4 cm", "0.7 cm")
_CLINICAL = (
    "There is a {size} irregular mass in the {side} breast at {clock}.",
    "No mass, suspicious calcification or architectural distortion is seen in the {side} breast.",
    "BI-RADS Category {birads}: {word}.",
    "ACR density {density}: the breasts are heterogeneously dense.",
    "Skin changes of the {side} nipple raise concern for Paget disease; MRI is advised.",
    "Paget's disease of the nipple cannot be excluded on the {side}.",
    "Cooper's ligaments are thickened in the {side} breast.",
    "Thickening of Cooper ligaments is unchanged, {size}.",
    "Phyllodes tumor is in the differential for the {size} mass at {clock}.",
    "Montgomery glands are prominent in the {side} areola.",
    "Findings are typical of Mondor's disease of the {side} breast.",
    "Known Cowden syndrome; annual MRI of the {side} breast continues.",
    "Poland syndrome with absence of the {side} pectoralis muscle.",
    "History of mantle radiation for Hodgkin lymphoma; {side} breast scarring.",
    "Hodgkin's disease was treated with radiation of the {side} chest.",
    "Moderate background parenchymal enhancement of the {side} breast.",
    "Background enhancement: Moderate. {side} breast: normal.",
    "Mass: oval, circumscribed, {size}, {side} breast.",
    "May represent a cyst of {size} in the {side} breast.",
    "This may be a lymph node, {size}, at {clock}.",
    "A long segment of ductal calcification spans {size} in the {side} breast.",
    "Long axis of the {side} axillary node measures {size}.",
    "The patient is a young woman with {side} breast pain.",
    "Young age lowers the sensitivity of the {side} mammogram.",
    "Brown discharge from the {side} nipple.",
    "A rose-colored rash covers the {side} breast.",
    "The {side} breast lies outside the field of view at {clock}.",
    "Field of view was limited for the {side} breast.",
    "Magnification of a {size} field at {clock} shows no change.",
    "Hologic Selenia Dimensions tomosynthesis of the {side} breast was performed.",
    "Siemens Mammomat Revelation images of the {side} breast show a {size} mass.",
    "GE Senographe Pristina, {side} CC and MLO views.",
    "She takes Tamoxifen for a {size} cancer of the {side} breast.",
    "Treated with Herceptin and Taxol for {side} breast cancer.",
    "Premarin was stopped; {side} breast tissue is less dense.",
    "A Savi Scout reflector lies at {clock} of the {side} breast.",
    "Magseed placed at {clock}, {size} from the mass.",
    "HydroMark clip at {clock} in the {side} breast.",
    "Stereotactic biopsy with an Eviva 9-gauge needle, {side} breast, {clock}.",
    "Kopans wire localization of the {size} mass at {clock}.",
    "Gail model risk is high; supplemental {side} breast imaging.",
    "Tyrer-Cuzick score is 22%; MRI of the {side} breast is advised.",
    "Fibroadenoma of {size}, {side} breast, at {clock}.",
    "Compared with the prior exam the {size} nodule at {clock} is unchanged.",
    "Stable compared to previous mammograms, {side} side.",
    "Scarff-Bloom-Richardson grade 2 carcinoma, {size}, {side} breast.",
    "Nottingham grade III cancer at {clock}, {size}.",
    "The {side} axilla shows a node of {size} with preserved fatty hilum.",
    "Rotter nodes on the {side} measure {size}.",
    "Recommend {side} diagnostic mammography and ultrasound, BI-RADS {birads}.",
    "IMPRESSION: BENIGN {SIDE} BREAST MASS, BI-RADS 2.",
    "THERE IS MODERATE DENSITY OF THE {SIDE} BREAST.",
    "LEFT BREAST: NO MASS. RIGHT BREAST: CYST OF {size}.",
    "no evidence of malignancy in the {side} breast, birads {birads} .",
    "a {size} mass is seen at {clock} , recommend biopsy .",
    "A hall of residence fall caused the {side} breast hematoma of {size}.",
    "Lymph node dissection of the {side} axilla for Bowen disease.",
    "Doppler shows flow in the {side} mass of {size}.",
    "Skin Thickening: present in the {side} breast. Architectural Distortion: none.",
    "Dr. review is pending for the {side} breast; routine follow-up in 12 months.",
    "Luer lock syringe and Bard Marquee needle, {side} breast.",
)


def clinical(count: int = 300, seed: int = 0) -> list[str]:
    """`count` sentences that name nobody and must not change."""
    rng = random.Random(seed)
    made = []
    for place in range(count):
        side = rng.choice(_SIDES)
        made.append(
            _CLINICAL[place % len(_CLINICAL)].format(
                side=side,
                SIDE=side.upper(),
                clock=rng.choice(_CLOCK),
                size=rng.choice(_SIZES),
                birads=rng.choice("012356"),
                density=rng.choice("ABCD"),
                word=rng.choice(["Benign", "Probably benign", "Highly suggestive of malignancy"]),
            )
        )
    return made


def other_clinical() -> list[str]:
    """The sentences of clinical.txt, as radiologists could write them: titles, capitals, eponyms, devices, drugs."""
    lines = Path(__file__).with_name("clinical.txt").read_text().splitlines()
    return [sentence for line in lines for sentence in re.split(r"(?<=[.;])\s+", line)]


def people(count: int = 20, seed: int = 0) -> list[str]:
    """Header names of invented people, those that are words among them."""
    rng = random.Random(seed)
    wordy = [
        "Brown^Rose^M",
        "Young^May",
        "Long^Mark",
        "Moderate^Jane",
        "Mass^Maria",
        "May^Hope",
        "Rose^Dawn",
        "Hall^Frank",
        "Field^Grace",
        "Left^Anna",
        "Cooper^Jane",
        "Paget^Rose",
        "Hodgkin^Mark",
    ]
    return [wordy[place % len(wordy)] if place % 2 else _person(rng).dicom for place in range(count)]
