"""The text of an answer as it grows: characters, stop strings, probabilities."""
