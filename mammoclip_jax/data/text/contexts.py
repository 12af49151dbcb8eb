"""What stands around the names of people and institutions in reports: the patterns that people.py and names.py read."""

import re

from mammoclip_jax.data.text import words


def _any(alternatives: str) -> str:
    """A group of the alternatives, separated by spaces; "_" is white space in one."""
    return f"(?:{'|'.join(alternatives.split())})".replace("_", r"\s+")


# --- right after a name ----------------------------------------------------------------------------------------------

_AGED = r"(?:an?[ \t]+)?(?:\d{2}|\[age\])[\s-]*(?:y|f\b)"
_HELD = r"(?:aged?\s*:?\s*[\d\[]|(?:dob|mrn|id|acc\w*|born|date\s+of\s+birth)\b|\[(?:id|date|phone|age)\])"
_DOES = _any(
    r"""
presents? presented returns returned complains complained denies denied states stated noticed underwent undergoes
arrived comes came tolerated consented called requests requested gave understands understood verbalized agrees feels
felt reports_(?:that|a|an|no|new|left|right|feeling|having|pain) has_(?:a|had|no|noticed|felt|palpated)
had_(?:a|an|her|no)\b will_(?:return|be)
(?:was|is|has_been)_(?:seen|scheduled|called|notified|informed|referred|contacted|asymptomatic|here|a_\[?\w+\]?[\s-]y
|an?_\d|status_post|concerned|pregnant|recalled|instructed|accompanied|known_to)
""".replace("\n|", "|")
)
# What only people do, are and have.
AFTER = re.compile(
    rf"['’]?,?[ \t]+(?:{_DOES}\b|(?:who\s+)?(?:is|was)[ \t]+(?:an?[ \t]+)?(?:\d|\[age\])|{_AGED}|"
    rf"{_HELD})|[ \t]*[,;(/|-]+[ \t]*(?:{_AGED}|{_HELD}|(?:a|the)\s+(?:\d|\[age\]))",
    re.IGNORECASE,
)
_OWNED = _any(r"""
mammogra\w+ exams? studies study images? imaging films? appointment chart daughter mother sister husband son family
request office primary referring symptoms history results? biopsy breasts? care record report pain lump visit service
team clinic patient cell phone pager
""")
_WHICH = _any("""
last prior previous most recent screening diagnostic outside old first right left own current today's annual bilateral
baseline
""")
OWNS = re.compile(rf"['’]s[ \t]+(?:{_WHICH}[ \t]+)*{_OWNED}\b")
# Also of people, where two capitals make a name likely already; and of findings, where there is one word only.
ACTS = re.compile(r"[ \t]+(?:has|had|is|was|will|assisted|agrees|performed|reviewed|tolerated)\b")
A_FINDING = re.compile(r"[ \t]+(?:(?:is|was)[ \t]+seen\b(?![ \t]+(?:by|for)\b)|presents?[ \t]+as\b)", re.IGNORECASE)
# What follows "Doe, Jane" where the comma stands within a name and not in a list.
INITIAL = re.compile(r"[ \t]+[A-Z]\b\.?")
_GOING_ON = _any(r"""
on at and in by is was who an? has had will the her his before after assisted regarding to for with M\.?D D\.?O R\.?N
DOB MRN ID Acc
""")
ENDS = re.compile(rf"[ \t]*(?:$|\n|[.;|)\[]|,?[ \t]*\[)|[ \t]+\w+(?:[ \t]\w+)?:|,?[ \t]+{_GOING_ON}\b", re.IGNORECASE)

# --- right before a name ---------------------------------------------------------------------------------------------

