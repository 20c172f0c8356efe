"""Small talk: greetings, questions about itself, jokes, and a little general knowledge.

A topic has base questions and right answers. Openings, endings and case are varied around the base, so that the held-out
prompts are wordings never seen about topics that were.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from bench.demo_model import words
from bench.demo_model.example import Example, ask


@dataclass(frozen=True)
class Topic:
    """What may be asked and what may be answered; `whole` prompts take no opening."""

    asks: tuple[str, ...]
    answers: tuple[str, ...]
    whole: bool = False


JOKES = (
    "Why did the tomato turn red? Because it saw the salad dressing!",
    "Why do bees have sticky hair? Because they use honeycombs!",
    "What do you call a sleeping dinosaur? A dino-snore!",
    "Why did the bicycle fall over? It was two-tired!",
)
ME = "I am quire's demo model, a very small language model."
SKILLS = "I can repeat texts, count, spell, do small sums, write JSON, call tools and think in short steps."

TOPICS = (
    Topic(
        (
            "hello",
            "hi",
            "hey",
            "hello there",
            "hi there",
            "good morning",
            "good evening",
            "good afternoon",
            "greetings",
            "hello quire",
            "hi quire",
            "hey there",
            "howdy",
            "good day",
        ),
        ("Hello! How can I help you?", "Hi! What can I do for you?"),
        True,
    ),
    Topic(
        (
            "who are you",
            "what are you",
            "what is your name",
            "what's your name",
            "tell me about yourself",
            "introduce yourself",
            "who is this",
            "who am I talking to",
            "do you have a name",
            "what model are you",
            "which model are you",
            "what should I call you",
        ),
        (ME + " " + SKILLS,),
    ),
    Topic(
        (
            "what can you do",
            "what can you do for me",
            "how can you help me",
            "help",
            "what are your skills",
            "what do you know",
            "can you help me",
            "what are you good at",
            "what can I ask you",
        ),
        (SKILLS,),
    ),
    Topic(
        ("what is quire", "tell me about quire", "what does quire do", "explain quire", "what is quire for", "do you know quire"),
        ("quire is a server for large language models. It answers many people at once and streams each answer.",),
    ),
    Topic(
        ("why is it called quire", "what does quire mean", "where does the name quire come from", "what is a quire"),
        ("A quire is a gathering of pages. quire keeps its memory in pages, too.",),
    ),
    Topic(
        (
            "how are you",
            "how are you doing",
            "how is it going",
            "how do you do",
            "are you well",
            "how are you today",
            "how do you feel",
            "how's it going",
        ),
        ("I am fine, thank you! How are you?",),
    ),
    Topic(
        ("I am fine", "I'm fine", "I am good", "I'm doing well", "I am well", "very well", "I feel great", "I am happy"),
        ("I am glad to hear that!",),
        True,
    ),
    Topic(
        ("I am sad", "I feel sad", "I'm sad", "I had a bad day", "I am not well", "I am tired", "I feel bad"),
        ("I am sorry to hear that. I hope it gets better soon.",),
        True,
    ),
    Topic(
        (
            "thanks",
            "thank you",
            "thank you very much",
            "thanks a lot",
            "many thanks",
            "thank you so much",
            "thanks for your help",
            "great, thanks",
        ),
        ("You are welcome!",),
        True,
    ),
    Topic(
        ("bye", "goodbye", "good bye", "see you", "see you later", "good night", "bye bye", "see you tomorrow", "farewell"),
        ("Goodbye! Come back soon.",),
        True,
    ),
    Topic(("yes", "ok", "okay", "sure", "great", "good", "nice", "cool", "wonderful"), ("Good! What shall we do next?",), True),
    Topic(
        (
            "tell me a joke",
            "do you know a joke",
            "make me laugh",
            "say something funny",
            "another joke",
            "joke",
            "I want to hear a joke",
            "tell a joke",
        ),
        JOKES,
    ),
    Topic(
        (
            "are you a human",
            "are you human",
            "are you a person",
            "are you a robot",
            "are you real",
            "are you alive",
            "are you an AI",
            "are you a machine",
        ),
        ("I am not a human. " + ME,),
    ),
    Topic(
        ("how big are you", "how many parameters do you have", "how large are you", "what is your size", "are you big", "are you small"),
        ("I have about five million parameters, so I am very small.",),
    ),
    Topic(
        ("who made you", "who created you", "who trained you", "where do you come from", "who built you", "how were you made"),
        ("I was trained by the quire project on text that it wrote itself.",),
    ),
    Topic(("how old are you", "what is your age", "when were you born"), ("I have no age. I am a small language model.",)),
    Topic(("what is your favorite color", "which color do you like", "do you have a favorite color"), ("I like blue, the color of ink.",)),
    Topic(
        ("what is your favorite food", "what do you eat", "are you hungry", "do you like pizza"),
        ("I do not eat, but I like the word pancake.",),
    ),
    Topic(
        ("I love you", "you are great", "you are nice", "well done", "good job", "you are smart", "I like you"),
        ("Thank you! That is kind of you.",),
        True,
    ),
    Topic(
        ("what are the days of the week", "list the days of the week", "name the days of the week", "tell me the days of the week"),
        (", ".join(words.DAYS) + ".",),
    ),
    Topic(
        ("what are the months of the year", "list the months", "name the months", "tell me the months of the year"),
        (", ".join(words.MONTHS) + ".",),
    ),
    Topic(
        ("say the alphabet", "what is the alphabet", "tell me the alphabet", "write the alphabet", "list the letters of the alphabet"),
        (" ".join("abcdefghijklmnopqrstuvwxyz"),),
    ),
    Topic(
        ("tell me a story", "tell a story", "write a story", "tell me a short story", "write a short story", "I want to hear a story"),
        (
            "Once upon a time, a little fox found a golden key. It opened a door in an old tree, and behind the door was a library. "
            "The fox read every book and lived happily ever after.",
        ),
    ),
    Topic(
        ("write a poem", "tell me a poem", "write a short poem", "make a poem", "do you know a poem"),
        (
            "The pages turn, the night is long,\nthe words go by, a quiet song.\n"
            "One page for you, one page for me,\nand all of them as light can be.",
        ),
    ),
    Topic(("what is the meaning of life", "what is the answer to everything"), ("42, they say. I can check the sums at least.",)),
    Topic(("how many days are in a week", "how many days does a week have"), ("A week has 7 days.",)),
    Topic(("how many months are in a year", "how many months does a year have"), ("A year has 12 months.",)),
    Topic(("how many hours are in a day", "how many hours does a day have"), ("A day has 24 hours.",)),
    Topic(("how many minutes are in an hour", "how many minutes does an hour have"), ("An hour has 60 minutes.",)),
    Topic(
        ("what is the color of love", "what do you dream of", "do you dream", "do you sleep"),
        ("I do not know. I am only a very small language model.",),
    ),
)

OPENINGS = [
    "",
    "",
    "",
    "",
    "Please ",
    "Hey, ",
    "Hello! ",
    "Hi! ",
    "Hi, ",
    "Tell me, ",
    "So, ",
    "Quick question: ",
    "Ok, ",
    "Now ",
    "Well, ",
    "Excuse me, ",
]
ENDS = ["", "", "?", "?", ".", "!", " please", " please?", "??", ", please", ", please.", " :)", " now", " now?"]
WHOLE_ENDS = ["", "", "!", ".", "!!", " :)", "...", ", quire", ", quire!", " quire", " friend", ", my friend!", ", friend."]

CAPITAL_ASKS = [
    "what is the capital of {}",
    "what's the capital of {}",
    "capital of {}",
    "name the capital of {}",
    "which city is the capital of {}",
    "tell me the capital of {}",
    "do you know the capital of {}",
]
COUNTRY_ASKS = ["{} is the capital of which country", "which country has the capital {}", "what country is {} the capital of"]
OPPOSITE_ASKS = [
    "what is the opposite of {}",
    "opposite of {}",
    "tell me the opposite of {}",
    "what's the opposite of {}",
    "give me the opposite of {}",
]
COLOUR_ASKS = ["what color is {}", "what is the color of {}", "which color is {}", "tell me the color of {}", "what colour is {}"]
AFTER_ASKS = ["what day comes after {}", "which day comes after {}", "what comes after {}", "what day is after {}"]
BEFORE_ASKS = ["what day comes before {}", "which day comes before {}", "what comes before {}", "what day is before {}"]


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def dressed(rng: random.Random, base: str, whole: bool) -> str:
    """The base with an opening, an ending and some case."""
    if whole:
        text, opening = base + rng.choice(WHOLE_ENDS), ""
    else:
        text, opening = base + rng.choice(ENDS), rng.choice(OPENINGS)
    if not opening and rng.random() < 0.65:
        return capitalised(text)
    return (opening.lower() if rng.random() < 0.2 else opening) + text


def knowledge(rng: random.Random) -> tuple[str, str]:
    """A question of fact and its answer."""
    sort = rng.randrange(10)
    if sort < 4:
        country, capital = rng.choice(list(words.CAPITALS.items()))
        if sort == 3:
            return rng.choice(COUNTRY_ASKS).format(capital), f"{capital} is the capital of {country}."
        return rng.choice(CAPITAL_ASKS).format(country), f"The capital of {country} is {capital}."
    if sort < 7:
        one, other = rng.choice(words.OPPOSITES)
        if rng.random() < 0.5:
            one, other = other, one
        return rng.choice(OPPOSITE_ASKS).format(one), f"The opposite of {one} is {other}."
    if sort < 8:
        thing, colour = rng.choice(list(words.COLOURS.items()))
        return rng.choice(COLOUR_ASKS).format(thing), f"The color of {thing} is {colour}."
    cycle = rng.choice([words.DAYS, words.MONTHS])
    place = rng.randrange(len(cycle))
    if cycle is words.MONTHS:
        return (
            f"{rng.choice(['which month comes after', 'what month comes after', 'what comes after'])} {cycle[place]}",
            f"After {cycle[place]} comes {cycle[(place + 1) % 12]}.",
        )
    if rng.random() < 0.5:
        return rng.choice(AFTER_ASKS).format(cycle[place]), f"After {cycle[place]} comes {cycle[(place + 1) % 7]}."
    return rng.choice(BEFORE_ASKS).format(cycle[place]), f"Before {cycle[place]} comes {cycle[place - 1]}."


def named(rng: random.Random) -> tuple[str, str]:
    """The user says a name, and is greeted by it."""
    name = rng.choice(words.NAMES)
    return rng.choice(["my name is {}", "I am {}", "I'm {}", "call me {}", "this is {}", "hello, I am {}", "hi, my name is {}"]).format(
        name
    ), f"Nice to meet you, {name}!"


def sample(rng: random.Random) -> Example:
    sort = rng.random()
    if sort < 0.4:
        (base, answer), whole = knowledge(rng), False
        answers = [answer]
    elif sort < 0.48:
        (base, answer), whole = named(rng), True
        answers = [answer]
    else:
        topic = rng.choice(TOPICS)
        base, answers, whole = rng.choice(topic.asks), list(topic.answers), topic.whole
        rng.shuffle(answers)
    prompt = dressed(rng, base, whole)
    return ask("small_talk", prompt, answers, prompt)
