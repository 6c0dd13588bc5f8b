"""What the model can say, and what people say to it."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
"""NUMBERS[n] is the word for n."""

REMINDERS = _words("breathe jump squat wave clap finish")
COLOURS = {
    "red": (215, 40, 40),
    "blue": (50, 80, 220),
    "yellow": (235, 210, 50),
    "orange": (240, 140, 30),
    "purple": (150, 60, 190),
}
REPLIES = _words("banana coffee music camera cat bird")
"""What the model answers to a cue."""

MOTION_WORDS = {"squats": "squat", "jumps": "jump", "waves": "wave", "claps": "clap"}
"""What it calls a motion."""

MARKS = ("start", "stop")

SPOKEN = tuple(
    dict.fromkeys((*NUMBERS[1:], *REMINDERS, *COLOURS, *REPLIES, *MOTION_WORDS.values(), *MARKS))
)
"""Every word that a task expects of the model. They were chosen by what the benchmark's recogniser
makes of them in the model's voice."""

CUES = _words("lemon paper window garden mirror doctor summer castle winter silver ticket planet")
"""What a listener can be told to listen for. The model never says these as an answer to a cue."""

SENTENCES = tuple(
    """the train was late again this morning
we walked along the old harbour
my sister is moving to another town
nobody told me about the meeting
there is a new bakery at the corner
the weather has been strange all week
he left his keys on the kitchen table
they are painting the house next door
i read a long letter from a friend
the children were playing in the yard
our neighbour bought a very small car
it took an hour to find the right road
she made soup for the whole family
the film was better than the book
we should call them in the evening
this bus never comes on time""".splitlines()
)
"""Talk that is meant for nobody in particular, with none of the words above that ask for something.
"""

BACKCHANNELS = ("mhm", "uh huh", "yeah", "right", "i see", "oh nice")
ASIDES = (
    "anna could you close the door",
    "martin dinner is almost ready",
    "can you pass me the salt anna",
    "martin have you seen my phone",
    "anna your friend is outside",
)
