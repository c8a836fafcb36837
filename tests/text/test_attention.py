"""Attention as it is seen, and the methods that compare it, TinyBERT and MiniLM, against their equations."""

import copy
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blockkd.calling import logits_of
from blockkd.models import create_model
from blockkd.partitioning import partition
from blockkd.stack_blocks import StackBlocks
from blockkd.text.attention import Attention, run_inside
from blockkd.text.hidden_states import PKD
from blockkd.text.mini_lm import MiniLM, in_heads, log_relation, relation_loss
from blockkd.text.tiny_bert import TinyBERT, attention_score_loss
from tests.oracles import block_kd as stones
from tests.oracles import text as oracle
from tests.text.families import TEXT, classifier, images, sentences
from tests.text.test_text_methods import LABELS, hidden_states, made, stepped

SHOWN = ["bert", "roberta", "distilbert", "electra", "modernbert", "qwen3", "llama"]  # their queries, keys and values
LENGTHS = [5, 3, 7]


def blocks_of(network: nn.Module, inputs: Any) -> StackBlocks:
    blocks = partition(network, inputs)
    assert isinstance(blocks, StackBlocks)
    return blocks


def eager(network: nn.Module) -> Any:
    """A copy whose attention is written out."""
    twin: Any = copy.deepcopy(network)
    twin.set_attn_implementation("eager")
    return twin


