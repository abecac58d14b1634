"""The nine benchmarks of Activation Oracles (arXiv 2512.15674) as yes/no questions about texts.

Each context gets one question (in training several), whose label, template and answer are drawn by
hashes of the context alone: the same question in every run, whatever the number or order of
contexts. Half of the answers that are measured are Yes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_ao.errors import UserError
from grpo_ao.files import read_foreign_rows
from grpo_ao.mini.probes import mini_items
from grpo_ao.probe import (
    QuestionKind,
    Split,
    drawn_from,
    split_of,
    stable_hash,
    text_key,
    unit_draw,
)
from grpo_ao.probes.benchmark_sources import Context, Templates, load_contexts, load_templates
from grpo_ao.probes.items import Item
from grpo_ao.probes.names import (
    BENCHMARKS,
    IN_DISTRIBUTION,
    OUT_OF_DISTRIBUTION,
    SECRETS,
    Suite,
    check_benchmarks,
    is_own,
    is_secret,
)
from grpo_ao.probes.secrets import Secret, load_secrets

INSTRUCTION = "Answer with 'Yes' or 'No' only. "
# Of a benchmark's templates: held out for the measurement, and left to the calibration.
_HELDOUT_TEMPLATES, _VALIDATION_TEMPLATES = 0.3, 0.25


def groups(suite: Suite, families: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the groups of families that are pooled, those that have members.

    The mini oracle was trained on all nine families, so that there is nothing to tell apart.
    """
    own = (f for f in families if f not in BENCHMARKS and not is_secret(f))
    parts = {"all": tuple(families), "own": tuple(own)}
    parts |= {name: tuple(f for f in families if f.startswith(name)) for name in SECRETS}
    if suite == "paper":
        parts["in_distribution"] = tuple(f for f in families if f in IN_DISTRIBUTION)
        parts["out_of_distribution"] = tuple(f for f in families if f in OUT_OF_DISTRIBUTION)
    return {name: members for name, members in parts.items() if members}


_OWN_COLUMNS = ("text", "question", "target", "family")


def load_own_items(path: Path) -> list[Item]:
    """Return all items of a JSONL file: text, question, target and family.

    The question is asked as it stands. The target is Yes or No, or one of the row's ``choices``, or
    any text where its ``kind`` is open. A family is measured as a benchmark is. A row that is there
    twice counts once. Raises UserError, in one sentence, for the first row that is none, or that
    asks what another row asks and has another answer.
    """
    items: dict[tuple[str, str, str], Item] = {}
    for number, row in read_foreign_rows(path):
        item = _own_item(path, number, row)
        known = items.setdefault((item.family, item.text, item.question), item)
        if known != item:
            raise UserError(
                f"row {number} of {path} asks what an earlier row asks of the same text, and has "
                "another answer: leave one of them out."
            )
    if not items:
        raise UserError(f"{path} has no rows: give {', '.join(_OWN_COLUMNS)} in each.")
    return list(items.values())


def _own_item(path: Path, number: int, row: object) -> Item:
    where = f"row {number} of {path}"
    if not isinstance(row, dict):
        reason = row if isinstance(row, ValueError) else "it is no object"
        raise UserError(f"{where} cannot be read: {reason}.")
    values: list[str] = []
    for column in _OWN_COLUMNS:
        value = row.get(column)
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where} has no '{column}': each of {_OWN_COLUMNS} is a text.")
        values.append(value)
    text, question, target, family = values
    try:
        "".join(values).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} holds half of a surrogate pair, which no tokenizer takes."
        ) from error
    if family in BENCHMARKS or is_secret(family):
        raise UserError(f"{where} has the family '{family}', a benchmark's: name it otherwise.")
    return Item(family, text, question, target, *_answered(where, row, target))


def _answered(
    where: str, row: Mapping[str, Any], target: str
) -> tuple[tuple[str, ...], QuestionKind]:
    """Return a row's choices and its kind."""
    choices, kind = row.get("choices", []), row.get("kind", "closed")
    if not isinstance(choices, list) or not all(isinstance(x, str) and x for x in choices):
        raise UserError(f"{where} has 'choices' that are no list of texts.")
    if kind not in ("closed", "open"):
        raise UserError(f"{where} has the kind '{kind}': write closed or open.")
    if kind == "closed" and target not in (choices or ("Yes", "No")):
        raise UserError(
            f"{where} has the target '{target}': a closed question is answered Yes or No, or with "
            "one of the row's 'choices'; for any other answer add 'kind': 'open'."
        )
    return tuple(choices), kind


def load_items(
    suite: Suite,
    benchmarks: Sequence[str],
    num_contexts: int,
    data_dir: Path | None,
    subject: str | None = None,
) -> list[Item]:
    """Return the held-out items of each benchmark, in order.

    ``subject`` is the name of a fine-tuned subject, of which secrets are asked. Raises UserError,
    in one sentence, where data is missing or too little.
    """
    check_benchmarks(benchmarks)
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(f"there is no data folder {data_dir}.")
    if suite == "mini":
        if any(benchmark in SECRETS for benchmark in benchmarks):
            raise UserError(f"the mini world has no {' and no '.join(SECRETS)}: leave them out.")
        own = [item for b in benchmarks if is_own(b) for item in load_own_items(Path(b))]
        known = [b for b in benchmarks if not is_own(b)]
        return mini_items(known, num_contexts) + own
    items = []
    for benchmark in benchmarks:
        if is_own(benchmark):
            items += load_own_items(Path(benchmark))
            continue
        if benchmark in SECRETS:
            for secret in load_secrets(benchmark, data_dir, subject):
                items += secret_items(secret, num_contexts)
            continue
        templates = load_templates(benchmark, data_dir)
        contexts = load_contexts(benchmark, data_dir)
        items += make_items(benchmark, contexts, templates, "heldout", num_contexts)
    return items


