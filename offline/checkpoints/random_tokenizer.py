"""A byte-level BPE tokenizer in Qwen's format, trained on the few paragraphs below. No torch, no transformers.

It splits text as transformers' Qwen2Tokenizer does and has the special tokens of Qwen3-Omni, so prompts, chat
template and streaming behave as with the real model; only the vocabulary is small.
"""

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from omni_ros.errors import CheckpointError

from .qwen_tokenizer import qwen_tokenizer

ROLES = ("system", "user", "assistant")
# The order of Qwen3-Omni's own vocabulary.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<tts_pad>",
    "<tts_text_bos>",
    "<tts_text_eod>",
    "<tts_text_bos_single>",
    "<|audio_pad|>",
)

TEXT = """
You are a helpful robot. Please describe what you see and hear, and answer in a short and friendly way. What is in
front of the camera? Who is speaking in the room? Is the door open or closed? How many people are in the image?

The robot lives in an old house near the river with a family of five. Every morning it wakes before the sun, rolls
quietly down the long hall and opens the kitchen window to let the fresh air in. It knows where the cups and plates
are, which chair belongs to grandmother, and that the small brown dog must never be given chocolate. When somebody
asks a question it turns its head, looks at them with two round cameras, and thinks for a moment before it answers.

Yesterday the weather was cold and grey, and heavy rain fell on the garden until late in the evening. The children
stayed inside, built a tall tower of wooden blocks, and told each other stories about ships, mountains and dragons.
One of them painted a yellow bird on a blue wall. Their father laughed, then found a wet cloth and a bucket of water.

A machine that listens must be patient. Voices come from the left and from the right, music plays in another room, a
train passes, glass breaks, and the telephone rings while the kettle begins to whistle. It has to learn which of these
sounds matter. If you interrupt it, it should stop talking at once, remember only what was heard, and wait for you.

On Saturday we will walk to the market beside the church to buy bread, cheese, apples, onions, fresh fish and flowers.
The road is narrow between the hills, so please carry the heavy basket with both hands and watch your step. After lunch
there is enough time to visit the library, read a newspaper, write a letter to my sister, or simply sleep under a tree.
By night the streets are empty; a thousand stars shine over the dark water, and far away a single green light is moving.

Scientists measure light, heat, sound and pressure with careful instruments. A good experiment answers exactly one
question; a better one suggests several more. Numbers without units mean nothing, and a result that nobody can repeat is
only a rumour. Engineers, on the other hand, ask whether the bridge will stand in the wind, how much it costs, and who
is going to repair it in twenty years. Both kinds of people drink too much coffee, and both are usually right.
"""
VERBS = """
accept add allow appear arrive ask attack avoid bake balance bank bark bath beg blink board boil borrow bounce brush
burn calm camp care cause challenge charge chase cheer clean clear climb collect color comfort command compare
complain concern connect consider contain cook copy correct cough count cover crash crawl cross cry dance decide
defend delay deliver depend desert design destroy develop discover divide double doubt draw dream dress drift drop
earn encourage enjoy enter escape examine excuse exercise expect explain explore fade fail fasten fear fill film fix
float flow fold follow force form gather glow govern greet guard guess guide hammer happen harbor hate help hope hover
hunt hurry imagine improve increase invent invite join judge jump kick kneel knock land last launch lead lean lift
limit load lock march mark master melt mend milk mind mix need nest notice number obey offer order pack paint park
part pause perform pick plan plant point polish pour present prevent promise protect pull push question quiet race
reach reflect remain remind remove report rescue rest return risk rush sail save scatter scream search season serve
settle shelter shout signal smell smile sort spark spell spray start steer storm stretch succeed suffer support
surprise surround sweep swim talk taste tempt thank tick touch trace trade train travel treat trust turn twist type
unite use vanish visit wander warm warn wash waste weigh whisper wish wonder work worry
""".split()


def train_tokenizer(vocab_size: int) -> Tokenizer:
    """At most `vocab_size` tokens, special ones included (at their end); each role name is one token."""
    tokenizer = qwen_tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    # The roles come so often that their merges are learnt first, whatever the vocabulary size.
    forms = " ".join(verb + ending for verb in VERBS for ending in ("", "s", "ing", "er"))
    tokenizer.train_from_iterator([TEXT, forms, "\n".join(ROLES * 10_000)], trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    for role in ROLES:
        if len(tokenizer.encode(role).ids) != 1:
            raise CheckpointError(f"vocab_size {vocab_size} is too small: {role!r} is not one token; use 320 or more")
    return tokenizer
