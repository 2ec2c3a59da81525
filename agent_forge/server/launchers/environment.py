"""What a job may know of the server's environment: a list of harmless names, and nothing else.

A name that sounds like a secret is left out even where a prefix would let it pass; `HF_TOKEN` and
the like have to be allowed by name.
"""

from collections.abc import Mapping, Sequence

PASSED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP",
    "PYTHONPATH", "PYTHONUTF8", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "CC", "CXX",
    "XDG_CACHE_HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy",
    "no_proxy", "SSL_CERT_FILE",
)  # fmt: skip
PASSED_PREFIXES = (
    "LC_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "TORCH",
    "PYTORCH_", "TRITON_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "COVERAGE_",
)  # fmt: skip
SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "COOKIE")


def job_environment(source: Mapping[str, str], allowed: Sequence[str] = ()) -> dict[str, str]:
    """Return the variables of `source` that a job gets.

    allowed: names that are passed on as well, whatever they hold.
    """
    return {name: value for name, value in source.items() if name in allowed or _is_harmless(name)}


def _is_harmless(name: str) -> bool:
    is_listed = name in PASSED or name.startswith(PASSED_PREFIXES)
    # TOKENIZERS_PARALLELISM holds no token.
    words = name.upper().replace("TOKENIZERS", "")
    return is_listed and not any(word in words for word in SECRET)
