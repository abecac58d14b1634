"""The oracle: a language model with a LoRA adapter that answers questions about activations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_ao.epistemic import parse_oracle_output
from grpo_ao.errors import UserError
from grpo_ao.files import MINI_WEIGHTS, as_umask_says, writing
from grpo_ao.oracle.activations import extract_activations
from grpo_ao.oracle.context import check_prompt, context_length
from grpo_ao.oracle.generation import generate_completions
from grpo_ao.oracle.gguf import local_base
from grpo_ao.oracle.injection import InjectionHook
from grpo_ao.oracle.layers import decoder_layers, unwrap
from grpo_ao.oracle.loading import (
    ADAPTER_FILES,
    choose_device,
    default_dtype,
    load_peft_model,
    load_tokenizer,
)
from grpo_ao.oracle.prompt import OraclePrompt, build_oracle_prompt
from grpo_ao.oracle.sampling import RolloutEngine, Rollouts, Sampling
from grpo_ao.oracle.sources import resolve_files
from grpo_ao.oracle.spec import OracleSpec, load_spec, save_spec
from grpo_ao.oracle.stream import check_stream
from grpo_ao.oracle.subject import with_subject
from grpo_ao.probe import Layers, Positions, rising


@dataclass(frozen=True)
class OracleAnswer:
    """An answer, with the stated confidence in [0, 1].

    It is None where the completion does not open with a well-formed tag, and the answer is then the
    whole completion. ``calibrated`` is False where the oracle was never trained to state a
    confidence (``OracleSpec``): the number is then not to be believed.
    """

    confidence: float | None
    answer: str
    calibrated: bool
    completion: str


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
        self.hook = InjectionHook().attach(model, spec.hook_onto_layer, spec.steering_coefficient)

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        adapter: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        load_in_4bit: bool = False,
        divided: bool = False,
    ) -> "Oracle":
        """Load an oracle from local folders or Hub ids; the base from a ``.gguf`` file, too.

        ``revision`` is the base model's; ``load_in_4bit`` quantizes it (CUDA only),
        ``divided`` divides its weights over the processes of a run (``sharding``). By default the
        device is a GPU where there is one, and the dtype bfloat16 there and float32 on a CPU.
        Raises UserError, before the base's weights are loaded, for a folder or Hub id that cannot
        be read, an adapter that does not fit the base (modules, rank, width), a tokenizer that
        cannot write the oracle's prompt, a model of more than 3 billion parameters without a GPU,
        and 4 bits without a GPU or bitsandbytes.
        """
        base = local_base(base)
        device = choose_device(device)
        dtype = default_dtype(device) if dtype is None else dtype
        adapter_folder = resolve_files(adapter, ADAPTER_FILES)
        spec = load_spec(adapter_folder)
        model = load_peft_model(
            base, adapter_folder, device, dtype, revision, load_in_4bit, divided
        )
        return cls(model, load_tokenizer(base, revision), spec)

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
        self.model.delete_adapter("default")
        self.model.load_adapter(str(folder), "default")
        self.model.set_adapter("default")
        self.model.requires_grad_(False)
        return Oracle(self.model.eval(), self.tokenizer, load_spec(folder))

    def save_adapter(self, folder: str | Path) -> None:
        """Save the adapter ``default``, with ``ao_config.json`` beside it, each file as a whole."""
        folder = Path(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=".unfinished-", dir=folder) as unfinished:
                self.model.save_pretrained(unfinished, selected_adapters=["default"])
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
        trained = self.spec.act_layer_combinations
        chosen = trained[len(trained) // 2] if layers is None else layers
        return rising([chosen] if isinstance(chosen, int) else chosen)

    def complete(
        self,
        prompts: Sequence[OraclePrompt],
        vectors: Sequence[Tensor],
        sampling: Sampling,
        batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[list[int]]]:
        """Complete prompts, activations injected; return token ids, ``[prompt][sample][token]``.

        By ``engine`` where one is set, which chooses its batches itself; otherwise see
        ``generation.generate_completions``.
        """
        if self.engine is not None:
            token_ids = self.engine.rollouts(prompts, vectors, sampling).token_ids
            if progress is not None:
                progress(len(prompts))
            return token_ids
        return generate_completions(
            self.model,
            self.tokenizer,
            self.hook,
            prompts,
            vectors,
            sampling,
            batch_size=batch_size,
            progress=progress,
        )

    def rollouts(
        self, prompts: Sequence[OraclePrompt], vectors: Sequence[Tensor], sampling: Sampling
    ) -> Rollouts:
        """Complete all prompts at once with this process's own model, whatever ``engine`` is."""
        token_ids = generate_completions(
            self.model,
            self.tokenizer,
            self.hook,
            prompts,
            vectors,
            sampling,
            batch_size=max(1, len(prompts)) * sampling.num_samples,
        )
        return Rollouts(token_ids, None)

    def ask(
        self,
        texts: Sequence[str],
        questions: Sequence[str],
        layers: int | Sequence[int] | None = None,
        positions: Positions | str = "last:20",
        temperature: int | float = 0.0,
        max_new_tokens: int = 64,
        subject_lora: str | Path | None = None,
    ) -> list[OracleAnswer]:
        """Ask ``questions[i]`` about the subject's activations over ``texts[i]``.

        ``layers`` are those of ``layers_read``; ``subject_lora`` is the adapter of a fine-tuned
        subject, with which the texts are read. Raises UserError for a text that is too short
        or too long for the model, and for a question that leaves its answer no room.
        """
        if isinstance(texts, str) or isinstance(questions, str):
            raise UserError("give a list of texts and a list of questions, one for each text.")
        if len(texts) != len(questions):
            raise UserError(f"{len(texts)} texts, but {len(questions)} questions: give pairs.")
        read = self.layers_read(layers)
        positions = Positions.parse(positions) if isinstance(positions, str) else positions
        with with_subject(self.model, subject_lora):
            activations = extract_activations(self.model, self.tokenizer, texts, read, positions)
        vectors = [torch.cat([by_layer[layer] for layer in read]) for by_layer in activations]
        prompts = [
            self.prompt(read, len(row_KD), question)
            for row_KD, question in zip(vectors, questions, strict=True)
        ]
        context = context_length(unwrap(self.model).config)
        for prompt, question in zip(prompts, questions, strict=True):
            check_prompt(context, len(prompt.input_ids), max_new_tokens, question)
        sampling = Sampling(1, temperature, max_new_tokens)
        completions = self.complete(prompts, vectors, sampling)
        return [self._answer(token_ids) for (token_ids,) in completions]

    def _answer(self, token_ids: list[int]) -> OracleAnswer:
        (completion,) = self.tokenizer.batch_decode([token_ids], skip_special_tokens=True)
        return OracleAnswer(*parse_oracle_output(completion), self.spec.calibrated, completion)
