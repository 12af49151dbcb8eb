"""What leaves the program: an exam's scores as files without identities, and as DICOM objects for its own study."""
