"""Word problems of everyday life in two steps, answered by one call of the calculator.

"I have 3 boxes with 12 apples each and eat 5." is the call 3*12-5. A frame has a story, a question
and an answer around three numbers; its form says how they are computed. A fifth of the rows also
tell a number that does not matter. Training and held-out rows have different frames, no story and
no question in common. Canonical is the expression with its numbers in ascending order where they
commute, so a held-out problem is not one of training in other words; rows of the same three numbers
are a cluster. A row has also "result", the number, and "expression". Numbers are drawn until each
step gives a whole number of at least 1, and the last of at least 2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from agent_forge.data.calls import write_call, write_response
from agent_forge.data.synthetic import draw_rows

TASK = "word_problems"
ASIDE_SHARE = 0.2  # rows that tell a number too many
ASIDE = "a number too many"
Steps = Callable[[Fraction, Fraction, Fraction], tuple[Fraction, Fraction]]


@dataclass(frozen=True, slots=True)
class Form:
    """How three numbers are computed.

    steps: the results of both steps. most: the largest a, b and c; the least is 2. commuting:
    letters that may change places. same_as, order: the form that computes the same of the letters
    in that order; its letters commute, not these.
    """

    steps: Steps
    most: tuple[int, int, int]
    commuting: str = ""
    same_as: str = ""
    order: str = "abc"


FORMS = {
    "a+b+c": Form(lambda a, b, c: (a + b, a + b + c), (900, 900, 900), "abc"),
    "a+b-c": Form(lambda a, b, c: (a + b, a + b - c), (900, 900, 900), "ab"),
    "a-b+c": Form(lambda a, b, c: (a - b, a - b + c), (900, 600, 600), "", "a+b-c", "acb"),
    "a-b-c": Form(lambda a, b, c: (a - b, a - b - c), (900, 400, 400), "bc"),
    "a*b+c": Form(lambda a, b, c: (a * b, a * b + c), (12, 60, 90), "ab"),
    "a*b-c": Form(lambda a, b, c: (a * b, a * b - c), (12, 60, 90), "ab"),
    "a+b*c": Form(lambda a, b, c: (b * c, a + b * c), (300, 12, 30), "", "a*b+c", "bca"),
    "a-b*c": Form(lambda a, b, c: (b * c, a - b * c), (500, 12, 30), "bc"),
    "a*b*c": Form(lambda a, b, c: (a * b, a * b * c), (12, 12, 20), "abc"),
    "(a+b)*c": Form(lambda a, b, c: (a + b, (a + b) * c), (60, 60, 20), "ab"),
    "(a-b)*c": Form(lambda a, b, c: (a - b, (a - b) * c), (90, 60, 20)),
    "a*(b+c)": Form(lambda a, b, c: (b + c, a * (b + c)), (20, 60, 60), "", "(a+b)*c", "bca"),
    "(a+b)/c": Form(lambda a, b, c: (a + b, (a + b) / c), (90, 90, 12), "ab"),
    "(a-b)/c": Form(lambda a, b, c: (a - b, (a - b) / c), (200, 90, 12)),
    "a/b+c": Form(lambda a, b, c: (a / b, a / b + c), (240, 12, 60)),
    "a/b-c": Form(lambda a, b, c: (a / b, a / b - c), (360, 12, 30)),
    "a/b*c": Form(lambda a, b, c: (a / b, a / b * c), (200, 12, 20), "", "a*b/c", "acb"),
    "a*b/c": Form(lambda a, b, c: (a * b, a * b / c), (20, 30, 12), "ab"),
}


@dataclass(frozen=True, slots=True)
class Frame:
    """A problem with gaps for its numbers {a} {b} {c}, a {name} and {things}; answer has {n}."""

    form: str
    story: str
    question: str
    answer: str


FRAMES = (
    Frame("a+b+c", "{name} reads {a} pages on Monday, {b} on Tuesday and {c} on Wednesday.",
          "How many pages is that?", "That is {n} pages."),
    Frame("a+b+c", "The first bus carries {a} people, the second {b} and the third {c}.",
          "How many people travel by bus?", "{n} people travel by bus."),
    Frame("a+b-c", "{name} had {a} {things}, bought {b} more and sold {c}.",
          "How many {things} does {name} have now?", "{name} has {n} {things} now."),
    Frame("a+b-c", "My account holds {a} dollars. I put in {b} dollars and take out {c} dollars.",
          "How much is in the account?", "The account holds {n} dollars."),
    Frame("a+b-c", "A library owns {a} novels and {b} comics, and {c} of them are lent out.",
          "How many are on the shelves?", "{n} are on the shelves."),
    Frame("a-b+c", "{a} people are on a train. {b} get off and {c} get on.",
          "How many people are on the train now?", "There are {n} people on the train."),
    Frame("a-b+c", "There were {a} {things} in the store. {b} were sold, then {c} were delivered.",
          "How many {things} are in the store?", "There are {n} {things} in the store."),
    Frame("a-b-c", "{name} has {a} dollars and spends {b} dollars on shoes and {c} on a bag.",
          "How many dollars are left?", "{n} dollars are left."),
    Frame("a-b-c", "Out of {a} seats, {b} are taken and {c} are broken.",
          "How many seats can still be used?", "{n} seats can still be used."),
    Frame("a*b+c", "{name} fills {a} bags with {b} {things} each and has {c} {things} left over.",
          "How many {things} are there in all?", "There are {n} {things} in all."),
    Frame("a*b+c", "A ticket costs {b} dollars. We buy {a} tickets and pay a fee of {c} dollars.",
          "What do we pay?", "We pay {n} dollars."),
    Frame("a*b+c", "{name} runs {b} kilometres on each of {a} days, and {c} kilometres on Sunday.",
          "How far does {name} run?", "{name} runs {n} kilometres."),
    Frame("a*b-c", "{name} packs {a} crates of {b} {things}, but {c} {things} are broken.",
          "How many good {things} are there?", "There are {n} good {things}."),
    Frame("a*b-c", "We get {a} trays with {b} rolls on each. The guests take {c} rolls.",
          "How many rolls remain?", "{n} rolls remain."),
    Frame("a*b-c", "{name} earns {b} dollars an hour, works {a} hours, and pays {c} dollars of tax.",
          "What does {name} keep?", "{name} keeps {n} dollars."),
    Frame("a+b*c", "{name} has {a} {things} and gets {b} packets with {c} {things} in each.",
          "How many {things} does that make?", "That makes {n} {things}."),
    Frame("a+b*c", "The rent of a car is {a} dollars, and each of {b} days costs {c} dollars more.",
          "How much does the car cost?", "The car costs {n} dollars."),
    Frame("a-b*c", "There are {a} {things}. {b} children take {c} {things} each.",
          "How many {things} stay behind?", "{n} {things} stay behind."),
    Frame("a-b*c", "{name} has {a} dollars and buys {b} notebooks at {c} dollars each.",
          "How much money is left over?", "{n} dollars are left over."),
    Frame("a*b*c", "A house has {a} floors with {b} flats on each floor, and {c} windows per flat.",
          "How many windows does the house have?", "The house has {n} windows."),
    Frame("a*b*c", "{a} teams of {b} players need {c} bottles of water per player.",
          "How many bottles do they need?", "They need {n} bottles."),
    Frame("(a+b)*c", "A menu has {a} dollars for the meal and {b} for the drink. {c} people order it.",
          "What is the bill?", "The bill is {n} dollars."),
    Frame("(a+b)*c", "Every day {name} walks {a} minutes to work and {b} minutes home.",
          "How many minutes are that in {c} days?", "That is {n} minutes."),
    Frame("(a-b)*c", "A coat of {a} dollars is {b} dollars cheaper today, and {name} buys {c} of them.",
          "What does {name} pay?", "{name} pays {n} dollars."),
    Frame("(a-b)*c", "Each of {c} classes has {a} pupils, of whom {b} are ill.",
          "How many pupils are at school?", "{n} pupils are at school."),
    Frame("a*(b+c)", "{a} friends each bring {b} sandwiches and {c} cakes.",
          "How many things to eat are there?", "There are {n} things to eat."),
    Frame("a*(b+c)", "For {a} weeks {name} saves {b} dollars at home and {c} at work every week.",
          "How much does {name} save?", "{name} saves {n} dollars."),
    Frame("(a+b)/c", "{name} has {a} red {things} and {b} blue {things}, and fills {c} jars evenly.",
          "How many {things} go into each jar?", "{n} {things} go into each jar."),
    Frame("(a+b)/c", "We drove {a} miles and then {b} miles, which took {c} hours.",
          "How fast did we drive on average?", "We drove {n} miles per hour."),
    Frame("(a-b)/c", "A baker has {a} loaves, keeps {b}, and sends the rest to {c} shops in equal parts.",
          "How many loaves does a shop get?", "A shop gets {n} loaves."),
    Frame("(a-b)/c", "{name} owes {a} dollars, pays {b} now and the rest in {c} equal payments.",
          "How high is each payment?", "Each payment is {n} dollars."),
    Frame("a/b+c", "{a} {things} are shared fairly by {b} friends. {name}, one of them, had {c} before.",
          "How many {things} has {name} then?", "{name} has {n} {things} then."),
    Frame("a/b-c", "{name} cuts {a} metres of rope into {b} equal parts and takes {c} metres off one.",
          "How long is that part?", "That part is {n} metres long."),
    Frame("a/b*c", "{b} tickets cost {a} dollars.",
          "How many dollars do {c} tickets cost?", "They cost {n} dollars."),
    Frame("a/b*c", "A machine makes {a} {things} in {b} hours.",
          "How many {things} does it make in {c} hours?", "It makes {n} {things}."),
    Frame("a*b/c", "{a} bags of {b} {things} are divided equally among {c} people.",
          "How many {things} are there for each person?", "There are {n} {things} for each person."),
)  # fmt: skip
HELD_OUT_FRAMES = (
    Frame("a+b+c", "A farmer picks {a} baskets of plums, {b} of pears and {c} of cherries.",
          "How many baskets are full?", "{n} baskets are full."),
    Frame("a+b-c", "A museum sold {a} tickets before noon and {b} after it, and took back {c}.",
          "How many tickets were sold in the end?", "{n} tickets were sold."),
    Frame("a-b+c", "In the lake were {a} ducks. {b} flew away, and {c} others came.",
          "How many ducks swim there now?", "{n} ducks swim there now."),
    Frame("a-b-c", "A tank of {a} litres loses {b} litres in the morning and {c} at night.",
          "How many litres does it still hold?", "It still holds {n} litres."),
    Frame("a*b+c", "In the hall stand {a} rows of {b} chairs, and {c} more along the wall.",
          "How many guests can sit?", "{n} guests can sit."),
    Frame("a*b-c", "I have {a} boxes with {b} apples each and eat {c}.",
          "How many apples do I have?", "You have {n} apples."),
    Frame("a+b*c", "On the table are {a} plates, and {name} brings {b} piles of {c} plates.",
          "How many plates are on the table?", "There are {n} plates on the table."),
    Frame("a-b*c", "From a roll of {a} inches {name} makes {b} ribbons of {c} inches.",
          "How many inches of the roll are unused?", "{n} inches are unused."),
    Frame("a*b*c", "A clerk writes {a} letters an hour for {b} hours a day.",
          "How many letters has the clerk written after {c} days?", "{n} letters."),
    Frame("(a+b)*c", "One parcel holds {a} forks and {b} spoons, and the hotel orders {c} parcels.",
          "How many pieces of cutlery arrive?", "{n} pieces arrive."),
    Frame("(a-b)*c", "A hen lays {a} eggs a month, of which {b} break.",
          "How many whole eggs do {c} such hens give?", "They give {n} whole eggs."),
    Frame("a*(b+c)", "{a} cyclists ride {b} miles up the valley and {c} miles back by another road.",
          "How many miles do they ride together?", "Together they ride {n} miles."),
    Frame("(a+b)/c", "{name} mixes {a} cups of juice with {b} cups of water for {c} guests alike.",
          "How many cups does a guest drink?", "A guest drinks {n} cups."),
    Frame("(a-b)/c", "Of {a} bricks {b} are cracked, and the others make {c} walls of one size.",
          "How many bricks are in a wall?", "{n} bricks are in a wall."),
    Frame("a/b+c", "{b} sisters inherit {a} coins in equal parts, and the eldest finds {c} more.",
          "How many coins does the eldest own?", "The eldest owns {n} coins."),
    Frame("a/b-c", "{a} stamps fill {b} albums evenly, and {name} tears {c} stamps out of one album.",
          "How many stamps are left in that album?", "{n} stamps are left in it."),
    Frame("a/b*c", "A recipe for {b} people takes {a} grams of flour.",
          "How many grams does it take for {c} people?", "It takes {n} grams."),
    Frame("a*b/c", "{a} painters each bring {b} brushes and lay them into {c} drawers, as many in each.",
          "How many brushes lie in one drawer?", "{n} brushes lie in one drawer."),
)  # fmt: skip
ASIDES = (
    "{other} is {d} years old.", "It is {d} degrees outside.", "{other} lives at number {d}.",
    "The radio has played {d} songs.", "We are {d} miles from the sea.",
)  # fmt: skip
HELD_OUT_ASIDES = (
    "{other} has a sister of {d}.", "The film lasts {d} minutes.", "On the roof sit {d} birds.",
)  # fmt: skip
NAMES = (
    "Ann", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jack", "Kim", "Lena",
    "Max", "Nora", "Oscar", "Paula",
)  # fmt: skip
THINGS = (
    "apples", "books", "buttons", "candles", "cards", "coins", "cups", "eggs", "lemons", "marbles",
    "pens", "roses", "shells", "stamps", "stickers", "toys",
)  # fmt: skip


def rows(count: int, split: str, seed: int) -> list[dict[str, Any]]:
    """Return `count` rows of `split`, frames mixed evenly."""
    held_out = split != "train"
    frames = HELD_OUT_FRAMES if held_out else FRAMES
    asides = HELD_OUT_ASIDES if held_out else ASIDES

    def make(generator: np.random.Generator) -> tuple[str, dict[str, Any]]:
        frame = frames[int(generator.integers(len(frames)))]
        numbers, result = _drawn(generator, FORMS[frame.form])
        aside = ""
        if generator.random() < ASIDE_SHARE:
            aside = asides[int(generator.integers(len(asides)))]
        row = _row(generator, frame, numbers, result, aside)
        clusters = f"{TASK}/{sorted(numbers)}"
        return canonical(frame.form, numbers), {**row, "cluster": clusters}

    return draw_rows(TASK, count, split, seed, make)


def canonical(form: str, numbers: Sequence[int]) -> str:
    """Return what a form asks of (a, b, c): equal for two problems that are the same sum."""
    values = dict(zip("abc", numbers, strict=True))
    base = FORMS[form].same_as or form
    values = {letter: values[old] for letter, old in zip("abc", FORMS[form].order, strict=True)}
    commuting = FORMS[base].commuting
    values |= zip(commuting, sorted(values[letter] for letter in commuting), strict=True)
    return _filled(base, values)


def kind_of(form: str) -> str:
    """Return the kind under which a form's problems are counted."""
    if "(" in form:
        return "brackets"
    if "/" in form:
        return "divide"
    return "multiply" if "*" in form else "add and subtract"


