"""Code every tensor by every candidate; the bytes and the estimated loss of each stay in the
workspace for a restart.

A tensor that lies on a ternary grid is coded losslessly by `ternary` alone. A tensor that
calibration never reached gets the `uncalibrated` candidate, because the cost of an error in it is
unknown.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agent_forge import codecs
from agent_forge.checkpoint import Workspace
from agent_forge.codecs import host, payload, ternary
from agent_forge.codecs.allocate import Option
from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.models.compressed import as_matrix, coded_tensors
from agent_forge.phases import PhaseRun
from agent_forge.phases.compress import Config
from agent_forge.phases.compress.sensitivity import Sensitivity

Candidate = Mapping[str, Any]


@dataclass(slots=True)
class Offer:
    """One tensor coded one way; its bytes stay on disk until `payload` reads them.

    stored, key: where the bytes lie in the workspace. size_bytes: their number. distortion: the
    estimated rise of the loss in nats per token.
    """

    label: str
    codec: str
    out: Workspace
    stored: str
    key: str
    shape: tuple[int, int]
    size_bytes: int
    distortion: float
    relative_error: float

    def option(self) -> Option:
        """Return what the allocator needs to know."""
        seeds = self.shape[0] * self.shape[1] if self.codec == "seedlm" else 0
        return Option(self.label, self.size_bytes, self.distortion, seeds)

    def payload(self, where: str) -> payload.Payload:
        """Return the payload, read back from its bytes. Raises PhaseError when they are gone."""

        def lost() -> dict[str, Tensor]:
            raise PhaseError(
                f"the codes of {where} in {self.out.state} are gone or damaged; run `forge compress` again"
            )

        return payload.read(
            self.out.remember_tensors(self.stored, lost)[self.key].numpy().tobytes(), where
        )


def quantisable(model: PreTrainedModel, config: Config) -> dict[str, Tensor]:
    """Return the tensors that will be coded. Raises PhaseError when there is none, before any long
    work.
    """
    tensors = {
        name: t for name, t in coded_tensors(model).items() if t.numel() >= config.codec.min_weights
    }
    if not tensors:
        raise PhaseError(
            f"{type(model).__name__} has nothing to compress: no linear, embedding or other matrix of at least "
            f"codec.min_weights={config.codec.min_weights} weights; lower it or take another checkpoint"
        )
    return tensors


def check(config: Config) -> None:
    """Raise ConfigError before any long work when a candidate names no codec, or a setting that its
    codec does not have.
    """
    if not config.codec.candidates:
        raise ConfigError(
            "codec.candidates is empty; name at least one, for example [{codec: intk, bits: 4}]"
        )
    for candidate in [*config.codec.candidates, config.codec.uncalibrated]:
        if "codec" not in candidate:
            raise ConfigError(
                f"codec.candidates: {dict(candidate)} has no `codec`; known: {', '.join(codecs.names())}"
            )
        codecs.settings(candidate["codec"], _settings(candidate, config, 1))


def all_offers(
    phase: PhaseRun[Config],
    model: PreTrainedModel,
    tensors: Mapping[str, Tensor],
    sensitivities: Callable[[str], Sensitivity],
) -> dict[str, list[Offer]]:
    """Return the offers of each tensor, coded one tensor after another. What an earlier, killed run
    had coded is read back.

    Several offers of one large tensor are coded at once, by as many processes as torch has threads.
    """
    with closing(host.Pool(torch.get_num_threads())) as pool:
        weights = sum(tensor.numel() for tensor in tensors.values())
        coder = _Coder(phase.config, phase.out, weights, pool)
        modules = dict(model.named_modules())
        offers: dict[str, list[Offer]] = {}
        for index, (name, tensor) in enumerate(tensors.items()):
            group = int(getattr(modules.get(name), "group_size", 128))
            matrix = as_matrix(tensor).float()
            sensitivity = sensitivities(name).to(matrix.device)
            offers[name] = coder.offers(f"coded-{index:04}", matrix, sensitivity, group)
            phase.events.progress("code", index + 1, len(tensors))
    return offers


def label(candidate: Candidate) -> str:
    """Return a short name of a candidate: its codec and settings."""
    settings = ",".join(f"{key}={value}" for key, value in candidate.items() if key != "codec")
    return f"{candidate['codec']}({settings})"


def _candidates(matrix: Tensor, group: int, known: bool, config: Config) -> Sequence[Candidate]:
    # A float matrix can hold rows of two values by chance, but not a whole matrix of them.
    if ternary.on_grid(matrix, group) is not None:
        return [{"codec": "ternary", "group": group, "scales": "exact"}]
    return config.codec.candidates if known else [config.codec.uncalibrated]


def _settings(candidate: Candidate, config: Config, weights: int) -> dict[str, Any]:
    """Return the codec's settings. A candidate's `loss` is for the whole model; the codec takes
    the share of one weight.
    """
    settings = {key: value for key, value in candidate.items() if key != "codec"}
    if candidate["codec"] == "vptq":
        settings.setdefault("codebook", config.codebook)
    if candidate["codec"] == "waterfill" and "loss" in settings:
        settings["loss"] = settings["loss"] / weights
    return settings


@dataclass(frozen=True, slots=True)
class _Coder:
    """Codes one tensor after another. weights: how many all tensors have together."""

    config: Config
    out: Workspace
    weights: int
    pool: host.Pool

    def offers(
        self, file: str, matrix: Tensor, sensitivity: Sensitivity, group: int
    ) -> list[Offer]:
        """Return the offers of a matrix, whose codes the state keeps under `file`.

        Raises ConfigError where no candidate may be used.
        """
        candidates = _candidates(matrix, group, sensitivity.known, self.config)
        stored = self.out.remember_tensors(
            file, lambda: self._encoded(matrix, sensitivity, candidates)
        )
        shape = (matrix.shape[0], matrix.shape[1])
        figures = stored["figures"].tolist()
        offers = [
            Offer(
                label(one),
                one["codec"],
                self.out,
                file,
                f"data-{i}",
                shape,
                len(stored[f"data-{i}"]),
                *figures[i],
            )
            for i, one in enumerate(candidates)
        ]
        ratio = self.config.hyper_ratio
        limit = ratio * 2 * shape[0] * shape[1]
        usable = [offer for offer in offers if offer.codec != "hyper" or offer.size_bytes <= limit]
        if not usable:
            raise ConfigError(
                f"hyper_ratio={ratio} leaves no candidate; raise it or offer another codec"
            )
        return usable

    def _encoded(
        self, matrix: Tensor, sensitivity: Sensitivity, candidates: Sequence[Candidate]
    ) -> dict[str, Tensor]:
        importance, hessian = sensitivity.curvature() or (None, None)

        def coded(candidate: Candidate) -> tuple[bytes, float, float]:
            settings = _settings(candidate, self.config, self.weights)
            done, decoded = codecs.encode_and_decode(
                candidate["codec"], matrix, settings, hessian, importance
            )
            assert done.relative_error is not None
            return done.data, sensitivity.distortion(decoded - matrix), done.relative_error

        results = self.pool.map(coded, candidates, matrix.numel())
        tensors = {
            f"data-{i}": torch.frombuffer(bytearray(data), dtype=torch.uint8)
            for i, (data, _, _) in enumerate(results)
        }
        return {
            **tensors,
            "figures": torch.tensor([figures for _, *figures in results], dtype=torch.float64),
        }


def stacked(
    phase: PhaseRun[Config],
    tensors: Mapping[str, Tensor],
    sensitivities: Callable[[str], Sensitivity],
) -> dict[str, list[Offer]]:
    """Return one offer per tensor: SeedLM's output coded by VPTQ, and the result coded by Hyper,
    with settings from the candidates.
    """
    config, out = phase.config, phase.out
    stages = [_first(config, "seedlm"), _first(config, "vptq"), _first(config, "hyper")]
    offers: dict[str, list[Offer]] = {}
    for index, (name, tensor) in enumerate(tensors.items()):
        matrix = as_matrix(tensor).float()
        sensitivity = sensitivities(name).to(matrix.device)
        stored = out.remember_tensors(
            f"stacked-{index:04}",
            lambda m=matrix, s=sensitivity: _encode_stacked(m, s, stages, config),  # type: ignore[misc]
        )
        file, shape = f"stacked-{index:04}", (matrix.shape[0], matrix.shape[1])
        size, figures = len(stored["data-0"]), stored["figures"][0].tolist()
        offers[name] = [
            Offer(
                " then ".join(map(label, stages)),
                "hyper",
                out,
                file,
                "data-0",
                shape,
                size,
                *figures,
            )
        ]
        phase.events.progress("code", index + 1, len(tensors))
    return offers


def _encode_stacked(
    matrix: Tensor, sensitivity: Sensitivity, stages: Sequence[Candidate], config: Config
) -> dict[str, Tensor]:
    current, data = matrix, b""
    importance, hessian = sensitivity.curvature() or (None, None)
    for stage in stages:
        settings = _settings(stage, config, 1)
        coded, current = codecs.encode_and_decode(
            stage["codec"], current, settings, hessian, importance
        )
        data = coded.data
    relative = float((current - matrix).square().sum() / matrix.square().sum().clamp_min(1e-30))
    figures = torch.tensor(
        [[sensitivity.distortion(current - matrix), relative]], dtype=torch.float64
    )
    return {"data-0": torch.frombuffer(bytearray(data), dtype=torch.uint8), "figures": figures}


def _first(config: Config, codec: str) -> Candidate:
    for candidate in config.codec.candidates:
        if candidate["codec"] == codec:
            return candidate
    raise ConfigError(
        f"mode=stacked needs a {codec} entry in codec.candidates; add {{codec: {codec}}}"
    )
