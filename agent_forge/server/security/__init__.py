"""Who may ask the service for what, and in which form a request is read at all.

Every file but `keys` holds one plain ASGI middleware (streams pass through it unbuffered): `guard`
refuses foreign hosts, foreign pages and content types, `bodies` long bodies, `authentication`
strangers, `rates` haste; `headers` marks every answer. They wrap the whole application, mounted
ones included, so a route that nobody thought of is refused and not open.
"""
