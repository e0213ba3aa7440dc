"""Configurations of clients: an address of this node, a key and models, in each tool's own form. The command line
(`federation use`) and the dashboard ("Use it") print the same texts. Plain values: no daemon, no files, no network.

    target    where a client goes, from the node's status
    clients   the tools, one function each
    forms     texts from data: env, TOML, YAML, JSON, curl's
    merge     data into a text that somebody else wrote, whose other settings stay
"""
