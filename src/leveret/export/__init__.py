"""Models in others' formats: in and out."""
