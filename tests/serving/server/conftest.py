"""What is served, of a model and of its export."""

import pytest

import multiexit as mx
from multiexit.serving.stepping import of_model
from multiexit_runner.server.served import of_export


@pytest.fixture(scope="session")
def text_served(exported_texts):
    """The classifier, and what is served of the model and of its export."""
    model, tokenizer, policy, folder = exported_texts
    classify = mx.Classifier(model, tokenizer, policy)
    exported = mx.Classifier.from_pretrained(folder)
    return classify, {
        "model": lambda: of_model(classify, ["patience", "entropy"]),
        "export": lambda: of_export(exported),
    }
