#!/bin/sh
# Make a virtual environment and install everything: scripts/setup.sh PYTHON VENV
#
# A torch with CUDA, 2.11 or newer, that PYTHON has already is kept: the environment then sees PYTHON's packages, and its
# version takes the place of torch's line in constraints.txt. Elsewhere the CPU build that constraints.txt names is installed.
set -eu
python=$1
venv=$2
constraints=constraints.txt

version_with_cuda() { # PYTHON: print the version of its torch, fail where there is none with CUDA that is new enough
    "$1" -c '
import sys, torch
new_enough = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)
print(torch.__version__)
sys.exit(0 if torch.version.cuda and new_enough else 1)' 2>/dev/null
}

# Asked of the new environment: one made from another virtual environment does not see that one's packages.
if version_with_cuda "$python" >/dev/null && "$python" -m venv --system-site-packages "$venv" \
    && version=$(version_with_cuda "$venv/bin/python"); then
    echo "torch $version has CUDA: kept"
    constraints=$venv/constraints.txt
    { grep -v '^torch==' constraints.txt; echo "torch==$version"; } >"$constraints"
else
    "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet "$(grep '^torch==' constraints.txt)"
fi
"$venv/bin/python" -m pip install --quiet -c "$constraints" -e '.[agent,crypto,demo,dist,export,lora,search,serve,dev]'
