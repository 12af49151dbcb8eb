"""The page to look through exams: a small server, and what it asks of models and data sets."""
