"""What every room uses: errors, registry, seeds, device, events. It imports no other room."""
