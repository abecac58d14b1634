"""Activations on disk, addressed by probe id, and reused while nothing they depend on changes."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from grpo_ao.errors import UserError
from grpo_ao.files import mark_whole, remove_unfinished, why_not_whole, written_whole
from grpo_ao.oracle.activations import Read, SubjectTexts, read_residuals
from grpo_ao.oracle.hub import resolve_files
from grpo_ao.oracle.layers import unwrap
from grpo_ao.oracle.sharding import is_sharded, together
from grpo_ao.oracle.subject import subject_digest, subject_of, with_subject
from grpo_ao.probe import Probe, stable_hash
from grpo_ao.processes import Processes
from grpo_ao.tracking import PhaseProgress

_FORMAT = "grpo_ao.activations.3"
_WEIGHTS = ("*.safetensors", "*.bin", "config.json")
_log = logging.getLogger(__name__)


def model_fingerprint(model_name_or_path: str | Path) -> str:
    """Identify a model's weights: Hub id and commit, or a hash of a local folder's files.

    The hash is of name, size and SHA-256 of each weight file and of ``config.json``.
    """
    folder = resolve_files(model_name_or_path, ["config.json"])
    if not Path(model_name_or_path).is_dir():
        return f"{model_name_or_path}@{folder.name}"
    files = sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)})
    if not any(path.suffix in {".safetensors", ".bin"} for path in files):
        raise UserError(f"the model folder {folder} holds no weight files.")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {path.stat().st_size} {content}\n".encode())
    return f"sha256:{digest.hexdigest()}"


class ActivationStore:
    """The activations of a set of probes, read from a memory-mapped safetensors file.

    Probes with equal text, layers and positions share one entry. The activations of several layers
    lie one layer behind the other.
    """

    def __init__(self, path: Path, keys: dict[str, str]) -> None:
        self._file = safe_open(path, framework="pt")
        self._keys = keys
        self.path = path

    @classmethod
    def build(
        cls,
        folder: str | Path,
        model: PreTrainedModel | PeftModel,
        texts: SubjectTexts,
        probes: Sequence[Probe],
        model_fingerprint: str,
        batch_size: int = 256,
        progress: Callable[[int], None] | None = None,
    ) -> "ActivationStore":
        """Open the store of these probes and this model in ``folder``, or read the subject.

        The file is named after all that its content depends on: the model's fingerprint, dtype
        and quantization, the weights of the subject's own adapter, the texts' tokens (so also the
        chat template and tokenizer), layers and positions. So runs that read differently can share
        a folder, also at the same time; a file that no run needs any more can be deleted. A damaged
        file is replaced; one that is not an activation store is left alone and refused with
        UserError, as is a text of which nothing would be read. Probes of another subject than the
        one that is attached are a ValueError.
        ``progress`` is called with the number of texts read; not at all if none had to be.
        """
        if not probes:
            raise UserError("there are no probes to store activations of.")
        if (asked := {probe.subject for probe in probes}) != {subject_of(model)}:
            raise ValueError(
                f"the probes ask about the subjects {sorted(asked)}, the one that would be read is "
                f"'{subject_of(model)}'."
            )
        entries = {_key(probe): probe for probe in probes}
        tokens = {p.text: texts[p.text] for p in entries.values()}
        reads = {key: (p.layers, texts.positions_read(p)) for key, p in entries.items()}
        fingerprint = _fingerprint(
            [model_fingerprint, *_number_format(model), *subject_digest(model)],
            entries,
            tokens,
            reads,
        )
        path = Path(folder) / f"activations-{fingerprint[:16]}.safetensors"
        if not _is_current(path, fingerprint, set(entries)):
            tensors = _read(model, entries, tokens, reads, batch_size, progress)
            _write(path, tensors, fingerprint)
        return cls(path, {probe.id: _key(probe) for probe in probes})

    def vectors(self, probe_id: str) -> Float[Tensor, "K D"]:
        """Return the activations of a probe, on the CPU; KeyError for an id that is not here."""
        if probe_id not in self._keys:
            raise KeyError(f"the activation store {self.path} holds no probe {probe_id!r}.")
        return self._file.get_tensor(self._keys[probe_id])


@dataclass(frozen=True)
class SubjectReader:
    """Reads the subject's activations into stores in ``folder``.

    ``base`` is the base model's fingerprint. Where processes share the model, the main one reads,
    and the others open what it wrote.
    """

    model: PeftModel
    texts: SubjectTexts
    base: str
    folder: Path
    progress: PhaseProgress
    processes: Processes

    def read(
        self, phase: str, probes: Sequence[Probe], adapter: str | None = None, name: str = ""
    ) -> ActivationStore:
        """Return the store of these probes; the subject has this adapter (``with_subject``)."""
        count = len({probe.text for probe in probes})
        with with_subject(self.model, adapter, name), self.progress.phase(phase, count) as bar:
            if is_sharded(self.model):
                # The others take part in the passes of the main process, and wait afterwards.
                with together(self.model):
                    if self.processes.is_main:
                        self._store(probes, bar.to)
            with self.processes.main_first():
                store = self._store(probes, bar.to)
            bar.to(count)
        return store

    def _store(self, probes: Sequence[Probe], progress: Callable[[int], None]) -> ActivationStore:
        given = (self.folder, self.model, self.texts, probes, self.base)
        return ActivationStore.build(*given, progress=progress)


def _key(probe: Probe) -> str:
    return stable_hash(probe.text, probe.shown_layers, str(probe.positions))


def _read(
    model: PreTrainedModel | PeftModel,
    entries: dict[str, Probe],
    tokens: dict[str, list[int]],
    reads: dict[str, Read],
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> dict[str, Tensor]:
    # Each text goes through the subject once, whatever the number of its entries.
    keys: dict[str, list[str]] = {text: [] for text in tokens}
    for key, probe in entries.items():
        keys[probe.text].append(key)
    rows = [[reads[key] for key in keys[text]] for text in tokens]
    outputs = read_residuals(model, list(tokens.values()), rows, batch_size, progress)
    return {
        key: tensor
        for text, row in zip(tokens, outputs, strict=True)
        for key, tensor in zip(keys[text], row, strict=True)
    }


def _number_format(model: PreTrainedModel | PeftModel) -> list[str]:
    base = unwrap(model)
    return [str(base.dtype), str(getattr(base.config, "quantization_config", None))]


def _fingerprint(
    model: list[str],
    entries: dict[str, Probe],
    tokens: dict[str, list[int]],
    reads: dict[str, Read],
) -> str:
    digest = hashlib.sha256(json.dumps([_FORMAT, *model]).encode())
    for key in sorted(entries):
        layers, chosen = reads[key]
        read = [*layers, chosen.start, chosen.stop]
        digest.update(json.dumps([key, tokens[entries[key].text], read]).encode())
    return digest.hexdigest()


def _is_current(path: Path, fingerprint: str, wanted: set[str]) -> bool:
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, set(file.keys())
    except SafetensorError as error:
        _log.warning("%s is damaged (%s): it is read anew from the subject.", path, error)
        return False
    if metadata.get("format") != _FORMAT:
        raise UserError(f"{path} is not an activation store: move it away or name another folder.")
    if (fault := why_not_whole(path.with_suffix(".json"))) is not None:
        _log.warning("%s is read anew from the subject, for %s.", path, fault)
        return False
    return metadata.get("fingerprint") == fingerprint and names == wanted


def _write(path: Path, tensors: dict[str, Tensor], fingerprint: str) -> None:
    metadata = {"format": _FORMAT, "fingerprint": fingerprint}
    remove_unfinished(path)
    with written_whole(path) as unfinished:
        save_file(tensors, unfinished, metadata=metadata)
    mark_whole(path.with_suffix(".json"), [path])
