"""The doors that other rooms of the server bring: pages, chat, MCP and the audit log.

Each function opens one of them for a process that serves its part; a room that is not there, or
whose extra is not installed, leaves its door out.
"""

from agent_forge.server.app import Door
from agent_forge.server.service import CONTROL, Service


def open_doors(service: Service) -> list[Door]:
    """Return the doors of this process."""
    return _pages(service)


def _pages(service: Service) -> list[Door]:
    """Return the dashboard's door, which is where jobs are started."""
    from agent_forge.server import pages

    if CONTROL not in service.parts:
        return []
    return [Door(router=pages.router(), scope="", public=pages.PUBLIC)]
