"""The codes of EMBED's tables and what they mean here (AWS_Open_Data_Clinical_Legend.csv of Emory-HITI/EMBED_Open_Data)."""

BIRADS = {"A": 0, "N": 1, "B": 2, "P": 3, "S": 4, "M": 5, "K": 6}
RANK = {1: 0, 2: 1, 0: 2, 3: 3, 4: 4, 5: 5, 6: 6}  # 0 before 1 and 2, else the highest
DENSITY = {1: "A", 2: "B", 3: "C", 4: "D"}
MALE = 5
BREASTS = {"L": ("L",), "R": ("R",), "B": ("L", "R"), "": ("L", "R")}
TIER = {"L": 0, "R": 0, "B": 1, "": 2}

# Codes of the legend, grouped as the owner's notebook does (a questioned distortion, Q, is one; a dilated duct, T, is
# an asymmetry), but for lymph nodes (N, Y): they are no masses here.
FINDINGS = {
    "massshape": {
        "G": "mass",
        "R": "mass",
        "O": "mass",
        "X": "mass",
        "A": "architectural_distortion",
        "Q": "architectural_distortion",
        "S": "asymmetry",
        "V": "asymmetry",
        "T": "asymmetry",
        "F": "focal_asymmetry",
        "B": "global_asymmetry",
        "N": "lymph_node",
        "Y": "lymph_node",
    },
    "calcfind": dict.fromkeys("AHIKFB", "suspicious_calcification"),
    "otherfind": {
        "N": "nipple_retraction",
        "R": "skin_retraction",
        "S": "skin_thickening",
        "J": "skin_thickening",
        "A": "suspicious_lymph_node",
        "Z": "suspicious_lymph_node",
        "D": "architectural_distortion",
        "4": "asymmetry",
        "Y": "asymmetry",
        "Q": "focal_asymmetry",
        "I": "focal_asymmetry",
        "X": "implant",
    },
}
ABSENT = (
    "mass",
    "calcification",
    "suspicious_calcification",
    "asymmetry",
    "focal_asymmetry",
    "global_asymmetry",
    "architectural_distortion",
)
WORDS = {
    "mass_shape": ("massshape", {"R": "round", "O": "oval", "X": "irregular"}),
    "mass_margins": (
        "massmargin",
        {"D": "circumscribed", "U": "obscured", "M": "microlobulated", "I": "indistinct", "S": "spiculated"},
    ),
    "mass_density": ("massdens", {"+": "high", "=": "equal", "-": "low", "0": "fat-containing"}),
    "calcification_type": (
        "calcfind",
        {
            "A": "amorphous",
            "9": "benign",
            "H": "coarse heterogeneous",
            "C": "coarse popcorn-like",
            "D": "dystrophic",
            "E": "rim",
            "F": "fine linear",
            "B": "fine linear branching",
            "I": "fine pleomorphic",
            "L": "large rod-like",
            "M": "milk of calcium",
            "J": "oil cyst",
            "K": "pleomorphic",
            "P": "punctate",
            "R": "round",
            "S": "skin",
            "O": "lucent-centered",
            "U": "suture",
            "V": "vascular",
            "Q": "coarse",
        },
    ),
    "calcification_distribution": (
        "calcdistri",
        {"G": "grouped", "S": "segmental", "R": "regional", "D": "diffuse", "L": "linear", "C": "clustered"},
    ),
}
