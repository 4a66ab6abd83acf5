"""Training: jobs that fit a model to texts, with what they have learned served at once."""
