"""What `make compliance` checks, one file per part.

    python -m scripts.compliance [--tools PYTHON] [--out FOLDER] [--strict] [--only PART ...]

power_of_ten.py counts, sbom.py lists what is installed, scanners.py runs bandit, pip-audit and npm
audit, leak.py lets an agent answer and watches its memory. Nothing is claimed beyond the counts.
"""