def _drawn(generator: np.random.Generator, form: Form) -> tuple[tuple[int, int, int], int]:
    """Return numbers of which both steps give whole numbers above 0, and the result."""
    while True:
        a, b, c = (int(generator.integers(2, most + 1)) for most in form.most)
        first, last = form.steps(Fraction(a), Fraction(b), Fraction(c))
        if first.denominator == last.denominator == 1 and first >= 1 and last >= 2:
            return (a, b, c), int(last)


def _row(
    generator: np.random.Generator,
    frame: Frame,
    numbers: tuple[int, int, int],
    result: int,
    aside: str,
) -> dict[str, Any]:
    """Return a row of a frame with its numbers; aside: a sentence around a number too many."""
    values = dict(zip("abc", numbers, strict=True))
    name, other = (NAMES[i] for i in generator.permutation(len(NAMES))[:2])
    words = {"name": name, "things": THINGS[int(generator.integers(len(THINGS)))], **values}
    story, question = frame.story.format(**words), frame.question.format(**words)
    parts = [story, question]
    if aside:
        taken = {*numbers, result}
        unused = [number for number in range(2, 60) if number not in taken]
        number = unused[int(generator.integers(len(unused)))]
        parts.insert(int(generator.integers(2)), aside.format(other=other, d=number))
    expression = _filled(frame.form, values)
    answer = frame.answer.format(n=result, **words)
    messages = [
        {"role": "user", "content": " ".join(parts)},
        {"role": "assistant", "content": write_call("calculator", {"expression": expression})},
        {"role": "tool", "content": write_response(str(result))},
        {"role": "assistant", "content": answer},
    ]
    return {
        "messages": messages, "answer": answer, "result": str(result), "expression": expression,
        "difficulty": 2, "tool": "calculator", "kind": ASIDE if aside else kind_of(frame.form),
    }  # fmt: skip


def _filled(form: str, values: dict[str, int]) -> str:
    """Return a form with numbers for its letters."""
    return "".join(str(values.get(sign, sign)) for sign in form)
