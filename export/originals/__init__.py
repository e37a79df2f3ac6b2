"""The originals: a checkpoint in the library that its users call, called as they call it.

What an original answers to a raw input is what a version must answer (`export.raw`). So nothing of what is
served is used here: neither our tokenizer, nor our pictures, nor our way to read an answer. A test holds that
this package imports none of it.
"""
