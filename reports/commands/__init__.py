"""The command lines of `validate` and `reports`.

They are here because they show what they find: `reports` is the lowest package that may run `validate` and print.
"""
