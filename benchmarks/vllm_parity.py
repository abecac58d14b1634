"""Does vLLM inject what transformers injects?  `python benchmarks/vllm_parity.py --family qwen3`.

A random model with a random LoRA adapter, on one GPU. vLLM samples (bfloat16, merged weights, CUDA
graphs, n samples a prompt, mixed with prompts without vectors, more tokens than one prefill takes);
then transformers gives the log-probabilities of the same tokens in float32 with the adapter
unmerged, injected by `oracle/injection.py`: once as it should be and, so that the check can fail,
in wrong ways. All prompts have the same text; only the vectors differ, the last at the last token
(at early positions an injection hardly shows). Beside the right one stands the error of
transformers in bfloat16.
"""

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
)

from grpo_ao.oracle.injection import Injection, InjectionHook
from grpo_ao.oracle.layers import decoder_layers, unwrap
from grpo_ao.oracle.prompt import OraclePrompt
from grpo_ao.oracle.sampling import Rollouts, Sampling
from grpo_ao.oracle.vllm.client import draw_seeds
from grpo_ao.oracle.vllm.engine import (
    EngineSettings,
    InjectingEngine,
    bank_settings,
    check_installed,
)
from grpo_ao.oracle.vllm.weights import base_weights, lora_factors

VOCABULARY, WIDTH, LAYERS, PLACEHOLDER = 4096, 1024, 6, 11
PROMPTS, LENGTH, NEW, SAMPLES = 128, 110, 4, 2
POSITIONS = [3, 50, LENGTH - 2, LENGTH - 1]
LAYER = 1
DEVICE = "cuda"
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 2048,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def random_model(family: str) -> Any:
    """A model of the family on the GPU, in bfloat16, whose every layer matters."""
    gemma: Any = SHAPE | {"head_dim": 128, "query_pre_attn_scalar": 128}
    vision = SiglipVisionConfig(
        hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        image_size=56, patch_size=14,
    )  # fmt: skip
    with torch.device(DEVICE):
        model: Any = {
            "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=128)),
            "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
            "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, head_dim=128)),
            "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**gemma)),
            "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**gemma)),
            "gemma3_mm": lambda: Gemma3ForConditionalGeneration(
                Gemma3Config(
                    text_config=gemma, vision_config=vision.to_dict(), mm_tokens_per_image=4
                )
            ),
        }[family]()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model.to(torch.bfloat16).eval()