_HOW = _any(r"""
by_(?:tele)?phone in_person directly personally verbally urgently (?:(?:these|the)_)?(?:findings|results|images) today
""")
_TALKED = _any(r"""
discuss(?:ed|ion) spoke spoken talked conferred consult(?:ed|ation) correlated met reviewed shared conversation
telephone_call phone_call call
""")
_TOLD = _any(r"""
communicated prepared conveyed relayed reported given faxed sent mailed emailed paged telephoned called phoned provided
transmitted signed_out referred_back copied copy copies attention explained described disclosed
""")
_CALLED = _any(r"notified informed contact(?:ed)? paged phoned telephoned called told thank(?:ed|s|_you)?,?")
_DONE = _any("""
seen examined evaluated interviewed supervised cosigned co-signed countersigned signed dictated read reviewed performed
interpreted transcribed typed edited scanned placed obtained accompanied requested ordered referred approved verified
attested assisted done reported prepared entered finalized witnessed confirmed taken proctored authenticated positioned
addendum
""")
_LABEL = _any(r"""
cc attn attention copy copies re regarding to from pt patient name patient_name tech rad pcp attending referring
ordering signed signature dictated dictating transcribed author reader physicians? provider requested ordered performed
interpreted technologists? d t s reading mother daughter father next_of_kin spouse emergency_contact guarantor
electronically_signed signed_electronically e-signed reviewed verified addendum_by reported informant contact nok
approved overread over-read read second_read(?:er)? cosigner co-signer reports? maiden_name alias aka formerly operator
""")
_OF = _any("""
care request supervision direction courtesy behalf office practice attention service guidance name presence
""")
_ROLES = "|".join(words.ROLES)
_TITLE = r"\b(?:drs?|doctor|prof(?:essor)?|mr|mrs|(?-i:Ms|Miss))\b\.?[ \t]+"
ANCHORS = [
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        rf"\b(?:{_ROLES})s?(?:[ \t]*[,:][ \t]*|[ \t]+(?:[-–][ \t]+)?)",
        rf"\b{_TALKED}(?:\s+{_HOW})*\s+(?:with|to)\s+",
        rf"\b{_TOLD}(?:\s+{_HOW})?\s+(?:to|for)\s+",
        rf"\b{_CALLED}\s+",
        rf"\b{_DONE}(?:\s+(?:and\s+\w+|today|electronically|digitally))*\s+by\s*:?\s*",
        rf"\b{_LABEL}\s*:\s*",
        rf"\b{_OF}\s+of\s+(?:her\s+)?(?:\w+\s+(?=[A-Z]))?",
        r"(?:/s/|\b(?:e-?)?signed,?|--+|—)\s*",
        r"\b(?:aka|née|nee|formerly\s+(?:known\s+as)?|maiden\s+name|named?|alias)\s+",
        rf"\b(?:{'|'.join(words.FAMILY)}),?\s+",
        r"\b(?:nurse|sister|rn|np|pa|dear|patient,)\s+",
        _TITLE,
        rf"{_TITLE}(?:\[name\]|\w+)(?:\s+and\s+|\s*/\s*|,\s+|;\s+)",
    )
]
PATIENT = re.compile(r"\b(?:patient|pt\.?|client|this\s+is|woman|lady)[ \t]+", re.IGNORECASE)
START = re.compile(r"(?:^|[.;:!?,]\s+|\n\s*)", re.MULTILINE)
PREPOSITION = re.compile(r"\b(?:by|from|to|with|for|per|of|contact|and|informed|called)[ \t]+$", re.IGNORECASE)
GOES_ON = re.compile(r"\[name\](,?)[ \t]+")

# --- initials --------------------------------------------------------------------------------------------------------

STAFF = re.compile(r"(?<![\w/])([A-Z]{2,3}|\[name\])[/:]([a-z]{2,3})(?![\w/])")  # who dictated, who typed
_SIGNERS = _any("""
signed dictated transcribed typed read reviewed approved performed scanned initials verified technologist tech
radiologist reader resident overread d t
""")
SIGNED = re.compile(
    rf"(?:\b{_SIGNERS}\b(?:\s*[:=]\s*|\s+by\s*:?\s*)|\binitial(?:l?ed)?\s+(?:by\s+)?|/\s?)"
    r"(?-i:([A-Z]{2,3}|(?:[A-Z]\.\s?){2,3}))(?![\w/-])",
    re.IGNORECASE,
)

# --- institutions ----------------------------------------------------------------------------------------------------

_OWN = _any("""
General Regional Community Memorial University County City Valley Health Medical Presbyterian Methodist Baptist Catholic
Jewish Children['’]s District State Advanced Digital Outpatient Diagnostic Surgical Family Women['’]s
""")
_FIELD = _any("Breast Imaging Cancer Health Diagnostic Mammography Radiology Wellness Surgery")
_KIND = _any(rf"""
Hospital Medical_(?:Center|Centre|Group|Associates|Arts) Clinics? Infirmary University Radiology Imaging Healthcare
Health Mammography Surgical_(?:Center|Associates) Oncology Diagnostics Institute
(?:(?:Comprehensive|Women['’]?s)_)?{_FIELD}_(?:and_\w+_)?(?:Center|Centre|Care|Institute|Clinic|Associates|Services)
(?:(?:Comprehensive|Women['’]?s)_)?{_FIELD}_(?:and_\w+_)?(?:Partners|Group|System|Unit)
Women['’]?s_(?:Center|Centre|Health|Imaging|Hospital|Clinic)
""")
INSTITUTION = re.compile(rf"(?:['’]s?)?[ \t]+(?:{_OWN}[ \t]+)*{_KIND}\b", re.IGNORECASE)
# Of a place where a preposition says so, else of what was done: "at Lakeshore Imaging", "Diffusion Weighted Imaging".
FIELD_ONLY = re.compile(r"[ \t]+(?:Imaging|Radiology|Mammography|Oncology|Diagnostics|Health)", re.IGNORECASE)
WHERE = re.compile(r"\b(?:at|from|by|to|of|and)[ \t]+$", re.IGNORECASE)
OWNED = re.compile(r"['’]s\b")
OF = re.compile(r"\b(?:University|Hospital|College|Clinic)[ \t]+of[ \t]+(?:the[ \t]+)?(?=[^\W\d_])", re.IGNORECASE)
SAINT = re.compile(r"\b(?:St\.?|Saint|Ste\.?|Mount|Mt\.?|Our\s+Lady\s+of|Sacred|Holy)[ \t]+", re.IGNORECASE)
