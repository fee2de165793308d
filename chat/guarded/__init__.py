"""Requests to hosts that users and their browsers choose: only to public addresses, or to permitted networks.

A name is checked when it is resolved for the request (resolver.py), not before, so that it cannot change between
the two. An address without a name is not resolved: its caller checks it by `addresses.is_permitted`.
"""
