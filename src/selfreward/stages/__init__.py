"""The stages of a run: artifacts in, one artifact out, one file and one `run` each.

A stage imports no other stage; they meet in the run directory. Modules that begin with `_` are shared helpers.
"""
