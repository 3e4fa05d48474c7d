"""The opaque parameters of a claim: schema, validation, merge."""
