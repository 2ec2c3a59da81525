"""The routes, one file per part of the interface; each builds its router around a Service."""
