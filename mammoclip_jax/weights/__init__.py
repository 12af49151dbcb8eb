"""Published and own weights: PyTorch files and hub folders in, open folders and PyTorch files out."""

ACTIONS = {"import": "import_file", "export": "export", "inspect": "inspect"}  # of the command: functions of actions.py
FORMATS = ("folder", "torch", "stablehlo")  # that `export` writes: the keys of actions.FORMATS
