"""MCP servers as sources of tools: staff configure them, workers alone speak with them.

`models` has the servers, their tools as they were listed last, and the connections of users; `source` offers them to
runs; `client` makes the requests with the package `mcp`, which only workers import; `authorization` and `tokens` are
OAuth, in the web and in workers.
"""
