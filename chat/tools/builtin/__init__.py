"""The tools that come with Parley, one subject a module: each module is found and imported by the registry.

They import heavy libraries inside of their functions: web processes import these modules for their names.
"""
