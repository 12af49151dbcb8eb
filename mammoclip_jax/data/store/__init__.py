"""What a data set folder holds, and how. CODECS are the ways of an image into a record (codecs.py)."""

CODECS = ("raw", "zstd", "png", "htj2k", "delta")  # known by their place in records: new ones go to the end
DEFAULT_CODEC = "delta"