def projected(network: Any, inputs: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    """BERT's queries, keys and values by hand, ``(B, H, L, d)``."""
    states = network(**inputs, output_hidden_states=True).hidden_states[layer - 1]
    own = network.bert.encoder.layer[layer - 1].attention.self
    found = {}
    for name in ("query", "key", "value"):
        flat = states @ getattr(own, name).weight.T + getattr(own, name).bias
        found[name[0].upper()] = torch.stack(flat.chunk(own.num_attention_heads, dim=2), dim=1)
    return found


@pytest.mark.parametrize("family", [*TEXT, "vit"])
def test_what_is_seen_gives_the_attention_of_the_network(family: str) -> None:
    network = classifier(family).double().eval()
    inputs: Any = sentences(LENGTHS) if family in TEXT else {k: v.double() for k, v in images(3).items()}
    seen = run_inside(blocks_of(network, inputs), [1, 2, 3, 4], inputs, {})
    written = eager(network)
    expected = written(**inputs, output_attentions=True, output_hidden_states=True)
    real = inputs["attention_mask"].bool() if family in TEXT else torch.ones(3, seen.states[0].shape[1]).bool()
    assert torch.equal(seen.logits, logits_of(network, inputs))
    torch.testing.assert_close(seen.entering, expected.hidden_states[0])
    spelled = run_inside(blocks_of(written, inputs), [1, 2, 3, 4], inputs, {})
    for layer, theirs in zip((1, 2, 3, 4), expected.attentions, strict=True):
        ours = seen.attention[layer]
        allowed = ours.attended() & real[:, None, None, :]
        attention = ours.scores().masked_fill(~allowed, float("-inf")).softmax(dim=3)
        rows = real[:, None, :].expand(attention.shape[:3])
        torch.testing.assert_close(attention[rows], theirs[rows], rtol=1e-5, atol=1e-5)  # some round to float32 there
        pairs = (allowed & real[:, None, :, None]).expand_as(attention)
        assert bool((theirs[pairs] > 0).all())
        assert bool((theirs[~pairs & rows[..., None]] == 0).all())
        torch.testing.assert_close(ours.scores()[pairs], spelled.attention[layer].scores()[pairs], rtol=1e-5, atol=1e-5)
        assert ours.heads == 2
        if ours.projections is not None:
            assert ours.projections.values.shape == ours.projections.queries.shape
    assert (seen.attention[1].projections is not None) == (family in (*SHOWN, "vit"))


def test_queries_keys_and_values_are_the_projections() -> None:
    network, inputs = classifier("bert").double().eval(), sentences(LENGTHS)
    seen = run_inside(blocks_of(network, inputs), [2], inputs, {}).attention
    assert set(seen) == {2}
    expected, shown = projected(network, inputs, 2), seen[2].projections
    assert shown is not None
    for letter, vectors in zip("QKV", (shown.queries, shown.keys, shown.values), strict=True):
        torch.testing.assert_close(vectors, expected[letter])
    for b, h in ((0, 0), (1, 1)):
        by_hand = oracle.scores(expected["Q"], expected["K"], b, h, inputs["attention_mask"])
        n = LENGTHS[b]
        torch.testing.assert_close(seen[2].scores()[b, h, :n, :n], torch.stack([torch.stack(row) for row in by_hand]))


def test_windows_of_a_layer_are_seen() -> None:
    inputs = sentences([20, 20])
    seen = run_inside(blocks_of(classifier("modernbert").eval(), inputs), [1, 2], inputs, {}).attention
    whole, window = (seen[i].attended().expand(2, 1, 20, 20)[0, 0] for i in (1, 2))
    assert whole.all()
    assert not window[0, 19]
    assert window[0, 4]


def compared(letters: str, distiller: Any, inputs: Any, layers: tuple[int, int]) -> list[Any]:
    """For student and teacher the pair of vectors that letters name."""
    both = zip((distiller.student, distiller.teacher), layers, strict=True)
    shown = [projected(network, inputs, layer) for network, layer in both]
    return [tuple(each[letter] for letter in letters) for each in shown]


def gradients(distiller: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in distiller.parameters() if p.grad is not None]


@pytest.mark.parametrize("width", [16, 8])
def test_tinybert_is_the_equations_in_value_and_gradient(width: int) -> None:
    options: dict[str, Any] = {"beta": 2.0, "attention": 0.5, "embeddings": 0.25, "alpha": 0.3, "logit_weight": 0.7}
    distiller = made(TinyBERT, width=width, **options).eval()
    inputs = sentences(LENGTHS)
    mask = inputs["attention_mask"]
    losses = distiller(inputs, LABELS)
    losses.total.backward()
    found = gradients(distiller)

    distiller.zero_grad()
    ours, theirs = (
        hidden_states(distiller.student, inputs, [0, 1, 2]),
        hidden_states(distiller.teacher, inputs, [0, 2, 4]),
    )
    expected = {
        "feature/embeddings": 2.0 * 0.25 * oracle.hidden(ours[0] @ distiller.embedding_map.weight.T, theirs[0], mask)
    }
    for i in (1, 2):
        mapped = ours[i] @ distiller.connectors[str(i)].weight.T
        expected[f"feature/block_{i}"] = 2.0 * oracle.hidden(mapped, theirs[i], mask)
        own, other = compared("QK", distiller, inputs, (i, 2 * i))
        expected[f"attention/block_{i}"] = 2.0 * 0.5 * oracle.attention(own, other, mask)
    logits, target = (logits_of(network, inputs) for network in (distiller.student, distiller.teacher))
    expected["task/student"] = 0.3 * stones.task(logits, LABELS)
    expected["distill/student"] = 0.7 * stones.distance(logits, target.detach(), 1.0)
    assert set(losses.terms) == set(expected)
    for name, term in losses.terms.items():
        torch.testing.assert_close(term, expected[name])
    torch.stack(list(expected.values())).sum().backward()
    torch.testing.assert_close(found, gradients(distiller))
    assert all(p.grad is None for p in distiller.teacher.parameters())


@pytest.mark.parametrize(
    ("width", "relations", "heads", "layer"),
    [(16, ["QQ", "KK", "VV"], None, None), (8, ["QQ", "KK", "VV"], 4, 3), (8, ["QK", "VV"], 2, None)],
)
def test_minilm_is_the_equations_in_value_and_gradient(
    width: int, relations: list[str], heads: int | None, layer: int | None
) -> None:
    options: dict[str, Any] = {"relations": relations, "relation_heads": heads, "teacher_layer": layer}
    distiller = made(MiniLM, width=width, beta=3.0, alpha=0.3, **options).eval()
    inputs = sentences(LENGTHS)
    losses = distiller(inputs, LABELS)
    losses.total.backward()
    found = gradients(distiller)

    distiller.zero_grad()
    expected = {"task/student": 0.3 * stones.task(logits_of(distiller.student, inputs), LABELS)}
    for letters in relations:
        own, other = compared(letters, distiller, inputs, (2, layer or 4))
        expected[f"relation/{letters}"] = 3.0 * oracle.relation(own, other, heads or 2, inputs["attention_mask"])
    assert set(losses.terms) == set(expected)
    for name, term in losses.terms.items():
        torch.testing.assert_close(term, expected[name])
    torch.stack(list(expected.values())).sum().backward()
    torch.testing.assert_close(found, gradients(distiller))
    assert all(p.grad is None for p in distiller.teacher.parameters())
    assert set(distiller.state_dict()) == {f"student.{name}" for name in distiller.student.state_dict()}


@pytest.mark.parametrize("family", ["bert", "qwen3", "modernbert"])
def test_the_first_minilm_compares_attention_distributions(family: str) -> None:
    distiller = made(MiniLM, family, relations=["QK"], alpha=0.0).eval()
    inputs = sentences([9, 3, 12])
    both = [
        eager(network)(**inputs, output_attentions=True).attentions[-1]
        for network in (distiller.student, distiller.teacher)
    ]
    examples = []
    for b, n in enumerate([9, 3, 12]):
        q, p = (attention[b, :, :n, :n] for attention in both)
        examples.append(torch.where(p > 0, p * (p / q).log(), 0.0).sum() / (2 * n))
    torch.testing.assert_close(distiller(inputs, LABELS).total, torch.stack(examples).mean())


def test_equal_networks_have_nothing_to_learn_inside() -> None:
    teacher = classifier("bert").double()
    distiller = MiniLM(teacher, copy.deepcopy(teacher), sentences([4, 6]), alpha=0.0).eval()
    assert float(distiller(sentences(LENGTHS), LABELS).total.detach()) == pytest.approx(0.0, abs=1e-12)
    tiny = TinyBERT(teacher, copy.deepcopy(teacher), sentences([4, 6]), embeddings=0).eval()
    terms = tiny(sentences(LENGTHS), LABELS).terms
    assert all(float(terms[f"attention/block_{i}"].detach()) == 0 for i in (1, 2, 3, 4))


ALL = [(TinyBERT, family) for family in TEXT] + [(MiniLM, family) for family in SHOWN]


@pytest.mark.parametrize(("method", "family"), [*ALL, (partial(MiniLM, relations=["QK"]), "qwen3")])
@pytest.mark.parametrize("lengths", [LENGTHS, [6, 6, 6]])
def test_further_padding_changes_neither_losses_nor_gradients(method: Any, family: str, lengths: list[int]) -> None:
    distiller = made(method, family, width=8).eval()
    short = stepped(distiller, sentences(lengths))
    torch.testing.assert_close(short, stepped(distiller, sentences(lengths, to=12)))


@pytest.mark.parametrize("method", [PKD, TinyBERT, MiniLM, partial(MiniLM, relations=["QK", "VV"])])
def test_half_batches_averaged_are_the_whole_one(method: Any) -> None:
    """So gradients may be accumulated, and two processes learn what one does."""
    distiller = made(method, width=8).eval()
    inputs, labels = sentences([5, 3, 7, 2]), torch.tensor([0, 2, 1, 1])

    def step(rows: slice) -> list[Tensor]:
        distiller.zero_grad()
        distiller({name: value[rows] for name, value in inputs.items()}, labels[rows]).total.backward()
        return gradients(distiller)

    whole, first, second = step(slice(4)), step(slice(2)), step(slice(2, 4))
    torch.testing.assert_close(whole, [(a + b) / 2 for a, b in zip(first, second, strict=True)])


@pytest.mark.parametrize("method", [TinyBERT, MiniLM])
def test_gradient_checkpointing_changes_nothing_or_is_refused(method: Any) -> None:
    found = []
    for options in ({}, {"use_reentrant": False}, {"use_reentrant": True}):
        distiller = made(method, width=8)
        if options:
            distiller.student.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        if options.get("use_reentrant"):
            with pytest.raises(ValueError, match=r"checkpointed in a way that keeps .* with use_reentrant=False"):
                distiller(sentences(LENGTHS), LABELS)
        else:
            found.append(stepped(distiller, sentences(LENGTHS)))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("method", [TinyBERT, MiniLM])
@pytest.mark.parametrize(("teacher", "student"), [("bert", "distilbert"), ("roberta", "modernbert")])
def test_families_can_be_mixed(method: Any, teacher: str, student: str) -> None:
    networks = classifier(teacher).double(), classifier(student, layers=2, width=8, seed=1).double()
    distiller = method(*networks, sentences([4, 6])).eval()
    short = stepped(distiller, sentences(LENGTHS))
    torch.testing.assert_close(short, stepped(distiller, sentences(LENGTHS, to=9)))


@pytest.mark.parametrize("method", [TinyBERT, MiniLM])
def test_image_transformers_from_named_tensors(method: Any) -> None:
    distiller = method(classifier("vit"), classifier("vit", layers=2, width=8, seed=1), images(2))
    losses = distiller(images(3), LABELS)
    losses.total.backward()
    assert bool(losses.total.isfinite())
    assert any(name.startswith(("attention/", "relation/")) for name in losses.terms)


def test_nothing_on_padding_reaches_the_losses() -> None:
    torch.manual_seed(0)
    real = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    vectors = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    spoiled = vectors.masked_fill(~real[:, None, :, None], float("nan")).requires_grad_()
    regrouped = [in_heads(x, 4, real) for x in (spoiled, vectors.flip(1))]
    logs = [log_relation(x, x, real) for x in regrouped]
    (gradient,) = torch.autograd.grad(relation_loss(logs[0], logs[1], real), spoiled)
    assert gradient.isfinite().all()
    given = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    wrong = given.masked_fill(~(real[:, None, None] & real[:, None, :, None]), 1e30).requires_grad_()
    loss = attention_score_loss(Attention(None, wrong, None), Attention(None, given, None), real)
    assert float(loss.detach()) == 0


def test_a_student_without_loss_on_its_logits_leaves_its_head_unused() -> None:
    assert made(MiniLM, alpha=0.0).leaves_unused
    assert made(TinyBERT, logit_weight=0.0).leaves_unused
    assert not made(MiniLM).leaves_unused
    assert not made(TinyBERT).leaves_unused


def heads(count: int, width: int = 12) -> Any:
    from tests.text.families import bert, transformers

    torch.manual_seed(0)
    config = bert(2, width)
    config.num_attention_heads, config.num_labels = count, 3
    return transformers.AutoModelForSequenceClassification.from_config(config)


def test_other_numbers_of_heads_are_refused_or_regrouped() -> None:
    teacher, student, example = classifier("bert"), heads(3), sentences([4, 6])
    with pytest.raises(
        ValueError, match=r"student has 3 heads and the teacher 2: give the student num_attention_heads=2"
    ):
        TinyBERT(teacher, student, example)
    assert set(TinyBERT(teacher, student, example, attention=0)(sentences(LENGTHS), LABELS).terms) == {
        "feature/embeddings", "feature/block_1", "feature/block_2", "distill/student",
    }  # fmt: skip
    losses = MiniLM(teacher, student, example, relation_heads=4)(sentences(LENGTHS), LABELS)
    assert bool(losses.total.isfinite())
    with pytest.raises(ValueError, match="relation_heads is 3, which cannot share the 16 numbers of the teacher's"):
        MiniLM(teacher, student, example, relation_heads=3)


@pytest.mark.parametrize("method", [TinyBERT, MiniLM])
def test_attention_within_windows_is_refused(method: Any) -> None:
    networks = classifier("swin"), classifier("swin", width=8, seed=1)
    options: dict[str, Any] = {"teacher_layer": 1} if method is MiniLM else {}
    with pytest.raises(
        ValueError, match=r"layer 1 of SwinFor.* attends 1 time\(s\) to 4 tokens at a time, not once to all"
    ):
        method(*networks, images(2), **options)


def test_relations_of_other_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="the student relates 17 tokens and the teacher 4: both must read the same"):
        MiniLM(classifier("swin"), classifier("vit", layers=2), images(2))


