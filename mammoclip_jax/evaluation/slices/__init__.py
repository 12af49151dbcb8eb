"""Error slices after LADDER (Ghosh et al., arXiv:2408.07832): where a classifier fails, in words; tested, and repaired.

    projection      classifier's features into the space of a dual encoder
    retrieval       sentences that tell its right decisions from its wrong ones
    hypotheses      attributes by prompts or by columns, and their scores
    phrases         hypotheses from the sentences: a lexicon and n-grams
    columns         hypotheses from metadata
    language_model  hypotheses from a language model, local or behind HTTP
    confirmation    hypotheses frozen on one part of the patients, tested on the other; fisher: the tests
    repair          last layers that do well in every group, and their baselines
    figures         worst group, slices at one threshold, precision@k; together: many with intervals at once
    fairness        gaps between the values of columns
    run, mend       `find` slices; `mend` the classifier
    analyse         all of it: `analyse(train, validation, test, bank, embed)`, where a caller begins

Functions of NumPy arrays, float64 inside; no model runs here but the one that a caller hands in to embed texts.
"""
