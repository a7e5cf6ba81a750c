"""HTTP: the OpenAI-compatible endpoints of one base model and its adapters.

from stoa.server import Service, create_app
"""

from stoa.server.app import create_app
from stoa.server.service import Replica, Service

__all__ = ["Replica", "Service", "create_app"]
