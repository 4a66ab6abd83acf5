"""What a job is trained on: files of texts become rows of tokens, in an order that is a function of a few numbers."""
