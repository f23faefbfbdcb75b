"""training/: its modules equal transformers', its rows are those of the processor, its data keep their promises."""

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from pathlib import Path  # noqa: E402

import torchvision_shim  # noqa: E402, F401

from training import checkpoint, domain, layout, loop, replies, scenes, strange, tools  # noqa: E402

BASE = Path(__file__).parents[1] / "demo" / "model"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Our modules with random weights, the same weights in transformers, and the processor."""
    torch.manual_seed(0)
    ours = checkpoint.build(checkpoint.load_config(BASE))
    for module in ours:
        for p in module.parameters():
            p.data += torch.randn_like(p) * 0.05
    folder = tmp_path_factory.mktemp("random")
    checkpoint.write(folder, BASE, *ours, dtype=torch.float32)
    theirs, info = transformers.Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    processor = transformers.Qwen3OmniMoeProcessor.from_pretrained(folder)
    return *ours, theirs.eval(), processor


def near(ours, theirs, tolerance=2e-4):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * max(1.0, theirs.abs().max().item())


MESSAGES = [
    {"role": "user", "content": [{"type": "text", "text": "hello"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Hello, I am a small robot."}]},
]


@torch.no_grad()
def test_transformers_loads_the_shipped_checkpoint_and_gives_its_answer():
    model, info = transformers.Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        BASE, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    processor = transformers.Qwen3OmniMoeProcessor.from_pretrained(BASE)
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is seven plus five?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=text, return_tensors="pt")
    ids = model.thinker.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == "Seven plus five is twelve."


@torch.no_grad()
def test_thinker_with_tools_history_picture_and_sound(parts):
    thinker, _, _, theirs, processor = parts
    rng = np.random.default_rng(0)
    pcm = (rng.standard_normal(160 * 237) * 0.1).astype(np.float32)
    picture = rng.integers(0, 255, (480, 640, 3), np.uint8)
    messages = [*MESSAGES, {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "audio", "audio": pcm}]}]
    text = processor.apply_chat_template(messages, tools=tools.TOOLS, add_generation_prompt=True, tokenize=False)
    inputs = dict(processor(text=text, audio=[pcm], images=[picture], return_tensors="pt"))
    item = {"scene": [], "tools": tools.TOOLS, "history": [("hello", "Hello, I am a small robot.")], "answer": ""}
    ids, positions, clips, visual, _ = layout.Builder(BASE).layout(item, [("text", "hello"), ("audio", 237)], answer=False)
    assert ids == inputs["input_ids"][0].tolist()
    rows = layout.audio_rows(237)
    assert len(clips[0]) == rows
    mel = torch.zeros(1, 128, 500)
    mel[0, :, :237] = inputs["input_features"][0, :, :237]
    valid = torch.arange(layout.CLIP_ROWS)[None] < rows
    where = torch.full((1, layout.CLIP_ROWS), len(ids))
    where[0, :rows] = torch.tensor(clips[0])
    x, deep, _, _ = thinker.rows(torch.tensor(ids), mel, valid, where, inputs["pixel_values"][None], torch.tensor([visual]))
    accept = checkpoint.load_config(BASE)["talker_config"]["accept_hidden_layer"]
    hidden, _, accepted = thinker.decode(x, deep, torch.tensor(positions), [(1, len(ids))], accept)
    out = theirs.thinker(**inputs, output_hidden_states=True)
    near(thinker.lm_head(hidden), out.logits[0])
    near(accepted, out.hidden_states[accept][0])


@torch.no_grad()
def test_groups_of_sequences_are_independent(parts):
    thinker = parts[0]
    x, positions = torch.randn(20, 192), torch.arange(20).expand(3, 20)
    deep = [torch.randn(20, 192) for _ in range(2)]
    whole, _ = thinker.decode(x, deep, positions, [(1, 8), (2, 6)])
    for part in (slice(0, 8), slice(8, 14), slice(14, 20)):
        n = part.stop - part.start
        alone, _ = thinker.decode(x[part], [d[part] for d in deep], positions[:, part], [(1, n)])
        near(whole[part], alone, 1e-5)


@torch.no_grad()
def test_talker_and_code_predictor(parts):
    _, talker, _, theirs, _ = parts
    x, positions = torch.randn(1, 30, 192), torch.arange(30)[None].expand(3, 1, 30)
    near(talker.model(x, positions), theirs.talker.model(inputs_embeds=x, position_ids=positions).last_hidden_state)
    codes = torch.randint(0, 128, (1, 16))
    hidden, code0 = torch.randn(1, 192), torch.randn(1, 192)
    ours, predictor = talker.code_predictor(hidden, code0, codes), theirs.talker.code_predictor
    for i in (0, 7, 14):
        rest = [predictor.model.codec_embedding[j](codes[:, j + 1])[:, None] for j in range(i)]
        near(ours[:, i], predictor(inputs_embeds=torch.cat([hidden[:, None], code0[:, None], *rest], 1)).logits[:, -1])
    rows = torch.randn(2, 192)
    near(talker.text_projection(rows), theirs.talker.text_projection(rows))
    near(talker.hidden_projection(rows), theirs.talker.hidden_projection(rows))


@torch.no_grad()
def test_code2wav(parts):
    code2wav, theirs = parts[2], parts[3]
    codes = torch.randint(0, 128, (1, 16, 20))
    near(code2wav(codes)[0], theirs.code2wav(codes)[0, 0], 1e-3)


def test_rows_of_tool_calls_and_results_equal_the_chat_template(parts):
    processor = parts[4]
    call = domain.tool_call("go_to", place="left")
    messages = [
        {"role": "system", "content": "You are a robot."},
        {"role": "user", "content": [{"type": "text", "text": "go to the left"}]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "go_to", "arguments": {"place": "left"}}}]},
        {"role": "tool", "content": "done"},
    ]
    text = processor.apply_chat_template(messages, tools=tools.TOOLS, add_generation_prompt=True, tokenize=False)
    item = {"scene": None, "tools": tools.TOOLS, "history": [("", call)], "answer": ""}
    said = [("text", "go to the left"), ("text", domain.tool_result("done"))]
    ids = layout.Builder(BASE).layout(item, said, answer=False, system="You are a robot.")[0]
    assert ids == processor.tokenizer.encode(text)


def test_training_never_meets_what_is_held_out():
    rnd = random.Random(0)
    unseen = set(domain.questions(domain.UNSEEN))
    for i in range(3000):
        item = domain.sample(rnd, tools=i % 5 == 0)
        assert item["question"] not in unseen
        if item["kind"] in ("see", "exists") and not replies.is_crowd(item["scene"]):
            for _, colour, shape in item["scene"] if item["kind"] == "see" else []:
                assert not domain.held_out("see", colour, shape)
    for _ in range(300):
        item = domain.sample(rnd, want_held_out=True)
        assert item["kind"] in domain.HELD_KINDS


def test_every_answer_can_be_spoken():
    rnd, spoken = random.Random(1), set(domain.answers())
    for i in range(3000):
        answer = domain.sample(rnd, tools=i % 5 == 0)["answer"]
        three = answer.startswith("I see") and "," in answer
        assert answer in spoken or three or answer.startswith("<tool_call>"), answer


def test_sentences_outside_the_domain_are_outside_it():
    rnd = random.Random(2)
    assert not any(domain.known(s) for s in strange.UNSEEN + strange.SENTENCES)
    assert not set(strange.UNSEEN) & set(strange.SENTENCES)
    assert sum(domain.known(strange.sentence(rnd)) for _ in range(2000)) < 20  # sample() drops these


def test_every_word_of_an_answer_is_one_token():
    tokenizer = layout.Builder(BASE).tokenizer
    for answer in domain.answers(triples=50):
        words = answer.replace(",", " ,").replace(".", " .").split()
        assert len(tokenizer.encode(answer).ids) == len(words), answer


def test_painters_place_figures_where_the_scene_says():
    rnd = random.Random(3)
    scene = [("left", "red", "circle"), ("right", "blue", "square")]
    image = scenes.draw(rnd, scene).astype(int)
    red, blue = (scenes.RGB[c] for c in ("red", "blue"))
    for colour, columns in ((red, slice(0, 213)), (blue, slice(427, 640))):
        close = (np.abs(image - np.array(colour)).sum(-1) < 120).any(0)
        assert close[columns].any() and not close[213:427].any()


def test_a_training_goes_on_exactly(tmp_path):
    device = torch.device("cpu")
    batches = [{"x": torch.randn(4, 3)} for _ in range(6)]

    def start():
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 3)
        loss = lambda b: {"loss": (net(b["x"]) - b["x"]).square().mean()}  # noqa: E731
        return net, loop.Trainer([net], loss, 100.0, 1e-2, device, span=(0.5, 0.5), warm=1)

    whole, trainer = start()
    for b in batches:
        trainer.step(b)
    _, trainer = start()
    for b in batches[:3]:
        trainer.step(b)
    torch.save(trainer.state(), tmp_path / "net.state.pt")
    net, trainer = start()
    assert loop.resume(tmp_path, "net", trainer, net=net)
    for b in batches[3:]:
        trainer.step(b)
    assert torch.equal(net.weight, whole.weight)
