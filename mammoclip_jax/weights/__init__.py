"""Published and own weights: PyTorch files and hub folders in, open folders and PyTorch files out."""
