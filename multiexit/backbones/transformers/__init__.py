"""Networks of transformers, by their families' parts or by their own forward."""