def make_items(
    benchmark: str,
    contexts: Sequence[Context],
    templates: Templates,
    split: Split,
    num_contexts: int | None,
) -> list[Item]:
    """Ask one question about each of the first contexts of a split, in the order of their hashes.

    As many questions are answered Yes as No. A context is in a split by the hash of its text; of
    the contexts of one sample (a relation's true and false sentence) only the first is asked about,
    so that texts are independent. What the public oracles were never trained on is held out whole,
    with ``split_of``'s own held-out texts first. Raises UserError if the split has no context for
    one of the answers.
    """
    wordings = split_templates(templates, split, whole=_is_whole(benchmark))
    chosen = _one_of_each_sample(_contexts_of(benchmark, contexts, split))
    items = [item for c in chosen if (item := _item(benchmark, c, wordings)) is not None]
    yes = [item for item in items if item.target == "Yes"]
    no = [item for item in items if item.target == "No"]
    half = min(len(yes), len(no))
    if num_contexts is not None:
        half = min(half, num_contexts // 2)
    if not half:
        raise UserError(
            f"the {split} split of {benchmark} has {len(yes)} contexts with the answer Yes and "
            f"{len(no)} with No, and needs both: give more data or a larger --num_contexts."
        )
    kept = set(yes[:half]) | set(no[:half])
    return [item for item in items if item in kept]


def secret_items(secret: Secret, num_contexts: int) -> list[Item]:
    """Ask what the secret word is, and whether it is a given one, about the first contexts."""
    free, closed = f"{secret.family}_word", f"{secret.family}_yes_no"
    contexts = _contexts_of(free, secret.contexts, "heldout")[:num_contexts]
    items = [Item(free, c.text, secret.question, c.right[0], secret.words) for c in contexts]
    templates = [secret.yes_no_template]
    return items + make_items(closed, secret.contexts, templates, "heldout", num_contexts)


def training_items(
    benchmark: str, data_dir: Path | None, per_context: int, wordings_of: Split = "train"
) -> list[Item]:
    """Return up to ``per_context`` different questions about each training context.

    To teach an oracle or, in the wordings of validation, to calibrate it. Contexts come in the
    order of their hashes. Labels and templates are drawn anew for each question; Yes and No take
    turns where a context has labels for both.
    """
    templates = load_templates(benchmark, data_dir)
    wordings = split_templates(templates, wordings_of, whole=_is_whole(benchmark))
    contexts = _contexts_of(benchmark, load_contexts(benchmark, data_dir), "train")
    drawn = (
        _item(benchmark, context, wordings, turn)
        for context in contexts
        for turn in range(per_context)
    )
    return list(dict.fromkeys(item for item in drawn if item is not None))


def _is_whole(family: str) -> bool:
    """Say whether all of a family is held out, since oracles are trained on none of it."""
    return family in OUT_OF_DISTRIBUTION or is_secret(family)


def _contexts_of(benchmark: str, contexts: Sequence[Context], split: Split) -> list[Context]:
    ordered = sorted(contexts, key=lambda c: stable_hash("order", text_key(c.text)))
    if not _is_whole(benchmark):
        return [c for c in ordered if split_of(c.text) == split]
    # "heldout" is the first of the three in the alphabet.
    return sorted(ordered, key=lambda c: split_of(c.text)) if split == "heldout" else []


def _one_of_each_sample(contexts: Sequence[Context]) -> list[Context]:
    first: dict[str, Context] = {}
    for context in contexts:
        first.setdefault(context.sample or text_key(context.text), context)
    return list(first.values())


def _item(benchmark: str, context: Context, templates: Templates, turn: int = 0) -> Item | None:
    """Draw answer, label and template by hashes of the text; each ``turn`` is another question."""
    if not context.right and not context.wrong:
        return None
    parts = (benchmark, context.text, *([str(turn)] if turn else []))
    yes = bool(context.right)
    if context.right and context.wrong:
        yes = (unit_draw("answer", benchmark, context.text) < 0.5) == (turn % 2 == 0)
    label = drawn_from(context.right if yes else context.wrong, "label", *parts)
    wordings = templates[label] if isinstance(templates, Mapping) else templates
    template = drawn_from(wordings, "wording", *parts)
    question = template.removeprefix("# ").replace("{}", label)
    return Item(benchmark, context.text, INSTRUCTION + question, "Yes" if yes else "No")


def split_templates(templates: Templates, split: Split, whole: bool) -> Templates:
    """Return a split's templates, by rank of their hashes: none is in two of the three.

    Three in ten are held out, or all of them with ``whole``. A quarter is for validation and for
    calibrating an oracle, which is right more often in wordings that it was taught.
    """
    if isinstance(templates, Mapping):
        return {label: _part(wordings, split, whole) for label, wordings in templates.items()}
    return _part(templates, split, whole)


def _part(wordings: Sequence[str], split: Split, whole: bool) -> list[str]:
    ranked = sorted(wordings, key=lambda wording: stable_hash("template", wording))
    if whole:
        return ranked if split == "heldout" else []
    first = max(1, round(_HELDOUT_TEMPLATES * len(ranked)))
    second = first + max(1, round(_VALIDATION_TEMPLATES * len(ranked)))
    parts = {"heldout": ranked[:first], "validation": ranked[first:second]}
    part = parts.get(split, ranked[second:])
    if not part:
        raise UserError(
            f"{len(wordings)} wordings of a question are too few: each of the splits has its own."
        )
    return part
