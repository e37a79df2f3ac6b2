"""A version gets a share of the requests behind Envoy, and is promoted or taken back by what it does."""