@pytest.mark.parametrize("family", ["mpnet", "deberta", "deberta-v2", "bert"])
def test_minilm_refuses_networks_that_do_not_show_their_queries(family: str) -> None:
    teacher: Any = classifier(family)
    mend = "its family computes attention by code of its own; take TinyBERT or PKD"
    if family == "bert":
        teacher.set_attn_implementation("eager")
        mend = "load it with attn_implementation='sdpa'"
    with pytest.raises(ValueError, match=f"{type(teacher).__name__} does not show: {mend}"):
        MiniLM(teacher, classifier("roberta", layers=2), sentences([4, 6]))


def test_attention_that_cannot_be_seen_is_told() -> None:
    import transformers

    def hidden(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **options: Any) -> tuple[Tensor, None]:
        del module, k, mask, options
        return (q + v).transpose(1, 2), None

    transformers.AttentionInterface.register("own_kernel", hidden)
    teacher: Any = classifier("bert")
    teacher.set_attn_implementation("own_kernel")
    with pytest.raises(ValueError, match=r"layer 2 of Bert.* cannot be seen, as attn_implementation='own_kernel'"):
        TinyBERT(teacher, classifier("bert", layers=2, seed=1), sentences([4, 6]))


def test_one_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="looks into the layers of transformers that take named tensors"):
        MiniLM(create_model("resnet20", 10), create_model("resnet8", 10), torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (TinyBERT, {"attention": -1.0}, "attention is -1.0"),
        (TinyBERT, {"embeddings": -1.0}, "embeddings -1.0"),
        (MiniLM, {"relations": []}, "expected a list of different ones of QQ, KK, VV, QK"),
        (MiniLM, {"relations": ["QQ", "QQ"]}, "expected a list of different"),
        (MiniLM, {"relations": "QQ"}, "relations is 'QQ'"),
        (MiniLM, {"relation_heads": 0}, "relation_heads is 0"),
        (MiniLM, {"teacher_layer": 5}, "teacher_layer is 5, expected 1 … 4"),
    ],
)
def test_options_that_make_no_sense(method: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(method, **options)


@pytest.mark.parametrize("method", [TinyBERT, MiniLM])
def test_under_the_trainer_a_resumed_training_is_the_same(method: Any, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from tests.text.test_trainer import pair, same, trainer, weights

    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trainer(tmp_path / "whole", pair(), method, **settings)
    whole.train()
    resumed = trainer(tmp_path / "resumed", pair(), method, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert same(weights(resumed.distiller), weights(whole.distiller))
    logged = {name for entry in whole.state.log_history for name in entry}
    assert logged & {"loss_attention/block_2", "loss_relation/QQ"}


def test_the_step_compiles_to_one_graph_for_all_lengths() -> None:
    """A first graph for the length that comes first, and one for all others, dropout and all."""
    code = """
import torch
from torch._dynamo.utils import counters
from blockkd.text.mini_lm import MiniLM
from blockkd.text.tiny_bert import TinyBERT
from tests.text.families import classifier, sentences
labels = torch.tensor([0, 1, 2])
for method in (TinyBERT, MiniLM):
    counters.clear()
    torch._dynamo.reset()
    distiller = method(classifier("bert", layers=1), classifier("bert", layers=1, width=8, seed=1), sentences([4, 6]))
    compiled = torch.compile(distiller.eval(), fullgraph=True, backend="eager")
    for length in (8, 16, 24, 8):
        inputs = sentences([5, 3, 7], to=length)
        losses = compiled(inputs, labels)
        torch.testing.assert_close(losses.total, distiller(inputs, labels).total)
        losses.total.backward()
    assert distiller.compiles
    print(counters["stats"]["unique_graphs"])
"""
    # In a process of its own, without the checks of shapes that the tests put around every function.
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert [int(count) <= 2 for count in done.stdout.split()] == [True, True]
