"""What people say that the micro model does not know: it should answer "I did not understand." No torch.

`sentence(random)` draws one for training: sentences of the list, others put together from words that the domain lacks, questions
of the domain with one such word in place of a known one, and known words in no order. `UNSEEN` is for the evaluation only.
"""

NOUNS = """
apple arm baby bag ball banana bank basket bath bed bell bicycle bird boat body book bottle bowl box boy brain bread bridge
brother bucket building bus button cable cake camera candle car carpet cat chair cheese chicken child church city clock cloud
coat coffee computer corner country cow cup curtain daughter desk doctor dog door dragon dress driver drum ear egg elephant
engine eye face family farmer father finger fire fish floor flower fly fork forest friend frog garden gate ghost girl glass
glove goat gold grandmother grass guitar hair hammer hat head heart hill hole horse hospital hotel hour house ice island
jacket juice key king kitchen knife ladder lady lake lamp leaf leg letter lion lunch machine man map market meat milk minute
mirror money monkey moon morning mother mountain mouse mouth music nail name neck needle neighbour news newspaper nose ocean
office onion oven page paint paper park pencil person phone piano picnic pig pillow pilot plane plant plate pocket police
potato prince queen rabbit radio rain river road rock roof room rope rose salt sand school sea shark sheep ship shirt shoe
shop shoulder sister snake snow soap sock sofa song soup spider spoon stone storm story street sugar summer sun sweater table
tail tea teacher telephone tent theatre tiger toe tomato tooth towel tower town toy train tree truck umbrella uncle village
violin wall watch water wheel whistle wind window winter wolf woman wood zebra
""".split()
VERBS = """
bake borrow break bring build burn buy call carry catch change chase clean climb close cook cut dance dig draw dream drink
drop eat explain fall feed fight fill find finish fix fly fold follow forget give hate hear hide hit hold hurry jump keep kick
kiss know laugh learn leave lift listen lose love make marry mend open order paint pay play pull push read remember repair
ride run sell send sew shout show sing sit sleep smell smile speak spend stand start stop swim talk taste teach throw touch
translate travel turn visit wait walk want wash watch wear win write
""".split()
ADJECTIVES = """
angry bad beautiful big boring brave bright broken busy careful cheap clean clever cold cool dangerous dark dead deep
difficult dirty dry early easy empty expensive famous fast fat foreign free fresh friendly full funny happy hard heavy high
hot hungry important kind large late lazy little long loud lucky narrow nice noisy old old-fashioned perfect poor pretty proud
quick quiet rich round rude sad safe serious sharp short shy sick silly slow small soft sour special strange strong sweet tall
terrible thick thin tired ugly useful warm weak wet wide wild wise wooden wrong young
""".split()
UNKNOWN_COLOURS = ("pink", "brown", "grey", "golden", "silver", "violet", "turquoise", "beige")
UNKNOWN_SHAPES = (
    "rectangle", "hexagon", "heart", "cross", "cube", "sphere", "pyramid", "diamond", "arrow", "ring", "oval", "moon",
)  # fmt: skip
OTHERS = """
about above after again ago all almost along also although always among another any around away back because before behind
below beside best better between both but by close could down during each either else enough even ever every far few first for
from get had has have he her here him his hour how if instead into just last later least less lot many maybe me might more
most much must my near never next nobody none nor not off often once only or other our out over own perhaps quite rather
really same she should since some somebody soon still such than their them then these they this those though through today
together tomorrow too towards under until up us usually week well were when whether while who whole whose why will with
without would year yesterday yet you
""".split()
FRAMES = (
    "please {v} the {n}", "the {n} is {j}", "why is the {n} so {j}", "who will {v} the {n}", "can you {v} a {n} for me",
    "I want to {v} the {n}", "when does the {n} {v}", "my {n} is very {j}", "did you {v} my {n} {o}", "{v} {o} the {j} {n}",
    "do you like {n}s", "the {j} {n} and the {n}", "how do I {v} a {n}", "what does a {n} {v}", "we {v} {o} {n}s",
    "{o} {o} {n}", "is the {n} {j} or {j}", "{n} {n} {v}", "do not {v} the {n}", "she said that the {n} is {j}",
    "let us {v} {o} the {n}", "how old is the {n}", "which {n} is the most {j}", "would you {v} {o} me", "give me the {n}",
    "how far is the {n}", "{o} he {v} it", "there was a {j} {n}", "my {n} likes to {v}", "you are a {j} {n}",
    "turn on the {n}", "play the {n}", "tell me a story about a {n}", "what do you think about the {n}",
    "the {n} {o} the {n}", "{j} {n}s {v} {o} {n}s", "open the {n}", "I do not {v} {n}s", "have you ever seen a {n}",
    "what time does the {n} {v}",
)  # fmt: skip
# A question of the domain with something in it that the model does not know.
NEAR = (
    "what colour is the {n}", "where is the {n}", "is there a {n}", "do you see a {n}", "how many {n}s do you see",
    "count the {n}s", "is there a {uc} {shape}", "do you see a {j} {shape}", "where is the {us}", "what colour is the {us}",
    "how many {us}s are there", "is there a {colour} {us}", "is there a {colour} {n}", "do you see a {colour} {us}",
    "what is behind the {shape}", "what is {uc}", "which shape is {j}", "what is {x} times {y}", "what is {x} divided by {y}",
    "how much is {x} {n}s", "say the {n} is {j}", "go to the {n}", "drive to the {n}", "wave the {n}",
    "how big is the {shape}", "who painted the {shape}", "is the {shape} {j}", "what is under the {shape}",
    "move the {shape}", "give me the {colour} {shape}", "why is the {shape} {colour}", "do you like the {shape}",
    "what is the name of the {shape}", "what is the {n} of the {shape}", "tell me the {n}", "count the {n}s {o}",
    "what is your {n}", "how is your {n}", "what {n} is it", "and the {n}", "say {n}", "say {j} {n}",
    "eat the {colour} {shape}", "what is on the {n}",
)  # fmt: skip
SENTENCES = (
    """
what time is it|what day is it today|how is the weather|will it rain tomorrow|what is the capital of france|play some music
stop the music|turn off the light|turn on the television|call my mother|set an alarm for seven|where do you live
how old are you|do you have a brother|what do you eat|tell me a joke|sing a song|who is the president|I am hungry
I am going home|let us have dinner|do you speak german|can you dance|read me a book|what is the meaning of life
open the door please|close the window|bring me a glass of water|are you a human|I love you|you are funny|be quiet|never mind
what happened|who is there|are you sleeping|wake up|go to sleep|where are my keys|what is for lunch
did you see the match yesterday|when is the next bus|how far is it to the station|I lost my phone|it is cold in here
please repeat that|say it again|what did you say|why did you do that|I do not know|that is not right|you are wrong|maybe later
what should I wear today|is it dark outside|how do you spell that|when were you built|who made you|can you swim|can you fly
can you hear me|do you know my name|my name is peter|nice to meet you|happy birthday|merry christmas|good luck|excuse me
I am sorry|no problem|of course|give me five minutes|wait for me|come here|follow me|look at me|sit down|stand up|turn around
lift the box|clean the kitchen|how much does it cost|what is your favourite food|what is your favourite film|do you like dogs
are there any news|is anybody home|the cat sat on the mat|a quick brown fox jumps over the lazy dog
it was a dark and stormy night|one day there lived an old king|where is the bathroom|I need a doctor|help is on the way
the train leaves at noon|my brother lives in london|she sells sea shells|how many days are in a year
what is the square root of nine|multiply six by seven|what is half of ten|how tall is the tower|translate this into french
send a message to anna|remind me to buy milk|add eggs to the shopping list|what is on television tonight
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
UNSEEN = (
    """
could you bring me a cup of coffee|who won the football game last night|what is the fastest animal in the world
please water the plants|is the shop still open|how do aeroplanes stay in the air|I would like a cheese sandwich
take out the rubbish|what year is it now|can I borrow your pen|the children are playing outside|do robots have feelings
switch on the heating|where did you put my jacket|tell me about the history of rome|how long does it take to boil an egg
what is the tallest mountain|I had a long day at work|my knee hurts when I walk|should I take an umbrella
write an email to my boss|how many people live in china|your battery is low|are you afraid of the dark|book a table for two
do you believe in ghosts|the soup is too salty|what language is this|is lunch ready|who invented the telephone
my sister has a new car|find the nearest hospital|let me think about it|we should leave before midnight
how do you make pancakes|what are you thinking about|pick up the newspaper|lock the front door|do you want to play chess
the bus was late again this morning|what is wrong with you|I forgot my password|did anyone call while I was away
show me the way to the beach|how many teeth does a shark have|what colour is the sky|is there a pink elephant
where is the remote control|how many windows does the house have|what is seven times eight|go to the kitchen|count the spoons
do you see a grey cube|what colour is the hexagon|where is the brown dog|say something in spanish|what is next to the triangle
how heavy is the square|who drew the star|is the circle bigger than the square
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
KNOWN_WORDS = """
what which how many where is are there do does you see can the a an shape shapes circle square triangle star red green blue
yellow orange purple white black left right middle on in and plus minus one two three four five colour tell me it hello robot
count say wave go to
""".split()
WAVE_DESCRIPTIONS = (
    "Wave.", "Wave the hand.", "Wave to a person.", "Greets with the hand.", "wave",
)  # fmt: skip
GO_DESCRIPTIONS = (
    "Go.", "Drive to a place.", "Move the robot to a place.", "Drives to left, middle or right.", "move",
)  # fmt: skip
SYSTEM_PROMPTS = (
    "You are a robot.", "You are a helpful robot.", "You are Omni, a small robot.", "Answer in one short sentence.",
    "You are a friendly assistant.", "You are a robot with a camera. Answer briefly.", "Be polite.",
)  # fmt: skip


def word(rnd) -> str:
    """Letters that are no word."""
    return "".join(
        rnd.choice(rnd.choice(("bcdfghjklmnprstvwz", "aeiou", "aeiou", "aeioulnrst"))) for _ in range(rnd.randrange(2, 9))
    )


def fill(rnd, frame: str) -> str:
    """A frame with words in its places."""
    from training.domain import COLOURS, NUMBERS, SHAPES  # which imports this module

    lists = {
        "v": VERBS, "n": NOUNS, "j": ADJECTIVES, "o": OTHERS, "uc": UNKNOWN_COLOURS, "us": UNKNOWN_SHAPES,
        "x": NUMBERS[1:10], "y": NUMBERS[1:10], "shape": SHAPES, "colour": COLOURS,
    }  # fmt: skip
    for name, words in lists.items():
        while "{" + name + "}" in frame:
            frame = frame.replace("{" + name + "}", rnd.choice(words), 1)
    return frame


def sentence(rnd, spoken: bool = False) -> str:
    """One for training. `spoken`: only such as a synthesiser can say."""
    form = rnd.random()
    if form < 0.2:
        return rnd.choice(SENTENCES)
    if form < 0.5:
        return fill(rnd, rnd.choice(FRAMES))
    if form < 0.8:
        return fill(rnd, rnd.choice(NEAR))
    if form < 0.87:  # known words in no order; six of them make no question by chance
        return " ".join(rnd.choice(KNOWN_WORDS) for _ in range(rnd.randrange(6, 10)))
    if form < 0.95 or spoken:
        return " ".join(rnd.choice(rnd.choice((NOUNS, VERBS, ADJECTIVES, OTHERS))) for _ in range(rnd.randrange(1, 7)))
    return " ".join(word(rnd) for _ in range(rnd.randrange(1, 6)))