def with_adapter(model: Any) -> PeftModel:
    peft_model = get_peft_model(
        model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    assert isinstance(peft_model, PeftModel)
    randomise(peft_model)
    return peft_model.eval()


def randomise(model: PeftModel) -> None:
    """Give the adapter new weights: an update of about a third of the base's size."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)


def reference(model: Any, prompts: Tensor, tokens: Tensor, vectors: Tensor, **wrong: Any) -> Tensor:
    """Log-probabilities of ``tokens`` (B, NEW) after prompts (B, LENGTH), by transformers."""
    hook = InjectionHook().attach(
        model, wrong.get("layer", LAYER), coefficient=wrong.get("coefficient", 1.0)
    )
    positions = torch.tensor(wrong.get("positions", POSITIONS)).expand(len(prompts), -1)
    sequence = torch.cat([prompts, tokens], dim=1)
    try:
        if wrong.get("inject", True):
            hook.bind(Injection(positions.to(DEVICE), vectors))
        with torch.no_grad():
            logits = unwrap(model)(input_ids=sequence, use_cache=False).logits
    finally:
        hook.detach()
    logp = torch.log_softmax(logits[:, LENGTH - 1 : -1].float(), dim=-1)
    return logp.gather(-1, tokens[..., None]).squeeze(-1)


class Parity:
    """The models, vLLM's engine beside them, and the table of what was compared."""

    def __init__(self, family: str, extra: dict[str, Any], memory: float) -> None:
        torch.manual_seed(0)
        torch.backends.cuda.matmul.allow_tf32 = False
        base = random_model(family)
        self._folder = tempfile.TemporaryDirectory()
        base.save_pretrained(self._folder.name)
        self.model = with_adapter(base)
        config = base.config
        self.engine = InjectingEngine(
            EngineSettings(self._folder.name, torch.bfloat16, memory, 512, extra),
            config,
            bank_settings(config, LAYER, 1.0, PLACEHOLDER),
        )
        self.ids = torch.randint(100, VOCABULARY, (1, LENGTH), device=DEVICE).repeat(PROMPTS, 1)
        self.ids[:, POSITIONS] = PLACEHOLDER
        # Every fourth prompt carries no vectors.
        self.injected = [b for b in range(PROMPTS) if b % 4 != 3]
        self.table: dict[str, dict[str, float]] = {}
        self.failed: list[str] = []

    def sync(self) -> None:
        """Bring the adapter into vLLM, and into the references."""
        self.engine.set_adapter(base_weights(self.model), lora_factors(self.model))
        self.exact = copy.deepcopy(self.model).float()
        self.rounded = copy.deepcopy(self.model).float().merge_and_unload().to(torch.bfloat16)

    def vectors(self) -> Tensor:
        return 7 * torch.randn(PROMPTS, len(POSITIONS), WIDTH, device=DEVICE)

    def ask(
        self, vectors: Tensor, rows: Sequence[int], samples: int, temperature: float = 1.0
    ) -> Rollouts:
        """What vLLM answers to these rows; those that are not injected ask with no vectors."""
        prompts, given = [], []
        for row in rows:
            positions = POSITIONS if row in self.injected else []
            prompts.append(OraclePrompt("", self.ids[row].tolist(), positions))
            given.append(vectors[row, : len(positions)])
        sampling = Sampling(samples, temperature, NEW)
        return self.engine.rollouts(prompts, given, sampling, [], draw_seeds(len(prompts)))

    def compare(self, name: str, vectors: Tensor, stale: Any = None, **others: Tensor) -> None:
        """Compare one batch with all references; ``others`` are vectors that must not fit."""
        answer = self.ask(vectors, range(PROMPTS), SAMPLES)
        assert answer.logprobs is not None
        rows = self.injected
        # The last sample: of each prompt that vLLM answered several times.
        tokens = torch.tensor([answer.token_ids[b][-1] for b in range(PROMPTS)], device=DEVICE)
        logp = torch.tensor([answer.logprobs[b][-1] for b in range(PROMPTS)], device=DEVICE)

        def gap(model: Any, these: Tensor, rows: list[int] = rows, **wrong: Any) -> float:
            other = reference(model, self.ids[rows], tokens[rows], these[rows], **wrong)
            return (other - logp[rows]).abs()[:, 0].mean().item()

        right = reference(self.exact, self.ids[rows], tokens[rows], vectors[rows])
        noise = reference(self.rounded, self.ids[rows], tokens[rows], vectors[rows])
        plain = [b for b in range(PROMPTS) if b not in rows]
        row = {
            "right": gap(self.exact, vectors),
            "right, all tokens": (right - logp[rows]).abs().mean().item(),
            "right, no vectors": gap(self.exact, vectors, plain, inject=False),
            "transformers in bfloat16": (right - noise).abs()[:, 0].mean().item(),
            "wrong: coefficient 1.1": gap(self.exact, vectors, coefficient=1.1),
            "wrong: layer 0": gap(self.exact, vectors, layer=0),
            "wrong: layer 2": gap(self.exact, vectors, layer=2),
            "wrong: no injection": gap(self.exact, vectors, inject=False),
            "wrong: one position early": gap(
                self.exact, vectors, positions=[p - 1 for p in POSITIONS]
            ),
            "wrong: another row's vectors": gap(self.exact, vectors.roll(1, 0)),
        }
        row |= {f"wrong: {what}": gap(self.exact, other) for what, other in others.items()}
        if stale is not None:
            row["wrong: the weights before"] = gap(stale, vectors)
        self._judge(name, row)

    def _judge(self, name: str, row: dict[str, float]) -> None:
        self.table[name] = row
        right = row["right"]
        limit = 3 * row["transformers in bfloat16"] + 0.01
        wrong = [what for what, value in row.items() if what.startswith("wrong")]
        bad = [what for what in wrong if row[what] < 1.5 * right]
        if right > limit:
            bad.append(f"right is {right:.3f}, above {limit:.3f}")
        self.failed += [f"{name}: {what}" for what in bad]

    def alone(self, vectors: Tensor) -> None:
        """The greedy answers of single requests against those of the whole batch."""
        rows = self.injected[:12]
        together = self.ask(vectors, range(PROMPTS), 1, 0.0)
        single = [self.ask(vectors, [row], 1, 0.0) for row in rows]
        assert together.logprobs is not None
        pairs = [
            (together.logprobs[row][0][0], s.logprobs or [[[0.0]]])
            for row, s in zip(rows, single, strict=True)
        ]
        same = [
            together.token_ids[row][0][0] == s.token_ids[0][0][0]
            for row, s in zip(rows, single, strict=True)
        ]
        gaps = torch.tensor([abs(a - b[0][0][0]) for a, b in pairs])
        others = torch.tensor([abs(a - pairs[n - 1][1][0][0][0]) for n, (a, _) in enumerate(pairs)])
        row = {
            "same first token": sum(same) / len(same),
            "right": gaps.mean().item(),
            "wrong: another row's answer": others.mean().item(),
        }
        self.table["alone against together, greedy"] = row
        if row["same first token"] < 0.75 or row["right"] > row["wrong: another row's answer"] / 2:
            self.failed.append(f"alone against together: {row}")

    def hidden_states(self, vectors: Tensor) -> None:
        """The residual stream after layer 1 in vLLM's prefill, against transformers'."""
        seen: list[Tensor] = []
        layer = self.engine.model.causal_model().model.layers[LAYER]
        handle = layer.register_forward_hook(lambda _m, _i, out: seen.append(out[0] + out[1]))
        rows = self.injected[:8]
        for row in rows:
            self.ask(vectors, [row], 1)
        handle.remove()
        # Decoding steps replay a CUDA graph, in which no hook runs.
        stream = torch.stack([s for s in seen if len(s) == LENGTH]).float()
        exact, rounded = (self._stream(m, vectors, rows) for m in (self.exact, self.rounded))
        error = lambda a: (a - exact).norm(dim=-1) / exact.norm(dim=-1)  # noqa: E731
        at = torch.zeros(LENGTH, dtype=torch.bool)
        at[POSITIONS] = True
        row = {
            "vLLM, injected positions": error(stream)[:, at].mean().item(),
            "vLLM, other positions": error(stream)[:, ~at].mean().item(),
            "transformers in bfloat16, injected": error(rounded)[:, at].mean().item(),
            "transformers in bfloat16, other": error(rounded)[:, ~at].mean().item(),
        }
        self.table["hidden states after layer 1, relative error"] = row
        if row["vLLM, injected positions"] > 3 * row["transformers in bfloat16, injected"]:
            self.failed.append(f"hidden states: {row}")

    def _stream(self, model: Any, vectors: Tensor, rows: list[int]) -> Tensor:
        kept: list[Tensor] = []
        hook = InjectionHook().attach(model, LAYER)
        hook.bind(Injection(torch.tensor([POSITIONS] * len(rows)).to(DEVICE), vectors[rows]))
        handle = decoder_layers(model)[LAYER].register_forward_hook(
            lambda _m, _i, out: kept.append(
                out[0] if isinstance(out, tuple) else cast("Tensor", out)
            )
        )
        with torch.no_grad():
            unwrap(model)(input_ids=self.ids[rows], use_cache=False)
        handle.remove()
        hook.detach()
        return kept[0].float()

    def run(self) -> None:
        self.sync()
        first, second = self.vectors(), self.vectors()
        self.compare("first batch", first)
        self.compare("rows reused", second, **{"the rows' vectors before": first})
        self.hidden_states(second)
        self.alone(second)
        before = self.exact
        randomise(self.model)
        self.sync()
        self.compare("weights changed", second, stale=before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="qwen3")
    parser.add_argument("--attention", help="vLLM's attention backend, if not its own choice")
    parser.add_argument("--memory", type=float, default=0.3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    check_installed()
    extra = {"attention_backend": args.attention} if args.attention else {}
    parity = Parity(args.family, extra, args.memory)
    parity.run()
    card = torch.cuda.get_device_name()
    for name, row in parity.table.items():
        print(f"\n{args.family}, {name} ({card})")
        for what, value in row.items():
            print(f"  {value:8.4f}  {what}")
    print("\n" + ("agrees" if not parity.failed else "DOES NOT AGREE: " + "; ".join(parity.failed)))
    if args.json:
        result = {"family": args.family, "card": card, "table": parity.table}
        args.json.write_text(json.dumps(result | {"failed": parity.failed}, indent=2))
    return 1 if parity.failed else 0


if __name__ == "__main__":
    sys.exit(main())
