"""Print the prompts that llama.cpp's server makes of conversations: `llama_prompt.py MODEL < JSON`.

A process of its own, because the server's threads do not end.
"""

import json
import os
import sys
import time
import urllib.request
from contextlib import suppress

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path, params.port, params.warmup, params.ui = sys.argv[1], 0, False, False
params.n_ctx, params.n_parallel, params.use_jinja = 256, 1, True
server = xllamacpp.Server(params)
end = time.monotonic() + 60
while time.monotonic() < end:
    with suppress(OSError), urllib.request.urlopen(f"{server.listening_address}/health", timeout=1):
        break
    time.sleep(0.05)
prompts = []
for request in json.load(sys.stdin):
    url = f"{server.listening_address}/apply-template"
    with urllib.request.urlopen(
        urllib.request.Request(url, json.dumps(request).encode()), timeout=60
    ) as answer:
        prompts.append(json.load(answer)["prompt"])
print(json.dumps(prompts))
sys.stdout.flush()
os._exit(0)
