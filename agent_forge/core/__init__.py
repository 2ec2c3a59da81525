"""What every room stands on: errors, registry, seeds, device, events. Knows nothing of the
project.
"""
