"""What is said in the measurement of turn taking. A bar is where the speaker stops to think: nothing that is complete stands
before it, so that somebody who listens would wait."""

WHOLE = (
    "What do you see in front of you?",
    "Turn around and go back to the door.",
    "How many cups are on the table?",
    "Please bring me the red one.",
    "Can you tell me a story about the sea?",
    "My name is Ada.",
    "I think it is behind the sofa.",
    "Stop.",
    "Yes please.",
    "What time is it?",
    "Have you seen my keys this morning?",
    "Follow me to the kitchen.",
    "Please speak a little louder.",
    "Who was here before me?",
    "That is not what I asked for.",
    "Hello robot.",
)
AT_A_COMMA = (
    "When you are done with that, | bring me the cup.",
    "If the door is open, | please close it.",
    "Before you leave the room, | turn off the light.",
    "Because it was raining, | we stayed at home.",
    "As soon as the coffee is ready, | tell me about it.",
    "After you have been to the kitchen, | come back to the sofa.",
    "If you see my brother, | say hello to him.",
    "When I was a child, | we had no robots.",
    "While you are waiting, | count the chairs.",
    "Once the table is clean, | put the plates on it.",
    "Unless it is raining, | open the window.",
    "The next time you see me, | remind me of the keys.",
)
IN_A_PHRASE = (
    "I would like you to go to | the kitchen.",
    "Could you please tell me | how far it is to the station?",
    "I was wondering whether | you could help me with this box.",
    "The thing that I am looking for | is small and round.",
    "My sister and | my brother will be here at eight.",
    "Do you know if | the other robot is still in the garden?",
    "Put the book on | the shelf next to the window.",
    "Can you show me | the way to the office?",
    "What is the name of | the woman in the picture?",
    "Please take the green | bottle from the table.",
    "How many people are | in the room next door?",
    "I need somebody who can | carry my suitcase.",
)
AFTER_UM = (
    "Can you look for um, | my blue bottle?",
    "I think we should um, | wait for my sister.",
    "Please bring me the um, | the red one.",
    "What is uh, | behind the sofa?",
    "Where did I put um, | my glasses?",
    "It is next to the uh, | the big plant.",
    "Could you um, | turn the music down?",
    "I wanted to ask you uh, | what time it is.",
    "Is there um, | any milk in the fridge?",
    "Go to the room with the um, | the piano.",
    "My favorite color is uh, | dark green.",
    "Tell me uh, | who is at the door.",
)
KINDS = {"whole": WHOLE, "at a comma": AT_A_COMMA, "in a phrase": IN_A_PHRASE, "after um": AFTER_UM}
SENTENCES = [(kind, text) for kind, texts in KINDS.items() for text in texts]

# People: sentences read aloud and commands of Debian's package pocketsphinx-testdata, with their transcripts.
AUSTEN = "librivox/sense_and_sensibility_01_austen_64kb-"
READ = {
    f"{AUSTEN}0870.wav": "and mister john dashwood | had then leisure | to consider how | much there might be | prudently in "
    "his | power to | do for them",
    f"{AUSTEN}0880.wav": "he was not an | ill disposed | young man",
    f"{AUSTEN}0890.wav": "unless to be | rather | cold hearted and | rather | selfish is | to be ill disposed",
    f"{AUSTEN}0920.wav": "had he married a | more a amiable | woman | he might have been | made still | more respectable than | "
    "he was",
    f"{AUSTEN}0930.wav": "he might | even have been made | amiable himself",
    "cards/001.wav": "ten of | clubs",
    "cards/002.wav": "four queen of | clubs",
    "cards/003.wav": "seven of | clubs",
    "cards/004.wav": "five five",
    "cards/005.wav": "eight of | spades four of | clubs seven of | hearts",
}
