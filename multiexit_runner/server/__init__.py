"""A service over HTTP that answers texts or images, and stops early as far as each request lets it.

It needs neither torch nor `multiexit` where what it serves is an export.
"""
