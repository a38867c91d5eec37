"""The document of perplexity.yaml."""

from datasets import Dataset


def load(**metadata):
    return {"test": Dataset.from_list([{"question": "Is this a question?"}])}
