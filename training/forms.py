"""The words of the domain and the forms of its questions. No torch."""

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle", "star")
SLOTS = ("left", "middle", "right")
PLACE = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
NUMBERS = tuple(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty".split()
)
CROWDS = range(4, 10)

ASK = {
    "see": (
        "what do you see", "what can you see", "describe the picture", "what is in the picture", "tell me what you see",
        "what is there to see", "in the picture, what do you see", "can you tell me what you see", "what are you looking at",
    ),
    "colour": (
        "what colour is the {shape}", "which colour is the {shape}", "what colour does the {shape} have",
        "the {shape}, what colour is it", "what is the colour of the {shape}", "tell me the colour of the {shape}",
        "which colour does the {shape} have", "can you tell me what colour the {shape} is", "the {shape} is what colour",
    ),
    "count": (
        "how many {shape}s do you see", "how many {shape}s are there", "count the {shape}s", "how many {shape}s can you see",
        "{shape}s, how many are there", "what is the number of {shape}s", "tell me how many {shape}s there are",
    ),
    "count_all": (
        "how many shapes do you see", "how many shapes are there", "how many things do you see", "count the shapes",
        "how many things are there", "tell me how many shapes there are", "what is the number of shapes",
        "in the picture, how many shapes are there",
    ),
    "position": (
        "what is {place}", "what do you see {place}", "which shape is {place}",
        "{place}, what do you see", "what can you see {place}",
        "tell me what is {place}", "which thing is {place}", "{place}, what is there", "can you tell me what is {place}",
    ),
    "exists": (
        "is there {a} {colour} {shape}", "do you see {a} {colour} {shape}", "can you see {a} {colour} {shape}",
        "{a} {colour} {shape}, do you see one", "is {a} {colour} {shape} there", "is {a} {colour} {shape} in the picture",
    ),
    "exists_shape": (
        "is there a {shape}", "do you see a {shape}", "can you see a {shape}", "a {shape}, is there one",
        "is a {shape} in the picture",
    ),
    "exists_colour": (
        "is there something {colour}", "do you see something {colour}", "is anything {colour}", "something {colour}, is it there",
    ),
    "where": (
        "where is the {shape}", "where do you see the {shape}", "the {shape}, where is it", "where can you see the {shape}",
        "tell me where the {shape} is", "the {shape} is where", "in which place is the {shape}",
    ),
    "where_exact": (
        "where is the {colour} {shape}", "where do you see the {colour} {shape}", "the {colour} {shape}, where is it",
    ),
    "which": (
        "what is {colour}", "which shape is {colour}", "which thing is {colour}", "what do you see that is {colour}",
        "tell me what is {colour}", "which of the shapes is {colour}",
    ),
    "count_colour": ("how many {colour} shapes do you see", "how many {colour} things are there", "count the {colour} shapes"),
    "colour_at": (
        "what colour is the shape {place}", "{place}, which colour do you see", "what is the colour {place}",
        "which colour is the thing {place}", "tell me the colour of the shape {place}",
    ),
    "is_it": ("is the {shape} {colour}", "the {shape}, is it {colour}", "is the colour of the {shape} {colour}"),
    "plus": ("what is {x} plus {y}", "how much is {x} plus {y}", "{x} plus {y}", "tell me what {x} plus {y} is"),
    "minus": ("what is {x} minus {y}", "how much is {x} minus {y}", "{x} minus {y}", "tell me what {x} minus {y} is"),
    "count_to": ("count to {n}", "count from one to {n}", "can you count to {n}"),
    "say": ("say {words}", "can you say {words}"),
}  # fmt: skip
# Word orders that training never meets: they are asked in the evaluation only.
UNSEEN = {
    "see": ("tell me what is in the picture", "what do you see in the picture"),
    "colour": ("which colour has the {shape}", "tell me what colour the {shape} is"),
    "count": ("can you tell me how many {shape}s there are", "the number of {shape}s is what"),
    "position": ("tell me what you see {place}", "{place}, which shape is it"),
    "exists": ("{a} {colour} {shape}, is there one",),
    "where": ("can you tell me where the {shape} is", "where is it, the {shape}"),
}
CHAT = {
    "Hello, I am a small robot.": ("hello", "hi", "hello robot", "good morning", "hi robot", "hey robot", "good evening"),
    "My name is Omni.": ("what is your name", "who are you", "tell me your name", "what are you called", "your name, what is it"),
    "I am fine, thank you.": ("how are you", "how do you feel", "are you well", "how are you today"),
    "You are welcome.": ("thank you", "thanks", "thank you very much", "thanks robot"),
    "Goodbye, see you soon.": ("goodbye", "bye bye", "see you later", "see you soon", "goodbye robot"),
    "I see shapes, hear questions and answer.": ("what can you do", "help me", "what do you do", "tell me what you can do"),
}
NO_PICTURE = "I have no picture."
NOT_UNDERSTOOD = "I did not understand."
FOLLOW = {
    "colour": ("what colour is it", "which colour does it have", "and what colour is it", "tell me its colour"),
    "shape": ("what shape is it", "which shape is it", "and what shape is it", "which shape does it have"),
    "place": ("and {place}", "what about {place}", "and what is {place}", "{place}"),
    "plus": ("and plus {y}", "add {y}", "plus {y}", "and {y} more"),
    "where": ("where is it", "and where is it", "in which place is it"),
}
