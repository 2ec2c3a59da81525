"""The doors that other rooms of the server bring: chat, MCP and the audit log.

Each function opens one of them for a process that serves its part; a room that is not there, or
whose extra is not installed, leaves its door out.
"""

from agent_forge.server.app import Door
from agent_forge.server.service import Service


def open_doors(service: Service) -> list[Door]:
    """Return the doors of this process."""
    del service
    return []
