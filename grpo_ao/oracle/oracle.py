"""The oracle: a language model with a LoRA adapter that answers questions about activations."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_ao.credit import answer_start
from grpo_ao.epistemic import parse_oracle_output
from grpo_ao.errors import UserError
from grpo_ao.files import MINI_WEIGHTS, as_umask_says, write_faults
from grpo_ao.oracle.activations import read_residuals
from grpo_ao.oracle.generation import Room, generate_completions
from grpo_ao.oracle.gguf import local_base
from grpo_ao.oracle.hub import resolve_files
from grpo_ao.oracle.injection import InjectionHook
from grpo_ao.oracle.inputs import (
    TextReading,
    checked_vectors,
    one_each,
    text_readings,
    unlike_activations,
    written_prompts,
)
from grpo_ao.oracle.layers import decoder_layers, hidden_width, unwrap
from grpo_ao.oracle.loading import (
    ADAPTER_FILES,
    OracleSources,
    check_sources,
    choose_device,
    default_dtype,
    load_peft_model,
)
from grpo_ao.oracle.merging import ADAPTER, merged_if_possible
from grpo_ao.oracle.probabilities import completion_logp, probability_of
from grpo_ao.oracle.prompt import OraclePrompt, build_oracle_prompt
from grpo_ao.oracle.sampling import Completion, RolloutEngine, Rollouts, Sampling
from grpo_ao.oracle.spec import OracleSpec, load_spec, save_spec
from grpo_ao.oracle.stream import check_stream
from grpo_ao.oracle.subject import with_subject
from grpo_ao.oracle.turn import Conversation
from grpo_ao.probe import Layers, Positions, rising
from grpo_ao.wording import question_kind, say_the_same


@dataclass(frozen=True)
class OracleAnswer:
    """An answer, with the stated confidence in [0, 1] and what else is known of it.

    The confidence is None where the completion does not open with a well-formed tag, and the answer
    is then the whole completion. ``calibrated`` is False where the oracle was never trained to
    state a confidence (``OracleSpec``): the number is then not to be believed.
    ``answer_probability`` is that of the tokens behind the tag, ``agreement`` the share of sampled
    answers that say the same (None where none was sampled), ``read`` the tokens at whose positions
    the subject was read (none of vectors that were given).
    """

    confidence: float | None
    answer: str
    calibrated: bool
    completion: str
    answer_probability: float
    agreement: float | None
    read: tuple[str, ...]


class Oracle:
    """A PEFT model, its tokenizer, and the hook that injects activations into it.

    The base model, adapter off, is also the subject. One hook is attached to the model from here
    until ``detach``. ``engine`` (vLLM) completes in the model's place where it is set. Raises
    UserError for a model whose residual stream hooks cannot reach (``stream``).
    """

    def __init__(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, spec: OracleSpec
    ) -> None:
        check_stream(model)
        self.model = model
        self.tokenizer = tokenizer
        self.num_layers = len(decoder_layers(model))
        self.spec = spec.for_model(self.num_layers)
        self.engine: RolloutEngine | None = None
        self._room = Room()
        self.hook = InjectionHook().attach(model, spec.hook_onto_layer, spec.steering_coefficient)

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        adapter: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        load_in_4bit: bool = False,
    ) -> "Oracle":
        """Load an oracle from local folders or Hub ids; the base from a ``.gguf`` file, too.

        ``load_in_4bit`` quantizes the base (CUDA only). By default the device is a GPU where there
        is one, and the dtype bfloat16 there and float32 on a CPU.
        Raises UserError, before the base's weights are loaded, for a folder or Hub id that cannot
        be read, an adapter that does not fit the base (modules, rank, width), a tokenizer that
        cannot write the oracle's prompt, a model of more than 3 billion parameters without a GPU,
        and 4 bits without a GPU or bitsandbytes.
        """
        base = local_base(base)
        sources = check_sources(base, adapter, choose_device(device), load_in_4bit)
        return cls.load(sources, dtype)

    @classmethod
    def load(
        cls, sources: OracleSources, dtype: torch.dtype | None = None, divided: bool = False
    ) -> "Oracle":
        """Load an oracle whose sources were checked.

        ``divided`` divides the base's weights over the processes of a run (``sharding``).
        """
        dtype = default_dtype(sources.device) if dtype is None else dtype
        return cls(load_peft_model(sources, dtype, divided), sources.tokenizer, sources.spec)

    @classmethod
    def mini(cls) -> "Oracle":
        """Load the oracle that ships with the package: 3.9 million parameters, of a made-up world.

        It answers within a second on a CPU, and states a confidence that it was not trained for.
        """
        return cls.from_pretrained(MINI_WEIGHTS / "base", MINI_WEIGHTS / "oracle")

    def with_adapter(self, adapter: str | Path) -> "Oracle":
        """Return the oracle of another adapter on the same base; this one is over.

        Raises as ``from_pretrained`` does for an adapter that cannot be read.
        """
        folder = resolve_files(adapter, ADAPTER_FILES)
        self.detach()
        self.model.delete_adapter(ADAPTER)
        self.model.load_adapter(str(folder), ADAPTER)
        self.model.set_adapter(ADAPTER)
        self.model.requires_grad_(False)
        return Oracle(self.model.eval(), self.tokenizer, load_spec(folder))

    def save_adapter(self, folder: str | Path) -> None:
        """Save the adapter, with ``ao_config.json`` beside it, each file as a whole."""
        folder = Path(folder)
        with write_faults(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=".unfinished-", dir=folder) as unfinished:
                self.model.save_pretrained(unfinished, selected_adapters=[ADAPTER])
                save_spec(self.spec, unfinished)
                (Path(unfinished) / "README.md").unlink()  # PEFT's, with nothing but headings
                for path in Path(unfinished).iterdir():
                    as_umask_says(path)
                    path.replace(folder / path.name)

    def detach(self) -> None:
        """Take the hook off the model: from here on it is an ordinary PEFT model."""
        self.hook.detach()

    def prompt(self, layers: Layers, num_vectors: int, question: str) -> OraclePrompt:
        """Build this oracle's prompt for ``num_vectors`` activations, as many of each layer."""
        return build_oracle_prompt(self.tokenizer, layers, num_vectors, question, self.spec)

    def layers_read(self, layers: int | Sequence[int] | None = None) -> Layers:
        """Return the layers that a question is asked of: one, or several that are read together.

        By default those that the adapter was trained on, of several such the middle ones.
        """
        chosen = self.spec.middle_layers(self.num_layers) if layers is None else layers
        return rising([chosen] if isinstance(chosen, int) else chosen)

    def complete(
        self,
        prompts: Sequence[OraclePrompt],
        vectors: Sequence[Tensor],
        sampling: Sampling,
        batch_size: int = 64,
    ) -> list[list[list[int]]]:
        """Complete prompts, activations injected; return token ids, ``[prompt][sample][token]``.

        By ``engine`` where one is set, which chooses its batches itself; otherwise see
        ``generation.generate_completions``.
        """
        found = self.completions(prompts, vectors, sampling, batch_size)
        return [[completion.token_ids for completion in own] for own in found]

    def completions(
        self,
        prompts: Sequence[OraclePrompt],
        vectors: Sequence[Tensor],
        sampling: Sampling,
        batch_size: int = 64,
        watched: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """Complete prompts as ``complete`` does; return ``[prompt][sample]``.

        Unless ``watched`` is None, with log-probabilities at temperature 1, those of ``watched``
        tokens among them: where whoever completes tells none, each completion is read once more.
        """
        if self.engine is None:
            found = self._generated(prompts, vectors, sampling, batch_size, watched)
        else:
            written = self.engine.rollouts(prompts, vectors, sampling).token_ids
            found = [[Completion(ids, torch.empty(len(ids), 0)) for ids in own] for own in written]
        if watched is None or all(done.logp_CT.shape[1] for own in found for done in own):
            return found
        return self._read(prompts, vectors, found, batch_size, watched)

    def _read(
        self,
        prompts: Sequence[OraclePrompt],
        vectors: Sequence[Tensor],
        found: list[list[Completion]],
        batch_size: int,
        watched: Sequence[int],
    ) -> list[list[Completion]]:
        """Return completions with the log-probabilities that a reading of each tells."""
        rows = [row for row, own in enumerate(found) for _ in own]
        read = completion_logp(
            *(self.model, self.hook),
            [prompts[row] for row in rows],
            [vectors[row] for row in rows],
            [done.token_ids for own in found for done in own],
            batch_size,
            watched,
        )
        with merged_if_possible(self.model):  # once, not for each batch
            return [[done._replace(logp_CT=next(read)) for done in own] for own in found]

    def rollouts(
        self, prompts: Sequence[OraclePrompt], vectors: Sequence[Tensor], sampling: Sampling
    ) -> Rollouts:
        """Complete all prompts at once with this process's own model, whatever ``engine`` is."""
        size = max(1, len(prompts) * sampling.num_samples)
        found = self._generated(prompts, vectors, sampling, size, None)
        return Rollouts([[completion.token_ids for completion in own] for own in found], None)

    def _generated(
        self,
        prompts: Sequence[OraclePrompt],
        vectors: Sequence[Tensor],
        sampling: Sampling,
        batch_size: int,
        watched: Sequence[int] | None,
    ) -> list[list[Completion]]:
        own, asked = (self.model, self.tokenizer, self.hook), (prompts, vectors, sampling)
        return generate_completions(*own, *asked, batch_size, watched, self._room)

    def decode(self, completions: Sequence[Sequence[int]]) -> list[str]:
        """Return what completions say: token ids as text, special tokens left out."""
        return self.tokenizer.batch_decode(list(map(list, completions)), skip_special_tokens=True)

    def ask(
        self,
        texts: Sequence[str | Conversation] = (),
        questions: str | Sequence[str] = (),
        layers: int | Sequence[int] | None = None,
        positions: Positions | str | Sequence[Positions | str] = "last:20",
        temperature: int | float = 0.0,
        max_new_tokens: int = 64,
        subject_lora: str | Path | None = None,
        vectors: Sequence[Tensor] | None = None,
        samples: int = 0,
        batch_size: int = 64,
    ) -> list[OracleAnswer]:
        """Ask questions about the subject's activations over texts, or about vectors.

        A text is what a user says, or a conversation: messages with ``role`` and ``content``. One
        question, or positions, serve for all texts; a list has one for each. ``layers`` are those
        of ``layers_read``; ``subject_lora`` is the adapter of a fine-tuned subject, with which the
        texts are read. ``vectors[i]``, (K, D) or (D), stands in place of text i: any directions of
        the residual stream, told to the oracle as K activations, as many of each layer.
        ``samples`` more answers, at temperature 1, tell the agreement; ``batch_size`` counts
        sequences. Raises UserError for a text that is too short or too long for the model, a
        question that leaves its answer no room, and vectors of another width.
        """
        if isinstance(texts, str):
            raise UserError("give a list of texts, and one question or one for each text.")
        if vectors is not None and texts:
            raise UserError("give texts or vectors, not both.")
        config = unwrap(self.model).config
        chosen = self.layers_read(layers)
        count = len(texts if vectors is None else vectors)
        questions = one_each(questions, count, "questions")
        read = text_readings(
            self.tokenizer, config, texts, one_each(positions, len(texts), "positions")
        )
        if vectors is None:
            with with_subject(self.model, subject_lora):
                vectors = self._activations(read, chosen, batch_size)
        else:
            vectors = checked_vectors(vectors, hidden_width(config))
            self._warn_of_norms(vectors, chosen)
        prompts = written_prompts(
            *(self.tokenizer, config, self.spec, chosen),
            [len(given_KD) for given_KD in vectors],
            questions,
            max_new_tokens,
        )
        sampling = Sampling(1, temperature, max_new_tokens)
        tokens = [reading.tokens for reading in read] or [()] * count
        found = self._completed(prompts, vectors, sampling, samples, batch_size)
        return [self._answer(*row) for row in zip(questions, tokens, *found, strict=True)]

    def _activations(
        self, read: Sequence[TextReading], layers: Layers, batch_size: int
    ) -> list[Tensor]:
        rows = [reading.token_ids for reading in read]
        reads = [[(layers, reading.where)] for reading in read]
        return [row_KD for (row_KD,) in read_residuals(self.model, rows, reads, batch_size)]

    def _warn_of_norms(self, vectors: Sequence[Tensor], layers: Layers) -> None:
        config = unwrap(self.model).config
        (sample,) = text_readings(self.tokenizer, config, ["How are you today?"], ["all"])
        (usual_KD,) = self._activations([sample], layers, 1)
        warning = unlike_activations(vectors, usual_KD) if vectors else None
        if warning is not None:
            warnings.warn(warning, stacklevel=3)

    def _completed(
        self,
        prompts: Sequence[OraclePrompt],
        vectors: Sequence[Tensor],
        sampling: Sampling,
        samples: int,
        batch_size: int,
    ) -> tuple[list[Completion], list[list[list[int]]]]:
        """Return each prompt's completion, with log-probabilities, and ``samples`` others."""
        found = self.completions(prompts, vectors, sampling, batch_size, watched=())
        completions = [completion for (completion,) in found]
        if not samples:
            return completions, [[] for _ in prompts]
        others = Sampling(samples, 1.0, sampling.max_new_tokens)
        return completions, self.complete(prompts, vectors, others, batch_size)

    def _answer(
        self,
        question: str,
        read: tuple[str, ...],
        written: Completion,
        others: Sequence[Sequence[int]],
    ) -> OracleAnswer:
        completion, *sampled = self.decode([written.token_ids, *others])
        confidence, answer = parse_oracle_output(completion)
        start = answer_start(self.tokenizer, written.token_ids, confidence is not None)
        kind = question_kind(question)
        same = [say_the_same(answer, parse_oracle_output(other).answer, kind) for other in sampled]
        return OracleAnswer(
            confidence,
            answer,
            self.spec.calibrated,
            completion,
            probability_of(written.logp_CT[start:]),
            sum(same) / len(same) if same else None,
            read,
        )
